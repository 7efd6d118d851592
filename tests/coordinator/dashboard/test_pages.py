"""The pages say what `locum show`, `runs` and `compare` say; to nobody who is not let in, and nothing as markup."""

import html
import json
import re

import pytest
from starlette.testclient import TestClient

from coordinator.dashboard.documents import StopEntry
from coordinator.dashboard.sentences import in_a_sentence
from coordinator.listing import listed
from coordinator.metrics import DEFINITIONS
from coordinator.report import plain_words
from tests.conftest import Desk
from tests.coordinator.dashboard.conftest import BASE, HOSTILE, TOKEN, Asking, Made, asking, service_desk
from tests.coordinator.serving import locum

PAGES = ["/", "/sites", "/compare", "/parts/runs", "/parts/sites"]
OF_A_RUN = ["", "/parts/now", "/parts/scores", "/parts/stops", "/parts/events", "/scores.csv"]


def cells(page: str, table: str) -> list[list[str]]:
    """The text of a table's cells."""
    found = re.search(rf'<table[^>]*id="{table}".*?</table>', page, re.S)
    assert found
    rows = re.findall(r"<tr>(.*?)</tr>", found[0], re.S)
    cell = re.compile(r"<t[hd][^>]*>(.*?)</t[hd]>", re.S)
    return [
        [" ".join(html.unescape(re.sub(r"<[^>]*>", " ", one)).split()) for one in cell.findall(row)] for row in rows
    ]


def test_the_list_is_that_of_locum_runs(made: Made, looking: Asking) -> None:
    rows = json.loads(locum("runs", "--json", f"--home={made.home.folder}").out)["runs"]
    assert looking.client.get("/api/runs").json() == {"runs": rows, "total": 4}
    page = looking.text("/")
    assert [row["run"] for row in rows] == re.findall(r'name="run" value="([^"]+)"', page)
    assert looking.client.get("/api/runs?first=1&most=2").json()["runs"] == rows[1:3]


def test_runs_are_chosen_by_scenario_and_status(made: Made, looking: Asking) -> None:
    assert made.finetune in looking.text("/?scenario=tiny&status=done")
    for query in ("scenario=other", "status=failed", "status=running", "status=interrupted"):
        assert made.finetune not in looking.text(f"/?{query}")
        assert looking.client.get(f"/api/runs?{query}").json()["total"] == 0
    with made.home.store().transaction() as session:
        from coordinator.store import Run

        session.get_one(Run, made.smaller).status = "running"
    try:  # no process carries it out
        assert looking.client.get("/api/runs?status=interrupted").json()["total"] == 1
        assert looking.client.get("/api/runs?status=running").json()["total"] == 0
        assert "interrupted" in looking.text(f"/runs/{made.smaller}")
    finally:
        with made.home.store().transaction() as session:
            session.get_one(Run, made.smaller).status = "done"


@pytest.mark.parametrize("which", ["finetune", "joint"])
def test_a_run_is_told_of_as_by_locum_show(made: Made, looking: Asking, which: str) -> None:
    run = getattr(made, which)
    document = json.loads(locum("show", run, "--json", f"--home={made.home.folder}").out)
    assert looking.client.get(f"/api/runs/{run}").json() == document
    summary, page = made.desk.summary(run), looking.text(f"/runs/{run}")
    for sentence in plain_words(summary):
        assert sentence in html.unescape(page)
    for score, digits in (("dsc", 3), ("asd", 2)):
        header, *rows = cells(page, f"matrix-{score}")
        assert header[1:] == ["north", "east", "south", "island (unseen)"]
        assert [row[1:] for row in rows] == [
            [f"{value:.{digits}f}" for value in row] for row in summary.matrix(score).tolist()
        ]
    for definition in DEFINITIONS.values():
        assert definition.text in html.unescape(page)
    told = [StopEntry(**stop) for stop in looking.client.get(f"/api/runs/{run}/stops").json()["stops"]]
    assert [(stop.artifact, stop.status) for stop in told] == [
        (row.artifact, row.status) for row in made.desk.row(run).stops
    ]
    for stop in told:
        assert stop.artifact
        assert stop.artifact in page
        assert stop.bytes == len(made.desk.vault.get(stop.artifact))


def test_a_window_of_the_matrix_is_a_part_of_it(made: Made, looking: Asking) -> None:
    matrix = made.desk.summary(made.finetune).document()["matrix"]["asd"]
    part = looking.client.get(f"/api/runs/{made.finetune}/matrix?score=asd&row=1&column=2&rows=1&columns=9").json()
    assert [row["values"] for row in part["rows"]] == [matrix[1][2:]]
    assert (part["columns"], part["unseen"], part["rows"][0]["visit"]) == (["south", "island"], ["island"], 2)
    beyond = looking.client.get(f"/api/runs/{made.finetune}/matrix?row=999&column=999").json()
    assert (beyond["rows"], beyond["columns"], beyond["total_rows"]) == ([], [], 3)
    assert "3. south" not in looking.text(f"/runs/{made.finetune}/parts/scores?row=0&column=3").partition("<tbody")[0]


def test_curves_and_traffic_are_those_of_the_run(made: Made, looking: Asking) -> None:
    summary = made.desk.summary(made.finetune)
    chart = looking.client.get(f"/api/runs/{made.finetune}/curves").json()
    assert [line["label"] for line in chart["series"]] == ["north", "east", "south", "island (unseen)"]
    assert chart["values"] == [[1.0, 2.0, 3.0], *summary.matrix("dsc").T.tolist()]
    traffic = looking.client.get(f"/api/runs/{made.finetune}/traffic").json()["traffic"]
    assert sum(row["sent"] + row["received"] for row in traffic) == summary.traffic_bytes


def test_runs_are_compared_as_by_locum_compare(made: Made, looking: Asking) -> None:
    names = [made.finetune, made.again, made.joint]
    home = f"--home={made.home.folder}"
    for table in ("overview", "ms-er"):
        document = json.loads(locum("compare", *names, home, "--json", f"--table={table}").out)
        query = "&".join([*(f"run={name}" for name in names), f"table={table}"])
        assert looking.client.get(f"/api/comparison?{query}").json() == document
        page = looking.text(f"/compare?{query}")
        for method in document["methods"]:
            assert method["label"] in page
    line = looking.client.get(f"/compare.csv?{query}").text.splitlines()[0]
    assert line == "method,seeds,score,kind,column,mean,sd,n"
    refused = looking.text("/compare?scenario=tiny", status=409)  # one is over other sites
    assert "have different unseen sites" in refused


def test_files_are_for_keeping(made: Made, looking: Asking) -> None:
    report = looking.client.get(f"/runs/{made.finetune}/report.html")
    assert report.headers["content-disposition"] == f'attachment; filename="{made.finetune}.html"'
    assert "Score matrix" in report.text
    assert "Samples from synthetic sites" not in report.text  # no image of any kind
    table = looking.client.get(f"/runs/{made.finetune}/scores.csv")
    locum("report", made.finetune, f"--home={made.home.folder}")
    assert table.text.replace("\r\n", "\n") == ((made.home.report(made.finetune) / "scores.csv").read_text())


def test_a_home_without_runs_is_shown_and_not_made(desk: Desk) -> None:
    empty = asking(desk.home, token=None)
    for path in PAGES:
        empty.text(path)
    assert empty.client.get("/api/runs").json() == {"runs": [], "total": 0}
    assert not desk.home.folder.exists()


# Who is let in, and what is refused


def test_nothing_is_shown_to_strangers(made: Made, looking: Asking) -> None:
    stranger = TestClient(looking.app, base_url=BASE, follow_redirects=False)
    for path in [*PAGES, *(f"/runs/{made.finetune}{part}" for part in OF_A_RUN), "/compare.csv?run=x"]:
        answer = stranger.get(path, headers={"accept": "text/html"})
        assert answer.status_code == 303
        assert answer.headers["location"].startswith("/sign-in")
    for route in looking.client.get("/api/openapi.json").json()["paths"]:
        assert stranger.get(route.replace("{run}", made.finetune)).status_code == 401
    for action in (f"/runs/{made.finetune}/cancel", "/schedule"):
        assert stranger.post(action, data={"confirm": "yes"}).status_code == 401
    shown = TestClient(looking.app, base_url=BASE, headers={"authorization": f"Bearer {TOKEN}"})
    assert shown.get("/api/runs").status_code == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/runs/no-such-run", 404), ("/api/runs/no-such-run/events", 404), ("/runs/..%2f..%2fetc%2fpasswd", 404),
        ("/runs/%00", 422), ("/runs/" + "x" * 200, 422), ("/?page=0", 422), ("/?page=x", 422), ("/?status=odd", 422),
        ("/?scenario=%3Cscript%3E", 422), ("/api/runs?most=100000", 422), ("/api/runs?first=-1", 422),
        ("/api/comparison", 422), ("/api/comparison?run=no-such-run", 404), ("/compare?run=%00", 422),
        ("/api/runs/no-such-run/matrix?score=hd", 422), ("/?scenario=" + "a" * 5000, 414),
    ],
)  # fmt: skip
def test_malformed_requests_are_refused(looking: Asking, path: str, status: int) -> None:
    assert looking.client.get(path).status_code == status


def test_over_a_home_nothing_can_be_changed(made: Made, looking: Asking) -> None:
    for path in (f"/runs/{made.finetune}/cancel", f"/runs/{made.finetune}/skip", "/schedule"):
        assert "only shows what is in a home folder" in looking.text(path, status=404)
        assert looking.post(path, confirm="yes", asked_by="x")[0] == 404
    assert "/schedule" not in looking.text("/")


def test_hostile_texts_are_text(hostile: Asking) -> None:
    for path in [*PAGES, *(f"/runs/hostile-1{part}" for part in OF_A_RUN), "/runs/hostile-1/skip", "/?status=failed"]:
        page = hostile.text(path)
        if path.endswith(".csv"):
            continue
        assert "<img" not in page
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e]", page), path
        assert not re.search(r"[\"']&\u202e", page)
    page = hostile.text("/runs/hostile-1")
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert len(page) < 60_000  # long texts are cut
    for path in ("stops", "events", "traffic", "curves", "matrix"):
        assert hostile.client.get(f"/api/runs/hostile-1/{path}").headers["content-type"] == "application/json"


def test_every_event_of_the_service_has_a_sentence() -> None:
    from protos.locum.v1 import control_pb2

    for kind in control_pb2.Event.DESCRIPTOR.oneofs_by_name["what"].fields:
        fields = {field.name: field.default_value for field in kind.message_type.fields}
        sentence = in_a_sentence(kind.name, fields)
        assert sentence.endswith(".") or kind.name in ("said", "failed")
        assert in_a_sentence(kind.name, {}) or kind.name in ("said", "failed")


def test_a_service_shows_its_sites_as_unreachable_without_its_superlink(desk: Desk, made: Made) -> None:
    alone = asking(desk.home, service_desk(desk.home))
    assert "SuperLink does not answer" in alone.text("/sites")
    assert alone.client.get("/api/sites").status_code == 503
    assert HOSTILE not in alone.text("/")
    assert listed(desk.home) == []

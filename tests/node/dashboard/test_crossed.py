"""What crossed, and what happened: the ledger's entries, in words, filtered, paged, opened, exported."""

import csv
import io
import re
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from starlette.testclient import TestClient

from node.dashboard.entries import Filter
from node.dashboard.reading import NoNode, open_reader
from node.dashboard.sentences import happenings
from node.database import open_database
from node.ledger import NOT_PASSED, Crossing, Direction, Entry, Ledger, Verdict, carries
from protos.handover import Kind
from tests.conftest import Desk
from tests.node.dashboard.houses import HOSTILE, REFUSED, Opened


@pytest.fixture(scope="module")
def asked(opened: Opened) -> TestClient:
    return opened.client()


def ledger(asked: TestClient, **chosen: object) -> list[dict[str, object]]:
    answer = asked.get("/api/ledger", params=chosen)  # type: ignore[arg-type]
    assert answer.status_code == 200, answer.text
    found: list[dict[str, object]] = answer.json()["entries"]
    return found


def test_everything_that_crossed_is_there_once(asked: TestClient, lived_in: Path) -> None:
    kept = list(Ledger(open_database(lived_in)).entries())
    seen, before = [], None
    while True:
        page = asked.get("/api/ledger", params={"limit": 7} | ({} if before is None else {"before": before})).json()
        seen += [entry["seq"] for entry in page["entries"]]
        before = page["older"]
        if before is None:
            break
    assert seen == [entry.seq for entry in reversed(kept)]
    assert page["total"] == len(kept)


def test_entries_are_chosen_by_way_kind_run_and_verdict(asked: TestClient) -> None:
    everything = ledger(asked, limit=500)
    for chosen, wanted in (
        ({"way": "out"}, lambda e: e["direction"] == "out"),
        ({"kind": "generator"}, lambda e: "generator" in e["kind_bytes"]),
        ({"kind": "importance", "way": "out"}, lambda e: "importance" in e["kind_bytes"]),
        ({"run": "r"}, lambda e: e["run"] == "r"),
        ({"refused": True}, lambda e: e["verdict"] in ("refused", "failed")),
        ({"refused": True, "way": "in"}, lambda e: e["verdict"] == "refused"),
    ):
        form = {"way": "", "kind": "", "run": ""} | chosen  # as the page's form sends it
        assert asked.get("/crossed", params=form).status_code == 200
        expected = [entry["seq"] for entry in everything if wanted(entry)]
        assert expected, chosen
        assert [entry["seq"] for entry in ledger(asked, limit=500, **chosen)] == expected


def test_each_choice_is_read_from_an_index(lived_in: Path) -> None:
    with open_database(lived_in).connect() as connection:
        for chosen in (Filter("here"), Filter(kind=Kind.PROMPTS), Filter(refused=True), Filter(run="r")):
            query = chosen.of(select(Entry.seq)).order_by(Entry.seq.desc()).limit(50)
            compiled = str(query.compile(compile_kwargs={"literal_binds": True}))
            plan = " ".join(row[-1] for row in connection.execute(text(f"EXPLAIN QUERY PLAN {compiled}")))
            assert "USING" in plan, plan
            assert "INDEX ledger_" in plan, plan
    assert "'$.weights'" in carries(Kind.WEIGHTS)
    assert "refused" in NOT_PASSED


def test_an_entry_opens_to_its_tensors(asked: TestClient) -> None:
    entry = asked.get(f"/api/ledger/{ledger(asked)[0]['seq']}").json()
    assert [(tensor["kind"], tensor["shape"], tensor["dtype"], tensor["bytes"]) for tensor in entry["tensors"]] == [
        ("weights", [8], "uint8", 8),
        ("importance", [4], "uint8", 4),
    ]
    assert all(re.fullmatch("[0-9a-f]{64}", tensor["sha256"]) for tensor in entry["tensors"])
    assert re.fullmatch("[0-9a-f]{64}", entry["manifest_digest"])
    page = asked.get(f"/crossed/{entry['seq']}").text
    for tensor in entry["tensors"]:
        assert tensor["sha256"] in page


@pytest.mark.parametrize("place", ["0", "-1", "99999999", "9" * 30, "1e3", "..%2f..%2fetc", "%00"])
def test_there_are_no_other_entries(asked: TestClient, place: str) -> None:
    for path in (f"/api/ledger/{place}", f"/crossed/{place}"):
        assert asked.get(path).status_code in (404, 422)


@pytest.mark.parametrize(
    "chosen",
    ["way=up", "kind=images", "before=-1", "before=x", "limit=0", "limit=501", f"before={2**63}", "run=" + "x" * 81],
)
def test_wrong_choices_are_refused(asked: TestClient, chosen: str) -> None:
    answer = asked.get(f"/api/ledger?{chosen}")
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(chosen.split("=", maxsplit=1)[0])


def test_hostile_texts_are_texts_on_every_page(asked: TestClient) -> None:
    refused = ledger(asked, refused=True)[-1]
    for path in ("/", "/crossed", "/crossed?refused=true", f"/crossed/{refused['seq']}", "/now/happened"):
        page = asked.get(path).text
        assert "<img" not in page
        assert "49" not in re.findall(r"&amp;(\d+)", page)
        assert not set(page) & {"\u202e", "\x07", "\x1b"}
        assert "&lt;img src=x onerror=alert(1)&gt;" in page


def test_what_did_not_pass_stands_out(asked: TestClient) -> None:
    page = asked.get("/crossed").text
    assert page.count('<tr class="bad">') == 2
    assert '<span class="badge bad">refused MESSAGE_TYPE</span>' in page


def test_exports_hold_all_entries_and_no_formula(asked: TestClient) -> None:
    count = asked.get("/api/ledger").json()["total"]
    answer = asked.get("/crossed.csv")
    assert answer.headers["content-disposition"] == 'attachment; filename="ledger.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert len(rows) == count
    for row in rows:
        assert not any(str(value).lstrip().startswith(tuple("=+-@|")) for value in row.values())
    assert rows[-2]["detail"] == "'=cmd|' /C calc'!A0"
    assert rows[-1]["weights_bytes"] == "1900000"
    document = asked.get("/crossed.json").json()
    assert [entry["seq"] for entry in document] == list(range(1, count + 1))
    assert document[-3]["detail"] == REFUSED
    assert len(asked.get("/crossed.json?refused=true&run=r").json()) == 1
    assert asked.get("/crossed.xml").status_code == 422


def test_bytes_are_summed_per_kind_and_way_and_go_on(after_a_run: Desk, tmp_path: Path) -> None:
    from tests.node.dashboard.houses import copy_of

    opened = Opened.of(copy_of(after_a_run.home.folder / "nodes" / "north", tmp_path / "north"))
    asked = opened.client()

    def sums() -> dict[str, float]:
        chart = asked.get("/api/ledger/traffic").json()
        values = chart["values"]
        assert values[0] == sorted(values[0])
        rows = zip(chart["series"], values[1:], strict=True)
        return {series["label"]: sum(value or 0 for value in row) for series, row in rows}

    def expected() -> dict[str, float]:
        found: dict[str, float] = {}
        for entry in ledger(asked, limit=500):
            for kind, count in entry["kind_bytes"].items():  # type: ignore[attr-defined]
                label = f"{kind} {entry['direction']}"
                found[label] = found.get(label, 0) + count
        return found

    assert sums() == expected()
    assert {"weights in", "weights out", "generator out", "prompts in"} <= sums().keys()
    Ledger(open_database(opened.home)).record(
        Crossing(
            Direction.OUT, "north", "train.visit", Verdict.ALLOWED, run="r", stop=0, kind_bytes={Kind.IMPORTANCE: 7}
        )
    )
    assert sums()["importance out"] == 7
    assert sums() == expected()


def chain(asked: TestClient) -> dict[str, object]:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline:
        found: dict[str, object] = asked.get("/api/ledger/chain").json()
        if not found["checking"]:
            assert found["sound"] is not None, f"the chain could not be recomputed: {found}"
            return found
        time.sleep(0.1)
    raise AssertionError("the chain is not recomputed in time")


def test_the_chain_is_recomputed_and_a_change_is_found(lived_in: Path, tmp_path: Path) -> None:
    from tests.node.dashboard.houses import copy_of

    opened = Opened.of(copy_of(lived_in, tmp_path / "north"))
    asked = opened.client()
    assert asked.get("/api/ledger/chain").json()["sound"] is None
    asked.get("/crossed")
    found = chain(asked)
    assert found["sound"] is True
    assert found["checked_entries"] == found["entries"]
    assert "All hashes fit" in asked.get("/crossed/chain").text
    with open_database(opened.home).begin() as connection:
        connection.execute(text("DROP TRIGGER ledger_no_update"))
        connection.execute(text("UPDATE ledger SET detail = 'nothing happened' WHERE seq = 2"))
    page = asked.get("/crossed").text
    csrf = re.search(r'name="csrf" value="([^"]+)"', page)
    assert csrf
    assert asked.post("/crossed/chain").status_code == 403
    assert asked.post("/crossed/chain", data={"csrf": csrf[1]}).status_code == 303
    found = chain(asked)
    assert found["sound"] is False
    assert "Entry 2 was changed" in str(found["faults"])
    assert "broken" in asked.get("/crossed/chain").text
    opened.house.jobs.close()


# What happened, in words


def test_the_sentence_of_the_issue(asked: TestClient) -> None:
    happened = asked.get("/api/now").json()["happened"]
    assert re.fullmatch(
        r"At \d\d:\d\d the model left with 1\.9 MB of weights and 100 kB of importance \(r, stop 1\)\.",
        happened[0]["sentence"],
    )
    assert happened[1]["bad"]
    assert "a visit failed here (DIVERGED)" in happened[1]["sentence"]


def test_a_run_is_told_from_the_first_question_to_the_last_score(asked: TestClient, lived_in: Path) -> None:
    told = [one.sentence for one in reversed(happenings(open_reader(lived_in)))]
    patterns = [
        "the coordinator asked how many cases there are",
        "counts left: ",
        "the coordinator asked what software this node runs",
        r"\d+ numbers left about software and policy",
        "the model arrived with .* of weights, .* of prompts and .* of a generator to learn here",
        "the model left with .* of weights, .* of prompts and .* of a generator",
        "the model arrived .* to be scored here",
        r"scores left: a mean DSC of [\d.]+ over \d+ cases and \d+ more numbers",
    ]
    place = 0
    for pattern in patterns:
        place = next(number for number in range(place, len(told)) if re.search(pattern, told[number])) + 1


def test_many_rounds_are_one_sentence(tmp_path: Path) -> None:
    ledger = Ledger(open_database(tmp_path / "north"))

    def crossed(way: Direction, number: int, run: str = "joint", **changes: Any) -> None:
        shape = {"verdict": Verdict.ALLOWED, "kind_bytes": {Kind.WEIGHTS: 1000}} | changes
        ledger.record(Crossing(way, "north", "train.visit", run=run, stop=0, round=number, **shape))

    for way in Direction.IN, Direction.OUT:
        crossed(way, 0, run="tour")
    for number in range(200):
        if number == 150:
            crossed(Direction.IN, number, verdict=Verdict.REFUSED, code="POLICY", detail="It changed.", kind_bytes={})
        for way in Direction.IN, Direction.OUT:
            crossed(way, number)
    crossed(Direction.IN, 200)
    crossed(Direction.OUT, 200, verdict=Verdict.HELD, kind_bytes={})
    told = [one.sentence for one in happenings(open_reader(tmp_path / "north"))]
    assert len(told) == 5
    assert re.search(r"in rounds and left 50 times \(joint, stop 0\)", told[0])
    assert "was refused (POLICY): It changed." in told[1]
    assert re.search(r"in rounds and left 150 times, the last time with 1 kB of weights \(joint, stop 0\)", told[2])
    assert "the model left with 1 kB of weights (tour, stop 0)" in told[3]
    assert "the model arrived with 1 kB of weights to learn here (tour, stop 0)" in told[4]


# Folders that are none


def test_a_folder_that_is_no_nodes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoNode, match="there is no such folder"):
        open_reader(tmp_path / "none")
    with pytest.raises(NoNode, match="this is no node's folder"):
        open_reader(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_untouched_node_has_pages_too(tmp_path: Path) -> None:
    (tmp_path / "north").mkdir()
    (tmp_path / "north" / "node.key").touch()
    opened = Opened.of(tmp_path / "north")
    assert opened.house.site == "north"
    for path in ("/", "/crossed"):
        assert opened.client().get(path).status_code == 200
    assert opened.client().get("/api/now").json() == {"site": "north", "at_work": None, "waiting": [], "happened": []}
    assert HOSTILE not in opened.client().get("/").text


def test_the_database_is_open_for_reading_alone(opened: Opened) -> None:
    with opened.house.reader.connect() as connection, pytest.raises(Exception, match="readonly"):
        connection.execute(text("DELETE FROM case_scores"))

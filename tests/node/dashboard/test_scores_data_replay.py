"""My scores, my data, replay: figures are those of the run, pictures are made here, and case names reach no file."""

import html
import os
import re
import shutil
import stat
import time
from pathlib import Path
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient

from node.dashboard.scores import StopScore, forgetting
from node.database import open_database
from node.records import CaseScoreRow
from node.shown import (
    RUNS,
    Predictions,
    WorstCases,
    drawn_file,
    keep_examination,
    keep_replays,
    private,
    thumbnail_file,
)
from tests.conftest import Desk
from tests.node.dashboard.houses import HOSTILE_CASE, Opened, copy_of
from tests.node.guarded import request as asked_for

TRAVERSALS = (
    "../../../../etc/passwd",
    "..",
    "/etc/passwd",
    "a/../../node.db",
    "\x00",
    "case-001.png",
    "%2e%2e%2fnode.db",
    "",
)


@pytest.fixture(scope="module")
def asked(opened: Opened) -> TestClient:
    return opened.client()


@pytest.fixture(scope="module")
def run(asked: TestClient) -> str:
    (found,) = asked.get("/api/runs").json()
    return str(found)


def finished(opened: Opened, name: str) -> None:
    deadline = time.monotonic() + 200
    while opened.house.jobs.get(name).running or opened.house.jobs.get(name).result is None:
        assert not opened.house.jobs.get(name).failed
        assert time.monotonic() < deadline
        time.sleep(0.05)


# My scores


def test_the_column_is_that_of_the_score_matrix(asked: TestClient, after_a_run: Desk, run: str) -> None:
    column = asked.get("/api/scores").json()
    rows = {row.stop: row.metrics for row in after_a_run.row(run).scores if row.site == "north"}
    assert {score["stop"]: (score["dsc"], score["asd"]) for score in column["stops"]} == {
        stop: (metrics["dsc"], metrics["asd"]) for stop, metrics in rows.items()
    }
    assert [(score["after"], score["learnt_here"]) for score in column["stops"]] == [
        ("north", True), ("east", False), ("south", False),
    ]  # fmt: skip
    assert column["classes"] == ["organ"]
    chart = asked.get("/api/scores/chart").json()
    assert chart["values"] == [[0, 1, 2], [score["dsc"] for score in column["stops"]]]
    assert f"{column['stops'][-1]['dsc']:.3f}" in asked.get("/scores").text


def test_single_cases_come_worst_first_and_are_those_of_the_database(asked: TestClient, lived_in: Path) -> None:
    shown = asked.get("/api/scores/cases", params={"stop": 1}).json()["cases"]
    with open_database(lived_in).connect() as connection:
        rows = connection.execute(CaseScoreRow.__table__.select().where(CaseScoreRow.stop == 1)).all()
    assert {case["case"]: case["dsc"] for case in shown} == {row.case: row.dsc for row in rows}
    assert [case["dsc"] for case in shown] == sorted(case["dsc"] for case in shown)
    assert asked.get("/api/scores/cases", params={"stop": 77}).json()["cases"] == []


@pytest.mark.parametrize(
    ("scores", "unseen", "said"),
    [
        ([], False, "The model was not scored here yet."),
        ([(0, 0.5, False)], True, "The model never learns here; after stop 0 it reaches a DSC of 0.500"),
        ([(0, 0.5, False)], False, "The model has not learnt here yet; after stop 0"),
        ([(0, 0.9, True)], False, "The model has just learnt here (stop 0)"),
        ([(0, 0.9, True), (1, 0.7, False)], False, "it has forgotten 0.200."),
        ([(0, 0.9, True), (1, 0.898, False)], False, "it has forgotten nothing to speak of."),
        ([(0, 0.8, True), (1, 0.9, False)], False, "it has become better by 0.100 without coming back."),
        ([(0, 0.9, True), (1, 0.1, False), (2, 0.88, False)], False, "In between it was down to 0.100 (stop 1)."),
    ],
)
def test_forgetting_in_words(scores: list[tuple[int, float, bool]], unseen: bool, said: str) -> None:
    stops = [
        StopScore(stop=stop, after="x", learnt_here=here, dsc=dsc, asd=1, dsc_per_class=[dsc], asd_per_class=[1])
        for stop, dsc, here in scores
    ]
    assert said in forgetting(stops, unseen)


def test_the_worst_cases_are_drawn_beside_their_truth(opened: Opened, asked: TestClient, run: str) -> None:
    asked.get("/scores")
    if opened.house.jobs.get(f"draw {run}").running:  # else another house has drawn them already
        finished(opened, f"draw {run}")
    page = asked.get("/scores").text
    pictures = [html.unescape(src) for src in re.findall(r'src="(/scores/picture[^"]+)"', page)]
    kept = Predictions.of(opened.home, run)
    assert kept is not None
    assert kept.stop == 2
    assert len(pictures) == len(kept.cases) > 0
    for picture in pictures:
        answer = asked.get(picture)
        assert answer.content.startswith(b"\x89PNG")
        assert answer.headers["cache-control"] == "no-store"
    for folder in (opened.home / "shown").rglob("*"):
        assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0, folder


def test_where_there_are_no_pictures_the_page_says_why(
    opened: Opened, asked: TestClient, run: str, tmp_path: Path
) -> None:
    earlier = asked.get(f"/scores?run={run}&stop=0").text
    assert "/scores/picture" not in earlier
    assert f'<a href="/scores?run={run}&amp;stop=2">see them after stop 2</a>' in earlier
    home = copy_of(opened.home, tmp_path / "north")
    shutil.rmtree(home / "shown")
    assert "No segmentation of this run is kept any more" in Opened.of(home).client().get("/scores").text


@pytest.mark.parametrize("case", TRAVERSALS)
def test_case_names_lead_to_no_other_file(opened: Opened, asked: TestClient, run: str, case: str) -> None:
    for path in ("/scores/picture", "/data/thumbnail"):
        assert asked.get(f"{path}?run={run}&case={quote(case, safe='')}").status_code in (404, 422)
        assert asked.get(f"{path}?run={quote(case, safe='')}&case=case-001").status_code in (404, 422)
    assert asked.get(f"/replay/picture?run={quote(case, safe='')}").status_code in (404, 422) or not case


def test_of_many_runs_the_newest_are_kept_and_of_many_cases_the_worst(tmp_path: Path) -> None:
    import numpy as np

    class Case:
        def __init__(self, name: str) -> None:
            self.name = name

    class Score:
        def __init__(self, dsc: float) -> None:
            self.mean_dsc = dsc

    for number in range(RUNS + 3):
        worst = WorstCases()
        for case in range(30):
            worst.consider(Case(f"c{case:02d}"), np.full((4, 5), case, np.uint8), Score(case / 30))  # type: ignore[arg-type]
        worst.write(tmp_path, asked_for(run=f"run-{number}"))
        keep_replays(tmp_path, asked_for(run=f"run-{number}", stop=number), b"\x89PNG")
    assert len(list((tmp_path / "shown" / "predictions").iterdir())) == RUNS
    assert len(list((tmp_path / "shown" / "replays").iterdir())) == RUNS
    assert Predictions.of(tmp_path, "run-0") is None
    kept = Predictions.of(tmp_path, f"run-{RUNS + 2}")
    assert kept is not None
    assert kept.cases == tuple(f"c{case:02d}" for case in range(12))
    found = kept.segmentation("c03")
    assert found is not None
    assert found.shape == (4, 5)
    assert (found == 3).all()
    assert kept.segmentation("c20") is None
    kept.path.write_bytes(b"half a file")
    assert Predictions.of(tmp_path, f"run-{RUNS + 2}") is None
    assert kept.segmentation("c03") is None


def test_what_was_drawn_goes_with_the_segmentations_that_it_shows(tmp_path: Path) -> None:
    def scored(run: str, stop: int) -> Path:
        WorstCases().write(tmp_path, asked_for(run=run, stop=stop))
        path = drawn_file(tmp_path, run, stop, "case")
        private(path.parent)
        path.write_bytes(b"\x89PNG")
        return path

    first, second = scored("run-0", 0), scored("run-0", 1)
    assert (first.parent.exists(), second.exists()) == (False, True)
    WorstCases().write(tmp_path, asked_for(run="run-0", stop=1))  # a kill lets a stop be scored twice
    assert second.exists()
    for number in range(1, RUNS + 1):
        scored(f"run-{number}", 0)
    kept = {path.stem for path in (tmp_path / "shown" / "predictions").iterdir()}
    assert {path.name for path in (tmp_path / "shown" / "drawn").iterdir()} == kept
    assert len(kept) == RUNS


# My data


def test_of_many_findings_the_newest_stay_with_their_thumbnails(tmp_path: Path) -> None:
    for number in range(RUNS + 2):
        picture = thumbnail_file(tmp_path, f"{number:x}", "case")
        private(picture.parent)
        picture.write_bytes(b"\x89PNG")
        os.utime(picture.parent, (number, number))  # a file system's clock is coarse
        keep_examination(tmp_path, f"{number:x}", b"{}")
    there = {path.name for path in (tmp_path / "shown" / "data").iterdir()}
    assert there == {f"{number:x}{end}" for number in range(2, RUNS + 2) for end in ("", ".json")}


def test_the_data_are_as_check_finds_them(opened: Opened, asked: TestClient, run: str) -> None:
    assert asked.get("/api/data").json()["run"] == run
    finished(opened, f"look {run}")
    found = asked.get("/api/data").json()["found"]
    assert sum(part["cases"] for part in found["parts"]) == len(found["cases"]) == 14
    assert {part["part"] for part in found["parts"]} == {"train", "val", "test"}
    assert found["grids"] == [{"shape": [16, 16], "spacing": [1.0, 1.0], "cases": 14}]
    assert [(one["name"], one["values"]) for one in found["classes"]] == [("background", [0]), ("organ", [1])]
    assert sum(one["fraction"] for one in found["classes"]) == pytest.approx(1)
    assert any("is a DICOM file" in problem["sentence"] and problem["spoils"] for problem in found["problems"])
    page = asked.get("/data").text
    assert "1 problem would spoil training" in page
    assert html.escape(HOSTILE_CASE)[:10] in page
    assert "<b>x" not in page
    thumbnails = [html.unescape(src) for src in re.findall(r'src="(/data/thumbnail[^"]+)"', page)]
    assert len(thumbnails) == 14
    for thumbnail in thumbnails:
        assert asked.get(thumbnail).content.startswith(b"\x89PNG")


def test_what_was_found_is_taken_from_the_disk_unless_asked_anew(opened: Opened, asked: TestClient, run: str) -> None:
    asked.get("/data")
    finished(opened, f"look {run}")
    (kept,) = (opened.home / "shown" / "data").glob("*.json")
    before = kept.stat().st_mtime_ns
    again = Opened.of(opened.home)
    again.client().get("/data")
    finished(again, f"look {run}")
    assert kept.stat().st_mtime_ns == before
    page = again.client().get("/data").text
    csrf = re.search(r'name="csrf" value="([^"]+)"', page)
    assert csrf
    assert again.client().post("/data/look", data={"csrf": csrf[1]}).status_code == 303
    deadline = time.monotonic() + 200
    while kept.stat().st_mtime_ns == before:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    again.house.jobs.close()


# Replay


def test_replay_shows_what_the_guard_let_out(asked: TestClient, after_a_run: Desk, run: str) -> None:
    found = asked.get("/api/replay").json()
    assert [one["stop"] for one in found["remembered"]] == [0]
    assert 0 <= found["remembered"][0]["copies"] <= 1
    rows = {row.stop: row.metrics for row in after_a_run.row(run).scores if row.site == "north"}
    assert {one["stop"]: one["drift_mean"] for one in found["drift"]} == {
        stop: metrics["drift_mean"] for stop, metrics in rows.items()
    }
    assert found["picture_after_stop"] == 2
    assert asked.get(f"/replay/picture?run={run}").content.startswith(b"\x89PNG")
    assert not (after_a_run.home.folder / "nodes" / "north" / "replays").exists()  # where reports look for pictures
    assert "near-copies" in asked.get("/replay").text


@pytest.mark.parametrize("path", ["/data", "/scores", "/replay"])
def test_unknown_runs_are_said_to_be_unknown(asked: TestClient, path: str) -> None:
    for name in ("no-such-run", "<script>", "x" * 81):
        assert asked.get(f"{path}?run={name}", headers={"accept": "text/html"}).status_code in (200, 404, 422)
        assert "<script>" not in asked.get(f"{path}?run={name}", headers={"accept": "text/html"}).text.replace(
            "<script defer", ""
        )


def test_pages_of_a_node_that_met_no_run_say_so(tmp_path: Path) -> None:
    (tmp_path / "north").mkdir()
    (tmp_path / "north" / "node.key").touch()
    asked = Opened.of(tmp_path / "north").client()
    for path in ("/data", "/scores", "/replay"):
        assert "No run has reached this node yet" in asked.get(path).text
    assert asked.get("/api/data").json()["found"] is None
    assert asked.get("/api/scores").status_code == 404

"""A summary that is kept up to date is, at every moment, the one that is made from all rows anew."""

import threading

import numpy as np
import pytest

from coordinator.batch import summary_of
from coordinator.dashboard import summaries as module
from coordinator.dashboard.line import ABOUT, Line, LineStop
from coordinator.dashboard.matrices import MOST_LINES, SHADES, curves, shade
from coordinator.dashboard.pulse import Pulse, topics_of
from coordinator.dashboard.summaries import Summaries
from coordinator.skipping import skip
from coordinator.store import ScoreRow, UnknownRun
from coordinator.summary import RunSummary
from tests.conftest import TINY, Desk
from tests.coordinator.dashboard.conftest import Asking, asking

MANY = TINY.replace(
    "  - {name: south",
    "".join(f"  - {{name: s{n}, phantom: {{task: organ, appearance: 0, cases: 4, size: 16}}}}\n" for n in range(7))
    + "  - {name: south",
)


def assert_same(one: RunSummary, other: RunSummary) -> None:
    assert one.document() == other.document()
    assert one.stops == other.stops
    assert one.traffic == other.traffic
    for name in ("dsc", "asd", "both_empty", "penalised", "cases", "drift"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize("strategy", ["finetune", "individual", "joint"])
@pytest.mark.parametrize("one_by_one", [0, 2000])
def test_it_grows_with_the_run(desk: Desk, strategy: str, one_by_one: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ONE_BY_ONE", one_by_one)
    run, kept = desk.begin(f"strategy={strategy}", "training.steps=1"), Summaries(desk.home)
    looks = []

    def look(event: tuple[object, ...]) -> None:
        if event[0] in ("scored", "stop began", "stop ended", "run ended"):
            looks.append(event)
            assert_same(kept.newest(run), summary_of(run, desk.home))

    desk.carry_out(run, look)
    assert len(looks) > 6
    assert kept.newest(run) is kept.newest(run)  # nothing changed, nothing is made anew
    kept.close()


def test_a_cell_that_could_not_be_scored_is_filled_in_later(desk: Desk) -> None:
    run, kept = desk.simulate("training.steps=1"), Summaries(desk.home)
    whole = summary_of(run, desk.home).document()
    with desk.home.store().transaction() as session:
        row = session.get_one(ScoreRow, (run, 1, "island"))
        metrics, traffic = row.metrics, row.traffic
        row.metrics, row.traffic, row.error = None, {}, {"code": "SITE_DATA", "sentence": "No."}
    assert kept.newest(run).document()["matrix"]["dsc"][1][3] is None
    assert asking(desk.home).client.get(f"/api/runs/{run}/matrix").json()["rows"][1]["refused"] == {
        "island": "SITE_DATA"
    }
    with desk.home.store().transaction() as session:
        row = session.get_one(ScoreRow, (run, 1, "island"))
        row.metrics, row.traffic, row.error = metrics, traffic, None
        from coordinator.store import Run

        session.get_one(Run, run).seconds += 1  # as every commit of a conductor does
    assert {**kept.newest(run).document(), "seconds": 0} == {**whole, "seconds": 0}
    kept.close()


def test_a_skip_is_seen_although_it_takes_the_run_no_time(desk: Desk) -> None:
    run, kept = desk.begin("training.steps=1"), Summaries(desk.home)

    class Enough(Exception):
        pass

    def stop(event: tuple[object, ...]) -> None:
        if event[0] == "stop ended":
            raise Enough

    with pytest.raises(Enough):
        desk.carry_out(run, stop)
    assert kept.newest(run).stops[1].status == "pending"
    pulse = Pulse(asking(desk.home).overview)
    before = pulse()
    skip(run, 1, desk.home, by="Dr Grey", why="closed")
    assert kept.newest(run).stops[1].skipped_by == "Dr Grey"
    after = pulse()
    assert {topic for topic in after if after[topic] != before[topic]} == {*topics_of(run), "runs"}
    kept.close()


def test_a_page_does_not_wait_for_a_summary_that_takes_long(desk: Desk) -> None:
    run, before, kept = desk.simulate("training.steps=1"), set(threading.enumerate()), Summaries(desk.home)
    entry = kept._entry(run)
    with entry.lock:  # as while somebody reads it
        seen = kept.soon(run, 0.01)
        assert (seen.summary, seen.behind) == (None, True)
    assert kept.soon(run, 60).summary is not None
    with pytest.raises(UnknownRun):
        kept.soon("no-such-run", 60)
    kept.close()
    assert not set(threading.enumerate()) - before


def test_what_is_kept_is_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, kept = [desk.simulate("training.steps=1", f"seed={seed}") for seed in (0, 1)], Summaries(desk.home)
    monkeypatch.setattr(module, "MOST_CELLS", 13)
    for run in runs:
        kept.newest(run)
    kept.newest(runs[1])
    assert list(kept._kept) == runs[1:]
    kept.close()


# What is made from them


def test_many_sites_are_drawn_as_a_band(desk: Desk) -> None:
    summary = desk.summary(desk.simulate("training.steps=0", text=MANY))
    R = summary.matrix("dsc")
    assert R.shape[1] > MOST_LINES
    chart = curves(summary, "dsc", ["s3", "nowhere"])
    assert [line.label for line in chart.series] == ["mean", "lowest", "highest", "s3"]
    np.testing.assert_allclose(chart.values[1:4], [R.mean(axis=1), R.min(axis=1), R.max(axis=1)])
    assert chart.values[4] == R[:, summary.columns.index("s3")].tolist()


@pytest.mark.parametrize(
    ("value", "score", "expected"),
    [
        (0.0, "dsc", 0),
        (1.0, "dsc", SHADES),
        (0.0, "asd", SHADES),
        (8.0, "asd", 0),
        (99.0, "asd", 0),
        (None, "asd", None),
    ],
)
def test_a_better_score_has_a_higher_shade(value: float | None, score: str, expected: int | None) -> None:
    assert shade(value, score, 1.0 if score == "dsc" else 8.0) == expected


def test_of_a_long_line_the_stops_about_the_model_are_shown() -> None:
    def line(settled: int, length: int) -> Line:
        return Line(
            tuple(
                LineStop(n, ("a",), (), "done" if n < settled else "pending", None, None, None, None, {})
                for n in range(length)
            )
        )

    for length in (1, 2 * ABOUT + 3, 2 * ABOUT + 4, 500):
        for settled in range(0, length + 1, max(1, length // 50)):
            found = line(settled, length)
            shown = found.shown()
            assert sum(one if isinstance(one, int) else 1 for one in shown) == length
            assert len(shown) <= 2 * ABOUT + 5
            if found.stop_here is not None:
                assert found.stop_here in shown


def test_what_a_page_listens_to_changes_with_its_run_alone(looking: Asking) -> None:
    pulse = Pulse(looking.overview)
    assert pulse() == pulse()
    assert len(pulse()) == 2 * 4 + 2

"""What sites say of themselves at a run's beginning: told on, noted with a deployment's run, and a run does without."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest

from coordinator.events import Listener
from coordinator.grid import InProcessGrid, SimulatedSite, simulated_sites
from coordinator.introductions import UNTOLD, different_code
from coordinator.report import plain_words
from coordinator.simulate import begin_all, carry_out
from protos.software import Software, installed
from tests.conftest import Desk, Recorder

ABOUT_CASES = "metrics: [train, val, test, samples, steps, 'loss*', 'dsc*', 'asd*', cases, both_empty, penalised]"


class Elsewhere:
    """Nodes of their own, of whose files the coordinator knows nothing."""

    in_flight, away = 1, False

    def __init__(self, desk: Desk) -> None:
        self.sites = simulated_sites(desk.scenario(), desk.folder, desk.folder / "hospitals", "cpu")

    @contextmanager
    def connected(self, sites: Sequence[SimulatedSite], listener: Listener) -> Iterator[InProcessGrid]:
        assert not sites
        yield InProcessGrid(self.sites, listener)


class Heard(Recorder):
    def introduced(self, site: str, software: Software | None) -> None:
        self.events.append(("introduced", site, software and software.code))

    def said(self, sentence: str) -> None:
        self.events.append(("said", sentence))


def write_policy(desk: Desk, site: str, text: str) -> None:
    folder = desk.folder / "hospitals" / "nodes" / site
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "policy.yaml").write_text(text)


def test_policies_are_noted_with_a_deployments_run_whenever_they_are_others(desk: Desk) -> None:
    (run,) = begin_all([desk.scenario()], desk.home, None, "locum schedule", source="tiny.yaml", device="cpu")
    write_policy(desk, "north", ABOUT_CASES)
    write_policy(desk, "east", "memory: {cases: 2}")
    write_policy(desk, "island", "memory: {cases: 2}")  # learns nothing, so nothing changes
    engine = Elsewhere(desk)

    def stop_at(stop: int) -> Recorder:
        def on(event: tuple[object, ...]) -> None:
            if event[:2] == ("stop began", stop):
                raise KeyboardInterrupt

        return Heard(on=on)

    first = stop_at(1)
    with pytest.raises(KeyboardInterrupt):
        carry_out(run, desk.home, device="", listener=first, engine=engine)
    told = {site: code for kind, site, *more in first.events if kind == "introduced" for code in more}
    assert told == {"north": None} | dict.fromkeys(("east", "south", "island"), installed().code)
    assert not [event for event in first.events if event[0] == "said"]
    before = {"north": UNTOLD, "east": {"memory": {"cases": 2}}}
    assert desk.row(run).policies == [before]

    with pytest.raises(KeyboardInterrupt):
        carry_out(run, desk.home, device="", listener=stop_at(2), engine=engine)
    assert desk.row(run).policies == [before]
    write_policy(desk, "south", "updates: {clip: 0.5, only: false}")
    carry_out(run, desk.home, device="", listener=Listener(), engine=engine)
    row = desk.row(run)
    assert (row.status, row.policies) == (
        "done", [before, {**before, "south": {"updates": {"clip": 0.5, "noise": 0.0}}}]
    )  # fmt: skip
    words = plain_words(desk.summary(run))
    assert "The policy of north was not told." in words
    assert "By the policy of east a run keeps at most 2 cases for rehearsal." in words
    assert "By the policy of south updates leave clipped to 0.5, with noise 0." in words
    assert desk.summary(run).document()["policies"] == row.policies


def test_equal_code_needs_no_words() -> None:
    assert different_code(dict.fromkeys(("a", "b", "c"), installed())) is None


def test_different_code_is_said_by_place() -> None:
    here, there = Software("0.1.0", "2.13.0", "1" * 64), Software("0.2.0", "2.13.0", "2" * 64)
    places = {"the coordinator": here, "north": there} | {f"site {n}": here for n in range(9)}
    assert different_code(places) == (
        "The code is not the same everywhere: locum 0.1.0 (11111111) at the coordinator, site 0, site 1, site 2 and 6 "
        "more; locum 0.2.0 (22222222) at north; install one release at all of them."
    )

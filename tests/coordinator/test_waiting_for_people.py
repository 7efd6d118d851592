"""Runs at sites where a person has to release what leaves: they wait, and end as if nobody had had to."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from coordinator import exchange as exchanges
from coordinator.conductor import VisitFailed
from coordinator.engine import InProcess
from coordinator.events import Listener
from coordinator.simulate import carry_out
from coordinator.skipping import skip
from node.decisions import held_handovers, release, withhold
from protos.messages import VISIT
from tests.conftest import Desk, outcome

SIGNED = {"by": "Dr. Roe", "why": "looked at it"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchanges, "FIRST_LOOK", 0.001)
    monkeypatch.setattr(exchanges, "LAST_LOOK", 0.001)


@pytest.fixture(scope="module")
def undisturbed(shared_desk: Desk) -> dict[str, Any]:
    return outcome(shared_desk.row(shared_desk.simulate()))


class Patient(InProcess):
    """Nodes in this process, for which a coordinator waits as it does for others."""

    away = True


@dataclass
class Person(Listener):
    """Does something when a run waits for a person; `told` are the sites, and how long for."""

    act: Callable[[str], object] = lambda site: None
    told: list[tuple[str, float]] = field(default_factory=list)

    def held(self, site: str, seconds: float) -> None:
        self.told.append((site, seconds))
        self.act(site)


def home_of(desk: Desk, site: str, policy: str = "hold: true\n") -> Path:
    home = desk.home.folder / "nodes" / site
    home.mkdir(parents=True, exist_ok=True)
    (home / "policy.yaml").write_text(policy)
    return home


def visits(desk: Desk, site: str) -> list[tuple[str, str]]:
    """What became of the site's visit: verdicts on what came in and what was to go out."""
    return [(e.direction, e.verdict) for e in desk.ledger(site).entries() if e.message_type == VISIT]


def test_in_process_the_run_fails_and_is_resumed_after_the_release(desk: Desk, undisturbed: dict[str, Any]) -> None:
    home, run = home_of(desk, "east"), desk.begin()
    for _ in range(2):
        with pytest.raises(VisitFailed, match=r"Site east: .*`locum-node release` .*resume the run\. \[HELD\]$"):
            desk.carry_out(run)
    assert [stop.status for stop in desk.row(run).stops] == ["done", "failed", "pending"]
    (held,) = held_handovers(home)
    release(home, held.handover, **SIGNED)
    recorder = desk.carry_out(run)
    assert outcome(desk.row(run)) == undisturbed
    assert [event for event in recorder.events if event[0] == "stepped" and event[2] == "east"] == []
    assert visits(desk, "east") == [
        ("in", "allowed"),
        ("out", "held"),
        ("here", "released"),
        ("in", "allowed"),
        ("out", "allowed"),
    ]
    assert desk.ledger("east").verify() == []
    assert list((home / "held").iterdir()) == []  # its row of the matrix is there: nobody asks again


def test_a_deployment_waits_for_the_person(desk: Desk, undisturbed: dict[str, Any]) -> None:
    homes = {site: home_of(desk, site) for site in ("north", "east")}
    person = Person(lambda site: release(homes[site], held_handovers(homes[site])[0].handover, **SIGNED))
    run = desk.begin("patience.wait=2 h")
    carry_out(run, desk.home, device="cpu", listener=person, engine=Patient())
    assert outcome(desk.row(run)) == undisturbed
    assert person.told == [("north", 7200), ("east", 7200)]


def test_every_round_of_a_joint_stop_waits(desk: Desk, tmp_path: Path) -> None:
    plain = Desk(tmp_path / "plain")
    wanted = outcome(plain.row(plain.simulate("strategy=joint", "training.steps=2")))
    home = home_of(desk, "east", "hold: [weights]\n")
    person = Person(lambda site: release(home, held_handovers(home)[0].handover, **SIGNED))
    run = desk.begin("strategy=joint", "training.steps=2")
    carry_out(run, desk.home, device="cpu", listener=person, engine=Patient())
    assert outcome(desk.row(run)) == wanted
    waited = len(person.told)
    assert waited == visits(desk, "east").count(("out", "held")) == visits(desk, "east").count(("out", "allowed")) > 1


def test_patience_ends_and_the_visit_is_not_made_again(desk: Desk, undisturbed: dict[str, Any]) -> None:
    home, run = home_of(desk, "east"), desk.begin("patience.wait=0.02 s")
    with pytest.raises(VisitFailed, match=r"east: nobody released what is to leave within 0\.02 s; .* \[UNRELEASED\]$"):
        carry_out(run, desk.home, device="cpu", listener=Person(), engine=Patient())
    assert visits(desk, "east") == [("in", "allowed"), ("out", "held")]
    release(home, held_handovers(home)[0].handover, **SIGNED)
    carry_out(run, desk.home, device="cpu", listener=Listener(), engine=Patient())
    assert outcome(desk.row(run)) == undisturbed
    assert visits(desk, "east").count(("out", "held")) == 1


def test_a_stop_that_nobody_releases_is_skipped_where_the_scenario_says_so(desk: Desk) -> None:
    home, run = home_of(desk, "east"), desk.begin("patience={wait: 0.01 s, then: {skip: Dr. Doe}}")
    carry_out(run, desk.home, device="cpu", listener=Listener(), engine=Patient())
    row = desk.row(run)
    assert [stop.status for stop in row.stops] == ["done", "skipped", "done"]
    assert row.stops[1].skipped_why == "east: nobody released what is to leave within 0.01 s."
    assert held_handovers(home) == []  # the run went on without it
    assert list((home / "held").iterdir()) == []


def test_in_process_nobody_is_skipped_at_once(desk: Desk) -> None:
    home_of(desk, "east")
    run = desk.begin("patience={wait: 0.01 s, then: {skip: Dr. Doe}}")
    with pytest.raises(VisitFailed, match=r"\[HELD\]$"):
        desk.carry_out(run)


def test_what_is_withheld_ends_the_stop_which_can_be_skipped(desk: Desk) -> None:
    home = home_of(desk, "east")
    person = Person(lambda site: withhold(home, held_handovers(home)[0].handover, by="Dr. Roe", why="too few cases"))
    run = desk.begin("patience={then: wait}")
    with pytest.raises(VisitFailed, match=r"Site east: A person .* decided .*`locum skip` .* \[WITHHELD\]$") as failed:
        carry_out(run, desk.home, device="cpu", listener=person, engine=Patient())
    assert person.told == [("east", float("inf"))]
    assert "too few" not in str(failed.value)  # why stays at the site
    skip(run, 1, desk.home, by="Dr. Doe", why="east said no")
    carry_out(run, desk.home, device="cpu", listener=Listener(), engine=Patient())
    assert [stop.status for stop in desk.row(run).stops] == ["done", "skipped", "done"]

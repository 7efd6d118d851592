"""Whole runs in which one site asks for clipped and noised updates."""

import json
from pathlib import Path

import pytest

from coordinator.conductor import VisitFailed
from node.ledger_view import SOUND, run_ledger
from node.privacy import epsilon
from tests.conftest import Desk, outcome

REPLAY = "strategy={name: replay, cases: 3}"
UPDATES = 4 * 3  # at the first of three sites: its own stop, and two at which it rehearses


def ask(desk: Desk, site: str, policy: str) -> Path:
    home = desk.home.folder / "nodes" / site
    home.mkdir(parents=True, exist_ok=True)
    (home / "policy.yaml").write_text(policy)
    return home


def test_replay_ends_with_the_epsilon_in_the_ledger(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    home = ask(desk, "north", "updates: {clip: 0.5, noise: 2, delta: 1.0e-5}")
    run = desk.simulate(REPLAY)
    assert desk.row(run).status == "done"
    assert desk.ledger("north").verify() == []
    release = desk.ledger("north").last_release()
    assert release is not None
    assert (release.releases, release.epsilon) == ({2.0: UPDATES}, epsilon({2.0: UPDATES}, 1e-5))
    assert desk.ledger("east").last_release() is None
    assert run_ledger(home, json=True) == SOUND
    protected = [entry["privacy"] for entry in json.loads(capsys.readouterr().out) if entry["privacy"]]
    assert [entry["releases"]["2.0"] for entry in protected] == list(range(1, UPDATES + 1))
    assert [entry["epsilon"] for entry in protected] == sorted({entry["epsilon"] for entry in protected})


class Killed(BaseException):
    """The process dies here."""


def test_a_killed_run_goes_on_bit_for_bit_and_repeats_are_counted(desk: Desk) -> None:
    """The noise is the same again, since the nodes keep their keys; what left twice is counted twice."""
    ask(desk, "north", "updates: {clip: 0.5, noise: 2, delta: 1.0e-5}")
    undisturbed = desk.simulate(REPLAY)
    run = desk.begin(REPLAY)
    seen = []

    def kill(event: tuple[object, ...]) -> None:
        seen.append(event)
        if event[:2] == ("stop ended", 1):
            raise Killed

    with pytest.raises(Killed):
        desk.carry_out(run, kill)
    desk.carry_out(run)
    assert outcome(desk.row(run)) == outcome(desk.row(undisturbed))
    release = desk.ledger("north").last_release()
    assert release is not None
    assert release.releases[2.0] >= 2 * UPDATES


def test_a_spent_budget_ends_the_run_in_one_sentence_and_more_of_it_lets_the_run_go_on(desk: Desk) -> None:
    budget = epsilon({2.0: 5}, 1e-5)
    ask(desk, "north", f"updates: {{clip: 0.5, noise: 2, delta: 1.0e-5, epsilon: {budget}}}")
    run = desk.begin(REPLAY)
    with pytest.raises(VisitFailed, match=rf"^Run {run} failed at stop 1: Site north: .*\[PRIVACY_BUDGET\]$"):
        desk.carry_out(run)
    release = desk.ledger("north").last_release()
    assert release is not None
    assert release.releases == {2.0: 5}
    ask(desk, "north", "updates: {clip: 0.5, noise: 2, delta: 1.0e-5}")
    desk.carry_out(run)
    assert desk.row(run).status == "done"

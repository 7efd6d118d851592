"""Artifacts of the vault that were damaged on the disk: found before they are sent, said, and made again."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.conductor import VisitFailed
from coordinator.store import Run
from coordinator.vault import MissingArtifact
from tests.conftest import Desk, outcome
from tests.coordinator.test_cli import Terminal
from tests.faults.damaging import Undisturbed, cut, flip, interrupted, left_with_visits, remove, stops_made

Damage = tuple[Callable[[Path], None], str]
DAMAGE: dict[str, Damage] = {
    "a flipped bit": (flip, "is damaged"),
    "truncated": (cut, "is damaged"),
    "missing": (remove, "is missing"),
}
every_damage = pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
REHEARSAL = "{name: replay, mode: interleaved, cases: 2, local_steps: 2}"


def artifact(desk: Desk, run: str, stop: int) -> Path:
    return desk.vault.path(str(desk.row(run).stops[stop].artifact))


@every_damage
def test_the_artifact_that_a_stop_sets_out_from(
    desk: Desk, locum: Terminal, damage: Damage, undisturbed: Undisturbed
) -> None:
    """One sentence, and the run ends by itself; each visit stands in its ledger once."""
    run = interrupted(desk, "stop began", 1)
    path = artifact(desk, run, 0)
    damage[0](path)
    said = locum("resume", run, "--no-report")
    assert said.status == 0
    assert f"{path}: the artifact {damage[1]}; stop 0 is made again.\n" in said.err
    assert outcome(desk.row(run)) == undisturbed("finetune")
    assert [len(left_with_visits(desk, site, run)) for site in ("north", "east", "south")] == [1, 1, 1]
    assert desk.ledger("north").verify() == []


def test_every_artifact_before_it_is_gone_too(desk: Desk, undisturbed: Undisturbed) -> None:
    """A stop is made again from its predecessor, which may have to be made again from its own."""
    run = interrupted(desk, "stop began", 2)
    for stop in (0, 1):
        flip(artifact(desk, run, stop))
    assert stops_made(desk.carry_out(run).events) == [0, 1, 2]
    assert outcome(desk.row(run)) == undisturbed("finetune")


def test_an_artifact_that_nobody_needs_any_more_is_left_alone(desk: Desk, undisturbed: Undisturbed) -> None:
    run = interrupted(desk, "stop began", 2)
    path = artifact(desk, run, 0)
    path.unlink()
    assert stops_made(desk.carry_out(run).events) == [2]
    assert outcome(desk.row(run)) == undisturbed("finetune")
    assert not path.exists()


@every_damage
def test_the_artifact_that_is_being_scored(desk: Desk, damage: Damage, undisturbed: Undisturbed) -> None:
    run = interrupted(desk, "scored", 1, "north")
    damage[0](artifact(desk, run, 1))
    events = desk.carry_out(run).events
    assert stops_made(events) == [1, 2]
    assert ("scored", 1, "north") not in {event[:3] for event in events}
    assert outcome(desk.row(run)) == undisturbed("finetune")


@pytest.mark.parametrize("strategy", ["joint", "individual", REHEARSAL])
def test_what_a_run_that_is_done_ended_with(
    strategy: str, desk: Desk, locum: Terminal, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """`export` names the file and the remedy, and `resume` makes the stop again, though the run was done."""
    run = desk.simulate(f"strategy={strategy}")
    path = artifact(desk, run, -1)
    cut(path)
    if strategy != "individual":
        said = locum("export", run, str(desk.folder / "bundle"))
        assert (said.status, said.err) == (
            1,
            f"locum: {path}: the artifact is damaged; restore it from a backup, or resume its run, which makes it "
            "again.\n",
        )
    said = locum("resume", run, "--no-report")
    assert said.status == 0
    assert "is damaged; stop " in said.err
    assert outcome(desk.row(run)) == undisturbed(strategy)
    assert desk.vault.holds(path.stem)
    assert "is made again" not in locum("resume", run, "--no-report").err


@every_damage
def test_where_a_stop_of_many_rounds_was(desk: Desk, damage: Damage, undisturbed: Undisturbed) -> None:
    run = interrupted(desk, "stepped", 0, "", 7, strategy="joint")
    damage[0](desk.vault.path(str(desk.row(run).stops[0].rounds_state)))
    desk.carry_out(run)
    assert outcome(desk.row(run)) == undisturbed("joint")


def test_a_site_that_is_not_there_for_it_is_said_and_a_backup_helps(desk: Desk, undisturbed: Undisturbed) -> None:
    """Neither makes a stop again that was restored meanwhile."""
    run = interrupted(desk, "stop began", 1)
    path = artifact(desk, run, 0)
    backup = path.read_bytes()
    flip(path)
    policy = desk.home.folder / "nodes" / "north" / "policy.yaml"
    policy.write_text("strategies: [joint]\n")
    with pytest.raises(VisitFailed, match=rf"^Run {run} failed at stop 0: Site north: .* \[POLICY\]$"):
        desk.carry_out(run)
    policy.unlink()
    path.write_bytes(backup)
    assert stops_made(desk.carry_out(run).events) == [1, 2]
    assert outcome(desk.row(run))["stops"] == undisturbed("finetune")["stops"]


def test_other_bits_are_never_taken_for_the_same(desk: Desk) -> None:
    """A stop that comes to another artifact than it did, here with another seed, is refused in one sentence."""
    run = interrupted(desk, "stop began", 1)
    path = artifact(desk, run, 0)
    with desk.home.store().transaction() as session:
        row = session.get_one(Run, run)
        row.scenario = {**row.scenario, "seed": 1}
    path.unlink()
    with pytest.raises(MissingArtifact) as caught:
        desk.carry_out(run)
    assert re.fullmatch(
        rf"{path}: the artifact is damaged, and stop 0, made again, came to other bits, .*\.", str(caught.value)
    )
    assert not path.exists()
    assert desk.row(run).stops[0].artifact == path.stem


@every_damage
def test_storing_it_again_mends_the_file(desk: Desk, damage: Damage) -> None:
    address = desk.vault.put(b"weights")
    damage[0](desk.vault.path(address))
    assert not desk.vault.holds(address)
    assert desk.vault.put(b"weights") == address
    assert desk.vault.get(address) == b"weights"

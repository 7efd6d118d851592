"""Runs that go on after something changed: sites that are gone, data that are not what they were, stops skipped."""

import re
import shutil
from pathlib import Path

import pytest

import node.app
from coordinator.skipping import skip
from node.data.cache import SiteCache
from node.data.splits import part_of
from node.phantoms import write_phantoms
from protos.plan import PhantomSite, Split, Task
from tests.conftest import Desk
from tests.coordinator.test_cli import Terminal

FOLDERS = """
name: tiny
task: {size: [16, 16], classes: [background, organ]}
sites: [north, east]
unseen: [island]
network: {channels: [2, 4]}
training: {steps: 4, batch_size: 2, checkpoint_every: 2}
"""
TASK = Task(size=(16, 16), classes=("background", "organ"))


Crash = KeyboardInterrupt  # what passes through a guard at once, and stands here for a killed process


@pytest.fixture
def restart(monkeypatch: pytest.MonkeyPatch):
    """Forget what a new process would not know: the cases that were decoded."""
    return lambda: monkeypatch.setattr(node.app, "_cache", SiteCache(2**30))


@pytest.fixture
def hospitals(desk: Desk) -> Desk:
    """A desk whose data folder holds the images of three sites."""
    for number, name in enumerate(("north", "east", "island")):
        write_phantoms(PhantomSite(task="organ", appearance=number, cases=12, size=16), TASK, desk.folder / name)
    return desk


def crash_at(event: tuple[object, ...]):
    def strike(seen: tuple[object, ...]) -> None:
        if seen[: len(event)] == event:
            raise Crash

    return strike


def remove_a_training_case(folder: Path) -> None:
    case = next(path for path in sorted((folder / "images").iterdir()) if part_of(path.stem, Split()) == "train")
    case.unlink()
    (folder / "labels" / case.name).unlink()


def test_one_site_joint_is_a_run_like_any_other(desk: Desk):
    for strategy in ("joint", "joint-fedavg"):
        only = "sites=[{name: north, phantom: {task: organ, cases: 6, size: 16}}]"
        run = desk.simulate(only, f"strategy={strategy}", "training.steps=2")
        assert desk.row(run).status == "done"


def test_a_site_that_is_gone_can_be_skipped_and_its_scores_are_missing(hospitals: Desk):
    run = hospitals.begin(text=FOLDERS)
    with pytest.raises(Crash):
        hospitals.carry_out(run, on=crash_at(("stop began", 1)))
    shutil.rmtree(hospitals.folder / "east")
    skip(run, 1, hospitals.home, by="Ada", why="left the consortium")
    hospitals.carry_out(run)
    row = hospitals.row(run)
    assert row.status == "incomplete"
    assert [stop.status for stop in row.stops] == ["done", "skipped"]
    scored = {score.site: score.error for score in row.scores}
    assert scored["east"] is None  # from before it left
    assert scored["island"] is None


def test_a_visit_does_not_go_on_with_other_cases_than_it_began_with(hospitals: Desk, restart):
    run = hospitals.begin(text=FOLDERS)
    with pytest.raises(Crash):
        hospitals.carry_out(run, on=crash_at(("stepped", 1, "east", 3)))
    remove_a_training_case(hospitals.folder / "east")
    restart()
    steps = [event[3] for event in hospitals.carry_out(run).events if event[:2] == ("stepped", 1)]
    assert steps == [1, 2, 3, 4]


def test_rounds_begin_anew_when_a_site_has_other_cases(hospitals: Desk, restart):
    run = hospitals.begin("strategy=joint", text=FOLDERS)
    with pytest.raises(Crash):
        hospitals.carry_out(run, on=crash_at(("stepped", 0, "", 5)))
    remove_a_training_case(hospitals.folder / "east")
    restart()
    rounds = [event[3] for event in hospitals.carry_out(run).events if event[:2] == ("stepped", 0)]
    assert rounds == list(range(1, 9))


def test_a_score_over_other_test_cases_does_not_count(hospitals: Desk, restart):
    run = hospitals.begin(text=FOLDERS)
    with pytest.raises(Crash):
        hospitals.carry_out(run, on=crash_at(("stop began", 1)))
    case = next((hospitals.folder / "island" / "images").iterdir())
    kept = case.rename(hospitals.folder / case.name)
    restart()
    hospitals.carry_out(run)
    row = hospitals.row(run)
    assert row.status == "incomplete"
    changed = next(score for score in row.scores if (score.stop, score.site) == (1, "island"))
    assert changed.error is not None
    assert changed.error["code"] == "DATA_CHANGED"
    kept.rename(case)
    restart()
    hospitals.carry_out(run)
    assert hospitals.row(run).status == "done"


def test_fedavg_keeps_its_place_by_steps_and_not_by_rounds(desk: Desk):
    overrides = ("strategy={name: joint-fedavg, local_steps: 2}", "training.steps=4", "training.checkpoint_every=4")
    run = desk.begin(*overrides)
    with pytest.raises(Crash):
        desk.carry_out(run, on=crash_at(("stepped", 0, "", 5)))
    assert desk.row(run).stops[0].rounds_done == 4
    assert desk.row(run).stops[0].seconds > 0
    desk.carry_out(run)
    undisturbed = desk.row(desk.simulate(*overrides))
    assert desk.row(run).stops[0].weights_sha256 == undisturbed.stops[0].weights_sha256


def test_the_first_visit_is_the_first_that_is_made(desk: Desk):
    """With stop 0 skipped, `l2` must not pull stop 1 to the random initialisation."""
    outcomes = []
    for strategy in ("finetune", "{name: l2, strength: 1000}"):
        run = desk.begin(f"strategy={strategy}", "study={}")
        with pytest.raises(Crash):
            desk.carry_out(run, on=crash_at(("stepped", 0)))
        skip(run, 0, desk.home, by="Ada", why="scanner broken")
        with pytest.raises(Crash):
            desk.carry_out(run, on=crash_at(("stop began", 2)))
        outcomes.append(desk.row(run).stops[1].weights_sha256)
    assert outcomes[0] == outcomes[1]


def test_a_run_that_is_done_stays_so_whatever_becomes_of_its_sites(hospitals: Desk):
    run = hospitals.simulate(text=FOLDERS)
    shutil.rmtree(hospitals.folder / "north")
    hospitals.carry_out(run)
    assert hospitals.row(run).status == "done"


# A site that leaves after its own stop

THREE = FOLDERS.replace("[north, east]", "[north, east, south]")
MODES = ("{name: replay, cases: 3}", "{name: replay, mode: interleaved, cases: 3, local_steps: 1}")


@pytest.fixture
def locum(hospitals: Desk, capsys: pytest.CaptureFixture[str]) -> Terminal:
    write_phantoms(PhantomSite(task="organ", appearance=3, cases=12, size=16), TASK, hospitals.folder / "south")
    return Terminal(hospitals, capsys)


@pytest.mark.parametrize("strategy", MODES, ids=["exact", "interleaved"])
def test_a_rehearsal_is_skipped_in_the_name_of_a_person_and_the_site_may_be_gone(locum: Terminal, strategy: str):
    desk = locum.desk
    early, late = (desk.begin(f"strategy={strategy}", text=THREE) for _ in range(2))
    with pytest.raises(Crash):
        desk.carry_out(early, on=crash_at(("stop ended", 0)))
    with pytest.raises(Crash):
        desk.carry_out(late, on=crash_at(("stepped", 1, "", 3)))
    assert desk.row(late).stops[1].rounds_done == 2
    for folder in (desk.folder, desk.home.folder / "nodes"):
        shutil.rmtree(folder / "north")
    gone = locum("resume", late)
    assert (gone.status, "site north: there is no folder" in gone.err) == (2, True)

    why = ("--by=Dr [b]Grey", "--why=they left [/] us")
    for stop, site, said in (
        ("0", "north", "Stop 0 of run .* is done already"),
        ("9", "north", "has no stop 9"),
        ("1", "south", "south does not rehearse at stop 1 of run .*; `locum show .*` lists who does where"),
    ):
        refused = locum("skip", late, stop, f"--rehearsal-at={site}", *why)
        assert refused.status == 2
        assert re.search(said, refused.err)
    for run in (early, late):
        assert locum("skip", run, "1", "--rehearsal-at=north", *why).status == 0
        assert locum("resume", run).status == 3
    assert locum("resume", late, "--no-report").status == 3  # the others' word cannot make it whole

    stops = desk.summary(late).stops
    assert [(stop.status, stop.rehearsing) for stop in stops] == [("done", ()), ("done", ()), ("done", ("east",))]
    # what was half made with the site was made anew without it
    artifacts = [[stop.artifact for stop in desk.row(run).stops] for run in (early, late)]
    assert artifacts[0] == artifacts[1]
    said = "the rehearsal at north was left out by Dr [b]Grey: they left [/] us"
    shown = locum("show", late).out
    assert shown.count(said) == 3  # two stops, and the words
    assert f"From stop 1 on, {said}" in shown
    page = (desk.home.report(late) / "report.html").read_text()
    assert page.count(said) == 3

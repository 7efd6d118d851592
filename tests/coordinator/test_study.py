"""Studies: several runs at once with the results of one after another, shared where equal, killed and gone on with."""

import json
import os
import shlex
import subprocess
import sys
import time
from contextlib import nullcontext
from io import StringIO
from typing import Any

import psutil
import pytest
from rich.console import Console

from coordinator.conductor import VisitFailed
from coordinator.listing import listed
from coordinator.overview import Overview
from coordinator.scenario import ScenarioError
from coordinator.store import Run, sqlite_url
from coordinator.taking_up import StudyRuns, take_up_or_begin
from node.phantoms.source import write_phantoms
from protos.plan import PhantomSite
from tests.conftest import TINY, Desk, outcome
from tests.coordinator.test_cli import Terminal

STRATEGIES = ({"name": "finetune"}, {"name": "joint"}, {"name": "l2", "strength": 1.0e38})
SEEDS = (0, 1)
STEEP = "training.lr=1"  # with which l2's pull diverges
STUDY = (f"--set=study={json.dumps({'strategies': STRATEGIES, 'seeds': SEEDS})}", f"--set={STEEP}")
SITES = ("north", "east", "south", "island")


def outcomes(desk: Desk) -> dict[tuple[str, int], dict[str, Any]]:
    """(strategy, seed) -> what came out; fails if one is there twice."""
    rows = [desk.row(row["run"]) for row in listed(desk.home)]
    found = {(row.scenario["strategy"]["name"], row.scenario["seed"]): outcome(row) for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.fixture
def locum(desk: Desk, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(desk, capsys)


def kill_a_worker_and_then_the_study(arguments: list[str]) -> list[str]:
    """Return the command lines of the workers; none is left."""
    code = "from coordinator.cli import run; run()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as study:
        assert study.stderr is not None
        next(line for line in study.stderr if "1 of 6 runs ended" in line)
        workers = psutil.Process(study.pid).children()
        commands = [" ".join(worker.cmdline()) for worker in workers]
        workers[0].kill()
        next(line for line in study.stderr if " failed: its process ended by SIGKILL; make the study again." in line)
        workers = psutil.Process(study.pid).children()
        study.kill()
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert alive == []
    return commands


def test_at_once_and_killed_it_comes_to_the_bits_of_one_run_after_another(
    locum: Terminal, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    """First one of its workers is killed, then the study itself; a run that fails keeps no other from its turn."""
    reference = Desk(tmp_path_factory.mktemp("reference"))
    for strategy in STRATEGIES:
        for seed in SEEDS:
            run = reference.begin(f"strategy={json.dumps(strategy)}", f"seed={seed}", STEEP)
            with nullcontext() if strategy["name"] != "l2" else pytest.raises(VisitFailed, match="DIVERGED"):
                reference.carry_out(run)
    desk = locum.desk
    database = sqlite_url(desk.home.folder).replace("sqlite://", "sqlite+pysqlite://")  # which may hold a password
    arguments = ["study", locum.scenario, *STUDY, f"--home={desk.home.folder}", f"--database={database}"]
    monkeypatch.setattr("sys.argv", ["locum", *arguments])
    commands = kill_a_worker_and_then_the_study([*arguments, "--workers=3"])
    assert len(commands) == 3
    assert not any("pysqlite" in command for command in commands)
    begun = [row["run"] for row in listed(desk.home)]

    again = locum(*arguments, "--workers=2", "--json", f"--out={desk.folder / 'table'}")
    assert again.status == 1
    assert again.err.count("[DIVERGED]") == 2
    assert f"locum: details: {desk.home.nodes_log}\n" in again.err
    assert f"`{shlex.join(['locum', *arguments])}` goes on with them." in again.err
    assert [run["run"] for run in again.document["runs"]] == begun[::-1]
    assert outcomes(desk) == outcomes(reference)
    artifacts = {stop.artifact for row in listed(desk.home) for stop in desk.row(row["run"]).stops if stop.artifact}
    assert all(desk.vault.get(artifact) for artifact in artifacts)  # none was discarded by another run
    for site in SITES:
        ledger = desk.ledger(site)
        assert ledger.count() > 0
        assert ledger.verify() == []
    methods = again.document["comparison"]["methods"]
    labels = [(method["label"].partition(" ")[0], method["seeds"]) for method in methods]
    assert labels[:2] == [("finetune", [0, 1]), ("joint", [0, 1])]
    assert {path.suffix for path in (desk.folder / "table").iterdir()} >= {".png", ".csv", ".json"}


# Which runs are equal


def taken(desk: Desk, *overrides: str, text: str = TINY, device: str = "cpu") -> StudyRuns:
    scenarios = list(desk.scenario(*overrides, text=text).runs())
    return take_up_or_begin(scenarios, desk.home, desk.folder, "command", source="tiny.yaml", device=device)


def test_equal_runs_are_taken_up_whatever_they_are_called(desk: Desk):
    first = taken(desk, "study.seeds=[0, 1]")
    assert (first.asked, len(first.names), first.taken_up) == (2, 2, frozenset())
    assert taken(desk, "study.seeds=[1, 0]", "name=other").names == first.names[::-1]
    assert taken(desk, "order=[north, east, south]", "study.seeds=[1, 2]").taken_up == {first.names[1]}
    for other in ("training.steps=5", "sites.1.phantom.cases=9", "unseen=[]", "strategy=l2", "split.seed=4"):
        assert not taken(desk, other).taken_up
    assert not taken(desk, device="other").taken_up


def test_another_version_and_a_scenario_that_is_none_any_more_are_no_equals(desk: Desk):
    for change in ({"software": "locum 0.0.1"}, {"scenario": {"name": "old", "sites": []}}):
        name = desk.begin()
        with desk.home.store().transaction() as session:
            for key, value in change.items():
                setattr(session.get_one(Run, name), key, value)
    assert not taken(desk).taken_up


def test_of_equal_runs_the_one_that_came_furthest_is_taken(desk: Desk):
    runs = [desk.begin("training.steps=1") for _ in range(3)]
    desk.carry_out(runs[1])
    assert taken(desk, "training.steps=1").names == (runs[1],)


def test_shuffles_that_come_to_one_order_are_one_run(desk: Desk):
    study = taken(desk, "study={shuffles: 12, strategies: [finetune, l2]}")
    orders = {desk.summary(name).sites for name in study.names}
    assert study.asked == 24
    assert len(study.names) == 2 * len(orders)
    assert len(orders) <= 6
    listed = taken(desk, "study={orders: [listed], shuffles: 2}")
    assert desk.summary(listed.names[0]).sites == ("north", "east", "south")
    assert listed.names[1] in study.names


def test_data_that_changed_since_make_another_run(desk: Desk):
    scenario = ("unseen=[]", "sites=[clinic]", "training.steps=1")
    write_phantoms(PhantomSite(task="organ", cases=9, size=16), desk.scenario().task, desk.folder / "clinic")
    run = desk.begin(*scenario)
    picture = next((desk.folder / "clinic" / "images").iterdir())
    os.utime(picture, (time.time() + 5, time.time() + 5))
    assert taken(desk, *scenario).names == (run,)  # nothing was learnt from the older file
    desk.carry_out(run)
    assert not taken(desk, *scenario).taken_up
    os.utime(picture, (0, 0))
    assert run in taken(desk, *scenario).names


def test_a_policy_that_changed_bits_since_makes_another_run_and_one_that_only_refuses_does_not(desk: Desk):
    replay = ("strategy={name: replay, cases: 2}", "training.steps=1")
    policy = desk.home.folder / "nodes" / "north" / "policy.yaml"
    policy.parent.mkdir(parents=True)
    free = desk.simulate(*replay)
    policy.write_text("kinds: [weights]")
    assert taken(desk, *replay).names == (free,)
    policy.write_text("updates: {clip: 1.0, noise: 2.0, delta: 1.0e-5}")
    (clipped,) = taken(desk, *replay).names
    assert clipped != free
    desk.carry_out(clipped)
    assert desk.row(clipped).stops[-1].artifact != desk.row(free).stops[-1].artifact
    policy.write_text("updates: {clip: 1.0, noise: 2.0, delta: 1.0e-5, epsilon: 5000}  # a budget refuses")
    assert taken(desk, *replay).names == (clipped,)
    policy.write_text("updates: {clip: 0.5}")
    assert not taken(desk, *replay).taken_up & {free, clipped}
    policy.unlink()
    assert taken(desk, *replay).names == (free,)


def test_a_run_that_was_made_under_two_policies_is_no_equal(desk: Desk):
    replay = ("strategy={name: replay, cases: 2}", "training.steps=1")
    run = desk.begin(*replay)

    def kill(event: tuple[Any, ...]) -> None:
        if event[:2] == ("stop ended", 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        desk.carry_out(run, kill)
    policy = desk.home.folder / "nodes" / "north" / "policy.yaml"
    policy.write_text("updates: {clip: 0.5}")
    desk.carry_out(run)
    assert desk.row(run).status == "done"
    assert desk.row(run).policies == [{}, {"north": {"updates": {"clip": 0.5, "noise": 0.0}}}]
    assert run not in taken(desk, *replay).names
    policy.unlink()
    assert run not in taken(desk, *replay).names


def test_an_order_that_shuffles_would_hide_is_refused(desk: Desk):
    with pytest.raises(ScenarioError, match=r"since study\.shuffles draws the orders; add --set study\.shuffles=0\."):
        desk.scenario("study.shuffles=2", "order=reversed")
    assert desk.scenario("study.shuffles=0", "order=reversed").visiting_order()[0] == "south"


# What is seen meanwhile


def test_the_overview_counts_and_estimates(monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]
    monkeypatch.setattr("coordinator.overview.time.monotonic", lambda: clock[0])
    out = StringIO()
    with Overview(4, 1, Console(file=out)) as overview:
        for run in ("a", "b"):
            overview.began(run)
            overview.moved(run, 0.0 if run == "a" else 0.5, "goes on")
        clock[0] = 60.0
        overview.moved("a", 0.5, "stop 1 at [east], step 2 of 4")
        overview.ended("b", "done")
    lines = out.getvalue().splitlines()
    assert "run a: stop 1 at [east], step 2 of 4" in lines
    # half of a, half of b in one minute; half of a and the fourth are left
    assert lines[-1] == "run b: done; 2 of 4 runs ended, about 1.5 min left"


def test_on_a_terminal_every_run_at_work_has_a_bar():
    out = StringIO()
    with Overview(2, 0, Console(file=out, force_terminal=True, width=150)) as overview:
        overview.began("some-run")
        overview.moved("some-run", 0.25, "stop 1 at [east]")
        overview._bars.refresh()
        assert "some-run" in out.getvalue()
        assert "stop 1 at [east]" in out.getvalue()
        assert "0 of 2 runs ended" in out.getvalue()


def test_orders_are_pooled_in_the_papers_tables_and_where_asked(locum: Terminal):
    runs = [locum.desk.simulate("training.steps=1", f"order={order}") for order in ("listed", "reversed")]

    def rows(*options: str) -> list[int]:
        return [len(method["runs"]) for method in locum("compare", *runs, "--json", *options).document["methods"]]

    assert rows() == rows("--table=mas-lr", "--pool=none") == [1, 1]
    assert rows("--pool=orders") == rows("--table=mas-lr") == rows("--table=ms-er") == [2]

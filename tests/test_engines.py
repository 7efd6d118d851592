"""Both engines, one contract: the same scenario comes to the same bits, scores, ledgers and refusals."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
from sqlalchemy import select

from coordinator.conductor import VisitFailed
from coordinator.engine import Engine
from coordinator.simulate import carry_out, engine_for
from node.database import open_database
from node.progress_store import Standing
from protos.messages import PROGRESS, VISIT
from tests.conftest import Desk, Recorder, outcome

SITES = ("north", "east", "south")
STRATEGIES = (
    "finetune",
    "{name: ewc, strength: 10}",
    "joint",
    "{name: replay, mode: interleaved, cases: 3, local_steps: 2}",
)


@dataclass(frozen=True)
class Deployment:
    """Nodes of the tiny hospitals as processes of their own, which serve every test of this module."""

    desk: Desk
    engine: Engine

    def carry_out(self, run: str, on: Callable[[tuple[Any, ...]], None] = lambda event: None) -> Recorder:
        recorder = Recorder(on=on)
        carry_out(run, self.desk.home, device="cpu", listener=recorder, engine=self.engine)
        return recorder


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    desk = Desk(tmp_path_factory.mktemp("deployed"))
    with engine_for("flower", desk.begin(), desk.home, "cpu") as engine:
        yield Deployment(desk, engine)


def crossings(desk: Desk, site: str, run: str) -> list[Any]:
    """What crossed for the run, but for questions of progress, which the clock decides on."""
    return [
        (entry.direction, entry.message_type, entry.verdict, entry.stop, entry.round, entry.kind_bytes, entry.metrics)
        for entry in desk.ledger(site).entries()
        if entry.run == run and entry.message_type != PROGRESS
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_same_bits_scores_and_ledgers(strategy: str, deployed: Deployment, desk: Desk) -> None:
    plain = desk.simulate(f"strategy={strategy}")
    run = deployed.desk.begin(f"strategy={strategy}")
    deployed.carry_out(run)
    assert outcome(deployed.desk.row(run)) == outcome(desk.row(plain))
    for site in (*SITES, "island"):
        assert crossings(deployed.desk, site, run) == crossings(desk, site, plain)
        assert deployed.desk.ledger(site).verify() == []


# When things die


SLOW = ("training.steps=400", "training.checkpoint_every=20")  # long enough to be killed in the middle


def kill_in_the_visit(home: Path, run: str, pattern: str) -> None:
    """SIGKILL to those processes of a node whose command holds the pattern, once a visit is under way there."""
    engine = open_database(home)
    while True:
        with engine.connect() as connection:
            if connection.execute(select(Standing.step).where(Standing.run == run, Standing.stop == 1)).first():
                break
        time.sleep(0.01)
    lock = str(home / "node.lock")
    serving = next(
        process
        for process in psutil.process_iter(["cmdline"])
        if "serve" in (process.info["cmdline"] or ()) and lock in {file.path for file in process.open_files()}
    )
    for process in [*serving.children(recursive=True), serving]:
        if pattern in " ".join(process.cmdline()):
            process.kill()


def test_a_killed_worker_is_told_and_the_run_goes_on(deployed: Deployment, desk: Desk) -> None:
    undisturbed = outcome(desk.row(desk.simulate(*SLOW)))
    run = deployed.desk.begin(*SLOW)
    east = deployed.desk.home.folder / "nodes" / "east"
    killer = Thread(target=kill_in_the_visit, args=(east, run, "node.worker"))

    def on(event: tuple[Any, ...]) -> None:
        if event[:2] == ("stop began", 1):
            killer.start()

    with pytest.raises(VisitFailed, match=r"^Run \S+ failed at stop 1: Site east: The process .* killed.* \[DIED\]$"):
        deployed.carry_out(run, on)
    killer.join()
    deployed.carry_out(run)
    assert outcome(deployed.desk.row(run)) == undisturbed
    left = [
        verdict for way, sort, verdict, *_ in crossings(deployed.desk, "east", run) if (way, sort) == ("out", VISIT)
    ]
    assert left == ["failed", "allowed"]

"""Kill what `locum simulate --engine flower` starts: a node comes back by itself, a SuperLink does not."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from coordinator.deployment import local_deployment
from coordinator.engine import Deployed
from coordinator.faults import FAILED, exit_status
from coordinator.grid import simulated_sites
from coordinator.simulate import carry_out
from coordinator.superlink import NoSuperLink, SuperLinkConfig
from node.ledger import Direction, Verdict
from protos.messages import VISIT
from tests.conftest import Desk, Recorder, outcome

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

SLOW = ("training.steps=3000", "training.checkpoint_every=200")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    desk = Desk(tmp_path_factory.mktemp("undisturbed"))
    return outcome(desk.row(desk.simulate(*SLOW)))


@contextmanager
def nodes_of(desk: Desk) -> Iterator[SuperLinkConfig]:
    sites = simulated_sites(desk.scenario(), desk.folder, desk.home.folder, "cpu")
    with local_deployment(sites, desk.folder / "flower") as config:
        yield config


def process_with(path: Path) -> psutil.Process:
    """This process's child that has a file open."""
    found = [one for one in psutil.Process().children() if str(path) in {file.path for file in one.open_files()}]
    return found[0]


@contextmanager
def killed_in_a_visit(desk: Desk, run: str, file: Path) -> Iterator[None]:
    """Inside the block the process that has `file` open is killed once the run's visit to east has a checkpoint."""
    checkpoints, over = desk.home.folder / "nodes" / "east" / "checkpoints" / run, threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            if checkpoints.exists() and any(checkpoints.iterdir()):
                os.kill(process_with(file).pid, signal.SIGKILL)
                return

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


def made(desk: Desk, run: str) -> list[tuple[str, int]]:
    """The visits that were let out."""
    return [
        (site, entry.stop)
        for site in ("north", "east", "south")
        for entry in desk.ledger(site).entries()
        if (entry.run, entry.message_type) == (run, VISIT)
        and (entry.direction, entry.verdict) == (str(Direction.OUT), str(Verdict.ALLOWED))
    ]


def test_a_node_is_started_again(desk: Desk, undisturbed: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    run = desk.begin(*SLOW)
    with nodes_of(desk) as config, killed_in_a_visit(desk, run, desk.home.folder / "nodes" / "east" / "node.lock"):
        carry_out(run, desk.home, device="cpu", listener=Recorder(), engine=Deployed(config))
    assert "The node of site east ended by SIGKILL; it is started again." in caplog.messages
    assert outcome(desk.row(run)) == undisturbed
    assert made(desk, run) == [("north", 0), ("east", 1), ("south", 2)]


def test_without_its_superlink_a_run_ends_with_a_sentence_and_is_resumed(
    desk: Desk, undisturbed: dict[str, Any]
) -> None:
    run = desk.begin(*SLOW)
    with nodes_of(desk) as config:
        gone = pytest.raises(NoSuperLink, match=r"^The SuperLink does not answer any more, .* may say why\.$")
        with killed_in_a_visit(desk, run, config.log), gone:
            carry_out(run, desk.home, device="cpu", listener=Recorder(), engine=Deployed(config))
    assert exit_status(NoSuperLink()) == FAILED
    desk.carry_out(run)
    assert outcome(desk.row(run)) == undisturbed
    assert made(desk, run) == [("north", 0), ("east", 1), ("south", 2)]

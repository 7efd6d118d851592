"""Both engines, one contract: the same scenario comes to the same bits, scores, ledgers and refusals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from coordinator.conductor import VisitFailed
from coordinator.simulate import carry_out, engine_for
from tests.conftest import Desk, Recorder, outcome

ENGINES = ("in-process", "flower")
STRATEGIES = (
    "finetune",
    "{name: ewc, strength: 10}",
    "joint",
    "{name: replay, mode: interleaved, cases: 3, local_steps: 2}",
)


def carried_out(desk: Desk, engine: str, *overrides: str) -> str:
    run = desk.begin(*overrides)
    with engine_for(engine, run, desk.home, "cpu") as reached:
        carry_out(run, desk.home, device="cpu", listener=Recorder(), engine=reached)
    return run


def crossings(desk: Desk, site: str) -> list[Any]:
    return [
        (entry.direction, entry.message_type, entry.verdict, entry.stop, entry.kind_bytes, entry.metrics)
        for entry in desk.ledger(site).entries()
        if entry.message_type != "query.progress"
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_same_bits_scores_and_ledgers(strategy: str, tmp_path: Path) -> None:
    found = {}
    for engine in ENGINES:
        desk = Desk(tmp_path / engine)
        run = carried_out(desk, engine, f"strategy={strategy}")
        found[engine] = (outcome(desk.row(run)), {site: crossings(desk, site) for site in ("north", "east", "south")})
        assert all(desk.ledger(site).verify() == [] for site in ("north", "east", "south", "island"))
    assert found["in-process"] == found["flower"]


SLOW = ("training.steps=400", "training.checkpoint_every=20")  # long enough to be killed in the middle


def killing(home: Path, site: str, pattern: str, at: tuple[Any, ...]) -> Callable[[tuple[Any, ...]], None]:
    """Kills the site's process of that name when the event comes, once."""
    done = []

    def on(event: tuple[Any, ...]) -> None:
        if event[: len(at)] == at and not done:
            done.append(event)
            kill(home / "nodes" / site, pattern)

    return on


def kill(home: Path, pattern: str) -> None:
    """SIGKILL to the node's processes whose command holds the pattern."""
    lock = str(home / "node.lock")
    serving = next(
        process
        for process in psutil.process_iter(["cmdline"])
        if "serve" in (process.info["cmdline"] or ()) and lock in {file.path for file in process.open_files()}
    )
    for process in [serving, *serving.children(recursive=True)]:
        if pattern in " ".join(process.cmdline()):
            process.kill()


def test_a_killed_worker_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    plain = Desk(tmp_path / "plain")
    undisturbed = outcome(plain.row(plain.simulate(*SLOW)))
    desk = Desk(tmp_path / "killed")
    run = desk.begin(*SLOW)
    on = killing(desk.home.folder, "east", "node.worker", ("stepped", 1))
    with engine_for("flower", run, desk.home, "cpu") as reached:
        with pytest.raises(
            VisitFailed, match=r"^Run \S+ failed at stop 1: Site east: The process .* was killed.* \[DIED\]$"
        ):
            carry_out(run, desk.home, device="cpu", listener=Recorder(on=on), engine=reached)
        carry_out(run, desk.home, device="cpu", listener=Recorder(), engine=reached)
    assert outcome(desk.row(run)) == undisturbed
    left = [entry for entry in crossings(desk, "east") if entry[:2] == ("out", "train.visit")]
    assert [verdict for _, _, verdict, *_ in left] == ["failed", "allowed"]

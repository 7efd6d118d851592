"""Both engines, one contract: the same scenario comes to the same bits, scores, ledgers and refusals."""

from pathlib import Path
from typing import Any

import pytest

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

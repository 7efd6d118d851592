"""What the tests of damaged files share: ways to damage them, runs that stop in the middle, what the ledgers say."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Desk


class Crash(KeyboardInterrupt):
    """Passes through the guard at once, and so stands for a killed process."""


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Keep half."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def remove(path: Path) -> None:
    path.unlink()


def interrupted(desk: Desk, *event: object, strategy: str = "finetune") -> str:
    """The name of a run whose process died at an event."""
    run = desk.begin(f"strategy={strategy}")
    died(desk, run, *event)
    return run


def died(desk: Desk, run: str, *event: object) -> None:
    """Carry a run out until an event."""

    def strike(seen: tuple[object, ...]) -> None:
        if seen[: len(event)] == event:
            raise Crash

    with pytest.raises(Crash):
        desk.carry_out(run, strike)


def stops_made(events: list[tuple[Any, ...]]) -> list[int]:
    return [event[1] for event in events if event[0] == "stop ended"]


def left_with_visits(desk: Desk, site: str, run: str) -> list[Any]:
    """The ledger's entries of what left the site for its visits, refusals and failures too."""
    wanted = (run, "out", "train.visit")
    return [e for e in desk.ledger(site).entries() if (e.run, e.direction, e.message_type) == wanted]


Outcome = dict[str, Any]
Undisturbed = Callable[[str], Outcome]

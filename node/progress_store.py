"""Where the visit under way stands, in the node's database: for the coordinator's questions and the site's own pages.

Written by the process that does the work, read by others. What leaves of it passes the guard like everything else.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine, delete, insert, select
from sqlalchemy.orm import Mapped, mapped_column

from node.database import Base, open_database
from node.progress import Step

_at_work: ContextVar[bool] = ContextVar("at_work", default=True)

NOTE_SECONDS = 1.0  # between two notes
MOST_POINTS = 500  # of a loss curve


class Standing(Base):
    """The last noted step of a visit; `time` is UTC in ISO format, `loss` is None where the strategy reports none."""

    __tablename__ = "standing"

    run: Mapped[str] = mapped_column(primary_key=True)
    stop: Mapped[int] = mapped_column(primary_key=True)
    step: Mapped[int]
    steps: Mapped[int]
    loss: Mapped[float | None]
    time: Mapped[str]
    device: Mapped[str | None]  # what it is worked on
    memory: Mapped[int | None]  # the most that the working process, or its part of the GPU, took so far, in bytes


class LossNote(Base):
    """A point of a visit's loss curve: some hundreds per visit, kept for the site's own pages."""

    __tablename__ = "loss_notes"

    run: Mapped[str] = mapped_column(primary_key=True)
    stop: Mapped[int] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    loss: Mapped[float | None]
    time: Mapped[str]


def noted_at(
    home: Path, durable: bool, device: str = "cpu", memory: Callable[[], int] | None = None
) -> Callable[[Step], None]:
    """A listener that notes steps in the database of the node's folder, at most one per NOTE_SECONDS.

    `memory` says how many bytes the work took at most so far.
    """
    noted, drawn = 0.0, 0

    def note(step: Step) -> None:
        nonlocal noted, drawn
        now = time.monotonic()
        if now - noted < NOTE_SECONDS and step.step < step.steps:
            return
        noted = now
        row = {
            "run": step.run,
            "stop": step.stop,
            "step": step.step,
            "steps": step.steps,
            "loss": step.scalars.get("loss"),
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        with open_database(home, durable).execution_options(write=True).begin() as connection:
            connection.execute(delete(Standing).where(Standing.run == step.run))  # its earlier stops are over
            connection.execute(insert(Standing), row | {"device": device, "memory": memory and memory()})
            if drawn and drawn < step.step < min(drawn + step.steps // MOST_POINTS, step.steps):
                return
            drawn = step.step
            # what an earlier try drew from here on is drawn anew
            later = (LossNote.run == step.run, LossNote.stop == step.stop, LossNote.step >= step.step)
            connection.execute(delete(LossNote).where(*later))
            del row["steps"]
            connection.execute(insert(LossNote), row)

    return note


@contextmanager
def at_work(whether: bool) -> Iterator[None]:
    """Inside the block the node works on something of the message's run, or does not."""
    token = _at_work.set(whether)
    try:
        yield
    finally:
        _at_work.reset(token)


def standing(engine: Engine, run: str, stop: int) -> dict[str, int | float]:
    """`working` (1 or 0) and, of the run's visit at that stop, `step`, `steps` and `loss` as far as they are known.

    A coordinator whose visit is not being worked on, because the node's process died with it, asks for it again.
    """
    working: dict[str, int | float] = {"working": int(_at_work.get())}
    with engine.connect() as connection:
        found = connection.execute(select(Standing).where(Standing.run == run, Standing.stop == stop)).first()
    if found is None:
        return working
    loss = {} if found.loss is None else {"loss": found.loss}
    return {**working, "step": found.step, "steps": found.steps, **loss}

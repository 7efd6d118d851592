"""The runs that reached this node, the visit in progress, and what may come next."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Row, func, select

from node.asked import AskedRun
from node.dashboard.reading import STILL_HERE, Reader
from node.dashboard.traffic import AxisShown, ChartShown, SeriesShown
from node.held import HeldRow
from node.ledger import Direction, Entry, Verdict
from node.progress_store import LossNote, Standing
from protos.plan import Plan

# Flower's message types as protos/messages.py has them, which would bring all of Flower.
VISIT, SCORE, DESCRIBE, PROGRESS = "train.visit", "evaluate.score", "query.describe", "query.progress"
INTRODUCE = "query.introduce"
SILENT_SECONDS = 120  # without a sign of life the work may have died


@dataclass(frozen=True)
class RunKnown:
    """A run as this node knows it."""

    run: str
    first: str  # time of its first message
    unseen: bool
    plan: Plan

    @classmethod
    def of(cls, row: Row[Any]) -> "RunKnown | None":
        """None if the plan is one of another release."""
        try:
            return cls(row.run, row.first, row.unseen, Plan.model_validate_json(row.plan))
        except ValueError:
            return None

    @property
    def at_once(self) -> bool:
        """Whether all sites learn at its one stop; the strategies themselves would bring PyTorch."""
        return self.plan.strategy.name.startswith("joint")

    @property
    def last_stop(self) -> int:
        """The number of its last stop."""
        return 0 if self.at_once else len(self.plan.sites) - 1

    @property
    def classes(self) -> tuple[str, ...]:
        """The structures, without the background."""
        return self.plan.task.classes[1:]


def runs(reader: Reader, limit: int = 100) -> list[RunKnown]:
    """The newest runs first."""
    found = reader.rows(select(*AskedRun.__table__.columns).order_by(AskedRun.first.desc()).limit(limit))
    return [run for row in found if (run := RunKnown.of(row)) is not None]


def run_known(reader: Reader, run: str) -> RunKnown | None:
    """One run; None if it is not known here."""
    row = reader.first(select(*AskedRun.__table__.columns).where(AskedRun.run == run))
    return None if row is None else RunKnown.of(row)


@dataclass(frozen=True)
class AtWork:
    """A message that was let in and has not been answered yet: a visit or a scoring."""

    message_type: str
    run: str
    stop: int
    strategy: str
    since: str
    step: int | None
    steps: int | None
    loss: float | None
    sign: str | None  # of life: when the last step was noted
    device: str | None
    memory: int | None
    left_seconds: float | None

    @property
    def silent(self) -> bool:
        """Whether nothing was heard of it for a while."""
        heard = datetime.fromisoformat(self.sign or self.since)
        heard = heard if heard.tzinfo else heard.replace(tzinfo=UTC)
        return (datetime.now(UTC) - heard).total_seconds() > SILENT_SECONDS


def at_work(reader: Reader) -> AtWork | None:
    """The newest visit or scoring that was let in, unless it was answered already."""
    asked = reader.first(
        select(Entry.seq, Entry.message_type, Entry.run, Entry.stop, Entry.round, Entry.strategy, Entry.time)
        .where(
            Entry.direction == Direction.IN,
            Entry.message_type.in_((VISIT, SCORE)),
            Entry.verdict == Verdict.ALLOWED,
        )
        .order_by(Entry.seq.desc())
        .limit(1)
    )
    if asked is None:
        return None
    answered = select(Entry.seq).where(
        Entry.seq > asked.seq,
        Entry.direction == Direction.OUT,
        Entry.run == asked.run,
        Entry.stop == asked.stop,
        Entry.message_type == asked.message_type,
        Entry.round == asked.round,
    )
    if reader.scalar(answered.limit(1)) is not None:
        return None
    standing = None
    if asked.message_type == VISIT:
        standing = reader.first(
            select(*Standing.__table__.columns).where(Standing.run == asked.run, Standing.stop == asked.stop)
        )
    if standing is None:
        nothing = dict.fromkeys(("step", "steps", "loss", "sign", "device", "memory", "left_seconds"))
    else:
        nothing = {
            "step": standing.step,
            "steps": standing.steps,
            "loss": standing.loss,
            "sign": standing.time,
            "device": standing.device,
            "memory": standing.memory,
            "left_seconds": _time_left(reader, asked.run, asked.stop, standing.steps),
        }
    return AtWork(asked.message_type, asked.run, asked.stop, asked.strategy, asked.time, **nothing)


def _time_left(reader: Reader, run: str, stop: int, steps: int) -> float | None:
    """Seconds, from the pace of the last notes; None before there are two."""
    query = select(LossNote.step, LossNote.time).where(LossNote.run == run, LossNote.stop == stop)
    notes = reader.rows(query.order_by(LossNote.step.desc()).limit(20))
    if len(notes) < 2 or notes[0].step == notes[-1].step:
        return None
    spent: timedelta = datetime.fromisoformat(notes[0].time) - datetime.fromisoformat(notes[-1].time)
    return spent.total_seconds() / float(notes[0].step - notes[-1].step) * float(steps - notes[0].step)


def loss_chart(reader: Reader, run: str, stop: int) -> ChartShown:
    """The loss of a visit over its steps."""
    query = select(LossNote.step, LossNote.loss).where(LossNote.run == run, LossNote.stop == stop)
    notes = reader.rows(query.order_by(LossNote.step))
    return ChartShown(
        x=AxisShown(label="step", time=False),
        series=[SeriesShown(label="loss", unit="")],
        values=[[float(note.step) for note in notes], [note.loss for note in notes]],
    )


def last_visit(reader: Reader) -> tuple[str, int] | None:
    """Run and stop of the newest visit whose loss was noted."""
    found = reader.first(select(LossNote.run, LossNote.stop).order_by(LossNote.time.desc()).limit(1))
    return None if found is None else (found.run, found.stop)


@dataclass(frozen=True)
class Waits:
    """A handover that is ready to leave: a person has to decide, or one who released it did and nobody asked since."""

    run: str
    stop: int
    round: int
    since: str  # time, UTC in ISO format
    released_by: str | None
    released: str | None  # time

    @property
    def named(self) -> str:
        """For a sentence."""
        return f"the handover of stop {self.stop}{f', round {self.round}' if self.round else ''} of {self.run}"


def waits(reader: Reader) -> list[Waits]:
    """What is ready to leave and has not left, oldest first."""
    columns = (HeldRow.run, HeldRow.stop, HeldRow.round, HeldRow.since, HeldRow.by, HeldRow.decided)
    rows = reader.rows(select(*columns).where(STILL_HERE).order_by(HeldRow.since))
    return [Waits(row.run, row.stop, row.round, row.since, row.by, row.decided) for row in rows]


@dataclass(frozen=True)
class Outlook:
    """How far a run has come at this site: stops that it was visited at, the last one that it was scored after.

    `learning` says that it is visited now, `held` that what a visit made has not left.
    """

    known: RunKnown
    visited: Sequence[int]
    scored: int | None
    learning: bool = False
    held: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing of the run is to come as far as this node knows: its last stop is scored here."""
        return self.scored is not None and self.scored >= self.known.last_stop

    def sentence(self, site: str) -> str:
        """What is still to come of the run."""
        sites = self.known.plan.sites
        if self.known.unseen:
            return "This site is only scored, after every stop; the model learns nothing here."
        order = f"This site is number {sites.index(site) + 1} of {len(sites)} in its order." if site in sites else ""
        if self.known.at_once:
            order = f"The model learns at {len(sites)} sites at once, in rounds."
        if self.learning:
            return f"{order} The model is learning here now.".strip()
        if self.held:
            return f"{order} The model has learnt here, and what it learnt has not left yet.".strip()
        if not self.visited:
            return f"{order} The model has not learnt here yet; it comes when the sites before are done.".strip()
        if self.scored is None or self.scored < max(self.visited):
            return f"{order} The model has learnt here; its scoring comes next.".strip()
        return f"{order} The model has learnt here; it is scored here again after every further stop.".strip()


def visited_stops(reader: Reader, run: str) -> set[int]:
    """The stops that the model has left this site at."""
    query = select(Entry.stop).where(
        Entry.run == run,
        Entry.message_type == VISIT,
        Entry.direction == Direction.OUT,
        Entry.verdict == Verdict.ALLOWED,
        Entry.stop.is_not(None),
    )
    return {row.stop for row in reader.rows(query.distinct())}


def outlook(reader: Reader, limit: int = 3) -> list[Outlook]:
    """Those of the newest runs that are not over, with how far each has come."""
    found, work, held = [], at_work(reader), {one.run for one in waits(reader)}
    learning = work.run if work is not None and work.message_type == VISIT else None
    for known in runs(reader, limit):
        of_run = (Entry.run == known.run, Entry.direction == Direction.OUT, Entry.verdict == Verdict.ALLOWED)
        scored = reader.scalar(select(func.max(Entry.stop)).where(*of_run, Entry.message_type == SCORE))
        visited = sorted(visited_stops(reader, known.run))
        found.append(Outlook(known, visited, scored, known.run == learning, known.run in held))
    return [one for one in found if not one.over]


def metrics_of(reader: Reader, run: str, message_type: str) -> dict[int, dict[str, float]]:
    """Stop -> the scalars that left for the run with this message, the newest of each stop."""
    newest = (
        select(func.max(Entry.seq))
        .where(
            Entry.run == run,
            Entry.message_type == message_type,
            Entry.direction == Direction.OUT,
            Entry.verdict == Verdict.ALLOWED,
        )
        .group_by(Entry.stop)
    )
    rows = reader.rows(select(Entry.stop, Entry.metrics).where(Entry.seq.in_(newest)).order_by(Entry.seq))
    return {row.stop: json.loads(row.metrics) for row in rows if row.stop is not None}

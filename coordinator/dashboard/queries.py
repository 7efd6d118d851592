"""What is asked of the store for the overview: documents, a page at a time, each from an index."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session

from coordinator.dashboard.documents import (
    EventEntry,
    EventList,
    Queue,
    QueueEntry,
    RunEntry,
    RunList,
    StopEntry,
    StopList,
)
from coordinator.dashboard.line import Line, line_stop
from coordinator.dashboard.sentences import in_a_sentence
from coordinator.home import Home
from coordinator.journal import utc
from coordinator.listing import listed, status_of
from coordinator.store import EventRow, QueueRow, Run, ScoreRow, StopRow
from coordinator.vault import Vault
from pages.paging import page_of

STATUSES = ("pending", "running", "interrupted", "cancelled", "failed", "incomplete", "done")


class Queries:
    """Questions about the runs of a home; may be asked from any thread."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._vault = Vault(home.folder / "vault")

    def runs(self, scenario: str | None = None, status: str | None = None, *, first: int = 0, most: int) -> RunList:
        """Runs of a scenario's name, or with a status."""
        if self.home.is_new():
            return RunList(runs=[], total=0)
        conditions = self._conditions(scenario, status)
        with self.home.store().reading() as session:
            total = session.scalar(select(func.count()).select_from(Run).where(*conditions)) or 0
        rows = listed(self.home, *conditions, first=first, most=most)
        return RunList(runs=[RunEntry(**row) for row in rows], total=total)

    def scenarios(self) -> list[tuple[str, int]]:
        """The scenarios' names, the latest first, with how many runs each has."""
        if self.home.is_new():
            return []
        by_name = select(Run.name, func.count()).group_by(Run.name).order_by(func.max(Run.created).desc())
        with self.home.store().reading() as session:
            return [(name, count) for name, count in session.execute(by_name)]

    def names(self, scenario: str) -> list[str]:
        """All runs of a scenario's name, oldest first."""
        with self.home.store().reading() as session:
            return list(session.scalars(select(Run.id).where(Run.name == scenario).order_by(Run.created)))

    def queue(self) -> Queue:
        """What is carried out and what waits, in the order of the turns."""
        if self.home.is_new():
            return Queue(queue=[])
        with self.home.store().reading() as session:
            rows = session.scalars(select(QueueRow).order_by(QueueRow.number)).all()
            entries = [
                QueueEntry(
                    run=row.run_id,
                    scenario=row.run.name,
                    status=status_of(row.run, self.home),
                    not_before=None if row.not_before is None else _iso(row.not_before),
                    after=row.after,
                    waits_for=row.waits_for,
                )
                for row in rows
            ]
        return Queue(queue=entries)

    def line(self, run: str) -> Line:
        """The stops of a run, and how far it is where the model is now."""
        columns = (StopRow.index, StopRow.sites, StopRow.rehearsing, StopRow.status, StopRow.error)
        skipped = (StopRow.skipped_by, StopRow.skipped_why, StopRow.left_out)
        with self.home.store().reading() as session:
            rows = session.execute(select(*columns, *skipped).where(StopRow.run_id == run).order_by(StopRow.index))
            line = Line(tuple(line_stop(row) for row in rows))
            here = line.stop_here
            return line if here is None else replace(line, step=_last_step(session, run, here.number))

    def stops(self, run: str, *, first: int = 0, most: int) -> StopList:
        """Some stops of a run, with their artifacts."""
        with self.home.store().reading() as session:
            of_run = StopRow.run_id == run
            total = session.scalar(select(func.count()).select_from(StopRow).where(of_run)) or 0
            in_page = select(StopRow).where(of_run, StopRow.index >= first, StopRow.index < first + most)
            rows = session.scalars(in_page.order_by(StopRow.index)).all()
        return StopList(stops=[self._stop(row) for row in rows], total=total)

    def refused(self, run: str, stops: Iterable[int], sites: Iterable[str]) -> dict[tuple[int, str], str]:
        """Cells of the score matrix that a site could not fill: its code."""
        wanted = select(ScoreRow.stop, ScoreRow.site, ScoreRow.error).where(
            ScoreRow.run_id == run,
            ScoreRow.stop.in_(list(stops)),
            ScoreRow.site.in_(list(sites)),
            ScoreRow.error.is_not(None),
        )
        with self.home.store().reading() as session:
            return {(stop, site): str(error["code"]) for stop, site, error in session.execute(wanted) if error}

    def events(self, run: str, *, before: int | None = None, after: int | None = None, most: int) -> EventList:
        """A page of a run's events, newest first."""
        with self.home.store().reading() as session:

            def below(number: int | None, limit: int) -> Sequence[EventRow]:
                older = [] if number is None else [EventRow.number < number]
                wanted = select(EventRow).where(EventRow.run_id == run, *older)
                return session.scalars(wanted.order_by(EventRow.number.desc()).limit(limit)).all()

            def above(number: int, limit: int) -> Sequence[EventRow]:
                wanted = select(EventRow).where(EventRow.run_id == run, EventRow.number > number)
                return session.scalars(wanted.order_by(EventRow.number).limit(limit)).all()

            page = page_of(below, above, lambda row: row.number, before=before, after=after, limit=most)
        return EventList(events=[_event(row) for row in page.rows], older=page.older, newer=page.newer)

    def _conditions(self, scenario: str | None, status: str | None) -> list[ColumnElement[bool]]:
        conditions: list[ColumnElement[bool]] = [] if scenario is None else [Run.name == scenario]
        if status in ("running", "interrupted"):  # in the store they are one
            with self.home.store().reading() as session:
                running = session.scalars(select(Run).where(Run.status == "running")).all()
            conditions.append(Run.id.in_([run.id for run in running if status_of(run, self.home) == status]))
        elif status is not None:
            conditions.append(Run.status == status)
        return conditions

    def _stop(self, row: StopRow) -> StopEntry:
        error = row.error or {}
        return StopEntry(
            stop=row.index,
            sites=row.sites,
            rehearsing=row.rehearsing,
            action=row.action,
            status=row.status,
            seconds=row.seconds if row.status == "done" else None,
            sent=_by_kind(row, "sent"),
            received=_by_kind(row, "received"),
            failed_at=error.get("site"),
            code=error.get("code"),
            why=row.skipped_why if row.status == "skipped" else error.get("sentence"),
            skipped_by=row.skipped_by,
            left_out={site: f"{said['by']}: {said['why']}" for site, said in row.left_out.items()},
            artifact=row.artifact,
            weights_sha256=row.weights_sha256,
            bytes=None if row.artifact is None else self._size(row.artifact),
        )

    def _size(self, artifact: str) -> int | None:
        try:
            return self._vault.path(artifact).stat().st_size
        except OSError:
            return None


def _by_kind(row: StopRow, direction: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for both in row.traffic.values():
        total.update(both[direction])
    return dict(total)


def _last_step(session: Session, run: str, stop: int) -> dict[str, Any] | None:
    of_stop = select(EventRow.fields).where(EventRow.run_id == run, EventRow.kind == "stepped", EventRow.stop == stop)
    fields: dict[str, Any] | None = session.scalar(of_stop.order_by(EventRow.number.desc()).limit(1))
    return fields


def _event(row: EventRow) -> EventEntry:
    return EventEntry(
        number=row.number,
        time=_iso(row.time),
        kind=row.kind,
        stop=row.stop,
        sentence=in_a_sentence(row.kind, row.fields),
        fields=row.fields,
    )


def _iso(time: datetime) -> str:
    return utc(time).isoformat(timespec="seconds")

"""The events of the runs that a control service carries out: written to the store, so that they outlive processes."""

import threading
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from google.protobuf.json_format import ParseDict
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from coordinator.store import EventRow, Store
from protos.locum.v1 import control_pb2

STEPS_KEPT = 5  # of a stop: the last so many reports of its steps


class Journal:
    """One writer, the service's process; any number of readers in it, which are woken by what is written."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changed = threading.Condition()
        self._changes = 0

    def write(self, run: str, kind: str, fields: Mapping[str, Any]) -> None:
        """Write an event of its own; `kind` and `fields` are those of a control.proto Event."""
        with self._store.transaction() as session:
            note(session, run, kind, fields)
        self.tell()

    def tell(self) -> None:
        """Wake the readers: something was committed."""
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    @property
    def changes(self) -> int:
        """Grows with every change; to be read before looking, and given to `wait` after."""
        return self._changes

    def wait(self, changes: int, seconds: float) -> None:
        """Wait until there are other changes than these, at most so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes != changes, seconds)

    def after(self, run: str, number: int) -> Sequence[control_pb2.Event]:
        """The run's events with a higher number, in order."""
        with self._store.transaction() as session:
            wanted = select(EventRow).where(EventRow.run_id == run, EventRow.number > number)
            return [_event(row) for row in session.scalars(wanted.order_by(EventRow.number))]


def note(session: Session, run: str, kind: str, fields: Mapping[str, Any]) -> None:
    """Write an event within a transaction; of the steps of a stop only the last few are kept."""
    session.add(EventRow(run_id=run, kind=kind, stop=fields.get("stop"), fields=dict(fields)))
    if kind == "stepped":
        session.flush()
        same = (EventRow.run_id == run, EventRow.kind == kind, EventRow.stop == fields["stop"])
        older = select(EventRow.number).where(*same).order_by(EventRow.number.desc()).offset(STEPS_KEPT)
        session.execute(delete(EventRow).where(EventRow.number.in_(session.scalars(older).all())))


def _event(row: EventRow) -> control_pb2.Event:
    event = ParseDict({row.kind: row.fields}, control_pb2.Event(number=row.number))
    event.time.FromDatetime(utc(row.time))
    return event


def utc(time: datetime) -> datetime:
    """A time from the store; SQLite keeps no zone."""
    return time if time.tzinfo else time.replace(tzinfo=UTC)

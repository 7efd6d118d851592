"""Letting a run go on without a stop, or without a rehearsal, in the name of a person who answers for it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.home import Home, alone
from coordinator.store import SETTLED, StopRow


class NotSkippable(Exception):
    """The stop, or the rehearsal, cannot be skipped; one sentence."""


def skip(run: str, stop: int, home: Home, *, by: str, why: str) -> None:
    """Write down that a named person skips a stop; `resume` goes on without it. Raises NotSkippable, RunBusy."""
    with _open_stop(run, stop, home, by, why) as (session, _):
        mark_skipped(session, run, stop, by=by, why=why)


def mark_skipped(session: Session, run: str, stop: int, *, by: str, why: str) -> None:
    """Write down, within a transaction, that an unfinished stop is skipped."""
    row = session.get_one(StopRow, (run, stop))
    row.status, row.skipped_by, row.skipped_why, row.rounds_state = "skipped", by, why, None
    # its sites keep no case, or not surely, and may be gone
    for later in _stops_from(session, run, stop + 1):
        later.rehearsing = [site for site in later.rehearsing if site not in row.sites]


def skip_rehearsal(run: str, stop: int, site: str, home: Home, *, by: str, why: str) -> None:
    """Write down that a named person leaves out a site's rehearsal at a stop and at all later ones, which are made.

    A stop that is half made begins anew. Raises NotSkippable, RunBusy.
    """
    with _open_stop(run, stop, home, by, why) as (session, row):
        if site not in row.rehearsing:
            raise NotSkippable(
                f"{site} does not rehearse at stop {stop} of run {run}; `locum show {run}` lists who does where."
            )
        for later in _stops_from(session, run, stop):
            if site in later.rehearsing:
                later.rehearsing = [name for name in later.rehearsing if name != site]
                later.left_out = later.left_out | {site: {"by": by, "why": why}}
                later.rounds_done, later.rounds_state = 0, None


@contextmanager
def _open_stop(run: str, stop: int, home: Home, by: str, why: str) -> Iterator[tuple[Session, StopRow]]:
    """The row of an unfinished stop, to be written to by a person with a name and a reason."""
    store = home.store()
    store.run(run)
    if not by.strip() or not why.strip():
        raise NotSkippable("A stop is skipped in the name of a person and for a reason; fill in --by and --why.")
    with alone(home, run), store.transaction() as session:
        row = session.get(StopRow, (run, stop))
        if row is None:
            raise NotSkippable(f"Run {run} has no stop {stop}; `locum show {run}` lists its stops, counted from 0.")
        if row.status in SETTLED:
            raise NotSkippable(f"Stop {stop} of run {run} is {row.status} already; only an unfinished stop is skipped.")
        yield session, row
    store.keep_copy()


def _stops_from(session: Session, run: str, first: int) -> Iterable[StopRow]:
    return session.scalars(select(StopRow).where(StopRow.run_id == run, StopRow.index >= first))

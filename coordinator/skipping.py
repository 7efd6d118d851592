"""Letting a run go on without a stop, in the name of a person who answers for it."""

from sqlalchemy import select

from coordinator.home import Home, alone
from coordinator.store import SETTLED, StopRow


class NotSkippable(Exception):
    """The stop cannot be skipped; one sentence."""


def skip(run: str, stop: int, home: Home, *, by: str, why: str) -> None:
    """Write down that a named person skips a stop; `resume` goes on without it. Raises NotSkippable, RunBusy."""
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
        row.status, row.skipped_by, row.skipped_why, row.rounds_state = "skipped", by, why, None
        # its sites keep no case, or not surely, and may be gone
        for later in session.scalars(select(StopRow).where(StopRow.run_id == run, StopRow.index > stop)):
            later.rehearsing = [site for site in later.rehearsing if site not in row.sites]

"""What of the overview changed: a look at the store every second while somebody listens, for pages/live.py."""

import hashlib
from typing import Any

from sqlalchemy import func, select

from coordinator.dashboard.overview import Overview
from coordinator.faults import exit_status
from coordinator.listing import status_of
from coordinator.store import EventRow, QueueRow, Run, StopRow
from pages.live import State


def topics_of(run: str) -> tuple[str, str]:
    """Under which names a page hears of a run: of all that happens, and of its stops and scores alone."""
    name = hashlib.sha256(run.encode()).hexdigest()[:16]  # a name is told on a line of its own
    return f"run-{name}", f"scores-{name}"


class Pulse:
    """One look: topic -> what changes with it. For one thread at a time."""

    def __init__(self, overview: Overview) -> None:
        self._overview = overview
        self._told: dict[str, int] = {}  # run -> number of its last event
        self._last = 0
        self._sites: object = None

    def __call__(self) -> State:
        """The state of all runs, of the queue and of the sites."""
        home = self._overview.home
        if home.is_new():
            return {"runs": (), "sites": ()}
        with home.store().reading() as session:
            runs = session.execute(select(Run.id, Run.status, Run.seconds)).all()
            waits = session.execute(select(QueueRow.run_id, QueueRow.waits_for).order_by(QueueRow.number))
            queue = [(run, waits_for) for run, waits_for in waits]
            counted = select(StopRow.run_id, StopRow.status, func.count(), func.sum(StopRow.rounds_done))
            stops: dict[str, list[Any]] = {}
            for run, *counts in session.execute(counted.group_by(StopRow.run_id, StopRow.status)):
                stops.setdefault(run, []).append(counts)
            newer = select(EventRow.run_id, func.max(EventRow.number)).where(EventRow.number > self._last)
            for run, number in session.execute(newer.group_by(EventRow.run_id)):
                self._told[run] = number
                self._last = max(self._last, number)
            running = {
                run.id: status_of(run, home) for run in session.scalars(select(Run).where(Run.status == "running"))
            }
        state: dict[str, object] = {}
        listed, waiting = [], dict(queue)
        for run, stored, seconds in runs:
            status = running.get(run, stored)
            everything, scores = topics_of(run)
            state[scores] = status, seconds, stops.get(run)
            state[everything] = status, seconds, stops.get(run), self._told.get(run)
            listed.append((run, status, [counts[:2] for counts in stops.get(run, [])]))
            if (waits_for := waiting.get(run)) is not None:
                state[everything] = state[everything], waits_for
        return {**state, "runs": (listed, queue), "sites": self._look_at_sites()}

    def _look_at_sites(self) -> object:
        try:
            self._sites = [site.model_dump(exclude={"last_seen"}) for site in self._overview.sites().sites]
        except Exception as error:
            if exit_status(error) is None:
                raise
        return self._sites

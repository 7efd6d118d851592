"""Summaries of runs that are looked at again and again: of the scores only those that are new are read from the store.

A score that is there does not change (coordinator/scoring.py), so a run of hundreds of visits is read whole once.
"""

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session, lazyload

from coordinator.home import Home
from coordinator.listing import status_of
from coordinator.results import Scores
from coordinator.scenario import Scenario
from coordinator.store import Run, ScoreRow, StopRow, UnknownRun
from coordinator.summary import RunSummary

MOST_CELLS = 1_500_000  # of score matrices that are kept, some 130 bytes each
_ONE_BY_ONE = 2000  # so many new scores are looked up by their keys; of more whole stops are read
_CHUNK = 400


@dataclass(frozen=True)
class Seen:
    """A run's summary as it was last read; None if it was not yet. `behind`: a newer one is being read."""

    summary: RunSummary | None
    behind: bool


@dataclass
class _Kept:
    lock: threading.Lock = field(default_factory=threading.Lock)
    scores: Scores | None = None
    token: object = None
    summary: RunSummary | None = None
    reading: "Future[RunSummary] | None" = None

    @property
    def cells(self) -> int:
        return 0 if self.summary is None else len(self.summary.visited) * len(self.summary.columns)


class Summaries:
    """The summaries of a home's runs; may be asked from any thread."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._lock = threading.Lock()
        self._readers = ThreadPoolExecutor(2, "summary")

    def close(self) -> None:
        """End the threads that read."""
        self._readers.shutdown(wait=True, cancel_futures=True)

    def newest(self, run: str) -> RunSummary:
        """The run as far as it has come; `run` is its whole name. Raises UnknownRun."""
        kept = self._entry(run)
        with kept.lock:
            return self._read(run, kept)

    def soon(self, run: str, seconds: float) -> Seen:
        """The newest summary if it is there within so many seconds, else the last one. Raises UnknownRun."""
        kept = self._entry(run)
        with self._lock:
            if kept.reading is None or kept.reading.done():
                kept.reading = self._readers.submit(self.newest, run)
            reading = kept.reading
        try:
            return Seen(reading.result(seconds), behind=False)
        except Late:
            return Seen(kept.summary, behind=True)

    def _entry(self, run: str) -> _Kept:
        with self._lock:
            kept = self._kept.setdefault(run, _Kept())
            self._kept.move_to_end(run)
            while len(self._kept) > 1 and sum(other.cells for other in self._kept.values()) > MOST_CELLS:
                self._kept.popitem(last=False)
            return kept

    def _read(self, run: str, kept: _Kept) -> RunSummary:
        with self._home.store().reading() as session:
            row = session.get(Run, run, options=[lazyload("*")])
            if row is None:
                with self._lock:
                    self._kept.pop(run, None)
                raise UnknownRun(f"There is no run {run!r} in this store.")
            status = status_of(row, self._home)
            token = status, row.seconds, row.policies, _token(session, run)
            if kept.summary is None or token != kept.token:
                if kept.scores is None:
                    kept.scores = Scores(Scenario.model_validate(row.scenario))
                _add_new(session, row, kept.scores)
                kept.summary, kept.token = replace(kept.scores.summary(row), status=status), token
        return kept.summary


def _token(session: Session, run: str) -> object:
    """Changes with everything about a run's stops; the run's own time grows with every other change."""
    columns = (StopRow.index, StopRow.status, StopRow.rounds_done, StopRow.rehearsing, StopRow.left_out)
    return [
        tuple(row) for row in session.execute(select(*columns).where(StopRow.run_id == run).order_by(StopRow.index))
    ]


def _add_new(session: Session, run: Run, scores: Scores) -> None:
    missing = {stop.index: set(scores.missing(stop.index)) for stop in run.stops if stop.status == "done"}
    unfilled = [stop for stop, sites in missing.items() if sites]
    here = ScoreRow.run_id == run.id
    columns = (ScoreRow.stop, ScoreRow.site, ScoreRow.metrics, ScoreRow.traffic)
    found = session.execute(select(ScoreRow.stop, ScoreRow.site).where(here, ScoreRow.stop.in_(unfilled))).all()
    new = [(stop, site) for stop, site in found if site in missing[stop]]
    if len(new) <= _ONE_BY_ONE:
        for first in range(0, len(new), _CHUNK):
            keys = tuple_(ScoreRow.stop, ScoreRow.site).in_(new[first : first + _CHUNK])
            _put(scores, session.execute(select(*columns).where(here, keys)).all())
    else:
        for stop in dict.fromkeys(stop for stop, _ in new):
            _put(scores, session.execute(select(*columns).where(here, ScoreRow.stop == stop)).all())


def _put(scores: Scores, rows: Any) -> None:
    by_stop: dict[int, list[Any]] = {}
    for row in rows:
        by_stop.setdefault(row.stop, []).append(row)
    for stop, found in by_stop.items():
        scores.put(stop, found)

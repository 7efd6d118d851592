"""The control service's runs: begun when it is their turn, each in a process of its own, and ended."""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from queue import Empty, SimpleQueue

from sqlalchemy import select

from coordinator.home import Home
from coordinator.journal import Journal, note
from coordinator.store import QueueRow, Run, SiteRow
from coordinator.superlink import SuperLinkConfig
from coordinator.turns import ENDED, Waiting, choose, put_back, queued
from coordinator.workers import Message, Worker
from protos.handover import SCHEMA_VERSION
from protos.software import Software

_log = logging.getLogger("locum.coordinator")

LOOK_SECONDS = 1.0  # between two looks at the queue
AGAIN_SECONDS = 5.0  # before a run is taken up anew whose process ended without the run's fault
DEATHS = 3  # of a run's processes, one after the other without a stop made between, after which it has failed


class Dispatcher:
    """Carries out the queue's runs through the SuperLink, at most `workers` side by side.

    One thread is in `carry_on`; the other methods may be called from any.
    """

    def __init__(self, home: Home, superlink: SuperLinkConfig, journal: Journal, workers: int) -> None:
        self._home, self._superlink, self._journal, self._workers = home, superlink, journal, workers
        self._store = home.store()
        self._lock = threading.RLock()
        self._heard: SimpleQueue[tuple[Worker, Message | None] | None] = SimpleQueue()
        self._carried: dict[str, tuple[Worker, Waiting]] = {}
        self._said: dict[str, str] = {}  # run -> what it was last said to wait for
        self._waits: dict[str, tuple[str | None, dict[str, datetime]]] = {}  # run -> what is written down of that
        self._deaths: Counter[str] = Counter()
        self._rests: dict[str, float] = {}  # run -> when it may be taken up anew, by the monotonic clock

    def carry_on(self, nodes: Callable[[], Mapping[str, bool]], until: Callable[[], bool]) -> list[str]:
        """Carry out what is queued until told otherwise; then all processes end, and their runs wait for their turn.

        `nodes` says of every site with a registered node whether that is online. Returns the runs that wait again.
        """
        put_back(self._store)
        try:
            while not until():
                try:
                    heard = self._heard.get(timeout=LOOK_SECONDS)
                except Empty:
                    heard = None
                with self._lock:
                    if heard is None or self._hear(*heard):
                        self._begin(nodes)
        finally:
            with self._lock:
                ended = self._end_all()
            put_back(self._store)
        return ended

    def wake(self) -> None:
        """Have a look at the queue at once."""
        self._heard.put(None)

    def cancel(self, run: str) -> str:
        """Take a run out of the queue and end its process; returns its status, `cancelled` unless it had ended."""
        with self._lock:
            if (carried := self._carried.pop(run, None)) is not None:
                carried[0].end()
            status = self._settle(run, "cancelled", [])
        self.wake()
        return status

    def _begin(self, nodes: Callable[[], Mapping[str, bool]]) -> None:
        """Begin what has its turn now, and say what the others wait for."""
        now = time.monotonic()
        queue = (one for one in queued(self._store) if one.run not in self._carried)
        rested = (one for one in queue if self._rests.get(one.run, now) <= now)
        carried = {run: waiting for run, (_, waiting) in self._carried.items()}
        turns = choose(rested, carried, self._workers, datetime.now(UTC), nodes)
        for waiting in turns.chosen:
            self._rests.pop(waiting.run, None)
            self._note_wait(waiting.run, None)
            worker = Worker(self._home, lambda *heard: self._heard.put(heard), self._superlink.told())
            self._carried[waiting.run] = worker, waiting
            worker.give(waiting.run, "", turns.given_up[waiting.run])
            _log.info("Run %s begins or goes on.", waiting.run)
        for run, sentence in turns.failed.items():
            self._settle(run, "failed", [sentence])
        for run, reason in turns.reasons.items():
            self._note_wait(run, reason, turns.away.get(run, {}))

    def _hear(self, worker: Worker, message: Message | None) -> bool:
        """Take in what a run's process says; True if that ended."""
        run = worker.run
        if run not in self._carried or self._carried[run][0] is not worker:
            return False  # it was cancelled
        if message is None:
            self._died(run, worker)
        elif "event" in message:
            self._journal.write(run, message["event"], message["fields"])
            if message["event"] == "stop_ended":
                del self._deaths[run]
        elif "site" in message:
            with self._store.transaction() as session:
                session.merge(SiteRow(name=message["site"], schema_version=SCHEMA_VERSION, cases=message["cases"]))
        elif "introduced" in message:
            told = Software(**message["software"]) if message["software"] else None
            with self._store.transaction() as session:
                row = session.get_one(SiteRow, message["introduced"])
                row.software, row.torch, row.code_sha256 = (told.name, told.torch, told.code) if told else (None,) * 3
        elif "said" in message:
            _log.warning("%s: %s", run, message["said"])
        else:
            self._ended(run, worker, message)
        return run not in self._carried

    def _ended(self, run: str, worker: Worker, message: Message) -> None:
        del self._carried[run]
        worker.stop()
        if message["again"]:
            self._put_off(run, f"Run {run} waits until it can be taken up anew: {' '.join(message['failed'])}")
        else:
            self._settle(run, message["status"], message["failed"])

    def _died(self, run: str, worker: Worker) -> None:
        del self._carried[run]
        worker.stop()
        self._deaths[run] += 1
        how = worker.how_it_ended()
        if self._deaths[run] < DEATHS:
            self._put_off(run, f"The process of run {run} ended {how}; it is taken up anew.")
        else:
            why = f"Run {run} failed: its process ended {how}, {DEATHS} times over; the service's log says more."
            del self._deaths[run]
            self._settle(run, "failed", [why])

    def _put_off(self, run: str, sentence: str) -> None:
        self._rests[run] = time.monotonic() + AGAIN_SECONDS
        with self._store.transaction() as session:
            row = session.get_one(Run, run)
            row.status = "pending" if row.status not in ENDED else row.status
        self._say(run, sentence)

    def _settle(self, run: str, status: str, sentences: Sequence[str]) -> str:
        """Take the run out of the queue for good; returns its status, which stays as it is where the run has ended."""
        with self._store.transaction() as session:
            row = session.get_one(Run, run)
            queued_as = session.scalar(select(QueueRow).where(QueueRow.run_id == run))
            if queued_as is not None:
                session.delete(queued_as)
                row.status = row.status if row.status in ENDED else status
                for sentence in sentences:
                    note(session, run, "failed", {"sentence": sentence})
                note(session, run, "run_ended", {"status": row.status})
            ended = row.status
        self._store.keep_copy()
        self._said.pop(run, None)
        self._waits.pop(run, None)
        self._journal.tell()
        _log.info("Run %s: %s.", run, " ".join([ended, *sentences]))
        return ended

    def _note_wait(self, run: str, reason: str | None, away: Mapping[str, datetime] | None = None) -> None:
        """Write down and say what a run waits for; None: for nothing any more."""
        wait = reason, dict(away or {})
        if self._waits.get(run) == wait:
            return
        self._waits[run] = wait
        with self._store.transaction() as session:
            row = session.scalar(select(QueueRow).where(QueueRow.run_id == run))
            if row is not None:
                row.waits_for, row.away_since = reason, {site: since.isoformat() for site, since in wait[1].items()}
        if reason is None:
            self._said.pop(run, None)  # to be said again if it comes to that
        else:
            self._say(run, f"Run {run} waits for {reason}.")

    def _say(self, run: str, sentence: str) -> None:
        if self._said.get(run) != sentence:
            self._said[run] = sentence
            self._journal.write(run, "said", {"sentence": sentence})
            _log.info("%s", sentence)

    def _end_all(self) -> list[str]:
        """End all processes; returns the runs that they carried out."""
        ended = list(self._carried)
        workers = [worker for worker, _ in self._carried.values()]
        self._carried.clear()
        enders = [threading.Thread(target=worker.end) for worker in workers]
        for ender in enders:
            ender.start()
        for ender in enders:
            ender.join()
        return ended

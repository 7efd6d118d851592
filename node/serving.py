"""`locum-node serve`: the process of a hospital that waits for the model, and forks others to do the work.

It holds the site's key and the connection, imports no PyTorch, opens no port and never looks into a message: a process
of its own (node/worker.py), which has this site's installed ClientApp imported, forks one process per message, which
guards, learns or scores, and is gone with all its memory. One message at a time is worked on, in the order of arrival;
questions for progress are answered meanwhile.
"""

import fcntl
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from node.files import replace_file
from node.fleet import Arrived, Ended, Fleet, NotAdmitted, Unreachable
from node.keys import make_key, read_key
from node.objects import Damaged, Objects
from node.service_config import ConfigError, ServiceConfig
from node.workers import Answer, Workers
from protos.messages import PROGRESS

_log = logging.getLogger("locum.node.serving")

LIVELY_SECONDS = 60.0  # after a message, while the next one is looked for often
LIVELY_PAUSE, IDLE_PAUSE = 0.05, 2.0
RETRY_SECONDS = 5.0


class NodeBusy(Exception):
    """Another process serves this node; one sentence."""


def serve(config: ServiceConfig, stop: threading.Event) -> None:
    """Serve until `stop` is set. Raises ConfigError, NodeBusy, node.keys.UnusableKey or OSError."""
    public = make_key(config.key_file)
    if not config.authority.is_file():
        raise ConfigError(f"authority: there is no file {config.authority}; ask the coordinator's operator for ca.crt.")
    objects = Objects(config.home / "objects", config.keep)
    with _alone(config.home), Workers(config, objects) as workers:
        objects.prepare()
        _log.info("Site %s, key %s.", config.site, public)
        while not stop.is_set():
            with Fleet(config.coordinator, config.authority, read_key(config.key_file)) as fleet:
                if not _sign_on(fleet, config.home / "node-id", stop):
                    return
                _Service(config, fleet, workers, objects, stop).run()


def _sign_on(fleet: Fleet, remembered: Path, stop: threading.Event) -> bool:
    """Sign on, however long it takes; each reason why not is told once. False when the service is to end instead."""
    told = ""
    while not stop.is_set():
        try:
            former = int(remembered.read_text()) if remembered.exists() else None
            number = fleet.sign_on(former)
        except (Unreachable, NotAdmitted, ValueError) as error:
            if str(error) != told:
                _log.warning("%s Trying again every %d s.", error, RETRY_SECONDS)
                told = str(error)
            stop.wait(RETRY_SECONDS)
            continue
        replace_file(remembered, str(number).encode())
        _log.info("Signed on as node %d.", number)
        return True
    return False


class _Service:
    """One stay in the fleet, from signing on until the connection is lost for good or the service is stopped."""

    def __init__(
        self, config: ServiceConfig, fleet: Fleet, workers: Workers, objects: Objects, stop: threading.Event
    ) -> None:
        self._config, self._fleet, self._workers, self._objects = config, fleet, workers, objects
        self._stop = stop
        self._bundles: dict[int, bytes] = {}
        self._worker = ThreadPoolExecutor(1, "work")
        self._answers = ThreadPoolExecutor(1, "progress")
        self._open: dict[Future[None], Arrived] = {}

    def run(self) -> None:
        lively = time.monotonic()
        try:
            while not (self._stop.is_set() or self._fleet.lost):
                arrived = self._fetch()
                if arrived is not None:
                    lively = time.monotonic()
                    self._take(arrived)
                    continue
                self._open = {future: one for future, one in self._open.items() if not future.done()}
                if self._open:
                    lively = time.monotonic()
                else:
                    self._workers.rest()
                self._stop.wait(LIVELY_PAUSE if time.monotonic() - lively < LIVELY_SECONDS else IDLE_PAUSE)
        finally:
            self._workers.stop()
            self._worker.shutdown(cancel_futures=True)
            self._answers.shutdown(cancel_futures=True)

    def _fetch(self) -> Arrived | None:
        try:
            return self._fleet.fetch()
        except (Unreachable, NotAdmitted, Ended) as error:
            _log.warning("%s", error)
            self._stop.wait(RETRY_SECONDS)
            return None

    def _take(self, arrived: Arrived) -> None:
        """Fetch what a message holds and set somebody to work on it."""
        try:
            self._pull(arrived)
            if arrived.run not in self._bundles:
                self._bundles = {arrived.run: self._fleet.app_of(arrived.run)}
        except (Ended, Damaged, Unreachable) as error:
            _log.warning("Message %s was not received: %s", arrived.kind, error or "its run is over.")
            return
        pool = self._answers if arrived.kind == PROGRESS else self._worker
        self._open[pool.submit(self._work, arrived, self._bundles[arrived.run])] = arrived

    def _pull(self, arrived: Arrived) -> None:
        parts = arrived.parts
        for identity in parts:
            pause = 0.01
            while not self._objects.holds(identity):
                content = self._fleet.pull(arrived.run, identity)
                if content is not None:
                    self._objects.put(identity, content)
                    break
                self._stop.wait(pause)
                pause = min(pause * 2, 1.0)
                if self._stop.is_set():
                    raise Ended
        self._fleet.confirm(arrived)

    def _work(self, arrived: Arrived, bundle: bytes) -> None:
        """Have a forked process answer a message, and hand in its answer."""
        try:
            began = time.monotonic()
            answer = self._workers.answer(arrived, bundle, lambda: self._goes_on(arrived.run))
            if answer is None:
                _log.info("The run ended at the coordinator, and with it the work on its %s.", arrived.kind)
                return
            done = time.monotonic()
            self._hand_in(arrived.run, answer)
            handed = time.monotonic()
            _log.info("%s: worked %.1f s, handed in within %.1f s.", arrived.kind, done - began, handed - done)
            self._objects.trim(part for one in list(self._open.values()) for part in one.parts)
        except Ended:
            _log.info("The run ended at the coordinator before the reply to its %s arrived.", arrived.kind)
        except Exception:
            _log.exception("A %s could not be answered.", arrived.kind)

    def _hand_in(self, run: int, answer: Answer) -> None:
        while not self._stop.is_set():
            try:
                wanted, session = self._fleet.announce(answer.reply, answer.tree, answer.seconds)
                self._fleet.push(run, session, ((identity, self._objects.get(identity)) for identity in wanted))
                return
            except Unreachable as error:
                _log.warning("%s", error)
                self._stop.wait(RETRY_SECONDS)

    def _goes_on(self, run: int) -> bool:
        try:
            return self._fleet.goes_on(run)
        except (Unreachable, NotAdmitted):
            return True  # nobody said that it ended


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Hold the node's lock, which the system gives back when the process dies, however it dies."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (home / "node.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NodeBusy(f"{home}: another process serves this node; stop it first.") from error
        yield

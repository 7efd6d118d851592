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
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from node.files import replace_file
from node.fleet import Arrived, Ended, Fleet, NotAdmitted, Unreachable, refusal
from node.keys import make_key, read_key
from node.listening import Listening
from node.objects import Damaged, Objects
from node.replies import Replies
from node.service_config import ConfigError, ServiceConfig
from node.settings import SITE_FILE
from node.workers import Answer, Workers
from protos.messages import PROGRESS
from protos.refusals import RefusalCode
from protos.software import installed

_log = logging.getLogger("locum.node.serving")

SHORTEST_PAUSE, LONGEST_PAUSE = 0.02, 2.0  # between two looks for a message, where the coordinator answers at once
NOTICE_SECONDS = 0.5  # within which the end of the service is noticed
RETRY_SECONDS = 5.0

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class _Store:
    """What the node keeps on its disk of the messages that came and went."""

    objects: Objects
    replies: Replies

    @classmethod
    def of(cls, config: ServiceConfig) -> "_Store":
        return cls(Objects(config.home / "objects", config.keep), Replies.of(config.home))

    def prepare(self) -> None:
        self.objects.prepare()
        self.replies.prepare()


class NodeBusy(Exception):
    """Another process serves this node; one sentence."""


def serve(config: ServiceConfig, stop: threading.Event) -> None:
    """Serve until `stop` is set. Raises ConfigError, NodeBusy, node.keys.UnusableKey or OSError."""
    public = make_key(config.key_file)
    if not config.authority.is_file():
        raise ConfigError(f"authority: there is no file {config.authority}; ask the coordinator's operator for ca.crt.")
    replace_file(config.home / SITE_FILE, config.settings("cpu").model_dump_json().encode())
    store = _Store.of(config)
    with _alone(config.home), Workers(config, store.objects) as workers:
        store.prepare()
        software = installed()
        _log.info("Site %s, key %s, %s, code %s.", config.site, public, software.name, software.code)
        while not stop.is_set():
            with Fleet(config.coordinator, config.authority, read_key(config.key_file)) as fleet:
                if not _sign_on(fleet, config.home / "node-id", stop):
                    return
                _Service(fleet, workers, store, stop).run()


def _sign_on(fleet: Fleet, remembered: Path, stop: threading.Event) -> bool:
    """Sign on, however long it takes; each reason why not is told once. False when the service is to end instead."""
    told, pause = "", RETRY_SECONDS / 10
    while not stop.is_set():
        try:
            former = int(remembered.read_text()) if remembered.exists() else None
            number = fleet.sign_on(former)
        except (Unreachable, NotAdmitted, ValueError) as error:
            if str(error) != told:
                _log.warning("%s Trying again every %d s.", error, RETRY_SECONDS)
                told = str(error)
            stop.wait(pause)
            pause = min(pause * 1.5, RETRY_SECONDS)
            continue
        replace_file(remembered, str(number).encode())
        _log.info("Signed on as node %d.", number)
        return True
    return False


class _Service:
    """One stay in the fleet, from signing on until the connection is lost for good or the service is stopped."""

    def __init__(self, fleet: Fleet, workers: Workers, store: _Store, stop: threading.Event) -> None:
        self._fleet, self._workers = fleet, workers
        self._objects, self._replies = store.objects, store.replies
        self._stop = stop
        self._bundles: dict[int, bytes] = {}
        self._work = ThreadPoolExecutor(1, "work")
        self._answers = ThreadPoolExecutor(1, "progress")
        self._open: dict[Future[None], Arrived] = {}

    def run(self) -> None:
        last = time.monotonic()
        listening = Listening(self._fetch)
        try:
            while not (self._stop.is_set() or self._fleet.lost):
                answered, arrived = listening.heard(NOTICE_SECONDS)
                self._open = {future: one for future, one in self._open.items() if not future.done()}
                if arrived is not None:
                    last = time.monotonic()
                    self._take(arrived)
                    continue
                if not self._open:
                    self._workers.rest()
                if answered and not self._fleet.waits:
                    # the next message often follows soon; every look costs the coordinator some milliseconds
                    self._stop.wait(min(max((time.monotonic() - last) / 20, SHORTEST_PAUSE), LONGEST_PAUSE))
        finally:
            listening.end()
            self._workers.stop()
            self._work.shutdown(cancel_futures=True)
            self._answers.shutdown(cancel_futures=True)

    def _fetch(self) -> Arrived | None:
        try:
            return self._fleet.fetch()
        except (Unreachable, NotAdmitted, Ended) as error:
            if not self._stop.is_set():  # else it is this service that has hung up
                _log.warning("%s", error)
                self._stop.wait(RETRY_SECONDS)
            return None

    def _take(self, arrived: Arrived) -> None:
        """Fetch what a message holds and set somebody to work on it."""
        try:
            self._pull(arrived)
            if arrived.run not in self._bundles:
                self._bundles = {arrived.run: self._persistently(lambda: self._fleet.app_of(arrived.run))}
        except Ended:
            _log.info("The run of a %s ended before all of it had arrived.", arrived.kind)
            return
        except Damaged as error:
            _log.error("A %s is left unanswered: %s", arrived.kind, error)
            return
        except OSError as error:
            _log.error("A %s is refused: %s; free or mend the node's disk.", arrived.kind, error)
            self._work.submit(self._refuse, arrived)
            return
        bundle = self._bundles[arrived.run]
        if arrived.kind == PROGRESS:
            at_work = any(one.run == arrived.run and one.kind != PROGRESS for one in self._open.values())
            future = self._answers.submit(self._answer, arrived, bundle, at_work)
        else:
            future = self._work.submit(self._answer, arrived, bundle, True)
        self._open[future] = arrived

    def _pull(self, arrived: Arrived) -> None:
        for identity in arrived.parts:
            pause = SHORTEST_PAUSE
            while not self._objects.holds(identity):
                content = self._persistently(partial(self._fleet.pull, arrived.run, identity))
                if content is not None:
                    self._objects.put(identity, content)
                    break
                self._stop.wait(pause)  # the sender is still handing it in
                pause = min(pause * 2, 1.0)
        self._persistently(lambda: self._fleet.confirm(arrived))

    def _answer(self, arrived: Arrived, bundle: bytes, at_work: bool) -> None:
        """Have a forked process answer a message, and hand in its answer."""
        try:
            began = time.monotonic()
            answer = self._workers.answer(arrived, bundle, lambda: self._goes_on(arrived.run), at_work=at_work)
            if answer is None:
                _log.info("The run ended at the coordinator, and with it the work on its %s.", arrived.kind)
                return
            done = time.monotonic()
            self._persistently(lambda: self._hand_in(arrived.run, answer))
            handed = time.monotonic()
            if arrived.kind != PROGRESS:
                _log.info("%s: worked %.1f s, handed in within %.1f s.", arrived.kind, done - began, handed - done)
                needed = (part for one in list(self._open.values()) for part in one.parts)
                self._objects.trim({*needed, *self._replies.parts()})
        except Ended:
            _log.info("The run ended at the coordinator before the reply to its %s arrived.", arrived.kind)
        except Exception:
            _log.exception("A %s could not be answered.", arrived.kind)

    def _refuse(self, arrived: Arrived) -> None:
        """Answer a message that the disk has no room for; there is none for an entry in the ledger either."""
        try:
            reply, tree, loose = refusal(arrived, RefusalCode.DISK_FULL)
            self._persistently(lambda: self._hand_in(arrived.run, Answer(reply, tree, 0.0, loose)))
        except Ended:
            _log.info("The run ended at the coordinator before the refusal of its %s arrived.", arrived.kind)
        except Exception:
            _log.exception("A %s could not be refused.", arrived.kind)

    def _hand_in(self, run: int, answer: Answer) -> None:
        wanted, session = self._fleet.announce(answer.reply, answer.tree, answer.seconds)
        contents = ((identity, answer.loose.get(identity) or self._objects.get(identity)) for identity in wanted)
        self._fleet.push(run, session, contents)

    def _persistently(self, call: Callable[[], _Found]) -> _Found:
        """Call until the coordinator answers; raises Ended when the run, or this service, is over."""
        told = ""
        while not self._stop.is_set() and not self._fleet.lost:
            try:
                return call()
            except (Unreachable, NotAdmitted) as error:
                if str(error) != told:
                    _log.warning("%s", error)
                    told = str(error)
                self._stop.wait(RETRY_SECONDS)
        raise Ended

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

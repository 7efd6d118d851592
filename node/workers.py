"""The node's hold on the process that forks (node/worker.py): started when there is work, ended when there is none."""

import base64
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from node.fleet import Arrived
from node.frames import receive_frame, send_frame
from node.objects import Objects
from node.service_config import ServiceConfig
from protos.messages import VISIT

_log = logging.getLogger("locum.node.workers")

LOOK_SECONDS = 10.0  # between two looks whether the run goes on that a message under way belongs to
_KILLED = "The process that did the work was killed."


@dataclass(frozen=True)
class Answer:
    """A reply without its objects, and its object tree, both as `node.fleet.take_apart` serialises them."""

    reply: bytes
    tree: bytes
    seconds: float
    loose: Mapping[str, bytes] = field(default_factory=dict)  # objects that are not on the disk


class Workers:
    """Answers messages in forked processes, from several threads if need be."""

    def __init__(self, config: ServiceConfig, objects: Objects) -> None:
        self._config, self._objects = config, objects
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._orders: socket.socket | None = None
        self._jobs: set[socket.socket] = set()
        self._used = time.monotonic()
        self._stops = 0

    def answer(self, arrived: Arrived, bundle: bytes, goes_on: Callable[[], bool], *, at_work: bool) -> Answer | None:
        """Have a process of its own answer a message whose objects are here; None if its run or this object was ended.

        `goes_on` is asked now and then. A process that is killed is answered for by another, which says so; if that is
        killed too, OSError is raised. `at_work` is what a question for progress is told besides: whether the node works
        on something of the run. The reply to a visit is kept, and given again when the same is asked again.
        """
        order = {
            "at_work": at_work,
            "question": arrived.question if arrived.kind == VISIT else "",
            "tree": base64.b64encode(arrived.tree.SerializeToString()).decode(),
            "bundle": base64.b64encode(bundle).decode(),
            "objects": str(self._objects.folder),
            "site": self._config.settings(self._config.device).model_dump_json(),
        }
        stops = self._stops
        for died in ("", _KILLED):
            ended, found = self._ask({**order, "died": died}, goes_on)
            if ended or self._stops != stops:
                return None
            if found is not None:
                reply, tree = base64.b64decode(found["reply"]), base64.b64decode(found["tree"])
                loose = {identity: base64.b64decode(content) for identity, content in found["loose"].items()}
                return Answer(reply, tree, found["seconds"], loose)
            _log.error("%s", _KILLED)
            self._settle()
        raise OSError("The processes that do the node's work are killed as soon as they begin; see the system's log.")

    def rest(self) -> None:
        """End the process that forks if it has had nothing to do for the configured time."""
        with self._lock:
            idle = not self._jobs and time.monotonic() - self._used > self._config.idle_minutes * 60
            if idle and self._process is not None:
                self._end()

    def stop(self) -> None:
        """End all work, and then the process that forks."""
        with self._lock:
            self._stops += 1
            for job in self._jobs:
                job.shutdown(socket.SHUT_RDWR)  # whoever works on it ends with it
            self._end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _ask(self, order: dict[str, Any], goes_on: Callable[[], bool]) -> tuple[bool, dict[str, Any] | None]:
        """Whether the run ended, and otherwise what the forked process answered; None if it was killed."""
        job, theirs = socket.socketpair()
        try:
            with theirs:
                self._fork(job, theirs)
            send_frame(job, order)
            job.settimeout(LOOK_SECONDS)
            while True:
                try:
                    job.recv(1, socket.MSG_PEEK)
                    break
                except TimeoutError:
                    if not goes_on():
                        return True, None
            job.settimeout(None)
            return False, receive_frame(job)
        except OSError:
            return False, None
        finally:
            with self._lock:
                self._jobs.discard(job)
                self._used = time.monotonic()
            job.close()

    def _settle(self) -> None:
        """Give the process that forks a moment to be seen dead, if it was killed together with what it had forked."""
        with self._lock, suppress(subprocess.TimeoutExpired):
            if self._process is not None:
                self._process.wait(timeout=1.0)

    def _fork(self, job: socket.socket, theirs: socket.socket) -> None:
        with self._lock:
            self._jobs.add(job)
            if self._process is None or self._process.poll() is not None:
                self._start()
            assert self._orders is not None
            socket.send_fds(self._orders, [b"f"], [theirs.fileno()])

    def _start(self) -> None:
        self._end()
        began = time.monotonic()
        self._orders, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen([sys.executable, "-P", "-m", "node.worker"], stdin=theirs.fileno())
        if receive_frame(self._orders) is None:
            raise OSError("The process that does the node's work could not be started; its log says why.")
        _log.info("Ready to work after %.1f s.", time.monotonic() - began)

    def _end(self) -> None:
        if self._orders is not None:
            self._orders.close()  # the process ends when its input does
            self._orders = None
        if self._process is not None:
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

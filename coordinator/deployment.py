"""A deployment on this machine: Flower's SuperLink and one node per site, as processes on loopback.

The same parts, keys and refusals as between hospitals, with nothing to set up. A node whose process dies is started
again. The processes end with the block, and with this process however that ends: each holds the other end of a pipe to
it.
"""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from coordinator import keys
from coordinator.grid import SimulatedSite
from coordinator.link import Link
from coordinator.superlink import QUIET, NoSuperLink, SuperLinkConfig, running
from coordinator.workers import how_it_ended

_log = logging.getLogger("locum.coordinator")

START_SECONDS = 60.0
_STOP_SECONDS = 15.0
_LOOK_SECONDS = 2.0  # between two looks whether all nodes are there


@contextmanager
def local_deployment(sites: Sequence[SimulatedSite], folder: Path) -> Iterator[SuperLinkConfig]:
    """A SuperLink with its files in `folder`, and a node for each of the sites, all signed on.

    Raises NoSuperLink when one of the processes does not come up.
    """
    config = SuperLinkConfig(folder, keys.server_keys(folder / "keys", ["127.0.0.1", "localhost"]), port=_free_port())
    keys.secret(config.secret)
    for old in folder.glob("superlink.db*"):
        old.unlink()  # who is registered is told anew, and runs do not outlive their process
    with ExitStack() as stack:
        stack.enter_context(running(config))
        nodes = [Node(site, config) for site in sites]
        stack.callback(_end, nodes)
        for node in nodes:
            node.start()
        with Link(config) as link:
            for node in nodes:
                public = node.site.home / "node.key.pub"
                _wait_for(node, public.exists)
                link.register(node.site.name, keys.public_key(public))
            for node in nodes:
                _wait_for(node, partial(_online, link, node.site.name))
        stack.enter_context(_kept_alive(nodes))
        yield config


class Node:
    """A node's process; its configuration goes in at its standard input, and it ends when that does."""

    def __init__(self, site: SimulatedSite, config: SuperLinkConfig) -> None:
        self.site, self._config = site, config
        self._process: subprocess.Popen[str] | None = None

    @property
    def log(self) -> Path:
        """The file that it logs to."""
        return self.site.home / "node.log"

    def start(self) -> None:
        """Start the process; not while there is one."""
        site, config = self.site, self._config
        fields = site.model_dump(mode="json", exclude={"name"}, exclude_none=True)
        told = {**fields, "site": site.name, "coordinator": config.address, "authority": str(config.keys.authority)}
        site.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "node", "serve", "--config", "-"],
                stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, env={**os.environ, **QUIET},
                start_new_session=True,  # Ctrl-C is for the command, which ends this process
            )  # fmt: skip
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which others look after
            self._process.stdin.write(json.dumps(told) + "\n")
            self._process.stdin.flush()

    def ended(self) -> str | None:
        """How the process ended, in words; None while it is there."""
        status = None if self._process is None else self._process.poll()
        return None if status is None else how_it_ended(status)

    def tell_to_end(self) -> None:
        """Have the process end, without waiting for that."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()

    def wait(self) -> None:
        """Wait until the process has ended, which is killed if that takes too long."""
        if self._process is not None:
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


def _end(nodes: Sequence[Node]) -> None:
    for node in nodes:  # all at once
        node.tell_to_end()
    for node in nodes:
        node.wait()


@contextmanager
def _kept_alive(nodes: Sequence[Node]) -> Iterator[None]:
    """Inside the block a node whose process ended is started again after a moment."""
    stop = threading.Event()

    def look() -> None:
        while not stop.wait(_LOOK_SECONDS):
            for node in nodes:
                if (how := node.ended()) is not None:
                    _log.warning("The node of site %s ended %s; it is started again.", node.site.name, how)
                    node.tell_to_end()
                    node.start()

    keeper = threading.Thread(target=look, daemon=True)
    keeper.start()
    try:
        yield
    finally:
        stop.set()
        keeper.join()


def _wait_for(node: Node, there: Callable[[], bool]) -> None:
    end = time.monotonic() + START_SECONDS
    while not there():
        if node.ended() is not None or time.monotonic() > end:
            raise NoSuperLink(f"The node of site {node.site.name} did not come up; {node.log} says why.")
        time.sleep(0.05)


def _online(link: Link, name: str) -> bool:
    return any(node.name == name and node.online for node in link.nodes())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

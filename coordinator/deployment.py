"""A deployment on this machine: Flower's SuperLink and one node per site, as processes on loopback.

The same parts, keys and refusals as between hospitals, with nothing to set up. The processes end with the block, and
with this process however that ends: each holds the other end of a pipe to it.
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from coordinator import keys
from coordinator.grid import SimulatedSite
from coordinator.link import Link
from coordinator.superlink import QUIET, NoSuperLink, SuperLinkConfig, running

START_SECONDS = 60.0
_STOP_SECONDS = 15.0


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
        nodes = {site.name: stack.enter_context(node(site, config)) for site in sites}
        stack.callback(lambda: [process.stdin.close() for process in nodes.values() if process.stdin])  # all at once
        with Link(config) as link:
            for site in sites:
                public = site.home / "node.key.pub"
                _wait_for(nodes[site.name], site, public.exists)
                link.register(site.name, keys.public_key(public))
            for site in sites:
                _wait_for(nodes[site.name], site, partial(_online, link, site.name))
        yield config


@contextmanager
def node(site: SimulatedSite, config: SuperLinkConfig) -> Iterator["subprocess.Popen[str]"]:
    """A node's process; its configuration goes in at its standard input, and it ends when that does."""
    fields = site.model_dump(mode="json", exclude={"name"}, exclude_none=True)
    told = {**fields, "site": site.name, "coordinator": config.address, "authority": str(config.keys.authority)}
    site.home.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _log_of(site).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "node", "serve", "--config", "-"],
            stdin=subprocess.PIPE, stdout=log, stderr=log, text=True, env={**os.environ, **QUIET},
            start_new_session=True,  # Ctrl-C is for the command, which ends this process
        )  # fmt: skip
    assert process.stdin is not None
    try:
        process.stdin.write(json.dumps(told) + "\n")
        process.stdin.flush()
        yield process
    finally:
        process.stdin.close()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(process: "subprocess.Popen[str]", site: SimulatedSite, there: Callable[[], bool]) -> None:
    end = time.monotonic() + START_SECONDS
    while not there():
        if process.poll() is not None or time.monotonic() > end:
            raise NoSuperLink(f"The node of site {site.name} did not come up; {_log_of(site)} says why.")
        time.sleep(0.05)


def _online(link: Link, name: str) -> bool:
    return any(node.name == name and node.online for node in link.nodes())


def _log_of(site: SimulatedSite) -> Path:
    return site.home / "node.log"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

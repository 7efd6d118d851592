"""Processes that are observed: whom each of them looks for, connects to and starts, and whether it is still there."""

import ipaddress
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil

ROOT = Path(__file__).parents[1]
HOOK = Path(__file__).parent / "observing"
MARK = "LOCUM_TEST_OBSERVED"
PLATFORM = ("uname", "file")  # programs that Python's own `platform` asks


@dataclass(frozen=True)
class Observation:
    """What the processes of an environment did, and which of them are there."""

    folder: Path
    name: str = field(default_factory=lambda: f"observed-{uuid4().hex}")

    @property
    def environment(self) -> dict[str, str]:
        """Of processes that are to be observed, which hand it on to those that they start."""
        return {**unobserved(), **self.hook}

    @property
    def hook(self) -> dict[str, str]:
        """The variables by which they are observed."""
        path = [str(HOOK), *filter(None, [os.environ.get("PYTHONPATH")]), str(ROOT)]
        return {"PYTHONPATH": os.pathsep.join(path), MARK: str(self.folder / self.name)}

    def start(self, command: str, *words: str, **options: Any) -> "subprocess.Popen[bytes]":
        """`locum` or `locum-node` as the console scripts call it, in a process group of its own."""
        code = {"locum": "from coordinator.cli import run; run()", "locum-node": "from node.cli import main; main()"}
        return subprocess.Popen(
            [sys.executable, "-P", "-c", code[command], *words],
            stdin=subprocess.DEVNULL, env=self.environment, start_new_session=True, **options,
        )  # fmt: skip

    def events(self) -> Iterator[tuple[int, str, list[Any]]]:
        """All that was observed so far: process, what, whom."""
        with suppress(FileNotFoundError):
            for line in (self.folder / self.name).read_text().splitlines():
                yield tuple(json.loads(line))

    def began(self, module: str) -> bool:
        """Whether a process began that runs a module, or has another such word in its command line."""
        return any(what == "begins" and module in whom for _, what, whom in self.events())

    def outside(self) -> list[tuple[int, str, list[Any]]]:
        """All that went, or was to go, further than loopback; and programs other than Python."""
        return [event for event in self.events() if not _stays(event[1], event[2])]

    def left(self) -> list[str]:
        """The command lines of those that are still there."""
        mark = f"{MARK}={self.folder / self.name}"
        return [line for process in psutil.process_iter() if (line := _marked(process, mark))]


def unobserved() -> dict[str, str]:
    """This environment, but for what would keep Flower quiet if somebody had set it: that is for Locum to do."""
    loud = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    return {**loud, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}


def _marked(process: psutil.Process, mark: str) -> str:
    try:
        if mark in Path(f"/proc/{process.pid}/environ").read_text(errors="replace").split("\0"):
            return " ".join(process.cmdline()) or process.name()
    except (OSError, psutil.Error):
        pass  # it is gone, or nobody's here
    return ""


def _stays(what: str, whom: list[Any]) -> bool:
    if what == "begins":
        return True
    if what.startswith("socket."):
        place = whom[0] if whom else None
        host = place[0] if isinstance(place, list) and place else place
        return _is_here(host) and not (what == "socket.bind" and host == "")
    program = whom[0]
    return program in PLATFORM or (isinstance(program, str) and Path(program).name.startswith("python"))


def _is_here(host: object) -> bool:
    """Whether a host, or the path of a Unix socket, is this machine's alone."""
    if host is None or (isinstance(host, str) and (host in ("", "localhost") or host.startswith(("/", "\0")))):
        return True
    try:
        return ipaddress.ip_address(str(host)).is_loopback
    except ValueError:
        return False

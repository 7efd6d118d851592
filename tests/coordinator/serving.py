"""A coordinator that serves and its nodes, as processes, and the commands that ask it."""

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil
from sqlalchemy import select

from coordinator import cli
from coordinator.client import Coordinator
from coordinator.deployment import _free_port
from coordinator.home import Home
from coordinator.store import EventRow, Run, sqlite_url
from node.database import open_database
from node.ledger import Ledger
from tests.conftest import Desk, outcome
from tests.observed import ROOT, Observation

TINY = """
name: tiny
task: {size: [16, 16], classes: [background, organ]}
sites:
  - {name: north, phantom: {task: organ, appearance: 0, cases: 6, size: 16}}
  - {name: east, phantom: {task: organ, appearance: 1, cases: 7, size: 16}}
network: {channels: [2, 4]}
training: {steps: 4, batch_size: 2, checkpoint_every: 2, augment: [rotate]}
"""

SECONDS = 240.0  # for whatever is waited for, on a machine that may be busy


@dataclass(frozen=True)
class Done:
    """What a command came to."""

    status: int
    out: str
    err: str


def locum(*words: str) -> Done:
    """Run a command in this process, since importing everything anew takes seconds."""
    out, err = io.StringIO(), io.StringIO()
    status: object = 0
    with redirect_stdout(out), redirect_stderr(err):
        try:
            cli.main(words)
        except SystemExit as end:
            status = end.code
    return Done(int(str(status or 0)), out.getvalue(), err.getvalue())


def wait_for(there: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not there():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


@dataclass
class Served:
    """The coordinator in `folder`, whose home is `folder/home`; nodes have their files in `folder/SITE`."""

    folder: Path
    database: str | None = None  # URL; None: SQLite in the home folder
    workers: int = 2
    superlink: int = field(default_factory=_free_port)
    control: int = field(default_factory=_free_port)
    dashboard: int = field(default_factory=_free_port)
    seen: Observation = field(init=False)
    _service: "subprocess.Popen[bytes] | None" = None
    _nodes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.seen = Observation(self.folder)

    @property
    def home(self) -> Home:
        return Home(self.folder / "home", self.database or sqlite_url(self.folder / "home"))

    @property
    def options(self) -> list[str]:
        home = self.home.folder
        return [
            f"--coordinator=localhost:{self.control}", f"--token={home / 'token'}",
            f"--authority={home / 'keys' / 'ca.crt'}",
        ]  # fmt: skip

    @property
    def service(self) -> "subprocess.Popen[bytes]":
        assert self._service is not None
        return self._service

    @property
    def log(self) -> str:
        return (self.folder / "service.log").read_text()

    def client(self) -> Coordinator:
        home = self.home.folder
        return Coordinator(f"localhost:{self.control}", home / "token", home / "keys" / "ca.crt")

    def ask(self, *words: str) -> Done:
        """Run a command that asks this coordinator."""
        return locum(*words, *self.options)

    def start(self) -> None:
        self.begin()
        wait_for(lambda: self.ask("sites").status == 0)

    def begin(self) -> None:
        """Start, without waiting until it answers."""
        self.folder.mkdir(exist_ok=True)
        (self.folder / "coordinator.yaml").write_text(
            f"home: home\nsuperlink: {{port: {self.superlink}}}\ncontrol: {{port: {self.control}}}\n"
            f"workers: {self.workers}\ndashboard: {{port: {self.dashboard}}}\n"
        )
        self._service = self.process("service.log", "serve", f"--config={self.folder / 'coordinator.yaml'}")

    def process(
        self, log: str, *words: str, command: str = "coordinator.cli", release: Path = ROOT
    ) -> "subprocess.Popen[bytes]":
        """A command as a process of its own, its output in the file `log`, its code that in `release`."""
        code = f"from {command} import main; import sys; sys.exit(main())"
        environment = self.seen.environment
        environment["PYTHONPATH"] = os.pathsep.join([str(release), environment["PYTHONPATH"]])
        environment |= {} if self.database is None else {"LOCUM_DATABASE": self.database}
        with (self.folder / log).open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-P", "-c", code, *words], stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                env=environment,
            )  # fmt: skip

    def children(self, module: str) -> list[psutil.Process]:
        """The service's own processes that run a module."""
        return [child for child in psutil.Process(self.service.pid).children() if module in child.cmdline()]

    def stop(self) -> int:
        """Ask the service to end; returns its status."""
        self.service.terminate()
        return self.service.wait(60)

    def kill(self) -> None:
        """Kill the service, with which its children end."""
        children = psutil.Process(self.service.pid).children(recursive=True)
        self.service.kill()
        self.service.wait()
        wait_for(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children))

    def start_node(self, site: str, appearance: int, cases: int, release: Path = ROOT) -> None:
        """A node with a synthetic hospital; its key is at `key(site)`."""
        (self.folder / f"{site}.yaml").write_text(
            f"site: {site}\nhome: {site}\ncoordinator: localhost:{self.entrance(site)}\nauthority: home/keys/ca.crt\n"
            f"phantom: {{task: organ, appearance: {appearance}, cases: {cases}, size: 16}}\n"
        )
        self.start_node_again(site, release)
        wait_for(self.key(site).exists)

    def start_node_again(self, site: str, release: Path = ROOT) -> None:
        self._nodes[site] = self.process(
            f"{site}.log", "serve", f"--config={self.folder / f'{site}.yaml'}", command="node.cli", release=release
        )

    def entrance(self, site: str) -> int:
        """The port at which the site's node finds its coordinator."""
        return self.superlink

    def node(self, site: str) -> "subprocess.Popen[bytes]":
        return self._nodes[site]

    def key(self, site: str) -> Path:
        return self.folder / site / "node.key.pub"

    def ledger(self, site: str) -> Ledger:
        return Ledger(open_database(self.folder / site))

    def node_said(self, site: str) -> str:
        return (self.folder / f"{site}.log").read_text()

    def all_online(self) -> bool:
        asked = self.ask("sites", "--json")
        return asked.status == 0 and all(site["online"] for site in json.loads(asked.out)["sites"])

    def close(self) -> None:
        for process in (*self._nodes.values(), *([self._service] if self._service else [])):
            process.terminate()
            process.wait(60)

    def schedule(self, *words: str) -> list[str]:
        """The names of the runs that were queued."""
        done = self.ask("schedule", str(self.folder / "tiny.yaml"), *words)
        assert done.status == 0, done.err
        return done.out.split()

    def events(self, run: str) -> list[EventRow]:
        store = self.home.store()
        with store.transaction() as session:
            return list(session.scalars(select(EventRow).where(EventRow.run_id == run).order_by(EventRow.number)))

    def wait_for_event(self, run: str, kind: str, times: int = 1) -> None:
        wait_for(lambda: [event.kind for event in self.events(run)].count(kind) >= times)


Kind = TypeVar("Kind", bound=Served)


@contextmanager
def two_sites(folder: Path, release: Path = ROOT, database: str | None = None) -> Iterator[Served]:
    """A coordinator with the nodes of north and east, both online; it has to end well. `release` is east's code."""
    with brought_up(Served(folder, database), release) as served:
        yield served


@contextmanager
def brought_up(served: Kind, release: Path = ROOT) -> Iterator[Kind]:
    """The same for one that is still to be started."""
    os.environ["NO_COLOR"] = "1"
    folder = served.folder
    try:
        served.start()
        (folder / "tiny.yaml").write_text(TINY)
        for site, appearance, cases, code in (("north", 0, 6, ROOT), ("east", 1, 7, release)):
            served.start_node(site, appearance, cases, code)
            assert served.ask("node", "add", site, f"--key={served.key(site)}").status == 0
        wait_for(served.all_online)
        yield served
        children = psutil.Process(served.service.pid).children(recursive=True)
        assert served.stop() == 0
        assert not [child for child in children if child.is_running()]
        assert "Traceback" not in served.log
    finally:
        served.close()
        served.home.store().engine.dispose()
    assert served.seen.outside() == []  # nobody looks for anybody but on this machine
    wait_for(lambda: not served.seen.left())


def in_process(folder: Path, *overrides: str, text: str = TINY) -> Desk:
    """A desk at which the scenario was carried out in process, once."""
    desk = Desk(folder)
    desk.simulate(*overrides, text=text)
    return desk


def assert_as_in_process(served: Served, run: str, expected: Desk) -> None:
    """Weights, artifacts and scores are the in-process run's, and the ledgers are sound."""
    with expected.home.store().transaction() as session:
        (known,) = session.scalars(select(Run.id))
    assert outcome(served.home.store().run(run)) == outcome(expected.row(known))
    for site in ("north", "east"):
        assert served.ledger(site).verify() == []

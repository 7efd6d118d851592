"""Shared by the tests of whole runs: tiny synthetic hospitals, and a desk from which runs of them are made."""

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from coordinator.events import Listener
from coordinator.home import Home
from coordinator.results import summarise
from coordinator.scenario import Scenario, parse_scenario
from coordinator.simulate import begin, carry_out
from coordinator.store import Run, sqlite_url
from coordinator.summary import RunSummary
from coordinator.vault import Vault
from node.database import open_database
from node.ledger import Ledger

settings.register_profile("no test of time", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("no test of time")

# A shell has what it starts in the background ignore interrupts; the processes that tests interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

TINY = """
name: tiny
task: {size: [16, 16], classes: [background, organ]}
sites:
  - {name: north, phantom: {task: organ, appearance: 0, cases: 6, size: 16}}
  - {name: east, phantom: {task: organ, appearance: 1, cases: 7, size: 16}}
  - {name: south, phantom: {task: organ, appearance: 2, cases: 8, size: 16}}
unseen: [{name: island, phantom: {task: organ, appearance: 4, cases: 6, size: 16}}]
network: {channels: [2, 4]}
training: {steps: 4, batch_size: 2, checkpoint_every: 2, augment: [rotate]}
"""


@dataclass
class Recorder(Listener):
    """Writes down what it is told; `on` is called with every event and may raise or kill."""

    events: list[tuple[Any, ...]] = field(default_factory=list)
    on: Callable[[tuple[Any, ...]], None] = lambda event: None

    def _note(self, *event: Any) -> None:
        self.events.append(event)
        self.on(event)

    def run_began(self, run: str, stops: int, done: int) -> None:
        self._note("run began", stops, done)

    def stop_began(
        self, stop: int, sites: tuple[str, ...], rounds: int, done: int, rehearsing: tuple[str, ...] = ()
    ) -> None:
        self._note("stop began", stop, sites, rounds, done)

    def stepped(self, stop: int, site: str, step: int, steps: int, loss: float | None) -> None:
        self._note("stepped", stop, site, step, steps)

    def stop_ended(self, stop: int, sites: tuple[str, ...], seconds: float) -> None:
        self._note("stop ended", stop, sites)

    def scored(self, stop: int, site: str, dsc: float | None) -> None:
        self._note("scored", stop, site, dsc)

    def run_ended(self, run: str, status: str) -> None:
        self._note("run ended", status)


@dataclass(frozen=True)
class Desk:
    """Makes runs of the tiny hospitals in this process; `folder` holds all their state."""

    folder: Path

    @property
    def home(self) -> Home:
        return Home(self.folder / "home", sqlite_url(self.folder / "home"))

    @property
    def vault(self) -> Vault:
        return Vault(self.home.folder / "vault")

    def scenario(self, *overrides: str, text: str = TINY) -> Scenario:
        return parse_scenario(text, "tiny.yaml", overrides)

    def begin(self, *overrides: str, text: str = TINY) -> str:
        return begin(self.scenario(*overrides, text=text), self.home, self.folder, "locum simulate tiny.yaml")

    def carry_out(self, run: str, on: Callable[[tuple[Any, ...]], None] = lambda event: None) -> Recorder:
        recorder = Recorder(on=on)
        carry_out(run, self.home, device="cpu", listener=recorder)
        return recorder

    def simulate(self, *overrides: str, text: str = TINY) -> str:
        """The name of a run that was begun and carried out."""
        run = self.begin(*overrides, text=text)
        self.carry_out(run)
        return run

    def row(self, run: str) -> Run:
        return self.home.store().run(run)

    def summary(self, run: str) -> RunSummary:
        return summarise(self.row(run))

    def ledger(self, site: str) -> Ledger:
        return Ledger(open_database(self.home.folder / "nodes" / site))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture(scope="module")
def shared_desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """One desk for all tests of a module, for runs that are only read."""
    return Desk(tmp_path_factory.mktemp("desk"))


def outcome(run: Run) -> dict[str, Any]:
    """All of a run that must not depend on how often it was interrupted: artifacts, weights, every scored number."""
    return {
        "status": run.status,
        "stops": [(stop.status, stop.artifact, stop.weights_sha256) for stop in run.stops],
        "scores": {(row.stop, row.site): row.metrics for row in run.scores},
    }

"""Runs on one machine: begin one, carry it out in process, skip a stop of one."""

import fcntl
import importlib.metadata
import logging
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, RecordDict

from coordinator import server
from coordinator.events import Listener
from coordinator.grid import InProcessGrid, simulated_sites
from coordinator.scenario import Scenario, ScenarioError
from coordinator.store import Run, StopRow, Store, open_store
from strategies.registry import UnknownStrategy, strategy_for
from strategies.strategy import UnknownParameter


class RunBusy(Exception):
    """Another process is carrying out the run; one sentence."""


class NotSkippable(Exception):
    """The stop cannot be skipped; one sentence."""


@dataclass(frozen=True)
class Home:
    """The folder that holds all state of a simulation, and the database (by default inside it)."""

    folder: Path
    database: str

    def report(self, run: str) -> Path:
        """The folder of a run's report."""
        return self.folder / "runs" / run

    def store(self) -> Store:
        """The coordinator's store, brought to the newest schema."""
        return open_store(self.database)


def begin(scenario: Scenario, home: Home, data: Path, command: str, *, source: str = "the scenario") -> str:
    """Check a scenario of a single run against what is installed and there, write the run down, return its name.

    Raises ScenarioError, naming `source`, when the strategy, its parameters, the network or a site does not fit.
    """
    plan = scenario.plan()
    try:
        strategy_for(plan).schema()
        simulated_sites(scenario, data, home.folder, "cpu")
    except (UnknownStrategy, UnknownParameter, ValueError) as error:
        raise ScenarioError(f"{source}: {error}") from error
    run = f"{scenario.name}-{plan.strategy.name}-s{plan.seed}-{secrets.token_hex(2)}"
    with home.store().transaction() as session:
        session.add(
            Run(
                id=run,
                name=scenario.name,
                scenario=scenario.model_dump(mode="json"),
                data=str(data.absolute()),
                software=f"locum {importlib.metadata.version('locum')}",
                command=command,
            )
        )
    return run


def check_device(device: str) -> None:
    """Raise ScenarioError unless PyTorch can compute on `device` here."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ScenarioError(
            f"--device {device}: PyTorch has no such device here; name another, for example cpu."
        ) from error


def carry_out(run: str, home: Home, *, device: str, listener: Listener) -> None:
    """Begin or go on with a run, in this process; its status and results are in the store afterwards.

    Raises coordinator.conductor.VisitFailed, ScenarioError, RunBusy or coordinator.store.UnknownRun.
    """
    row = home.store().run(run)
    scenario = Scenario.model_validate(row.scenario)
    sites = simulated_sites(scenario, Path(row.data or "."), home.folder, device)
    context = Context(
        run_id=1,
        node_id=1,
        node_config={},
        state=RecordDict(),
        run_config={"run": run, "home": str(home.folder), "database": home.database, "in-flight": 1},
    )
    logging.getLogger("flwr").setLevel(logging.WARNING)  # its line per round would tear the progress bars
    with _alone(home, run), server.listening(listener):
        server.app(InProcessGrid(sites, listener), context)


def skip(run: str, stop: int, home: Home, *, by: str, why: str) -> None:
    """Write down that a named person skips a stop; `resume` goes on without it. Raises NotSkippable, RunBusy."""
    store = home.store()
    store.run(run)
    if not by.strip() or not why.strip():
        raise NotSkippable("A stop is skipped in the name of a person and for a reason; fill in --by and --why.")
    with _alone(home, run), store.transaction() as session:
        row = session.get(StopRow, (run, stop))
        if row is None:
            raise NotSkippable(f"Run {run} has no stop {stop}; `locum show {run}` lists its stops, counted from 0.")
        if row.status in ("done", "skipped"):
            raise NotSkippable(f"Stop {stop} of run {run} is {row.status} already; only an unfinished stop is skipped.")
        row.status, row.skipped_by, row.skipped_why, row.rounds_state = "skipped", by, why, None


def is_busy(home: Home, run: str) -> bool:
    """Whether some process is carrying out the run at this moment."""
    try:
        with _alone(home, run):
            return False
    except RunBusy:
        return True


@contextmanager
def _alone(home: Home, run: str) -> Iterator[None]:
    """Hold the run's lock, which the system gives back when the process dies, however it dies."""
    path = home.folder / "runs" / f"{run}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunBusy(f"Run {run} is being carried out by another process; wait for it or stop it.") from error
        yield

"""Runs on one machine: begin one, carry it out in process."""

import importlib.metadata
import logging
import secrets
from pathlib import Path

from flwr.app import Context, RecordDict

from coordinator import server
from coordinator.events import Listener
from coordinator.grid import InProcessGrid, simulated_sites
from coordinator.home import Home, alone
from coordinator.scenario import Scenario, ScenarioError
from coordinator.store import Run
from strategies.registry import UnknownStrategy, strategy_for
from strategies.strategy import UnknownParameter

NAME_LENGTH = 80  # of a run, in the store


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
    run = _name(scenario)
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


def _name(scenario: Scenario) -> str:
    """A new run's name; the digits of chance keep runs apart, and so stay whole where a name is too long."""
    tail = f"-s{scenario.seed}-{secrets.token_hex(4)}"
    return f"{scenario.name}-{scenario.strategy.name}"[: NAME_LENGTH - len(tail)] + tail


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
    with alone(home, run), server.listening(listener):
        server.app(InProcessGrid(sites, listener), context)

"""Runs on one machine: begin one, carry it out in process."""

import importlib.metadata
import json
import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from io import TextIOWrapper
from pathlib import Path

from flwr.app import Context, RecordDict

from coordinator import server
from coordinator.engine import Deployed, Engine, InProcess
from coordinator.events import Listener
from coordinator.grid import policies, simulated_sites
from coordinator.home import Home, alone
from coordinator.introductions import note_policies
from coordinator.scenario import Scenario, ScenarioError
from coordinator.store import SETTLED, Run
from strategies.registry import UnknownStrategy, strategy_for
from strategies.strategy import UnknownParameter

NAME_LENGTH = 80  # of a run, in the store


def begin(
    scenario: Scenario, home: Home, data: Path, command: str, *, source: str = "the scenario", device: str = "cpu"
) -> str:
    """Like `begin_all` for the scenario of a single run."""
    return begin_all([scenario], home, data, command, source=source, device=device)[0]


def begin_all(
    scenarios: Sequence[Scenario], home: Home, data: Path | None, command: str, *, source: str, device: str
) -> list[str]:
    """Check the scenarios of single runs against what is installed and there, write all runs down, return their names.

    The runs are pending until they are carried out. Without `data` they are a deployment's, whose nodes know their
    data and devices themselves; what the scenarios say of these counts for nothing. Raises ScenarioError, naming
    `source`, when a strategy, its parameters, the network or a site does not fit; nothing is written then.
    """
    fitting = set()  # a study's runs differ in little, and a check builds a network
    for scenario in scenarios:
        plan = scenario.plan().model_copy(update={"seed": 0})
        if plan.digest() not in fitting:
            try:
                strategy_for(plan).schema()
                if data is not None:
                    simulated_sites(scenario, data, home.folder, device)
            except (UnknownStrategy, UnknownParameter, ValueError) as error:
                raise ScenarioError(f"{source}: {error}") from error
            fitting.add(plan.digest())
    now = datetime.now(UTC)
    rows = [
        Run(
            id=_name(scenario),
            name=scenario.name,
            scenario=scenario.model_dump(mode="json"),
            data=None if data is None else str(data.absolute()),
            status="pending",
            created=now + timedelta(microseconds=number),  # so that they are listed in the study's order
            device=device,
            software=software(),
            command=command,
        )
        for number, scenario in enumerate(scenarios)
    ]
    with home.store().transaction() as session:
        session.add_all(rows)
    home.store().keep_copy()
    return [row.id for row in rows]


def software() -> str:
    """The name and version that a run is made with."""
    return f"locum {importlib.metadata.version('locum')}"


def move_data(run: str, home: Home, data: Path) -> None:
    """Note that the run's data lie in another folder now; raises ScenarioError if a site's folder is not in it."""
    with alone(home, run):
        scenario = Scenario.model_validate(home.store().run(run).scenario)
        simulated_sites(scenario, data, home.folder, "cpu")
        with home.store().transaction() as session:
            session.get_one(Run, run).data = str(data.absolute())


def _name(scenario: Scenario) -> str:
    """A new run's name; the digits of chance keep runs apart, and so stay whole where a name is too long."""
    tail = f"-s{scenario.seed}-{secrets.token_hex(4)}"
    return f"{scenario.name}-{scenario.strategy.name}"[: NAME_LENGTH - len(tail)] + tail


def found_device(device: str) -> str:
    """The device that a name stands for; `auto` is a GPU where there is one. Raises ScenarioError if it is not here."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ScenarioError(
            f"--device {device}: PyTorch has no such device here; name another, for example cpu."
        ) from error
    return device


def carry_out(
    run: str,
    home: Home,
    *,
    device: str,
    listener: Listener,
    engine: Engine | None = None,
    given_up: Sequence[str] = (),
) -> None:
    """Begin or go on with a run, conducted by this process; its status and results are in the store afterwards.

    Its nodes are in this process too, unless `engine` says otherwise. Of a deployment's run neither data nor policies
    are looked at: they are the nodes'. Sites that are `given_up` were away for too long already, and are waited for no
    more if they still are.

    Raises coordinator.conductor.VisitFailed, ScenarioError, RunBusy or coordinator.store.UnknownRun.
    """
    row = home.store().run(run)
    scenario = Scenario.model_validate(row.scenario)
    engine = engine or InProcess()
    deployed = row.data is None
    if deployed and isinstance(engine, InProcess):
        raise ScenarioError(
            f"Run {run} is made by a deployment's own nodes; go on with it with --coordinator, which has them."
        )
    every = {site.name for site in (*scenario.sites, *scenario.unseen)}
    open_sites = {site for stop in row.stops if stop.status not in SETTLED for site in (*stop.sites, *stop.rehearsing)}
    may_be_gone = every - open_sites if row.stops else ()  # a run that goes on can do without the others
    sites = []
    if row.data is not None:
        sites = simulated_sites(scenario, Path(row.data), home.folder, device, may_be_gone=may_be_gone)
    context = Context(
        run_id=1,
        node_id=1,
        node_config={},
        state=RecordDict(),
        run_config={
            "run": run,
            "home": str(home.folder),
            "database": home.database,
            "in-flight": engine.in_flight,
            "away": engine.away,
            "given-up": json.dumps(list(given_up)),
        },
    )
    logging.getLogger("flwr").setLevel(logging.WARNING)  # its line per round would tear the progress bars
    with alone(home, run), _nodes_logging_to(home.nodes_log), server.listening(listener):
        if not deployed and (open_sites or not row.stops):
            note_policies(home.store(), run, policies(scenario, home.folder))
        with engine.connected(sites, listener) as grid:
            server.app(grid, context)


@contextmanager
def engine_for(name: str, run: str, home: Home, device: str) -> Iterator[Engine]:
    """The engine `in-process` or `flower`; for the latter, a SuperLink and the run's nodes while the block lasts.

    Raises coordinator.superlink.NoSuperLink when these do not come up.
    """
    if name == "in-process":
        yield InProcess()
        return
    from coordinator.deployment import local_deployment

    row = home.store().run(run)
    sites = simulated_sites(Scenario.model_validate(row.scenario), Path(row.data or "."), home.folder, device)
    with local_deployment(sites, home.folder / "flower") as config:
        yield Deployed(config)


@contextmanager
def _nodes_logging_to(path: Path) -> Iterator[None]:
    """What the nodes log goes to the file at `path`, tracebacks included; a warning is a line on standard error too.

    An error is not: the run's own failure follows it, whose fixed sentence holds no text of a site's.
    """
    short = logging.StreamHandler()
    short.setFormatter(_OneLine())
    short.addFilter(lambda record: record.levelno < logging.ERROR)
    full = _PrivateFile(path, delay=True)
    full.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger(name) for name in ("locum.node", "node")]
    for logger in loggers:
        logger.addHandler(short)
        logger.addHandler(full)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(short)
            logger.removeHandler(full)
        full.close()


class _OneLine(logging.Formatter):
    """The message alone."""

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage()


class _PrivateFile(logging.FileHandler):
    """A log that only its owner may read: tracebacks can hold data. Its folder is made when something is logged."""

    def _open(self) -> TextIOWrapper:
        path = Path(self.baseFilename)
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a", encoding="utf-8", opener=partial(os.open, mode=0o600))

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):  # a full disk must not change what a node answers
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Say nothing: the run's failure is told all the same."""

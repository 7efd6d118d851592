"""The coordinator's Flower ServerApp: a conductor for the run that the run configuration names.

The same app serves the in-process grid (coordinator/simulate.py) and Flower's deployment engine.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from coordinator.conductor import Conductor
from coordinator.events import Listener
from coordinator.store import open_store
from coordinator.vault import Vault

app = ServerApp()

_listener: ContextVar[Listener] = ContextVar("listener", default=Listener())  # noqa: B039 (it has no state)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` what happens in runs conducted inside the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Conduct the run `run` of the store at `database`, artifacts below `home`."""
    config = context.run_config
    conductor = Conductor(
        open_store(str(config["database"])),
        Vault(Path(str(config["home"])) / "vault"),
        grid,
        str(config["run"]),
        listener=_listener.get(),
        in_flight=int(config["in-flight"]),
        away=bool(config["away"]),
        given_up=json.loads(str(config["given-up"])),
    )
    conductor.conduct()

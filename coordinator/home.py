"""The folder that holds a simulation's state, and the lock that gives a run to one process at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coordinator.store import Store, open_store


class RunBusy(Exception):
    """Another process is carrying out the run; one sentence."""


@dataclass(frozen=True)
class Home:
    """The folder that holds all state of a simulation, and the database (by default inside it)."""

    folder: Path
    database: str

    def report(self, run: str) -> Path:
        """The folder of a run's report."""
        return self.folder / "runs" / run

    @property
    def nodes_log(self) -> Path:
        """The file that the simulated nodes log to; it may not exist."""
        return self.folder / "nodes" / "nodes.log"

    def store(self) -> Store:
        """The coordinator's store, brought to the newest schema."""
        return open_store(self.database)


def is_busy(home: Home, run: str) -> bool:
    """Whether some process is carrying out the run at this moment."""
    try:
        with alone(home, run):
            return False
    except RunBusy:
        return True


@contextmanager
def alone(home: Home, run: str) -> Iterator[None]:
    """Hold the run's lock, which the system gives back when the process dies, however it dies."""
    path = home.folder / "runs" / f"{run}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunBusy(f"Run {run} is being carried out by another process; wait for it or stop it.") from error
        yield

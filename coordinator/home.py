"""The folder that holds a simulation's state, and the lock that gives a run to one process at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

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

    def is_new(self) -> bool:
        """Whether nothing was written here yet: the database would be a file, and there is none."""
        try:
            url = make_url(self.database)
        except ArgumentError:
            return False  # opening it says what is wrong
        is_file = url.get_backend_name() == "sqlite" and url.database and not url.database.startswith((":", "file:"))
        return bool(is_file) and not Path(str(url.database)).exists()

    def store(self) -> Store:
        """The coordinator's store, brought to the newest schema."""
        return open_store(self.database)


def without_password(url: str) -> str:
    """A database's URL that may be shown; what is no URL stays as it is."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url


def is_busy(home: Home, run: str) -> bool:
    """Whether some process is carrying out the run at this moment."""
    if not _lock(home, run).exists():
        return False
    try:
        with alone(home, run):
            return False
    except RunBusy:
        return True


@contextmanager
def alone(home: Home, run: str) -> Iterator[None]:
    """Hold the run's lock, which the system gives back when the process dies, however it dies."""
    path = _lock(home, run)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunBusy(f"Run {run} is being carried out by another process; wait for it or stop it.") from error
        yield


def _lock(home: Home, run: str) -> Path:
    return home.folder / "runs" / f"{run}.lock"

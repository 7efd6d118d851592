"""The folder that holds a simulation's state, and the lock that gives a run to one process at a time."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from coordinator.database_copy import NotRestorable, copy_of, go_back, sqlite_file
from coordinator.store import Store, close_store, open_store


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
        file = sqlite_file(self.database)
        return file is not None and not file.exists() and not copy_of(file).exists()

    def store(self) -> Store:
        """The coordinator's store, brought to the newest schema."""
        return open_store(self.database)


def without_password(url: str) -> str:
    """A database's URL that may be shown; what is no URL stays as it is."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url


def restore(home: Home) -> tuple[Path | None, datetime]:
    """Go back to the copy of the home's database, see coordinator.database_copy.go_back.

    Raises NotRestorable, and RunBusy while some process is carrying out a run or serves the home.
    """
    file = sqlite_file(home.database)
    if file is None:
        raise NotRestorable(
            f"The database {without_password(home.database)} is no file of SQLite's; restore it by its server's own "
            "means."
        )
    for path in (*(home.folder / "runs").glob("*.lock"), home.folder / "serve.lock"):
        if _is_held(path):
            raise RunBusy(f"{path}: another process is using the database; stop it first.")
    close_store(home.database)
    return go_back(file)


def is_busy(home: Home, run: str) -> bool:
    """Whether some process is carrying out the run at this moment."""
    return _is_held(_lock(home, run))


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


def _is_held(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _lock(home: Home, run: str) -> Path:
    return home.folder / "runs" / f"{run}.lock"

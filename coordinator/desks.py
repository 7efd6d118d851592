"""Where a command finds its runs: in a home folder on this machine, or at a coordinator's control service."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from coordinator.batch import summary_of
from coordinator.home import Home
from coordinator.listing import full_name, listed
from coordinator.skipping import skip, skip_rehearsal
from coordinator.summary import RunSummary

if TYPE_CHECKING:
    from coordinator.client import Coordinator


class NoCoordinator(Exception):
    """It is not said which coordinator to ask, or how; one sentence."""


class Desk(Protocol):
    """Runs, by names or unambiguous beginnings of names."""

    def listed(self) -> list[dict[str, Any]]:
        """Every run, newest first, see coordinator.listing.listed."""

    def summary(self, run: str) -> RunSummary:
        """A run as far as it has come."""

    def skip(self, run: str, stop: int, site: str | None, *, by: str, why: str) -> str:
        """Let a run go on without a stop, or a site's rehearsal from that stop on; returns its whole name."""


class HomeDesk:
    """The runs in a home folder."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def listed(self) -> list[dict[str, Any]]:
        """Every run, newest first."""
        return listed(self._home)

    def summary(self, run: str) -> RunSummary:
        """A run as far as it has come."""
        return summary_of(full_name(run, self._home), self._home)

    def skip(self, run: str, stop: int, site: str | None, *, by: str, why: str) -> str:
        """Let a run go on without a stop, or a rehearsal."""
        name = full_name(run, self._home)
        if site is None:
            skip(name, stop, self._home, by=by, why=why)
        else:
            skip_rehearsal(name, stop, site, self._home, by=by, why=why)
        return name


@contextmanager
def desk_at(home: Home, coordinator: str | None, token: Path | None, authority: Path | None) -> Iterator[Desk]:
    """The coordinator's desk if one is named, else the home's. Raises NoCoordinator."""
    if coordinator is None:
        yield HomeDesk(home)
    else:
        with coordinator_at(coordinator, token, authority) as there:
            yield there


def coordinator_at(address: str | None, token: Path | None, authority: Path | None) -> "Coordinator":
    """The control service at `address`; raises NoCoordinator when something is not given or cannot be read."""
    from coordinator.client import Coordinator

    if address is None:
        raise NoCoordinator("It is not said which coordinator to ask; name it with --coordinator HOST:PORT.")
    if token is None:
        raise NoCoordinator("The coordinator asks for its token; give the file with --token FILE.")
    if authority is None:
        raise NoCoordinator("The coordinator is known by its authority; give its keys/ca.crt with --authority FILE.")
    try:
        return Coordinator(address, token, authority)
    except (OSError, UnicodeDecodeError) as error:
        where = authority if isinstance(error, OSError) and error.filename == str(authority) else token
        raise NoCoordinator(
            f"{where}: the coordinator's token or certificate cannot be read there; see --help."
        ) from error

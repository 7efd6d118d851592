"""The desk of `locum serve`: what may be asked of a coordinator that carries out runs, whoever asks and however."""

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import httpx
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import select

from coordinator import keys
from coordinator.desks import HomeDesk
from coordinator.dispatcher import Dispatcher
from coordinator.home import Home, is_busy
from coordinator.journal import Journal
from coordinator.link import Link, NodeEntry
from coordinator.listing import full_name
from coordinator.mending import damaged_ends
from coordinator.store import QueueRow, SiteRow
from coordinator.submitting import submit
from coordinator.superlink import NoSuperLink, SuperLinkConfig
from coordinator.turns import enqueue
from coordinator.vault import Vault
from protos.plan import SiteName

_log = logging.getLogger("locum.coordinator")


class NotPossible(Exception):
    """What is asked does not fit how things are; one sentence."""


class ServiceDesk(HomeDesk):
    """Runs, their queue and the sites' nodes; may be asked from any thread.

    Where a person is named who asks, the run's events keep that. Runs may be named by unambiguous beginnings.
    """

    def __init__(self, home: Home, superlink: SuperLinkConfig, journal: Journal, dispatcher: Dispatcher) -> None:
        super().__init__(home)
        self._superlink, self._journal, self._dispatcher = superlink, journal, dispatcher
        self._store = home.store()
        self._submitting = threading.Lock()

    def submit(
        self,
        scenario: str,
        source: str,
        overrides: Sequence[str],
        *,
        not_before: datetime | None = None,
        after: str | None = None,
        by: str | None = None,
    ) -> list[str]:
        """Write down a scenario's runs and queue them; returns their names. Raises ScenarioError, UnknownRun."""
        first = None if after is None else self.named(after)
        source = source if 0 < len(source) <= 200 and source.isprintable() else "scenario"
        with self._submitting:
            runs = submit(scenario, source, overrides, self._home)
        with self._store.transaction() as session:
            enqueue(session, runs, not_before=not_before, after=first)
        self._store.keep_copy()
        for run in runs:
            self._asked(run, by, "scheduled this run")
        self._dispatcher.wake()
        return runs

    def cancel(self, run: str, *, by: str | None = None) -> tuple[str, str]:
        """End a run, which may go on later; returns its whole name and its status."""
        run = self.named(run)
        if self.queued(run):  # the entry comes first, since watchers go when the run has ended
            self._asked(run, by, "asked to cancel this run")
        return run, self._dispatcher.cancel(run)

    def resume(self, run: str, *, by: str | None = None) -> str:
        """Queue a run again; one that is queued, or done and whole, stays as it is. Returns its whole name.

        Raises NotPossible.
        """
        run = self.named(run)
        row = self._store.run(run)
        if row.data is not None:
            raise NotPossible(f"Run {run} is a simulation's; resume it without --coordinator.")
        whole = row.status == "done" and not damaged_ends(row, Vault(self._home.folder / "vault"))
        if not whole and not self.queued(run):
            if is_busy(self._home, run):
                raise NotPossible(f"Run {run} is being carried out by another process; wait for it or stop it.")
            with self._store.transaction() as session:
                enqueue(session, [run], not_before=None, after=None)
            self._store.keep_copy()
            self._asked(run, by, "resumed this run")
            self._dispatcher.wake()
        return run

    def skip(self, run: str, stop: int, site: str | None, *, by: str, why: str, asked_by: str | None = None) -> str:
        """Let a run go on without a stop, or a rehearsal, for which `by` answers; returns its whole name."""
        run = super().skip(self.named(run), stop, site, by=by, why=why)
        what = f"stop {stop}" if site is None else f"the rehearsal at {site} from stop {stop} on"
        self._asked(run, asked_by, f"had {what} skipped")
        return run

    def sites(self) -> list[dict[str, Any]]:
        """The registered sites by name, as `locum sites --json` has them. Raises NoSuperLink."""
        with self._store.reading() as session:
            told = {row.name: row for row in session.scalars(select(SiteRow))}
        return [_site(node, told.get(node.name)) for node in sorted(self._nodes(), key=lambda node: node.name)]

    def add_node(self, name: str, public_key: bytes) -> bool:
        """Let the node with a key be a site's; False if it was already. Raises NotPossible."""
        name = _site_name(name)
        try:
            key = keys.parse_public_key(public_key, f"site {name}")
        except keys.UnusableKey as error:
            raise NotPossible(str(error)) from error
        for node in self._nodes():
            if (node.name == name) != (keys.parse_public_key(node.public_key, name) == key):
                if node.name == name:
                    raise NotPossible(
                        f"Site {name} has a node with another key; `locum node remove {name}` puts that out first."
                    )
                raise NotPossible(f"The key is that of site {node.name} already; every node needs one of its own.")
            if node.name == name:
                return False
        with self._link() as link:
            if not link.register(name, key):
                raise NotPossible("The key was put out once and stays so; let the node make a new one, and add that.")
        _log.info("Site %s: a node was added.", name)
        self._dispatcher.wake()
        return True

    def remove_node(self, name: str) -> None:
        """Let a site's node in no more. Raises NotPossible."""
        found = [node for node in self._nodes() if node.name == name]
        if not found:
            raise NotPossible(f"There is no node of a site {name!r}; `locum sites` lists them.")
        with self._link() as link:
            for node in found:
                link.remove(node.number)
        _log.info("Site %s: its node was removed.", name)

    def named(self, run: str) -> str:
        """The run's whole name; raises NotPossible, UnknownRun."""
        if not run:
            raise NotPossible("The request names no run.")  # every name begins with nothing
        return full_name(run, self._home)

    def queued(self, run: str) -> bool:
        """Whether the run waits for its turn or is being carried out."""
        with self._store.reading() as session:
            return session.scalar(select(QueueRow.number).where(QueueRow.run_id == run)) is not None

    def _asked(self, run: str, by: str | None, what: str) -> None:
        if by is not None:
            self._journal.write(run, "said", {"sentence": f"{by} {what} in the overview."})
            _log.info("Run %s: %r %s in the overview.", run, by, what)

    def _nodes(self) -> list[NodeEntry]:
        with self._link() as link:
            return link.nodes()

    @contextmanager
    def _link(self) -> Iterator[Link]:
        try:
            with Link(self._superlink) as link:
                yield link
        except httpx.HTTPError as error:
            raise NoSuperLink("The SuperLink does not answer at the moment; try again in a few seconds.") from error


def _site(node: NodeEntry, told: SiteRow | None) -> dict[str, Any]:
    return {
        "site": node.name,
        "online": node.online,
        "last_seen": None if node.last_seen is None else node.last_seen.isoformat(timespec="seconds"),
        **{
            name: None if told is None else getattr(told, name)
            for name in ("software", "code_sha256", "torch", "schema_version")
        },
        "cases": {} if told is None else dict(sorted(told.cases.items())),
    }


def _site_name(name: str) -> str:
    try:
        return TypeAdapter[str](SiteName).validate_python(name)
    except ValidationError as error:
        raise NotPossible(
            f"{name[:64]!r} is no site's name; write 1 to 64 letters, digits, spaces, dots, hyphens and underscores, a "
            "letter or digit first."
        ) from error

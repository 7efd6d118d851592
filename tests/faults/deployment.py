"""A deployment to be disturbed: a coordinator that serves, and nodes behind a network that can be cut."""

import sqlite3
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from sqlalchemy import select

from node.database import open_database
from node.ledger import Direction, Entry, Verdict
from node.progress_store import Standing
from protos.messages import VISIT
from tests.conftest import Desk
from tests.coordinator.serving import Served, assert_as_in_process, wait_for
from tests.faults.proxy import Proxy

SITES = ("north", "east")
SLOW = ("training.steps=600", "training.checkpoint_every=50")  # long enough to be hit in the middle
AWAY = "Site {} is away; it is waited for until "


def under_way(node: Path, run: str, stop: int) -> bool:
    """Whether steps of the visit have been taken at the node with this folder."""
    query = select(Standing.step).where(Standing.run == run, Standing.stop == stop)
    with open_database(node).connect() as connection:
        return connection.execute(query).first() is not None


@dataclass
class Deployment(Served):
    """Every node reaches the SuperLink through a proxy of its own."""

    proxies: dict[str, Proxy] = field(default_factory=dict)

    def entrance(self, site: str) -> int:
        if site not in self.proxies:
            self.proxies[site] = Proxy(self.superlink)
        return self.proxies[site].port

    def close(self) -> None:
        super().close()
        for proxy in self.proxies.values():
            proxy.close()

    def whole(self) -> None:
        """Wait until everybody is there."""
        for site in SITES:
            if self.node(site).poll() is not None:
                self.start_node_again(site)
        wait_for(self.all_online)

    def schedule_slow(self, *words: str) -> str:
        (run,) = self.schedule(*(f"--set={key}" for key in SLOW), *words)
        return run

    def work(self, site: str) -> list[psutil.Process]:
        """The node's processes that do its work; the first is the one that forks the others."""
        return psutil.Process(self.node(site).pid).children(recursive=True)

    def kill_node(self, site: str) -> None:
        """With all that it has forked, as when its container or machine goes."""
        others = self.work(site)
        self.node(site).kill()
        self.node(site).wait()
        wait_for(lambda: not any(other.is_running() and other.status() != psutil.STATUS_ZOMBIE for other in others))

    def wait_until_under_way(self, site: str, run: str, stop: int) -> None:
        """Wait until steps of the visit are taken at the node."""
        wait_for(lambda: under_way(self.folder / site, run, stop))

    def under_way_at_east(self) -> str:
        """A run whose second visit has taken some steps."""
        run = self.schedule_slow()
        self.wait_until_under_way("east", run, 1)
        return run

    def ends(self, run: str, status: int = 0) -> str:
        """What `locum watch` says of the run until it ends, with this status."""
        watched = self.ask("watch", run)
        assert watched.status == status, watched.err
        return watched.err

    def assert_nothing_lost(self, run: str, expected: Desk) -> None:
        """It came to what it comes to when nothing happens, and every visit stands once in the ledgers."""
        assert_as_in_process(self, run, expected)
        assert self.made(run) == VISITS

    def replies(self, site: str) -> set[Path]:
        """The replies that the node has kept."""
        return {path for path in (self.folder / site / "replies").iterdir() if not path.name.startswith(".")}

    def made(self, run: str) -> Counter[tuple[str, int, int]]:
        """How often each visit (site, stop, round) was let out."""
        query = select(Entry.stop, Entry.round).where(
            Entry.run == run,
            Entry.message_type == VISIT,
            Entry.direction == str(Direction.OUT),
            Entry.verdict == str(Verdict.ALLOWED),
        )
        found: Counter[tuple[str, int, int]] = Counter()
        for site in SITES:
            with open_database(self.folder / site).connect() as connection:
                found.update((site, *row) for row in connection.execute(query))
        return found

    def artifacts(self) -> set[Path]:
        return set((self.home.folder / "vault").rglob("*.safetensors"))


@contextmanager
def nobody_writes(database: Path) -> Iterator[None]:
    """Inside the block nobody else gets to write into the SQLite file; who tries waits for half a minute."""
    with closing(sqlite3.connect(database, timeout=30, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            other.execute("ROLLBACK")


VISITS = {("north", 0, 0): 1, ("east", 1, 0): 1}  # of the tiny scenario

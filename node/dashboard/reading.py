"""The node's database as the dashboard has it: open for reading alone, beside the processes that write."""

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, QueuePool, Row, Select, create_engine, func, select

from node.asked import AskedRun
from node.database import FILE, open_database
from node.held import HeldRow, State
from node.ledger import Entry
from node.ledger_head import LedgerBroken, open_ledger
from node.policy_file import FILE as POLICY_FILE
from node.progress_store import Standing
from node.settings import SITE_FILE, SiteSettings

STILL_HERE = HeldRow.state.in_((State.WAITING, State.RELEASED))  # of a handover: it has not left yet, and may


class NoNode(Exception):
    """There is no node's folder here; one sentence."""


class Reader:
    """Reads `home/node.db`; safe for use by several threads at once."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._engine = _reading_engine(home)

    def connect(self) -> Connection:
        """A connection on which nothing can be written."""
        return self._engine.connect()

    def rows(self, query: Select[*tuple[Any, ...]]) -> Sequence[Row[Any]]:
        """All rows of a query."""
        with self.connect() as connection:
            return connection.execute(query).all()

    def first(self, query: Select[*tuple[Any, ...]]) -> Row[Any] | None:
        """The first row of a query, or None."""
        with self.connect() as connection:
            return connection.execute(query).first()

    def scalar(self, query: Select[*tuple[Any, ...]]) -> Any:
        """The first column of the first row, or None."""
        with self.connect() as connection:
            return connection.execute(query).scalar()

    def state(self) -> dict[str, object]:
        """Topic -> what changes whenever that part of the database or of the folder does; some tenths of a ms."""
        with self.connect() as connection:
            ledger = connection.execute(select(func.max(Entry.seq))).scalar()
            standing = connection.execute(
                select(Standing.run, Standing.stop, Standing.step, Standing.time)
                .order_by(Standing.time.desc())
                .limit(1)
            ).first()
            waiting = select(func.count(), func.max(HeldRow.since), func.max(HeldRow.decided)).where(STILL_HERE)
            held = tuple(connection.execute(waiting).one())
        return {
            "ledger": ledger,
            "held": held,
            "standing": None if standing is None else tuple(standing),
            "policy": _state_of(self.home / POLICY_FILE),
        }

    def settings(self) -> SiteSettings | None:
        """Where the site's data lie: as the newest run found it, or as the node that is served was told."""
        text = self.scalar(select(AskedRun.settings).order_by(AskedRun.first.desc()).limit(1))
        file = self.home / SITE_FILE
        try:
            if text is None:
                text = file.read_text("utf-8") if file.exists() else None
            return None if text is None else SiteSettings.model_validate_json(text)
        except (OSError, ValueError):
            return None

    def site(self) -> str:
        """The site's name; without any message or setting the folder's."""
        settings = self.settings()
        if settings is not None:
            return settings.name
        named = self.scalar(select(Entry.site).order_by(Entry.seq.desc()).limit(1))
        return str(named or self.home.resolve().name)


def open_reader(home: Path) -> Reader:
    """Bring the database at `home` up to date once, and open it for reading.

    Raises NoNode, also when the ledger is damaged and a person has to decide.
    """
    if not home.is_dir():
        raise NoNode(
            f"{home}: there is no such folder; give the node's own: .locum/nodes/SITE in a simulation, `home` in the "
            "file of `locum-node serve` otherwise."
        )
    if not any((home / name).exists() for name in (FILE, SITE_FILE, "node.key", POLICY_FILE)):
        raise NoNode(f"{home}: this is no node's folder, since there is no {FILE} in it; give --home another one.")
    try:
        open_ledger(home)
    except LedgerBroken as error:
        raise NoNode(str(error)) from error
    open_database(home).dispose()
    return Reader(home)


def _reading_engine(home: Path) -> Engine:
    place = f"file:{home.resolve() / FILE}?mode=ro".replace("#", "%23")

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(place, uri=True, check_same_thread=False, timeout=30)
        connection.execute("PRAGMA query_only = ON")
        connection.execute("PRAGMA cache_size = -8192")
        return connection

    return create_engine("sqlite://", creator=connect, poolclass=QueuePool, pool_size=4, max_overflow=36)


def _state_of(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size

"""The node's own SQLite database: the ledger, visits and scores. It lies at the site and is never sent anywhere."""

import resource
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event, inspect
from sqlalchemy.orm import DeclarativeBase

FILE = "node.db"
# Databases that are kept open: one process may hold hundreds of nodes, at three open files each.
_MOST = max(8, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 256) // 4)


class Base(DeclarativeBase):
    """Base of every table at a node."""


@dataclass(frozen=True)
class _Opened:
    engine: Engine
    file: tuple[int, int]  # device and inode
    tables: int


_opened: OrderedDict[Path, _Opened] = OrderedDict()  # least recently used first
_lock = Lock()


def open_database(home: Path, durable: bool = True) -> Engine:
    """Open `home/node.db`, creating the folder (for its owner only), the file and any missing table or column.

    The connection stays open for the next caller, since closing the last one makes SQLite copy its log and wait for
    the disk twice more. With `durable` a commit is on the disk when it returns; without, a power cut may take the last
    ones, though the death of the process never does. Transactions begin with a write lock when the engine or
    connection has the execution option `write=True`, so that what was read in them still holds when they write. Do
    not fork after calling this.
    Raises sqlalchemy.exc.DBAPIError or OSError when the folder cannot be written.
    """
    home = home.absolute()
    tables = len(Base.metadata.tables)  # more of them when more modules were imported
    with _lock:
        known = _opened.pop(home, None)
        if known is None or known.tables != tables or known.file != _identity(home):
            if known is not None:
                known.engine.dispose()
            engine = _create(home, durable)
            known = _Opened(engine, _identity(home), tables)
        _opened[home] = known
        while len(_opened) > _MOST:
            _opened.popitem(last=False)[1].engine.dispose()
    return known.engine


def _identity(home: Path) -> tuple[int, int]:
    """Which file it is: an open connection would go on writing to one that was deleted or replaced."""
    try:
        found = (home / FILE).stat()
    except FileNotFoundError:
        return (0, 0)
    return (found.st_dev, found.st_ino)


def _create(home: Path, durable: bool) -> Engine:
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    engine = create_engine(f"sqlite:///{home / FILE}", poolclass=QueuePool, pool_size=1, max_overflow=-1)
    event.listen(engine, "connect", lambda connection, _: _configure(connection, durable))
    event.listen(engine, "begin", _begin)
    with engine.execution_options(write=True).begin() as connection:
        Base.metadata.create_all(connection)
        _add_columns(connection)
        _add_indices(connection)
    return engine


def _add_columns(connection: Connection) -> None:
    """Give the tables of an older release the columns that came later; they are empty in the rows that are there."""
    for table in Base.metadata.tables.values():
        there = {column["name"] for column in inspect(connection).get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                sort = column.type.compile(connection.dialect)
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {sort}")


def _add_indices(connection: Connection) -> None:
    """Give the tables of an older release the indices that came later."""
    for table in Base.metadata.tables.values():
        for index in table.indexes:
            index.create(connection, checkfirst=True)


def _configure(connection: Any, durable: bool) -> None:
    connection.isolation_level = None  # Python's driver would begin transactions by itself; _begin does
    # WAL: readers never wait for a writer. FULL: a commit is on the disk when it returns. With NORMAL, which saves that
    # one wait (0.3 ms on an idle SSD, 5 ms on a busy one), nothing is lost when the process dies, but the last entries
    # of the ledger are when the machine does, although what they describe has happened.
    # A small page cache (in KiB), since hundreds of databases may be open.
    sync = "FULL" if durable else "NORMAL"
    pragmas = ("busy_timeout = 30000", "journal_mode = WAL", f"synchronous = {sync}", "foreign_keys = ON")
    for setting in (*pragmas, "cache_size = -64"):
        connection.execute(f"PRAGMA {setting}")


def _begin(connection: Connection) -> None:
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

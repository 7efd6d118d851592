"""The copy of the coordinator's SQLite file beside it, made when a stop is committed, for when the file is damaged.

What was committed after the newest copy is made again: a stop to the same bits, a score to the same number.
"""

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

# What SQLite says of a file that is no longer what it wrote, or of one that it cannot write to.
DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
UNUSABLE = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN})
_PARTS = ("", "-wal", "-shm")  # of an SQLite database, by the ends of their names


class NotRestorable(ValueError):
    """The database has no copy to go back to, or needs none; one sentence."""


def sqlite_file(url: str) -> Path | None:
    """The file of a database's URL; None where it is on a server or in memory, or the URL is none."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        return None  # opening it says what is wrong
    if parsed.get_backend_name() != "sqlite" or not parsed.database or parsed.database.startswith((":", "file:")):
        return None
    return Path(parsed.database)


def copy_of(file: Path) -> Path:
    """Where the copy of a database's file lies."""
    return file.with_name(f"{file.name}.copy")


def keep_copy(file: Path) -> None:
    """Copy the database as it is now, others may be writing to it; on the disk when this returns.

    A copy that is not sound does not take the older one's place. Raises sqlite3.DatabaseError and OSError.
    """
    copy = copy_of(file)
    address = f"{file.absolute().as_uri()}?mode=ro"
    with _beside(copy) as new:
        with closing(sqlite3.connect(address, uri=True, timeout=30)) as source, closing(sqlite3.connect(new)) as target:
            target.execute("PRAGMA synchronous=OFF")  # it is synced as a whole
            source.backup(target)
            target.execute("PRAGMA journal_mode=DELETE")
            _check(target)
        _sync(new)
        new.replace(copy)
        _sync(copy.parent)


def code_of(error: BaseException | None) -> int:
    """SQLite's primary code of an error; 0 for what is none of SQLite's."""
    code: int = getattr(error, "sqlite_errorcode", 0) or 0
    return code & 0xFF


def is_lost(file: Path) -> bool:
    """Whether the database is gone or empty although there is a copy of it."""
    return copy_of(file).exists() and (not file.exists() or file.stat().st_size == 0)


def damaged(file: Path, reason: str) -> str:
    """What a person is told of a damaged database."""
    copy = copy_of(file)
    remedy = "restore it from a backup"
    if copy.exists():
        remedy = f"`locum restore` goes back to its copy of {_time_of(copy):%Y-%m-%d %H:%M} UTC"
    return f"The database {file} is damaged ({reason}); {remedy}."


def go_back(file: Path) -> tuple[Path | None, datetime]:
    """Put the copy in the place of a damaged database, which nobody may be using.

    Returns where the damaged file lies now, if there was one, and the time of the copy. Raises NotRestorable, OSError.
    """
    copy = copy_of(file)
    if not copy.exists():
        raise NotRestorable(f"There is no copy of the database {file}; restore it from a backup.")
    in_the_copy = _held(copy)
    if in_the_copy is None:
        raise NotRestorable(f"{copy}: the copy is damaged too; restore {file} from a backup.")
    now = _held(file) if file.exists() else None
    if now is not None and all(have >= had for have, had in zip(now, in_the_copy, strict=True)):
        raise NotRestorable(f"The database {file} is sound; nothing was restored.")
    aside = None
    if file.exists():
        aside = file.with_name(f"{file.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
    for part in _PARTS:
        if (old := file.with_name(file.name + part)).exists():
            old.replace(f"{aside or old.with_name(f'{old.name}.damaged')}{part}")
    with _beside(file) as new:
        new.write_bytes(copy.read_bytes())
        _sync(new)
        new.replace(file)
    _sync(file.parent)
    return aside, _time_of(copy)


def _held(file: Path) -> tuple[int, int] | None:
    """How many runs and settled stops a database holds; None if it is not sound."""
    try:
        with closing(sqlite3.connect(file)) as connection:
            _check(connection)
            runs = connection.execute("SELECT count(*) FROM runs").fetchone()[0]
            settled = "SELECT count(*) FROM stops WHERE status IN ('done', 'skipped')"
            return int(runs), int(connection.execute(settled).fetchone()[0])
    except sqlite3.DatabaseError:
        return None


def _check(connection: sqlite3.Connection) -> None:
    (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if said != "ok":
        error = sqlite3.DatabaseError("database disk image is malformed")  # in SQLite's words
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error


@contextmanager
def _beside(file: Path) -> Iterator[Path]:
    """A new file beside `file`, which is gone again unless it was given another name."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=".new-")
    os.close(handle)
    try:
        yield Path(name)
    finally:
        for part in (*_PARTS, "-journal"):
            Path(name + part).unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _time_of(copy: Path) -> datetime:
    return datetime.fromtimestamp(copy.stat().st_mtime, UTC)

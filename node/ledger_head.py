"""What lies beside the ledger and remembers how far it was, so that one that is lost or set back is not begun anew.

Two lines are written after an entry is: its number and hash, and what protected updates come to that left so far. It is
against accidents: who means to deceive can change both files, and is found out by a head that was noted elsewhere.
"""

import os
import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakSet

from pydantic import ValidationError
from sqlalchemy import Engine, select
from sqlalchemy.exc import DBAPIError

from node.database import FILE, open_database
from node.ledger import Entry, Ledger
from node.privacy import Release

HEAD = "ledger.head"
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_compared: WeakSet[Engine] = WeakSet()  # engines whose files were held against the remembered head


class LedgerBroken(Exception):
    """The ledger is damaged, gone or set back; one sentence for the site's people, who have to decide."""

    def __init__(self, home: Path, reason: str) -> None:
        super().__init__(
            f"The ledger in {home / FILE} {reason}; restore it from a backup, or set it aside and begin a new one with "
            f"`locum-node renew --home {home} --by NAME --why REASON`."
        )
        self.reason = reason


def open_ledger(home: Path, durable: bool = True) -> Ledger:
    """The ledger of the node at `home`, made if there was none; raises LedgerBroken, DBAPIError and OSError."""
    head = remembered(home)
    file = home / FILE
    if head is not None and not file.exists():
        raise LedgerBroken(home, "is gone")
    if head is not None and file.stat().st_size == 0:
        raise LedgerBroken(home, "is empty")
    try:
        engine = open_database(home, durable)
        if engine not in _compared:
            _compare(home, engine, head)
            _compared.add(engine)
    except DBAPIError as error:
        raise broken_by(home, error) or error from error
    return _remembering(home, engine, durable)


def begin_ledger(home: Path) -> Ledger:
    """A ledger in a new file, whatever is remembered of the one before it, until its first entry is written."""
    return _remembering(home, open_database(home), durable=True)


def _remembering(home: Path, engine: Engine, durable: bool) -> Ledger:
    return Ledger(engine, lambda seq, link, release: _remember(home, seq, link, release, durable))


def broken_by(home: Path, error: BaseException | None) -> LedgerBroken | None:
    """What to say if an error, or what caused it, is that the file is no longer what SQLite wrote."""
    while error is not None:
        reason = error.orig if isinstance(error, DBAPIError) else None
        if ((getattr(reason, "sqlite_errorcode", 0) or 0) & 0xFF) in _DAMAGED:
            return LedgerBroken(home, f"is damaged ({reason})")
        error = error.__cause__
    return None


@dataclass(frozen=True)
class Remembered:
    """An entry that was written, and the newest release that is known; the hash is empty where it is not known."""

    seq: int
    link: str
    release: Release | None


def remembered(home: Path) -> Remembered | None:
    """What is remembered of the ledger; None if nothing was ever written into it."""
    try:
        first, _, second = (home / HEAD).read_text("ascii", "replace").partition("\n")
    except FileNotFoundError:
        return None
    words = first.split()
    seq, link = (int(words[0]), words[1]) if len(words) == 2 and words[0].isdigit() else (1, "")
    try:
        return Remembered(seq, link, Release.model_validate_json(second) if second else None)
    except ValidationError:
        return Remembered(seq, link, None)


def _compare(home: Path, engine: Engine, head: Remembered | None) -> None:
    if head is None:
        return
    with engine.connect() as connection:
        found = connection.execute(select(Entry.hash).where(Entry.seq == head.seq)).scalar()
    if found is None:
        raise LedgerBroken(home, f"has lost entries: number {head.seq} was written, and is not there")
    if head.link not in ("", found):
        raise LedgerBroken(home, f"is another one than it was: number {head.seq} has not the hash that was written")


def _remember(home: Path, seq: int, link: str, release: str | None, durable: bool) -> None:
    """Of entries only the first where a power cut may take the last ones: they would then seem lost."""
    path = home / HEAD
    anew = durable or not path.exists()
    if not anew and release is None:
        return
    line = f"{seq:012d} {link}\n".encode()
    with suppress(OSError):  # what is remembered may lag behind
        handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            if anew:
                os.pwrite(handle, line, 0)
            if release is not None:
                os.pwrite(handle, release.encode(), len(line))
                os.ftruncate(handle, len(line) + len(release))
        finally:
            os.close(handle)

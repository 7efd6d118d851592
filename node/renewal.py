"""A ledger that broke is set aside by a person who answers for it; the new one begins with saying so, for ever."""

import fcntl
import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from node.database import FILE
from node.ledger import BROKEN, Crossing, Direction, Verdict
from node.ledger_head import LedgerBroken, begin_ledger, open_ledger, remembered
from node.privacy import Release
from protos.refusals import RefusalCode

_ASIDE = f"{FILE}.broken-"
_PARTS = ("", "-wal", "-shm")  # of an SQLite database, by the ends of their names


class NotRenewable(Exception):
    """The ledger is not to be set aside now; one sentence."""


@dataclass(frozen=True)
class _Readable:
    """What can still be read of a broken ledger: its last entry, earlier breaks, the last release."""

    seq: int = 0
    head: str = ""
    breaks: list[str] = field(default_factory=list)
    release: Release | None = None


def renew(home: Path, *, by: str, why: str) -> tuple[str, Path | None]:
    """Set the broken ledger of the node at `home` aside and begin a new one, in the name of a person.

    Returns the new ledger's first sentence on it, and where the old file lies, if there was one. Protected updates that
    left under the old one count on, as far as they are known. Raises NotRenewable and OSError.
    """
    if not by.strip() or not why.strip():
        raise NotRenewable("A ledger is set aside in the name of a person and for a reason; fill in --by and --why.")
    with _nobody_serving(home):
        reason = _broken_by(home)
        if reason is None:
            raise NotRenewable(f"The ledger in {home / FILE} is sound; there is nothing to set aside.")
        last = remembered(home)
        readable = _read(home / FILE)
        lost = max(0, last.seq - readable.seq) if last else 0
        spent = [last.release if last else None, readable.release]
        release = max(filter(None, spent), key=lambda one: sum(one.releases.values()), default=None)
        aside = _set_aside(home)
        what = f"{aside.name}, SHA-256 {_digest(aside)}" if aside else "no file"
        said = (
            f"The ledger before this one {reason}, and was set aside by {by.strip()} on "
            f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {why.strip()}. It is {what}; "
            f"{readable.seq} entries can be read, {lost} more are known to be lost."
        )
        ledger = begin_ledger(home)
        for sentence in (*readable.breaks, said):
            entry = Crossing(
                Direction.HERE, "", BROKEN, Verdict.FAILED, code=RefusalCode.LEDGER_BROKEN.name, detail=sentence
            )
            ledger.record(entry, carried=release if sentence is said else None)
        open_ledger(home)
    return said, aside


def _broken_by(home: Path) -> str | None:
    """What is wrong with the ledger, as the continuation of a sentence; None if nothing is."""
    try:
        faults = open_ledger(home).verify()
    except LedgerBroken as broken:
        return broken.reason
    except SQLAlchemyError as error:
        return f"cannot be read ({str(getattr(error, 'orig', error)).rstrip('.')})"
    return f"does not hold together ({faults[0].rstrip('.')})" if faults else None


def _read(file: Path) -> _Readable:
    """As much as a damaged file still gives, in order from its beginning."""
    found = _Readable()
    if not file.exists():
        return found
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            query = "SELECT seq, hash, message_type, detail, privacy FROM ledger ORDER BY seq"
            for seq, head, message_type, detail, privacy in connection.execute(query):
                breaks = [*found.breaks, detail] if message_type == BROKEN else found.breaks
                release = Release.model_validate_json(privacy) if privacy else found.release
                found = _Readable(seq, head, breaks, release)
    except (sqlite3.DatabaseError, ValueError):
        pass  # this far
    return found


def _set_aside(home: Path) -> Path | None:
    """Give the old file another name; where that was done before a crash, the file that it was done to."""
    file = home / FILE
    if not file.exists():
        return max(home.glob(f"{_ASIDE}*[0-9]"), default=None)
    aside = home / f"{_ASIDE}{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
    for part in reversed(_PARTS):  # the file itself last: while it is there, it is what is set aside
        if (old := Path(f"{file}{part}")).exists():
            old.rename(f"{aside}{part}")
    return aside


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


@contextmanager
def _nobody_serving(home: Path) -> Iterator[None]:
    """Hold the lock of `locum-node serve`, see node/serving.py."""
    if not home.is_dir():
        raise NotRenewable(f"There is no node in {home}: --home names another folder.")
    with (home / "node.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NotRenewable(f"{home}: `locum-node serve` is using the ledger; stop it first.") from error
        yield

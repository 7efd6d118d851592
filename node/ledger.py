"""The ledger: what crossed this node's boundary and what its people decided, in an append-only chain of hashes.

Every entry's hash covers the entry and the hash before it, so no entry can be changed, removed, moved or put in
between without `verify` saying so. What a chain cannot show is that its end was cut off, or that all of it was written
anew: for that, note its head (the last hash) somewhere else and give it to `verify`. docs/privacy.md says more.
"""

import hashlib
import json
import zlib
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from pydantic import ValidationError
from sqlalchemy import DDL, Connection, Engine, Index, Row, String, event, func, insert, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Mapped, mapped_column

from node.audit import Decision, PolicyChange
from node.database import Base
from node.privacy import Release, Updates
from protos.handover import Kind
from protos.software import installed

GENESIS = "0" * 64  # stands for the hash before the first entry
BROKEN = "ledger.broken"  # message type of an entry that says what became of the ledger before this one
_LONGEST = 1000  # characters of a text from outside
_LATER = ("privacy", "audit", "software", "code_sha256")  # columns that the hashes of older entries know nothing of


class Direction(StrEnum):
    """Seen from the site."""

    IN = "in"
    OUT = "out"
    HERE = "here"  # nothing crossed: it is about the ledger itself, or people at the site decided something


class Verdict(StrEnum):
    """What became of a message; for one that did not pass, a coded error reply went back instead."""

    ALLOWED = "allowed"
    REFUSED = "refused"  # by the guard
    FAILED = "failed"  # the work behind the guard ended in an error
    HELD = "held"  # kept at the site, whole and checked, until a person decides
    # and what people decided
    RELEASED = "released"
    WITHHELD = "withheld"
    CHANGED = "changed"  # the site's policy


@dataclass(frozen=True)
class Crossing:
    """One message at the boundary. `detail` is one sentence that stays at the node.

    `kind_bytes` (bytes of raw values), `metrics` and `manifest` (serialised) tell what passed: nothing unless allowed,
    but for the manifest of what is held. `updates` is how an update that leaves was protected; None where there is
    none, or no protection. `audit` is what people decided, of what leaves as of what stays.
    """

    direction: Direction
    site: str
    message_type: str
    verdict: Verdict
    code: str = ""  # name of the RefusalCode
    detail: str = ""
    run: str = ""
    stop: int | None = None
    round: int | None = None
    action: str = ""
    strategy: str = ""
    kind_bytes: Mapping[Kind, int] = field(default_factory=dict)
    metrics: Mapping[str, int | float] = field(default_factory=dict)
    manifest: bytes | None = None
    updates: Updates | None = None
    audit: Decision | PolicyChange | None = None


DECIDED_HERE = "direction = 'here'"  # in SQL, as the index has it, word for word
NOT_PASSED = "verdict IN ('refused', 'failed', 'withheld')"


def carries(kind: Kind) -> str:
    """In SQL, whether an entry's message carried anything of a kind; as the indices have it, word for word."""
    return f"json_extract(kind_bytes, '$.{kind}') IS NOT NULL"


class Entry(Base):
    """A row of the ledger. Times are UTC in ISO format, hashes 64 hexadecimal digits, the manifest is compressed."""

    __tablename__ = "ledger"

    seq: Mapped[int] = mapped_column(primary_key=True)
    time: Mapped[str]
    direction: Mapped[str]
    site: Mapped[str]
    message_type: Mapped[str]
    verdict: Mapped[str]
    code: Mapped[str]
    detail: Mapped[str]
    run: Mapped[str]
    stop: Mapped[int | None]
    round: Mapped[int | None]
    action: Mapped[str]
    strategy: Mapped[str]
    kind_bytes: Mapped[str]  # JSON, kind -> bytes
    metrics: Mapped[str]  # JSON, name -> value
    manifest: Mapped[bytes | None]
    privacy: Mapped[str | None]  # JSON, a Release
    audit: Mapped[str | None]  # JSON, a Decision or a PolicyChange
    software: Mapped[str | None]  # what was at work: name and version
    code_sha256: Mapped[str | None] = mapped_column(String(64))  # and the digest of its code, see protos/software.py
    hash: Mapped[str] = mapped_column(String(64))

    # What the dashboard asks for, however long the ledger is: a run's entries, its answers stop by stop, those that did
    # not pass, and those that carry something of a kind, since both may be few among many.
    __table_args__ = (
        Index("ledger_of_run", "run", "seq"),
        Index("ledger_answers", "run", "message_type", "direction", "verdict", "stop", "seq"),
        Index("ledger_decided_here", "seq", sqlite_where=text(DECIDED_HERE)),
        Index("ledger_not_passed", "seq", sqlite_where=text(NOT_PASSED)),
        *(Index(f"ledger_with_{kind}", "seq", sqlite_where=text(carries(kind))) for kind in Kind),
    )


TABLE: Final = Entry.__table__

for _statement in ("UPDATE", "DELETE"):  # against mistakes; who means to tamper can drop a trigger, but not mend a hash
    event.listen(
        TABLE,
        "after_create",
        DDL(  # type: ignore[no-untyped-call]
            f"CREATE TRIGGER IF NOT EXISTS ledger_no_{_statement.lower()} BEFORE {_statement} ON ledger "
            "BEGIN SELECT RAISE(ABORT, 'the ledger is append-only'); END"
        ),
    )


class LedgerUnwritable(Exception):
    """An entry could not be written, so what it describes must not happen."""


class Ledger:
    """The ledger in a node's database; `written` is told of every entry that was written: number, hash, privacy."""

    def __init__(self, engine: Engine, written: Callable[[int, str, str | None], None] = lambda *_: None) -> None:
        self._reader = engine
        self._writer = engine.execution_options(write=True)
        self._written = written

    def record(
        self,
        crossing: Crossing,
        carried: Release | None = None,
        also: Callable[[Connection], None] = lambda connection: None,
    ) -> str:
        """Append an entry and return its hash, once it is on the disk.

        `carried` is what all updates came to that left under a ledger before this one. `also` is done first in the same
        transaction: both are, or neither; an exception of its own is raised. Raises LedgerUnwritable, and Refusal
        (PRIVACY_BUDGET) when the entry's update may not leave any more.
        """
        row: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="microseconds"),
            "direction": str(crossing.direction),
            "site": _storable(crossing.site),
            "message_type": _storable(crossing.message_type),
            "verdict": str(crossing.verdict),
            "code": crossing.code,
            "detail": _storable(crossing.detail),
            "run": _storable(crossing.run),
            "stop": crossing.stop,
            "round": crossing.round,
            "action": _storable(crossing.action),
            "strategy": _storable(crossing.strategy),
            "kind_bytes": json.dumps(crossing.kind_bytes),
            "metrics": json.dumps(crossing.metrics),
            "manifest": None if crossing.manifest is None else zlib.compress(crossing.manifest),
            "privacy": None if carried is None else carried.model_dump_json(),
            "audit": None if crossing.audit is None else crossing.audit.model_dump_json(),
            "software": installed().name,
            "code_sha256": installed().code,
        }
        try:
            with self._writer.begin() as connection:
                also(connection)
                last = connection.execute(select(Entry.seq, Entry.hash).order_by(Entry.seq.desc()).limit(1)).first()
                seq, previous = (1, GENESIS) if last is None else (last.seq + 1, last.hash)
                row = {"seq": seq, **row}
                if crossing.updates is not None:
                    release = Release.after(_last_release(connection), crossing.updates)
                    row["privacy"] = release.model_dump_json()
                row["hash"] = _link(previous, row)
                connection.execute(insert(Entry), row)
        except (SQLAlchemyError, OSError, ValidationError) as error:
            raise LedgerUnwritable(f"The ledger in {self._reader.url.database} cannot be written ({error}).") from error
        self._written(seq, str(row["hash"]), row["privacy"])
        return str(row["hash"])

    def reading(self) -> AbstractContextManager[Connection]:
        """A connection for reading what stands beside the ledger in the same database."""
        return self._reader.connect()

    def writing(self) -> AbstractContextManager[Connection]:
        """A transaction beside the ledger, which nobody else writes in meanwhile."""
        return self._writer.begin()

    def site(self) -> str:
        """The site of the newest entry; nothing where there is none."""
        with self._reader.connect() as connection:
            return connection.execute(select(Entry.site).order_by(Entry.seq.desc()).limit(1)).scalar() or ""

    def holds(self, crossing: Crossing) -> bool:
        """Whether there is an entry of just this crossing: the same way, run, stop and round, and the same content."""
        same = {name: getattr(crossing, name) for name in ("message_type", "run", "stop", "round", "action")}
        query = select(Entry.manifest).where(
            Entry.direction == str(crossing.direction),
            Entry.verdict == str(crossing.verdict),
            *(getattr(Entry, name) == value for name, value in same.items()),
        )
        with self._reader.connect() as connection:
            found = connection.execute(query).scalars().all()
        return crossing.manifest in [None if manifest is None else zlib.decompress(manifest) for manifest in found]

    def last_release(self) -> Release | None:
        """The newest protected update that left, with what all so far come to; None if there was none."""
        with self._reader.connect() as connection:
            return _last_release(connection)

    def head(self) -> str:
        """The last entry's hash: note it elsewhere, and `verify` can tell later whether entries were cut off."""
        with self._reader.connect() as connection:
            found = connection.execute(select(Entry.hash).order_by(Entry.seq.desc()).limit(1)).scalar()
        return found or GENESIS

    def count(self) -> int:
        """Number of entries."""
        with self._reader.connect() as connection:
            return connection.execute(select(func.count()).select_from(Entry)).scalar_one()

    def entries(self, last: int | None = None) -> Generator[Row[Any]]:
        """All entries, or the last so many, oldest first, read as they are asked for; columns as in Entry."""
        query = select(*TABLE.columns).order_by(Entry.seq)
        if last is not None:
            first = select(Entry.seq).order_by(Entry.seq.desc()).offset(max(last, 1) - 1).limit(1).scalar_subquery()
            query = query.where(Entry.seq >= func.coalesce(first, 0))
        with self._reader.connect() as connection:
            yield from connection.execution_options(yield_per=500).execute(query)

    def code(self) -> list[Row[Any]]:
        """What was at work, in the order of its first entry: software, code_sha256, first and last entry, entries.

        The first two are None for entries of releases that did not note them.
        """
        query = (
            select(
                Entry.software,
                Entry.code_sha256,
                func.min(Entry.seq).label("first"),
                func.max(Entry.seq).label("last"),
                func.count().label("entries"),
            )
            .group_by(Entry.software, Entry.code_sha256)
            .order_by(func.min(Entry.seq))
        )
        with self._reader.connect() as connection:
            return list(connection.execute(query))

    def breaks(self) -> list[Row[Any]]:
        """The entries, if there are any, that say what became of ledgers before this one; columns as in Entry."""
        with self._reader.connect() as connection:
            query = select(*TABLE.columns).where(Entry.message_type == BROKEN).order_by(Entry.seq)
            return list(connection.execute(query))

    def verify(self, expected_head: str | None = None) -> list[str]:
        """Recompute the whole chain; one sentence per fault, none when it is sound.

        With `expected_head`, the hash must be that of some entry: the ledger may have grown since it was noted.
        """
        faults = []
        before, previous = 0, GENESIS
        seen = expected_head in (None, GENESIS)
        with closing(self.entries()) as entries:
            for entry in entries:
                columns = entry._asdict()
                if entry.seq != before + 1:
                    gap = f"{before + 1}" if entry.seq == before + 2 else f"{before + 1} to {entry.seq - 1}"
                    faults.append(f"Before entry {entry.seq} something was removed: {gap} missing.")
                elif entry.hash != _link(previous, columns):
                    faults.append(f"Entry {entry.seq} was changed, moved or put in: its hash does not fit.")
                seen = seen or entry.hash == expected_head
                before, previous = entry.seq, entry.hash
        if not seen:
            faults.append(
                f"No entry has the hash {expected_head}: the ledger's end was cut off or the ledger was written anew."
            )
        return faults


def _last_release(connection: Connection) -> Release | None:
    query = select(Entry.privacy).where(Entry.privacy.is_not(None)).order_by(Entry.seq.desc()).limit(1)
    text = connection.execute(query).scalar()
    return None if text is None else Release.model_validate_json(text)


def _link(previous: str, columns: Mapping[str, Any]) -> str:
    """The hash of an entry whose predecessor has the hash `previous`."""
    fields = {name: value for name, value in columns.items() if name != "hash"}
    for name in _LATER:
        if fields[name] is None:
            del fields[name]
    if isinstance(fields["manifest"], bytes):
        fields["manifest"] = hashlib.sha256(fields["manifest"]).hexdigest()
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True, default=repr)
    return hashlib.sha256(f"{previous}\n{canonical}".encode()).hexdigest()


def _storable(text: str) -> str:
    """`text` short enough for a row, and without the lone surrogates that SQLite cannot hold."""
    return text[:_LONGEST].encode("utf-8", "backslashreplace").decode()

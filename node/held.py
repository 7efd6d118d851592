"""Handovers that are checked and ready to leave, and wait at the site until a named person decides.

What waits is whole on the node's disk and named by the SHA-256 of all that would leave (the question that it answers,
its manifest, its metrics), so that what leaves after a release is what was shown. The file comes first, then its row
and the ledger's entry in one transaction; a decision, and a departure, is one transaction too. So whatever dies,
nothing leaves that was not released, nothing else than was shown, and no visit is made a second time for it.
"""

import hashlib
import json
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter
from sqlalchemy import Connection, Row, String, delete, insert, select, update
from sqlalchemy.orm import Mapped, mapped_column

from node.audit import Decision
from node.database import Base
from node.files import replace_file, sync_folder
from node.leakage import KindFacts
from node.ledger import Crossing, Ledger
from node.privacy import Release, Updates
from protos.handover import Handover, Kind, MalformedHandover, check_manifest
from protos.locum.v1 import handover_pb2
from protos.messages import Request
from protos.refusals import Refusal, RefusalCode

FOLDER = "held"
KEPT = 8  # files of those that left last: a coordinator that lost one asks again
_ORPHANED = 24 * 3600.0  # seconds after which a file without a row is what a process left that died
_FACTS = TypeAdapter(dict[Kind, KindFacts])


class State(StrEnum):
    """Of a held handover."""

    WAITING = "waiting"
    RELEASED = "released"  # and not asked for since
    LEFT = "left"
    WITHHELD = "withheld"
    LAPSED = "lapsed"  # the run went on without it, or the visit had to be made again


class HeldRow(Base):
    """A handover that waits or waited. Times are UTC in ISO format."""

    __tablename__ = "held"

    handover: Mapped[str] = mapped_column(String(64), primary_key=True)
    question: Mapped[str] = mapped_column(String(64), index=True)
    state: Mapped[str]
    since: Mapped[str]
    site: Mapped[str]
    run: Mapped[str] = mapped_column(index=True)
    stop: Mapped[int]
    round: Mapped[int]
    action: Mapped[str]
    strategy: Mapped[str]
    manifest: Mapped[bytes]  # compressed
    metrics: Mapped[str]  # JSON, name -> value
    updates: Mapped[str | None]  # JSON, how updates in it are protected
    facts: Mapped[str]  # JSON, kind -> KindFacts
    epsilon: Mapped[float | None]  # of all noised updates, this one included, when it was held
    decided: Mapped[str | None]
    by: Mapped[str | None]
    why: Mapped[str | None]


@dataclass(frozen=True)
class Held:
    """A row, read."""

    handover: str
    question: str
    state: State
    since: datetime
    site: str
    run: str
    stop: int
    round: int
    action: str
    strategy: str
    manifest: handover_pb2.HandoverManifest
    metrics: Mapping[str, int | float]
    updates: Updates | None
    facts: Mapping[Kind, KindFacts]
    epsilon: float | None
    decided: datetime | None
    by: str
    why: str

    @classmethod
    def of(cls, row: Row[Any]) -> Self:
        """Read a row."""
        return cls(
            **{name: getattr(row, name) for name in ("handover", "question", "site", "run", "stop", "round", "action")},
            strategy=row.strategy,
            state=State(row.state),
            since=datetime.fromisoformat(row.since),
            manifest=handover_pb2.HandoverManifest.FromString(zlib.decompress(row.manifest)),
            metrics=json.loads(row.metrics),
            updates=None if row.updates is None else Updates.model_validate_json(row.updates),
            facts=_FACTS.validate_json(row.facts),
            epsilon=row.epsilon,
            decided=None if row.decided is None else datetime.fromisoformat(row.decided),
            by=row.by or "",
            why=row.why or "",
        )

    @property
    def decision(self) -> Decision:
        """What a person decided on it."""
        return Decision(by=self.by, why=self.why, handover=self.handover)

    @property
    def named(self) -> str:
        """Where it is from, for a sentence."""
        rounds = f", round {self.round}" if self.round else ""
        return f"the handover of stop {self.stop}{rounds} of run {self.run}"


def question_of(request: Request, arrived: Handover | None) -> str:
    """The SHA-256 of a question: what is asked a second time, after a crash or a release, has the same."""
    asked = json.dumps(request.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(asked.encode() + (b"" if arrived is None else arrived.digest())).hexdigest()


def name_of(question: str, manifest: bytes, metrics: Mapping[str, int | float]) -> str:
    """The SHA-256 of all that would leave in answer to a question."""
    whole = [question, hashlib.sha256(manifest).hexdigest(), dict(sorted(metrics.items()))]
    return hashlib.sha256(json.dumps(whole, allow_nan=False).encode()).hexdigest()


class Damaged(Exception):
    """A held handover is not on the disk as it was shown; one sentence."""


class HeldHandovers:
    """Those of the node at `home`."""

    def __init__(self, home: Path, ledger: Ledger) -> None:
        self._folder = home / FOLDER
        self._ledger = ledger

    def asked(self, question: str) -> Held | None:
        """What waits, or waited, as the answer to a question."""
        wanted = select(*HeldRow.__table__.columns).where(HeldRow.question == question, HeldRow.state != State.LAPSED)
        with self._ledger.reading() as connection:
            row = connection.execute(wanted.order_by(HeldRow.since.desc()).limit(1)).first()
        return None if row is None else Held.of(row)

    def all(self, *states: State) -> list[Held]:
        """Those in one of these states, or all, oldest first."""
        wanted = select(*HeldRow.__table__.columns).order_by(HeldRow.since)
        if states:
            wanted = wanted.where(HeldRow.state.in_(states))
        with self._ledger.reading() as connection:
            return [Held.of(row) for row in connection.execute(wanted)]

    def read(self, held: Held) -> Handover:
        """The handover itself; raises Damaged unless it is what was held, to the bit."""
        try:
            handover = Handover.from_bytes(self._path(held.handover).read_bytes())
            check_manifest(held.manifest, handover)
        except OSError as error:
            raise Damaged(f"{self._path(held.handover)} cannot be read ({error.strerror}).") from error
        except MalformedHandover as error:
            raise Damaged(f"{self._path(held.handover)} is not what was held ({error}).") from error
        if name_of(held.question, held.manifest.SerializeToString(deterministic=True), held.metrics) != held.handover:
            raise Damaged(f"What the node's database says of {held.named} was changed.")
        return handover

    def keep(self, row: Mapping[str, Any], handover: Handover, entry: Crossing) -> None:
        """Keep a handover until a person decides, and write the ledger's entry on that; `row` as in HeldRow.

        What waited for the same question before has lapsed. Raises OSError or node.ledger.LedgerUnwritable.
        """
        replace_file(self._path(row["handover"]), handover.to_bytes())
        sync_folder(self._folder)
        self._ledger.record(entry, also=lambda connection: self._insert(connection, row))
        self._tidy()

    def epsilon_after(self, updates: Updates) -> float | None:
        """What all noised updates come to once one more leaves; raises Refusal (PRIVACY_BUDGET)."""
        return Release.after(self._ledger.last_release(), updates).epsilon

    def leaves(self, held: Held) -> Callable[[Connection], None]:
        """Marks it as having left, within the transaction of the ledger's entry on that."""

        def also(connection: Connection) -> None:
            released = (State.RELEASED, State.LEFT)
            same = (HeldRow.handover == held.handover, HeldRow.state.in_(released))
            if connection.execute(update(HeldRow).where(*same).values(state=State.LEFT)).rowcount != 1:
                raise Refusal(RefusalCode.HELD, "It is not released any more.")

        return also

    def settle(self, run: str, stop: int) -> None:
        """The coordinator has what it needs of a run's stops up to this one: what waits of them has lapsed."""
        over = (HeldRow.run == run, HeldRow.stop <= stop, HeldRow.state.in_((State.WAITING, State.RELEASED)))
        past = (HeldRow.run == run, HeldRow.stop <= stop)
        with self._ledger.writing() as connection:
            names = connection.execute(select(HeldRow.handover).where(*past)).scalars().all()
            if names:
                connection.execute(update(HeldRow).where(*over).values(state=State.LAPSED))
        for name in names:
            self.discard(name)

    def discard(self, name: str) -> None:
        """Remove a file that is not needed any more."""
        self._path(name).unlink(missing_ok=True)

    def _insert(self, connection: Connection, row: Mapping[str, Any]) -> None:
        connection.execute(update(HeldRow).where(HeldRow.question == row["question"]).values(state=State.LAPSED))
        connection.execute(delete(HeldRow).where(HeldRow.handover == row["handover"]))
        now = {"state": State.WAITING, "since": moment(), "decided": None, "by": None, "why": None}
        connection.execute(insert(HeldRow), {**row, **now})

    def _tidy(self) -> None:
        """Remove the files of what will not leave any more, of what left long ago, and what a dead process left."""
        with self._ledger.reading() as connection:
            rows = connection.execute(select(HeldRow.handover, HeldRow.state).order_by(HeldRow.since)).all()
        left = [row.handover for row in rows if row.state == State.LEFT]
        known = {row.handover for row in rows}
        gone = {row.handover for row in rows if row.state in (State.WITHHELD, State.LAPSED)} | set(left[:-KEPT])
        for path in self._folder.iterdir():
            with suppress(OSError):
                if path.stem in gone or (path.stem not in known and time.time() - path.stat().st_mtime > _ORPHANED):
                    path.unlink()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"


def moment() -> str:
    """Now, as rows hold it."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def row_of(
    request: Request,
    question: str,
    manifest: bytes,
    *,
    metrics: Mapping[str, int | float],
    updates: Updates | None,
    facts: Mapping[Kind, KindFacts],
    epsilon: float | None,
) -> dict[str, Any]:
    """The columns of HeldRow that say what is held."""
    return {
        "handover": name_of(question, manifest, metrics),
        "question": question,
        "site": request.site,
        "run": request.run,
        "stop": request.stop,
        "round": request.round,
        "action": request.action,
        "strategy": request.plan.strategy.name,
        "manifest": zlib.compress(manifest),
        "metrics": json.dumps(dict(metrics)),
        "updates": None if updates is None else updates.model_dump_json(),
        "facts": _FACTS.dump_json(dict(facts)).decode(),
        "epsilon": epsilon,
    }

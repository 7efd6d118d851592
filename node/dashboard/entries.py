"""Entries of the ledger: pages of them, filtered, and what one of them holds."""

import csv
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from google.protobuf.message import DecodeError
from pydantic import BaseModel, ConfigDict
from sqlalchemy import Row, Select, func, select, text

from node.dashboard.reading import Reader
from node.ledger import DECIDED_HERE, NOT_PASSED, Entry, carries
from pages.paging import Page, page_of
from protos.handover import Kind
from protos.locum.v1 import handover_pb2

Query = Select[*tuple[Any, ...]]
Way = Literal["in", "out", "here"]

_LIGHT = [column for column in Entry.__table__.columns if column.name != "manifest"]


@dataclass(frozen=True)
class Filter:
    """Which entries: of one way, with something of one kind, of one run, only those that did not pass."""

    way: Way | None = None
    kind: Kind | None = None
    run: str | None = None
    refused: bool = False

    def of(self, query: Query) -> Query:
        """`query` narrowed."""
        if self.way is not None:
            query = query.where(text(DECIDED_HERE) if self.way == "here" else Entry.direction == self.way)
        if self.kind is not None:
            query = query.where(text(carries(self.kind)))
        if self.run is not None:
            query = query.where(Entry.run == self.run)
        if self.refused:
            query = query.where(text(NOT_PASSED))
        return query


class TensorShown(BaseModel):
    """A tensor of a message: described, not contained."""

    kind: str
    name: str
    shape: list[int]
    dtype: str
    bytes: int
    sha256: str


class EntryShown(BaseModel):
    """An entry of the ledger, as `locum-node ledger --json` prints it but for the manifest."""

    model_config = ConfigDict(from_attributes=True)

    seq: int
    time: str
    direction: str
    site: str
    message_type: str
    verdict: str
    code: str
    detail: str
    run: str
    stop: int | None
    round: int | None
    action: str
    strategy: str
    kind_bytes: dict[str, int]
    metrics: dict[str, int | float]
    hash: str

    @classmethod
    def of(cls, row: Row[Any]) -> "EntryShown":
        """What stands in a row; what cannot be read of it is left out, since `--verify` says so better."""
        values = dict(row._mapping)
        for name in ("kind_bytes", "metrics"):
            values[name] = _mapping(values[name])
        return cls.model_validate(values)

    @property
    def passed(self) -> bool:
        """Whether it is no refusal and no failure."""
        return self.verdict not in ("refused", "failed", "withheld")

    @property
    def bytes(self) -> int:
        """Bytes of all kinds together."""
        return sum(self.kind_bytes.values())


class EntryOpened(EntryShown):
    """An entry with its tensors and what else it says."""

    tensors: list[TensorShown]
    manifest_digest: str | None
    privacy: dict[str, Any] | None
    software: str | None
    code_sha256: str | None


def entries_page(reader: Reader, chosen: Filter, before: int | None, after: int | None, limit: int) -> Page[EntryShown]:
    """A page of entries, newest first."""

    def below(bound: int | None, most: int) -> Sequence[Row[Any]]:
        query = chosen.of(select(*_LIGHT)).order_by(Entry.seq.desc()).limit(most)
        return reader.rows(query if bound is None else query.where(Entry.seq < bound))

    def above(bound: int, most: int) -> Sequence[Row[Any]]:
        return reader.rows(chosen.of(select(*_LIGHT)).where(Entry.seq > bound).order_by(Entry.seq).limit(most))

    page = page_of(below, above, lambda row: int(row.seq), before=before, after=after, limit=limit)
    return Page([EntryShown.of(row) for row in page.rows], page.older, page.newer)


def entry_opened(reader: Reader, seq: int) -> EntryOpened | None:
    """An entry with all that it holds; None if there is none of that number."""
    row = reader.first(select(Entry.__table__).where(Entry.seq == seq))
    if row is None:
        return None
    tensors, digest = _tensors(row.manifest)
    shown = EntryShown.of(row).model_dump()
    return EntryOpened(
        **shown,
        tensors=tensors,
        manifest_digest=digest,
        privacy=_mapping(row.privacy) or None,
        software=row.software,
        code_sha256=row.code_sha256,
    )


def count_entries(reader: Reader) -> int:
    """How many entries there are: they are numbered from 1 and none is ever removed."""
    return int(reader.scalar(select(func.max(Entry.seq))) or 0)


def head(reader: Reader) -> str | None:
    """The newest entry's hash."""
    found: str | None = reader.scalar(select(Entry.hash).order_by(Entry.seq.desc()).limit(1))
    return found


# Exports

_COLUMNS = (
    "seq", "time", "direction", "run", "stop", "round", "message_type", "action", "strategy", "verdict", "code",
    "detail", *(f"{kind}_bytes" for kind in Kind), "metrics", "hash",
)  # fmt: skip


def exported(reader: Reader, chosen: Filter, sort: Literal["csv", "json"]) -> Iterator[str]:
    """All entries of a filter, oldest first, as lines of a document that is written while it is read."""
    query = chosen.of(select(*_LIGHT)).order_by(Entry.seq)
    with reader.connect() as connection:
        rows = connection.execution_options(yield_per=500).execute(query)
        if sort == "csv":
            yield _csv_line(_COLUMNS)
            for row in rows:
                entry = EntryShown.of(row)
                values = entry.model_dump() | {f"{kind}_bytes": entry.kind_bytes.get(kind, "") for kind in Kind}
                values["metrics"] = json.dumps(entry.metrics) if entry.metrics else ""
                yield _csv_line([values[name] for name in _COLUMNS])
        else:
            yield "["
            before = "\n"
            for row in rows:
                yield before + EntryShown.of(row).model_dump_json()
                before = ",\n"
            yield "\n]\n"


def _csv_line(values: Sequence[object]) -> str:
    written = io.StringIO()
    csv.writer(written).writerow([_harmless(value) for value in values])
    return written.getvalue()


def _harmless(value: object) -> object:
    """Spreadsheets take a text that begins so for a formula, which could call other programs; a quote prevents it."""
    if isinstance(value, str) and value.lstrip().startswith(("=", "+", "-", "@", "\t", "\r", "|", "%")):
        return "'" + value
    return "" if value is None else value


def _mapping(value: str | None) -> dict[str, Any]:
    try:
        found = json.loads(value) if value else {}
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _tensors(packed: bytes | None) -> tuple[list[TensorShown], str | None]:
    if packed is None:
        return [], None
    try:
        manifest = handover_pb2.HandoverManifest.FromString(zlib.decompress(packed))
    except (zlib.error, DecodeError):
        return [], None
    known = handover_pb2.Kind.values()
    found = [
        TensorShown(
            kind=handover_pb2.Kind.Name(tensor.kind).lower() if tensor.kind in known else str(tensor.kind),
            name=tensor.name,
            shape=list(tensor.shape),
            dtype=tensor.dtype,
            bytes=tensor.nbytes,
            sha256=tensor.sha256.hex(),
        )
        for tensor in manifest.tensors
    ]
    return found, manifest.digest.hex()

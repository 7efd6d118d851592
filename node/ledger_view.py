"""How the ledger is shown: a table on a terminal, tab-separated lines in a pipe, or JSON."""

import json as jsons
import sys
import unicodedata
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import DecodeError
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy import Row
from sqlalchemy.exc import SQLAlchemyError

from node.audit import Decision
from node.database import FILE
from node.ledger import Ledger
from node.ledger_head import LedgerBroken, broken_by, open_ledger, remembered
from node.privacy import Release
from protos.locum.v1 import handover_pb2

SOUND, FAULTY, NO_LEDGER = 0, 1, 2  # exit statuses
_PAGE = 500  # entries per table, whose columns are as wide as their widest entry


def run_ledger(
    home: Path, *, verify: bool = False, head: str | None = None, json: bool = False, limit: int | None = None
) -> int:
    """Print the ledger of the node at `home` (its last `limit` entries) or, with `verify` or `head`, check its chain.

    Returns 0, or 1 when the chain or an entry is broken, or 2 when there is no ledger that could be read.
    """
    if not (home / FILE).is_file() and remembered(home) is None:
        _complain(f"There is no ledger in {home}: no message has reached this node, or --home names another folder.")
        return NO_LEDGER
    try:
        ledger = open_ledger(home)
        if verify or head is not None:
            return _verify(ledger, head, json)
        print_ledger(ledger, json=json, limit=limit)
    except BrokenPipeError:  # whoever reads the output has seen enough; the ledger is not at fault
        raise
    except LedgerBroken as sentence:
        _complain(str(sentence))
        return FAULTY
    except (SQLAlchemyError, OSError) as error:
        if (broken := broken_by(home, error)) is not None:
            _complain(str(broken))
            return FAULTY
        reason = str(getattr(error, "orig", error))
        _complain(f"The ledger in {home / FILE} cannot be read ({reason}); restore it from a copy.")
        return NO_LEDGER
    except (ValueError, TypeError, zlib.error, DecodeError):
        _complain(f"An entry of the ledger in {home / FILE} cannot be shown; `locum-node ledger --verify` tells more.")
        return FAULTY
    return SOUND


def print_ledger(ledger: Ledger, *, json: bool = False, limit: int | None = None) -> None:
    """Print all entries, or the last `limit`, oldest first, without holding them in memory."""
    with closing(ledger.entries(limit)) as entries:
        if json:
            _print_json(entries)
        elif sys.stdout.isatty():
            _print_tables(entries)
        else:
            _print_lines(entries)


def _verify(ledger: Ledger, head: str | None, json: bool) -> int:
    faults = ledger.verify(head.strip().lower() if head else None)
    count, now, code, breaks = ledger.count(), ledger.head(), ledger.code(), ledger.breaks()
    if json:
        spans = [dict(span._asdict()) for span in code]
        broken = [entry.detail for entry in breaks]
        found = {"sound": not faults, "entries": count, "head": now, "faults": faults, "code": spans, "breaks": broken}
        _write(jsons.dumps(found))
    elif faults:
        for fault in faults:
            _write(clean(fault))
    else:
        _write(f"The ledger is sound: {count} entries, head {now}")
        for span in code:
            known = f"{span.software}, code {span.code_sha256}"
            what = "a release that noted no code" if span.software is None else known
            _write(clean(f"Written by {what}: {span.entries} entries, {span.first} to {span.last}"))
        _write("Note the head elsewhere; `locum-node ledger --head` can then show that no later entry was cut off.")
    if not json:
        for entry in breaks:
            _write(clean(f"Entry {entry.seq}: {entry.detail}"))
    return FAULTY if faults else SOUND


def _print_json(entries: Iterable[Row[Any]]) -> None:
    """One JSON array, an entry per line."""
    _write("[")
    before = ""
    for entry in entries:
        sys.stdout.write(before + jsons.dumps(_document(entry)))
        before = ",\n"
    _write("\n]" if before else "]")


def _document(entry: Row[Any]) -> dict[str, Any]:
    document = dict(entry._asdict())
    document["kind_bytes"] = jsons.loads(entry.kind_bytes)
    document["metrics"] = jsons.loads(entry.metrics)
    document["privacy"] = entry.privacy and jsons.loads(entry.privacy)
    document["audit"] = entry.audit and jsons.loads(entry.audit)
    if entry.manifest is not None:
        manifest = handover_pb2.HandoverManifest.FromString(zlib.decompress(entry.manifest))
        document["manifest"] = MessageToDict(manifest, preserving_proto_field_name=True)
    return document


def _print_lines(entries: Iterator[Row[Any]]) -> None:
    header = None
    for entry in entries:
        columns = {name: value for name, value in entry._asdict().items() if name != "manifest"}
        if header is None:
            header = "\t".join(columns)
            _write(header)
        _write("\t".join("" if value is None else clean(str(value)) for value in columns.values()))


def _print_tables(entries: Iterator[Row[Any]]) -> None:
    console = Console()
    for first in entries:
        table = Table(
            "", "time (UTC)", "way", "run", "stop", "message", "strategy", "code", "verdict", "what passed, or why not"
        )
        for entry in chain([first], islice(entries, _PAGE - 1)):
            table.add_row(*(Text(clean(cell)) for cell in _cells(entry)), style=None if entry.code == "" else "red")
        console.print(table)


def _cells(entry: Row[Any]) -> list[str]:
    stop = "" if entry.stop is None else f"{entry.stop}.{entry.round}" if entry.round else str(entry.stop)
    verdict = f"{entry.verdict} {entry.code}".strip()
    return [
        str(entry.seq),
        entry.time.partition(".")[0].replace("T", " "),
        entry.direction,
        entry.run,
        stop,
        f"{entry.message_type} {entry.action}".strip(),
        entry.strategy,
        (entry.code_sha256 or "")[:8],
        verdict,
        entry.detail or _passed(entry),
    ]


def _passed(entry: Row[Any]) -> str:
    kind_bytes: Mapping[str, int] = jsons.loads(entry.kind_bytes)
    metrics: Mapping[str, float] = jsons.loads(entry.metrics)
    parts = [f"{kind} {size:,} bytes" for kind, size in kind_bytes.items()]
    if metrics:
        shown = ", ".join(f"{name}={value:.6g}" for name, value in islice(metrics.items(), 4))
        parts.append(f"{shown} and {len(metrics) - 4} more metrics" if len(metrics) > 4 else shown)
    if "copies" in metrics:
        parts.append(f"{metrics['copies']:.1%} near-copies of training images")
    if entry.privacy is not None:
        release = Release.model_validate_json(entry.privacy)
        parts.append(f"clip {release.clip:g}, noise {release.noise:g}")
        if release.epsilon is not None:
            parts.append(f"epsilon {release.epsilon:.4g} at delta {release.delta:g} so far")
    if entry.audit is not None:  # of what leaves: it was held before
        decision = Decision.model_validate_json(entry.audit)
        parts.append(f"released by {decision.by}: {decision.why}")
    return "; ".join(parts)


def clean(text: str) -> str:
    """`text` with control and formatting characters written out, so that no name can steer a terminal."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character).startswith("C") else character
        for character in text
    )


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")


def _complain(sentence: str) -> None:
    sys.stderr.write(clean(sentence) + "\n")

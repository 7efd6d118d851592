"""What a site keeps for rehearsal, for its own people: listed, and forgotten case by case."""

import json as jsons
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from node.ledger_view import clean
from node.memory_store import MemoryStore
from protos.refusals import Refusal

WHOLE, FAULTY, UNKNOWN = 0, 1, 2  # exit statuses
_COLUMNS = ("run", "case", "bytes", "kept", "state", "sha256")


def run_memory(home: Path, *, forget: str | None = None, json: bool = False) -> int:
    """Print what the node at `home` keeps for rehearsal or, with `forget`, remove a case's files.

    Returns 0; 1 when something that is kept is missing or damaged; 2 when there is no such node or no such case.
    """
    if not home.is_dir():
        _complain(f"There is no node in {home}: --home names another folder.")
        return UNKNOWN
    store = MemoryStore(home)
    if forget is not None:
        return _forget(store, home, forget)
    faults: list[str] = []
    _print(list(_rows(store, faults)), json)
    for fault in faults:
        _complain(fault)
    return FAULTY if faults else WHOLE


def _rows(store: MemoryStore, faults: list[str]) -> Iterator[dict[str, Any]]:
    """One row per run and case; for everything that is wrong with them, a sentence is added to `faults`."""
    for run in store.runs():
        try:
            index = store.index(run)
        except Refusal as refusal:
            faults.append(refusal.detail)
            continue
        for kept in index.cases:
            row = {"run": run, "case": kept.case, "bytes": 0, "kept": f"{index.kept:%Y-%m-%d %H:%M}"}
            state = "kept"
            if kept.forgotten is not None:
                state = f"forgotten {kept.forgotten:%Y-%m-%d}"
            else:
                try:
                    row["bytes"] = len(store.read(kept))
                except Refusal as refusal:
                    state = "not usable"
                    faults.append(refusal.detail)
            yield row | {"state": state, "sha256": kept.sha256}


def _print(rows: list[dict[str, Any]], json: bool) -> None:
    if json:
        _write(jsons.dumps(rows, indent=1))
    elif sys.stdout.isatty():
        table = Table(*_COLUMNS[:-1])
        for row in rows:
            table.add_row(*(Text(clean(str(row[column]))) for column in _COLUMNS[:-1]))
        Console().print(table)
    elif rows:
        for cells in (_COLUMNS, *([row[column] for column in _COLUMNS] for row in rows)):
            _write("\t".join(clean(str(cell)) for cell in cells))
    if not rows and not json:
        _write("Nothing is kept for rehearsal.")


def _forget(store: MemoryStore, home: Path, case: str) -> int:
    runs, unread = store.forget(case) if case and store.runs() else ([], [])
    for refusal in unread:
        _complain(f"Whether a run kept it is not known: {refusal.detail}")
    if runs:
        _write(f"{clean(case)} is forgotten; a run that would rehearse on it stops: {', '.join(runs)}.")
        _write(f"The data folder, {clean(str(home / 'cache'))} and backups may hold it still.")
    elif not unread:
        _complain(f"No run keeps a case {case!r} in {home}; `locum-node memory` lists those that are kept.")
        return UNKNOWN
    return FAULTY if unread else WHOLE


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")


def _complain(sentence: str) -> None:
    sys.stderr.write(clean(sentence) + "\n")

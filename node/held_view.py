"""What waits to leave, shown to the person who decides, and decided on the command line."""

import json as jsons
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import ByteSize
from sqlalchemy.exc import SQLAlchemyError

from node.audit import Unsigned
from node.decisions import LeakageSummary, Undecidable, held_handovers, leakage_summary, release, withhold
from node.ledger import LedgerUnwritable
from node.ledger_head import LedgerBroken
from node.ledger_view import clean

DONE, FAULTY, WRONG = 0, 1, 2  # exit statuses


def show_held(home: Path, handover: str | None, *, json: bool) -> int:
    """Print the summaries of what waits at the node in `home`, or of one handover that waits or waited.

    Returns 0; 1 when something that waits is damaged; 2 when there is no such node or handover.
    """
    try:
        if not home.is_dir():
            raise Undecidable(f"There is no node in {home}: --home names another folder.")
        names = [held.handover for held in held_handovers(home)] if handover is None else [handover]
        summaries = [leakage_summary(home, name) for name in names]
    except Undecidable as fault:
        return _complain(str(fault))
    except LedgerBroken as broken:
        _complain(str(broken))
        return FAULTY
    if json:
        _write(jsons.dumps([summary.model_dump(mode="json") for summary in summaries], indent=1))
    elif not summaries:
        _write("Nothing waits for a decision.")
    for number, summary in enumerate([] if json else summaries):
        for line in ([""] if number else []) + list(summary_in_words(summary)):
            _write(clean(line))
    return DONE if all(summary.whole for summary in summaries) else FAULTY


def summary_in_words(summary: LeakageSummary) -> Iterator[str]:
    """A leakage summary line by line."""
    rounds = f", round {summary.round}" if summary.round else ""
    yield f"{summary.handover}"
    yield f"  {summary.strategy}, stop {summary.stop}{rounds} of run {summary.run}, at {summary.site}"
    decided = f" by {summary.by} ({summary.why})" if summary.by else ""
    yield f"  {summary.state}{decided} since {(summary.decided or summary.since):%Y-%m-%d %H:%M} UTC"
    if summary.fault:
        yield f"  {summary.fault} It cannot be released."
    for kind, facts in summary.kinds.items():
        change = "" if facts.change is None else f", changed by {facts.change:.4g} since it came in"
        yield f"  {kind}: {facts.tensors} tensors, {_size(facts.bytes)}, norm {facts.norm:.4g}{change}"
    yield f"  largest: {summary.largest}, {_size(summary.largest_bytes)}"
    yield f"  values: {'all finite' if summary.finite else 'some are no finite numbers'}"
    if summary.copies is not None:
        yield f"  near-copies of training images: {summary.copies:.1%} of the generator's"
    if summary.updates is not None:
        yield f"  clip {summary.updates.clip:g}, noise {summary.updates.noise:g}"
    if summary.epsilon is not None:
        yield f"  epsilon: {summary.epsilon_so_far or 0:.4g} so far, {summary.epsilon:.4g} with this"
    names = ", ".join(f"{name}={value:.6g}" for name, value in summary.metrics.items())
    yield f"  numbers beside it: {names or 'none'}"
    yield f"  the policy: {' '.join(summary.allowed)}"


def decide(home: Path, handover: str, what: Literal["release", "withhold"], *, by: str, why: str) -> int:
    """Decide on a handover, and say so; 1 when the ledger cannot be written, 2 when there is nothing to decide so."""
    try:
        held = {"release": release, "withhold": withhold}[what](home, handover, by=by, why=why)
    except (Undecidable, Unsigned) as fault:
        return _complain(str(fault))
    except LedgerBroken as broken:
        _complain(str(broken))
        return FAULTY
    except (LedgerUnwritable, SQLAlchemyError, OSError) as error:
        reason = getattr(error, "orig", error)
        _complain(f"Nothing is decided, since the ledger in {home} cannot be written ({reason}).")
        return FAULTY
    if what == "release":
        _write(f"Released: {held.named} leaves when the coordinator asks again; `locum resume` there makes it ask.")
    else:
        _write(f"Withheld: {held.named} stays, and its file is removed; `locum skip` lets the run go on.")
    return DONE


def _size(count: int) -> str:
    return ByteSize(count).human_readable(decimal=True)


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")


def _complain(sentence: str) -> int:
    sys.stderr.write(f"locum-node: {clean(sentence)}\n")
    return WRONG

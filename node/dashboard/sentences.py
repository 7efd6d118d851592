"""What happened, in plain sentences: one per entry of the ledger that a person would want to know of."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from node.dashboard.entries import EntryShown
from node.dashboard.visits import DESCRIBE, PROGRESS, SCORE, VISIT
from pages import words

_NAMES = {"weights": "weights", "importance": "importance", "prompts": "prompts", "generator": "a generator"}

_SUBJECTS = {
    VISIT: "a visit",
    SCORE: "a scoring",
    DESCRIBE: "a question for counts",
    PROGRESS: "a question for progress",
}


@dataclass(frozen=True)
class Happening:
    """One sentence; `bad` if it is of a refusal or a failure. `seq` is the entry that tells more."""

    seq: int
    time: str
    sentence: str
    bad: bool


def happenings(entries: Iterable[EntryShown], most: int = 30) -> list[Happening]:
    """The sentences of these entries, newest first, without those that only say how far a visit is.

    The rounds of a stop that asks a site many times become one sentence.
    """
    told: list[Happening] = []
    shown = (entry for entry in entries if entry.message_type != PROGRESS or not entry.passed)
    for rounds, group in groupby(shown, key=_rounds_of):
        if rounds is None:
            told += [Happening(e.seq, e.time, f"At {words.clock(e.time)} {sentence(e)}", not e.passed) for e in group]
        else:
            told.append(_in_one(list(group)))
        if len(told) >= most:
            break
    return told[:most]


def _rounds_of(entry: EntryShown) -> tuple[str, int | None] | None:
    """Run and stop of one of many rounds; None for everything else."""
    many = entry.round is not None and entry.round > 0 and entry.message_type == VISIT and entry.passed
    return (entry.run, entry.stop) if many else None


def _in_one(group: list[EntryShown]) -> Happening:
    newest, oldest = group[0], group[-1]
    left = [entry for entry in group if entry.direction == "out" and entry.verdict == "allowed"]
    each = f", the last time{_cargo(left[0])}" if left else ""
    said = (
        f"From {words.clock(oldest.time)} to {words.clock(newest.time)} the model came in rounds and left "
        f"{words.count(len(left), 'time')}{each} ({_where(newest)})."
    )
    return Happening(newest.seq, newest.time, said, False)


def sentence(entry: EntryShown) -> str:
    """What an entry tells, to go on from a time: `the model left with 1.9 MB of weights.`"""
    if not entry.passed:
        return _not_passed(entry)
    if entry.verdict == "held":
        return f"the model was ready to leave, and waits until a named person decides ({_where(entry)})."
    if entry.direction == "here" or entry.verdict != "allowed":
        return entry.detail or f"{entry.verdict}: {entry.message_type}."
    cargo = _cargo(entry)
    match (entry.direction, entry.message_type):
        case ("in", "train.visit"):
            return f"the model arrived{cargo} to learn here ({_where(entry)})."
        case ("out", "train.visit"):
            return f"the model left{cargo} ({_where(entry)})."
        case ("in", "evaluate.score"):
            return f"the model arrived{cargo} to be scored here ({_where(entry)})."
        case ("out", "evaluate.score"):
            return f"scores left: {_scores(entry)} ({_where(entry)})."
        case ("in", "query.describe"):
            return f"the coordinator asked how many cases there are ({entry.run})."
        case ("out", "query.describe"):
            return f"counts left: {_numbers(entry)} ({entry.run})."
    way = "arrived" if entry.direction == "in" else "left"
    return f"a message of type {entry.message_type} {way}{cargo}."


def _not_passed(entry: EntryShown) -> str:
    subject = _SUBJECTS.get(entry.message_type, f"a message of type {entry.message_type}")
    if entry.verdict == "failed":
        said = f"{subject} failed here"
    elif entry.direction == "in":
        said = f"{subject} was refused"
    else:
        said = f"the reply to {subject} was kept back"
    return f"{said} ({entry.code}): {entry.detail or 'nothing more is known.'}"


def _cargo(entry: EntryShown) -> str:
    parts = [f"{words.size(count)} of {_NAMES.get(kind, kind)}" for kind, count in entry.kind_bytes.items() if count]
    return f" with {words.listed(parts)}" if parts else ""


def _where(entry: EntryShown) -> str:
    return f"{entry.run}, stop {entry.stop}" if entry.stop is not None else entry.run


def _scores(entry: EntryShown) -> str:
    parts = []
    if "dsc" in entry.metrics:
        parts.append(f"a mean DSC of {entry.metrics['dsc']:.3f}")
    if "cases" in entry.metrics:
        parts.append(f"over {words.count(int(entry.metrics['cases']), 'case')}")
    rest = len(entry.metrics) - len(parts)
    more = f" and {words.count(rest, 'more number')}" if rest > 0 and parts else ""
    return " ".join(parts) + more if parts else words.count(len(entry.metrics), "number")


def _numbers(entry: EntryShown) -> str:
    found = [f"{name} {value:g}" for name, value in entry.metrics.items()]
    return words.listed(found) or "none"

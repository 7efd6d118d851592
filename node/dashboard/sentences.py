"""What happened, in plain sentences: one for every entry of the ledger that a person would want to know of."""

from dataclasses import dataclass

from sqlalchemy import and_, func, not_, select

from node.dashboard.entries import EntryShown, Filter, entries_page
from node.dashboard.reading import Reader
from node.dashboard.visits import DESCRIBE, INTRODUCE, PROGRESS, SCORE, VISIT
from node.ledger import Direction, Entry, Verdict
from pages import words

TOLD, LOOKS = 120, 5  # entries that are looked at for sentences at once, and how often
MOST_OF_A_STOP = 20_000  # entries of rounds that are told of in one sentence

_NAMES = {"weights": "weights", "importance": "importance", "prompts": "prompts", "generator": "a generator"}

_SUBJECTS = {
    VISIT: "a visit",
    SCORE: "a scoring",
    DESCRIBE: "a question for counts",
    PROGRESS: "a question for progress",
    INTRODUCE: "a question for software and policy",
}


@dataclass(frozen=True)
class Happening:
    """One sentence; `bad` if it is of a refusal or a failure. `seq` is the entry that tells more."""

    seq: int
    time: str
    sentence: str
    bad: bool


def happenings(reader: Reader, most: int = 30) -> list[Happening]:
    """What happened last, newest first, without what only says how far a visit is.

    The rounds of a stop that asks a site many times become one sentence, however many they are.
    """
    told: list[Happening] = []
    before = None
    for _ in range(LOOKS):
        page = entries_page(reader, Filter(), before, None, TOLD)
        for entry in page.rows:
            if len(told) == most:
                return told
            if before is not None and entry.seq >= before:
                continue  # of rounds that are told of
            if _is_round(entry):
                happening, before = _in_one(reader, entry)
                told.append(happening)
            elif entry.message_type != PROGRESS or not entry.passed:
                said = f"At {words.clock(entry.time)} {sentence(entry)}"
                told.append(Happening(entry.seq, entry.time, said, not entry.passed))
        if page.older is None:
            break
        before = min(page.older, before or page.older)
    return told


def _is_round(entry: EntryShown) -> bool:
    """Whether it is of one of many rounds."""
    return entry.round is not None and entry.round > 0 and entry.message_type == VISIT and entry.passed


def _in_one(reader: Reader, newest: EntryShown) -> tuple[Happening, int]:
    """The rounds up to this entry in one sentence, and the number of their first entry.

    They go back to the last entry that is of something else, or is a refusal, but no more than MOST_OF_A_STOP entries.
    """
    same = (Entry.run == newest.run, Entry.stop == newest.stop, Entry.verdict.in_((Verdict.ALLOWED, Verdict.HELD)))
    other = not_(and_(*same, Entry.message_type.in_((VISIT, PROGRESS)), Entry.direction != Direction.HERE))
    earliest = max(0, newest.seq - MOST_OF_A_STOP)
    between = (Entry.seq > earliest, Entry.seq < newest.seq)
    last_other = reader.scalar(select(Entry.seq).where(*between, other).order_by(Entry.seq.desc()).limit(1))
    first = (last_other or earliest) + 1
    left = (
        Entry.run == newest.run,
        Entry.stop == newest.stop,
        Entry.message_type == VISIT,
        Entry.verdict == Verdict.ALLOWED,
        Entry.direction == Direction.OUT,
        Entry.seq.between(first, newest.seq),
    )
    times = int(reader.scalar(select(func.count()).where(*left)) or 0)
    began = reader.scalar(select(Entry.time).where(Entry.seq == first)) or newest.time
    last = entries_page(reader, Filter(way="out", run=newest.run), newest.seq + 1, None, 1).rows
    each = f", the last time{_cargo(last[0])}" if times and last and last[0].kind_bytes else ""
    said = (
        f"From {words.clock(began)} to {words.clock(newest.time)} the model came in rounds and left "
        f"{words.count(times, 'time')}{each} ({_where(newest)})."
    )
    return Happening(newest.seq, newest.time, said, False), first


def sentence(entry: EntryShown) -> str:
    """What an entry tells, to go on from a time: `the model left with 1.9 MB of weights.`"""
    if not entry.passed:
        return _not_passed(entry)
    if entry.verdict == "held":
        return f"the model was ready to leave, and began to wait for a named person to decide ({_where(entry)})."
    if entry.direction == "here" or entry.verdict != "allowed":
        said = entry.detail or f"{entry.verdict}: {entry.message_type}."
        return "t" + said[1:] if said.startswith("The ") else said  # it goes on, and does not begin
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
        case ("in", "query.introduce"):
            return f"the coordinator asked what software this node runs and what its policy changes ({entry.run})."
        case ("out", "query.introduce"):
            return f"{words.count(len(entry.metrics), 'number')} left about software and policy ({entry.run})."
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

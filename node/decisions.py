"""What people at the site decide on what waits to leave, and what they see before they do."""

from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, select, update

from node.audit import Decision, signature
from node.database import FILE
from node.held import Damaged, Held, HeldHandovers, HeldRow, State, moment
from node.leakage import KindFacts
from node.ledger import Crossing, Direction, Verdict
from node.ledger_head import open_ledger
from node.policy import Policy
from node.policy_words import policy_in_words
from node.privacy import Updates
from protos.handover import Kind
from protos.messages import VISIT
from protos.plan import Record
from protos.refusals import Refusal

SHORTEST = 8  # digits of a handover's name that are enough where they fit one alone


class Undecidable(ValueError):
    """There is nothing to decide so; one sentence."""


class LeakageSummary(Record):
    """What one handover would carry out of the site, for the person who decides.

    `handover` names it: the SHA-256 of all that would leave. `whole` says whether the file on the disk is still that,
    to the bit; of one that is not nothing can be released. `fault` says what is wrong then.
    """

    handover: str
    state: State
    since: datetime
    site: str
    run: str
    stop: int
    round: int
    action: str
    strategy: str
    whole: bool
    fault: str
    kinds: dict[Kind, KindFacts]
    tensors: int
    bytes: int
    largest: str  # the largest tensor: kind and name, dtype, shape
    largest_bytes: int
    finite: bool
    metrics: dict[str, int | float]  # that leave beside it
    copies: float | None  # share of a generator's images that are near-copies; None where there is no generator
    updates: Updates | None  # how updates in it are clipped and noised
    epsilon_so_far: float | None  # of all noised updates that left
    epsilon: float | None  # with this one
    allowed: list[str]  # what the policy lets out now, in words
    decided: datetime | None
    by: str
    why: str


def held_handovers(home: Path, *states: State) -> list[Held]:
    """What waits at the node in the folder `home`, or with states what is in one of these; oldest first."""
    if not (home / FILE).is_file():
        return []
    return _handovers(home).all(*(states or (State.WAITING,)))


def leakage_summary(home: Path, handover: str) -> LeakageSummary:
    """The summary of a held handover, by its name or an unambiguous beginning; raises Undecidable."""
    handovers, ledger = _handovers(home), open_ledger(home)
    held = _found(handovers, handover)
    fault = ""
    if held.state in (State.WAITING, State.RELEASED):
        try:
            handovers.read(held)
        except Damaged as damaged:
            fault = str(damaged)
    try:
        allowed = policy_in_words(Policy.of(home))
    except Refusal as refusal:
        allowed = [f"Nothing: {refusal.detail}"]
    largest = max(held.facts.values(), key=lambda facts: facts.largest_bytes)
    last = ledger.last_release()
    return LeakageSummary(
        handover=held.handover,
        state=held.state,
        since=held.since,
        site=held.site,
        run=held.run,
        stop=held.stop,
        round=held.round,
        action=held.action,
        strategy=held.strategy,
        whole=not fault,
        fault=fault,
        kinds=dict(held.facts),
        tensors=sum(facts.tensors for facts in held.facts.values()),
        bytes=sum(facts.bytes for facts in held.facts.values()),
        largest=largest.largest,
        largest_bytes=largest.largest_bytes,
        finite=all(facts.finite for facts in held.facts.values()),
        metrics=dict(held.metrics),
        copies=held.metrics.get("copies"),
        updates=held.updates,
        epsilon_so_far=None if last is None else last.epsilon,
        epsilon=held.epsilon,
        allowed=allowed,
        decided=held.decided,
        by=held.by,
        why=held.why,
    )


def release(home: Path, handover: str, *, by: str, why: str) -> Held:
    """Let a handover leave, in somebody's name and for a reason: it does when the coordinator asks again.

    Exactly what was shown under this name leaves, once. Raises Undecidable when it is none that waits, or its file is
    not what was held; node.audit.Unsigned; node.ledger.LedgerUnwritable or
    node.ledger_head.LedgerBroken.
    """
    return _decide(home, handover, State.RELEASED, by, why)


def withhold(home: Path, handover: str, *, by: str, why: str) -> Held:
    """Keep a handover from leaving for good, in somebody's name and for a reason; its file is removed.

    Raises as `release` does.
    """
    return _decide(home, handover, State.WITHHELD, by, why)


def _decide(home: Path, name: str, state: State, by: str, why: str) -> Held:
    by, why = signature(by, why)
    handovers = _handovers(home)
    held = _found(handovers, name)
    if held.state is State.WAITING and state is State.RELEASED:
        try:
            handovers.read(held)
        except Damaged as damaged:
            raise Undecidable(
                f"{damaged} It is not released; the visit is made again when it is asked for."
            ) from damaged

    def also(connection: Connection) -> None:
        columns = HeldRow.__table__.columns
        now = Held.of(connection.execute(select(*columns).where(HeldRow.handover == held.handover)).one())
        if now.state is not State.WAITING:
            raise Undecidable(_settled(now))
        values = {"state": state, "decided": moment(), "by": by, "why": why}
        connection.execute(update(HeldRow).where(HeldRow.handover == held.handover).values(values))

    verdict = Verdict.RELEASED if state is State.RELEASED else Verdict.WITHHELD
    entry = Crossing(
        Direction.HERE, held.site, VISIT, verdict, run=held.run, stop=held.stop, round=held.round, action=held.action,
        strategy=held.strategy, detail=f"{by} {verdict} {held.named}. Why: {why}",
        audit=Decision(by=by, why=why, handover=held.handover),
    )  # fmt: skip
    open_ledger(home).record(entry, also=also)
    if state is State.WITHHELD:
        handovers.discard(held.handover)
    return held


def _settled(held: Held) -> str:
    match held.state:
        case State.LAPSED:
            return f"The run went on without {held.named}; there is nothing to decide any more."
        case State.WITHHELD:
            return f"{held.by} withheld {held.named} already ({held.why}); that is final."
        case _:
            return f"{held.by} released {held.named} already ({held.why})."


def _found(handovers: HeldHandovers, name: str) -> Held:
    found = [held for held in handovers.all() if held.handover.startswith(name)] if len(name) >= SHORTEST else []
    if len(found) != 1:
        many = "More than one handover's name begins" if found else "No held handover's name begins"
        raise Undecidable(
            f"{many} with {name!r}; `locum-node held` lists those that wait, give {SHORTEST} digits or more."
        )
    return found[0]


def _handovers(home: Path) -> HeldHandovers:
    if not (home / FILE).is_file():
        raise Undecidable(f"There is no node in {home}, or nothing has reached it: --home names another folder.")
    return HeldHandovers(home, open_ledger(home))

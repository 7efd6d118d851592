"""Whose turn it is: the runs that wait at the control service, and what each of them waits for."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from coordinator.journal import note, utc
from coordinator.store import SETTLED, QueueRow, Run, Store

LOOKED_AT = 200  # of the queue at once; the others are behind these anyway
ENDED = ("done", "incomplete")  # statuses after which a run that waits for another has its turn


@dataclass(frozen=True)
class Waiting:
    """A run in the queue, or one that is being carried out."""

    run: str
    sites: frozenset[str]  # that no other run may be at meanwhile
    needed: tuple[str, ...]  # sites without whose nodes it cannot go on
    not_before: datetime | None = None
    after: tuple[str, str] | None = None  # a run that has to end first, and its status


def choose(
    queue: Sequence[Waiting],
    carried: Mapping[str, Waiting],
    workers: int,
    now: datetime,
    nodes: Callable[[], Mapping[str, bool]],
) -> tuple[list[Waiting], dict[str, str]]:
    """Those whose turn it is now, in order, and for the others a sentence about what each of them waits for.

    `queue` is in the order of the turns, `carried` the runs that are being carried out; `nodes` says of every site
    with a registered node whether that is online, and is asked at most once. A run that could begin but for a site
    that is busy keeps that site from those behind it, so that it is not passed over for ever.
    """
    chosen: list[Waiting] = []
    sentences: dict[str, str] = {}
    taken = {site: run for run, waiting in carried.items() for site in waiting.sites}
    known: Mapping[str, bool] | None = None
    for waiting in queue:
        reason = _too_early(waiting, now)
        if reason is None:
            known = nodes() if known is None else known
            reason = _missing(waiting.needed, known)
        if reason is None:
            reason = _busy(waiting.sites, taken)
            if reason is None and len(carried) + len(chosen) >= workers:
                reason = f"a free worker; {len(carried) + len(chosen)} runs are being carried out"
            if reason is None:
                chosen.append(waiting)
            taken = dict.fromkeys(waiting.sites, waiting.run) | taken
        if reason is not None:
            sentences[waiting.run] = f"Run {waiting.run} waits for {reason}."
    return chosen, sentences


def _too_early(waiting: Waiting, now: datetime) -> str | None:
    if waiting.not_before is not None and now < waiting.not_before:
        return f"its time, {waiting.not_before.isoformat(timespec='seconds')}"
    if waiting.after is not None and waiting.after[1] not in ENDED:
        run, status = waiting.after
        remedy = f"; `locum resume {run}` goes on with that" if status in ("failed", "cancelled") else ""
        return f"run {run}, which is {status}{remedy}"
    return None


def _missing(needed: Sequence[str], nodes: Mapping[str, bool]) -> str | None:
    for site in needed:
        if site not in nodes:
            return f"site {site}, which has no registered node; `locum node add` lets one in"
        if not nodes[site]:
            return f"site {site}, whose node is not online; start it there"
    return None


def _busy(sites: Collection[str], taken: Mapping[str, str]) -> str | None:
    busy = sorted(site for site in sites if site in taken)
    return f"site {busy[0]}, where it is the turn of run {taken[busy[0]]}" if busy else None


def enqueue(session: Session, runs: Sequence[str], *, not_before: datetime | None, after: str | None) -> None:
    """Put runs at the end of the queue, within a transaction."""
    for run in runs:
        session.add(QueueRow(run_id=run, not_before=not_before, after=after))
        session.flush()  # in this order
        session.get_one(Run, run).status = "pending"
        note(session, run, "said", {"sentence": f"Run {run} is queued."})


def queued(store: Store) -> list[Waiting]:
    """The queue's front in the order of the turns, runs that are being carried out included."""
    with store.transaction() as session:
        found = session.scalars(select(QueueRow).order_by(QueueRow.number).limit(LOOKED_AT)).all()
        status = {row.after: session.get_one(Run, row.after).status for row in found if row.after is not None}
        return [_waiting(row, status) for row in found]


def _waiting(row: QueueRow, status: Mapping[str, str]) -> Waiting:
    scenario = row.run.scenario
    every = tuple(str(site["name"]) for site in (*scenario["sites"], *scenario["unseen"]))
    stops = row.run.stops
    open_sites = {site for stop in stops if stop.status not in SETTLED for site in (*stop.sites, *stop.rehearsing)}
    return Waiting(
        run=row.run_id,
        sites=frozenset(every),
        needed=tuple(site for site in every if site in open_sites) if stops else every,
        not_before=None if row.not_before is None else utc(row.not_before),
        after=None if row.after is None else (row.after, status[row.after]),
    )


def put_back(store: Store) -> None:
    """Let runs that an earlier process of the service was carrying out wait for their turn."""
    with store.transaction() as session:
        waiting = select(QueueRow.run_id)
        session.execute(update(Run).where(Run.id.in_(waiting), Run.status == "running").values(status="pending"))

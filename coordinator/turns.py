"""Whose turn it is: the runs that wait at the control service, and what each of them waits for."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session, selectinload

from coordinator.exchange import AWAY, in_words
from coordinator.journal import note, utc
from coordinator.scenario import Patience, SkipInstead
from coordinator.store import SETTLED, QueueRow, Run, Store

LOOKED_AT = 200  # of the queue at once; the others are looked at if a worker is still free
LEAST_SECONDS = 15.0  # of patience: as long as a node may need to sign on again after the SuperLink was started
ENDED = ("done", "incomplete")  # statuses after which a run that waits for another has its turn


@dataclass(frozen=True)
class Waiting:
    """A run in the queue, or one that is being carried out."""

    run: str
    sites: frozenset[str]  # that no other run may be at meanwhile
    needed: tuple[str, ...]  # sites without whose nodes it cannot go on
    not_before: datetime | None = None
    after: tuple[str, str] | None = None  # a run that has to end first, and its status
    patience: Mapping[str, Patience] = field(default_factory=dict)  # with needed sites; default: Patience()
    away_since: Mapping[str, datetime] = field(default_factory=dict)  # needed sites that were away at the last look


@dataclass
class Turns:
    """What becomes of the queue now. `away` is to be remembered as `Waiting.away_since`, for all runs that are here."""

    chosen: list[Waiting] = field(default_factory=list)  # whose turn it is, in order
    given_up: dict[str, tuple[str, ...]] = field(default_factory=dict)  # run -> sites that it begins without
    reasons: dict[str, str] = field(default_factory=dict)  # run -> what it waits for
    failed: dict[str, str] = field(default_factory=dict)  # run -> why it waits no longer, a sentence
    away: dict[str, Mapping[str, datetime]] = field(default_factory=dict)


def choose(
    queue: Iterable[Waiting],
    carried: Mapping[str, Waiting],
    workers: int,
    now: datetime,
    nodes: Callable[[], Mapping[str, bool]],
) -> Turns:
    """Whose turn it is now, and what the others wait for.

    `queue` is in the order of the turns, and is read on beyond LOOKED_AT only while a worker is free; `carried` are the
    runs that are being carried out; `nodes` says of every site with a registered node whether that is online, and is
    asked at most once. A run that could begin but for a site that is busy keeps that site from those behind it, so that
    it is not passed over for ever. A site that is away is waited for as long as the scenario's patience says, which
    begins, and ends, only when nothing but that site is missing.
    """
    turns = Turns()
    taken = {site: run for run, waiting in carried.items() for site in waiting.sites}
    known: Mapping[str, bool] | None = None
    for place, waiting in enumerate(queue):
        begun = len(carried) + len(turns.chosen)
        if place >= LOOKED_AT and begun >= workers:
            break
        if (reason := _too_early(waiting, now)) is not None:
            turns.reasons[waiting.run] = reason
            continue
        known = nodes() if known is None else known
        absence = _Absence(waiting, known, now)
        reason = _busy(waiting.sites, taken)
        if reason is None and begun >= workers:
            reason = f"a free worker; {begun} runs are being carried out"
        if reason is not None:
            turns.away[waiting.run] = absence.begun
        elif (sentence := absence.failure) is not None:
            turns.failed[waiting.run] = sentence
            continue
        else:
            turns.away[waiting.run] = absence.since
            reason = absence.reason
        if reason is None:
            turns.chosen.append(waiting)
            turns.given_up[waiting.run] = absence.given_up
        else:
            turns.reasons[waiting.run] = reason
        if absence.reason is None:
            taken = dict.fromkeys(waiting.sites, waiting.run) | taken
    return turns


def _too_early(waiting: Waiting, now: datetime) -> str | None:
    if waiting.not_before is not None and now < waiting.not_before:
        return f"its time, {_time(waiting.not_before)}"
    if waiting.after is not None and waiting.after[1] not in ENDED:
        run, status = waiting.after
        remedy = f"; `locum resume {run}` goes on with that" if status in ("failed", "cancelled") else ""
        return f"run {run}, which is {status}{remedy}"
    return None


class _Absence:
    """The sites that a run needs and that are away; `since` when."""

    def __init__(self, waiting: Waiting, nodes: Mapping[str, bool], now: datetime) -> None:
        self._waiting, self._nodes = waiting, nodes
        self.since = {site: waiting.away_since.get(site, now) for site in waiting.needed if not nodes.get(site, False)}
        over = [site for site, since in self.since.items() if (now - since).total_seconds() >= self._seconds(site)]
        self.given_up = tuple(site for site in over if isinstance(self._patience(site).then, SkipInstead))
        self._exhausted = [site for site in over if site not in self.given_up]

    @property
    def begun(self) -> dict[str, datetime]:
        """Those of `since` that were waited for before."""
        return {site: since for site, since in self.since.items() if site in self._waiting.away_since}

    @property
    def failure(self) -> str | None:
        """Why the run fails, if the patience with a site is at its end."""
        if not self._exhausted:
            return None
        site = self._exhausted[0]
        return (
            f"Run {self._waiting.run} failed: Site {site}: it was away for more than {in_words(self._seconds(site))}; "
            f"resume the run when it is back. [{AWAY}]"
        )

    @property
    def reason(self) -> str | None:
        """Whom the run waits for and until when, if it does."""
        parts = [self._part(site) for site in self.since if site not in self.given_up]
        return "; and for ".join(parts) or None

    def _patience(self, site: str) -> Patience:
        return self._waiting.patience.get(site, Patience())

    def _seconds(self, site: str) -> float:
        return max(self._patience(site).seconds, LEAST_SECONDS)

    def _part(self, site: str) -> str:
        known = site in self._nodes
        what, remedy = (
            ("whose node is not online", "start it there")
            if known
            else ("which has no registered node", "`locum node add` lets one in")
        )
        then = self._patience(site).then
        if then == "wait":
            return f"site {site}, {what}, as long as it takes; {remedy}"
        end = "goes on without it" if isinstance(then, SkipInstead) else "fails"
        until = self.since[site] + timedelta(seconds=self._seconds(site))
        return f"site {site}, {what}, until {_time(until)} and then {end}; {remedy}"


def _time(time: datetime) -> str:
    return time.isoformat(timespec="seconds")


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


def queued(store: Store) -> Iterator[Waiting]:
    """The queue in the order of the turns, runs that are being carried out included; read as far as it is asked for."""
    last, read = -1, LOOKED_AT
    while read == LOOKED_AT:
        with store.transaction() as session:
            rows = select(QueueRow).where(QueueRow.number > last).order_by(QueueRow.number).limit(LOOKED_AT)
            found = session.scalars(rows.options(selectinload(QueueRow.run, Run.stops))).all()
            status = {row.after: session.get_one(Run, row.after).status for row in found if row.after is not None}
            waiting = [_waiting(row, status) for row in found]
            last, read = (found[-1].number if found else last), len(found)
        yield from waiting


def _waiting(row: QueueRow, status: Mapping[str, str]) -> Waiting:
    scenario = row.run.scenario
    every = tuple(str(site["name"]) for site in (*scenario["sites"], *scenario["unseen"]))
    patience = {
        str(site["name"]): Patience.model_validate(site.get("patience") or scenario.get("patience") or {})
        for site in (*scenario["sites"], *scenario["unseen"])
    }
    stops = row.run.stops
    open_sites = {site for stop in stops if stop.status not in SETTLED for site in (*stop.sites, *stop.rehearsing)}
    return Waiting(
        run=row.run_id,
        sites=frozenset(every),
        needed=tuple(site for site in every if site in open_sites) if stops else every,
        not_before=None if row.not_before is None else utc(row.not_before),
        after=None if row.after is None else (row.after, status[row.after]),
        patience=patience,
        away_since={site: datetime.fromisoformat(since) for site, since in row.away_since.items()},
    )


def put_back(store: Store) -> None:
    """Let runs that an earlier process of the service was carrying out wait for their turn."""
    with store.transaction() as session:
        waiting = select(QueueRow.run_id)
        session.execute(update(Run).where(Run.id.in_(waiting), Run.status == "running").values(status="pending"))

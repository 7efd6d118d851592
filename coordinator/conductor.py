"""The conductor: carries a run along its itinerary, stop by stop, and commits each one.

Whatever dies, the store and the vault hold every committed stop, score and round; `conduct` goes on from there. No
randomness and no state lives here that a fresh process could not read back.
"""

import time
from collections.abc import Iterator, Mapping
from typing import Any

from flwr.serverapp import Grid
from safetensors.torch import load, save
from sqlalchemy import func, select, update

from coordinator.averaging import average
from coordinator.events import Listener
from coordinator.exchange import Answer, Exchange, Question, SiteFailure, bytes_by_kind
from coordinator.scenario import Scenario
from coordinator.store import Run, ScoreRow, StopRow, Store
from coordinator.vault import Vault
from protos.handover import Handover, HandoverSchema, Kind
from protos.messages import DESCRIBE, SCORE, VISIT, Request
from strategies.gathering import Gathering, Reply, Stop
from strategies.registry import strategy_for

# site -> "sent" (to the site) or "received" (from it) -> kind -> bytes
Traffic = dict[str, dict[str, dict[str, int]]]


class VisitFailed(Exception):
    """A stop could not be made; the run waits for `resume` or `skip`. One sentence."""


class Conductor:
    """One run being carried out through a grid."""

    def __init__(
        self, store: Store, vault: Vault, grid: Grid, run: str, *, listener: Listener, in_flight: int = 8
    ) -> None:
        self._store = store
        self._vault = vault
        self._exchange = Exchange(grid, in_flight)
        self._run = run
        self._listener = listener
        with store.transaction() as session:
            scenario = Scenario.model_validate(session.get_one(Run, run).scenario)
        self._plan = scenario.plan()
        self._unseen = {site.name for site in scenario.unseen}
        self._columns = (*self._plan.sites, *(site.name for site in scenario.unseen))
        self._strategy = strategy_for(self._plan)
        self._expects: dict[str, HandoverSchema | None] = {}
        self._clock = time.monotonic()

    def conduct(self) -> str:
        """Make every stop that is not done, score every cell that is missing; return the run's status.

        Raises VisitFailed when a site refuses or fails; everything before is committed.
        """
        self._set_status("running")
        stops = self._strategy.itinerary()
        status = {row.index: row.status for row in self._rows(stops)}
        settled = sum(state in ("done", "skipped") for state in status.values())
        self._listener.run_began(self._run, len(stops), settled)
        samples = self._describe(any(len(stop.sites) > 1 for stop in stops))
        for stop in stops:
            if status[stop.index] not in ("done", "skipped"):
                self._make(stop, samples)
            if status[stop.index] != "skipped":
                self._score(stop)
        final = self._verdict()
        self._set_status(final)
        self._listener.run_ended(self._run, final)
        return final

    # Stops

    def _rows(self, stops: tuple[Stop, ...]) -> list[StopRow]:
        """The run's stops in the store, written when it begins."""
        with self._store.transaction() as session:
            rows = list(session.scalars(select(StopRow).where(StopRow.run_id == self._run)))
            if not rows:
                rows = [
                    StopRow(
                        run_id=self._run,
                        index=stop.index,
                        sites=list(stop.sites),
                        action=stop.action,
                        follows=stop.follows,
                        status="pending",
                    )
                    for stop in stops
                ]
                session.add_all(rows)
        return rows

    def _describe(self, with_samples: bool) -> dict[str, int]:
        """Ask every site what it has, so that a site that is not there is known before hours of training."""
        samples = {}
        questions = (
            Question(DESCRIBE, self._request(site, 0, args={"samples": int(with_samples and site not in self._unseen)}))
            for site in self._columns
        )
        for answer in self._exchange.ask(questions):
            if isinstance(answer, SiteFailure):
                raise self._failed(None, answer)
            samples[answer.site] = int(answer.metrics.get("samples", 0))
        return samples

    def _make(self, stop: Stop, samples: Mapping[str, int]) -> None:
        began = time.monotonic()
        with self._store.transaction() as session:
            row = session.get_one(StopRow, (self._run, stop.index))
            row.status, row.error = "running", None
            rounds_done, state, traffic = row.rounds_done, row.rounds_state, dict(row.traffic)
            earlier_seconds = row.seconds
        gathering = self._strategy.gather(stop, self._arriving(stop), samples, average)
        if state is not None:
            gathering.restore(load(self._vault.get(state)))
        self._listener.stop_began(stop.index, stop.sites, gathering.rounds, rounds_done)
        metrics: dict[str, Any] = {}
        expects = self._expected(stop.action)
        for number in range(rounds_done, gathering.rounds):
            gathering.receive(
                number, self._replies(stop, number, gathering, expects=expects, traffic=traffic, metrics=metrics)
            )
            if gathering.rounds > 1:
                self._listener.stepped(stop.index, "", number + 1, gathering.rounds, _mean_loss(metrics))
                if (number + 1) % self._plan.training.checkpoint_every == 0 and number + 1 < gathering.rounds:
                    state = self._keep_round(stop, number + 1, gathering, state, traffic)
        handover = gathering.result()
        artifact = self._vault.put(handover.to_bytes())
        with self._store.transaction() as session:
            row = session.get_one(StopRow, (self._run, stop.index))
            row.status, row.artifact = "done", artifact
            row.weights_sha256 = handover.digest(Kind.WEIGHTS).hex()
            row.metrics, row.traffic = metrics, traffic
            row.seconds = earlier_seconds + time.monotonic() - began
            row.rounds_done, row.rounds_state = gathering.rounds, None
            self._count_time(session)
        if state is not None:
            self._vault.discard(state)
        self._listener.stop_ended(stop.index, stop.sites, time.monotonic() - began)

    def _replies(
        self,
        stop: Stop,
        number: int,
        gathering: Gathering,
        *,
        expects: HandoverSchema | None,
        traffic: Traffic,
        metrics: dict[str, Any],
    ) -> Iterator[Reply]:
        """Ask the sites of one round and yield what they return, in the strategy's order."""
        sent: dict[str, dict[str, int]] = {}

        def questions() -> Iterator[Question]:
            for site, ask in gathering.asks(number):
                sent[site] = bytes_by_kind(ask.handover)
                request = self._request(site, stop.index, round=number, action=stop.action, args=dict(ask.args))
                yield Question(VISIT, request, ask.handover, expects)

        for answer in self._exchange.ask(questions()):
            if isinstance(answer, SiteFailure):
                raise self._failed(stop, answer)
            assert answer.handover is not None  # the strategy expects one of every action
            _count(traffic, answer, sent.pop(answer.site))
            metrics[answer.site] = dict(answer.metrics)
            yield Reply(answer.site, answer.handover, answer.metrics)

    def _keep_round(self, stop: Stop, done: int, gathering: Gathering, previous: str | None, traffic: Traffic) -> str:
        """Commit a place within a stop of many rounds, so that a crash repeats few of them."""
        # Named after the run: an equal run has equal tensors, and would discard a file that both refer to.
        state = self._vault.put(save(gathering.state(), {"run": self._run}))
        with self._store.transaction() as session:
            row = session.get_one(StopRow, (self._run, stop.index))
            row.rounds_done, row.rounds_state, row.traffic = done, state, traffic
            self._count_time(session)
        if previous is not None and previous != state:
            self._vault.discard(previous)
        return state

    def _arriving(self, stop: Stop) -> Handover:
        """The handover the model arrives with; a skipped stop passes on the one that it would have got."""
        before = stop.follows
        with self._store.transaction() as session:
            while before is not None:
                row = session.get_one(StopRow, (self._run, before))
                if row.status != "skipped":
                    assert row.artifact is not None  # stops are made in order
                    return Handover.from_bytes(self._vault.get(row.artifact))
                before = row.follows
        return self._strategy.first_handover()

    def _expected(self, action: str) -> HandoverSchema | None:
        """What a site must return; computed once per action, since it takes building a network."""
        if action not in self._expects:
            self._expects[action] = self._strategy.declares(action).handover
        return self._expects[action]

    # Scores

    def _score(self, stop: Stop) -> None:
        """Fill the stop's row of the score matrix: every site scores the model that it would use after this stop."""
        with self._store.transaction() as session:
            known = set(
                session.scalars(
                    select(ScoreRow.site).where(
                        ScoreRow.run_id == self._run, ScoreRow.stop == stop.index, ScoreRow.error.is_(None)
                    )
                )
            )
            skipped = set(
                session.scalars(select(StopRow.index).where(StopRow.run_id == self._run, StopRow.status == "skipped"))
            )
        sources = {site: self._strategy.model_for(site, stop.index) for site in self._columns if site not in known}
        for site, source in sources.items():
            if source is not None and source != stop.index and source not in skipped:
                self._copy_score(site, source, stop.index)
        asked = [site for site, source in sources.items() if source == stop.index]
        if not asked:
            return
        with self._store.transaction() as session:
            artifact = session.get_one(StopRow, (self._run, stop.index)).artifact
        assert artifact is not None  # only done stops are scored
        handover = self._strategy.for_scoring(Handover.from_bytes(self._vault.get(artifact)))
        sent = bytes_by_kind(handover)
        questions = (Question(SCORE, self._request(site, stop.index), handover) for site in asked)
        for answer in self._exchange.ask(questions):
            with self._store.transaction() as session:
                if isinstance(answer, SiteFailure):
                    row = ScoreRow(
                        run_id=self._run,
                        stop=stop.index,
                        site=answer.site,
                        metrics=None,
                        traffic={},
                        error={"code": answer.code, "sentence": answer.sentence},
                    )
                else:
                    traffic: Traffic = {}
                    _count(traffic, answer, sent)
                    row = ScoreRow(
                        run_id=self._run,
                        stop=stop.index,
                        site=answer.site,
                        metrics=dict(answer.metrics),
                        traffic=traffic[answer.site],
                        error=None,
                    )
                session.merge(row)
                self._count_time(session)
            dsc = None if isinstance(answer, SiteFailure) else answer.metrics.get("dsc")
            self._listener.scored(stop.index, answer.site, dsc)

    def _copy_score(self, site: str, source: int, stop: int) -> None:
        """A site that still uses its model of an earlier stop still has that stop's score."""
        with self._store.transaction() as session:
            row = session.get(ScoreRow, (self._run, source, site))
            if row is not None:
                session.merge(
                    ScoreRow(run_id=self._run, stop=stop, site=site, metrics=row.metrics, traffic={}, error=row.error)
                )

    # The run

    def _request(
        self,
        site: str,
        stop: int,
        *,
        round: int = 0,
        action: str = "visit",
        args: Mapping[str, int | float] | None = None,
    ) -> Request:
        return Request(
            run=self._run,
            stop=stop,
            round=round,
            action=action,
            site=site,
            unseen=site in self._unseen,
            plan=self._plan,
            args=dict(args or {}),
        )

    def _failed(self, stop: Stop | None, failure: SiteFailure) -> VisitFailed:
        with self._store.transaction() as session:
            if stop is not None:
                row = session.get_one(StopRow, (self._run, stop.index))
                row.status = "failed"
                row.error = {"site": failure.site, "code": failure.code, "sentence": failure.sentence}
            session.get_one(Run, self._run).status = "failed"
            self._count_time(session)
        self._listener.run_ended(self._run, "failed")
        where = "" if stop is None else f" at stop {stop.index}"
        return VisitFailed(f"Run {self._run} failed{where}: {failure}")

    def _verdict(self) -> str:
        """`done` when every stop was made and every cell that can exist was scored, else `incomplete`."""
        with self._store.transaction() as session:
            skipped = session.scalar(select(func.count()).where(StopRow.run_id == self._run, StopRow.status != "done"))
            unscored = session.scalar(
                select(func.count()).where(ScoreRow.run_id == self._run, ScoreRow.error.is_not(None))
            )
        return "incomplete" if skipped or unscored else "done"

    def _set_status(self, status: str) -> None:
        with self._store.transaction() as session:
            session.execute(update(Run).where(Run.id == self._run).values(status=status))
            self._count_time(session)

    def _count_time(self, session: Any) -> None:
        """Add the time since the last commit to the run's seconds, within a transaction that is open anyway."""
        now = time.monotonic()
        session.execute(update(Run).where(Run.id == self._run).values(seconds=Run.seconds + now - self._clock))
        self._clock = now


def _count(traffic: Traffic, answer: Answer, sent: Mapping[str, int]) -> None:
    """Add one exchange to the traffic."""
    site = traffic.setdefault(answer.site, {"sent": {}, "received": {}})
    for direction, sizes in (("sent", sent), ("received", bytes_by_kind(answer.handover))):
        for kind, size in sizes.items():
            site[direction][kind] = site[direction].get(kind, 0) + size


def _mean_loss(metrics: Mapping[str, Mapping[str, float]]) -> float | None:
    losses = [values[key] for values in metrics.values() for key in ("loss", "loss_last") if key in values]
    return sum(losses) / len(losses) if losses else None

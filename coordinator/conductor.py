"""The conductor: carries a run along its itinerary, stop by stop, and commits each one.

Whatever dies, the store and the vault hold every committed stop, score and round; `conduct` goes on from there. No
randomness and no state lives here that a fresh process could not read back.
"""

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from flwr.serverapp import Grid
from safetensors.torch import load, save
from sqlalchemy import func, select, update

from coordinator.assignment import Assignment
from coordinator.averaging import average
from coordinator.events import Listener
from coordinator.exchange import (
    AWAY,
    UNRELEASED,
    Answer,
    Exchange,
    Question,
    SiteFailure,
    Traffic,
    bytes_by_kind,
    count_traffic,
)
from coordinator.introductions import introduce
from coordinator.mending import damaged_ends, other_bits, reopen
from coordinator.scenario import Scenario, SkipInstead
from coordinator.scoring import Scoring
from coordinator.skipping import mark_skipped
from coordinator.store import SETTLED, Run, ScoreRow, StopRow, Store
from coordinator.vault import MissingArtifact, Vault, address_of
from protos.handover import Handover, HandoverSchema, Kind
from protos.messages import DESCRIBE, VISIT, Request
from strategies.gathering import Ask, Gathering, Reply, Stop

PARTS = ("train", "val", "test")


class VisitFailed(Exception):
    """A stop could not be made; the run waits for `resume` or `skip`. One sentence.

    `site`, `code` and `sentence` are those of the failure behind it.
    """

    def __init__(self, text: str, failure: SiteFailure) -> None:
        super().__init__(text)
        self.site, self.code, self.sentence = failure.site, failure.code, failure.sentence


class Conductor:
    """One run being carried out through a grid."""

    def __init__(
        self,
        store: Store,
        vault: Vault,
        grid: Grid,
        run: str,
        *,
        listener: Listener,
        in_flight: int,
        away: bool,
        given_up: Collection[str] = (),
    ) -> None:
        """`away`: nodes may be away for a while, and are then waited for as the scenario says, but not `given_up`."""
        with store.transaction() as session:
            scenario = Scenario.model_validate(session.get_one(Run, run).scenario)
        self._patience = scenario.patience_with
        patience = (lambda site: self._patience(site).seconds) if away else None
        exchange = Exchange(grid, in_flight, patience, listener.waiting, given_up, held=listener.held)
        self._assignment = Assignment(run, scenario, store=store, vault=vault, exchange=exchange, listener=listener)
        self._scoring = Scoring(self._assignment)
        self._store, self._vault, self._run, self._listener = store, vault, run, listener
        self._plan, self._strategy = self._assignment.plan, self._assignment.strategy
        self._expects: dict[str, HandoverSchema | None] = {}
        self._stops: dict[int, Stop] = {}

    def conduct(self) -> str:
        """Make every stop that is not done, score every cell that is missing; return the run's status.

        An artifact that is needed and was damaged or lost on the disk is made again by its stop.

        Raises VisitFailed when a site refuses, fails or is away for too long; everything before is committed.
        MissingArtifact when an artifact made again is another one than it was.
        """
        try:
            return self._conduct()
        except VisitFailed:
            self._listener.run_ended(self._run, "failed")
            raise

    def _conduct(self) -> str:
        stops = self._strategy.itinerary()
        damaged = damaged_ends(self._store.run(self._run), self._vault)
        if self._status() == "done" and not damaged:
            self._listener.run_began(self._run, len(stops), len(stops))
            self._listener.run_ended(self._run, "done")
            return "done"
        self._set_status("running")
        rows = {row.index: row for row in self._rows(stops)}
        status = {index: row.status for index, row in rows.items()}
        # the store's word, since people may have skipped a rehearsal, or the stop of a site that was to rehearse
        stops = tuple(replace(stop, rehearsing=tuple(rows[stop.index].rehearsing)) for stop in stops)
        self._stops = {stop.index: stop for stop in stops}
        open_stops = [stop for stop in stops if status[stop.index] not in SETTLED]
        self._listener.run_began(self._run, len(stops), len(stops) - len(open_stops))
        samples = self._describe(open_stops, fresh=len(open_stops) == len(stops))
        introduce(self._assignment, samples)
        for stop in stops:
            if stop in open_stops:
                self._make_or_skip(stop, samples)
            elif stop.index in damaged:
                self._make_again(stop, damaged[stop.index])
            if self._status_of(stop) != "skipped":
                self._score(stop)
        final = self._verdict()
        self._set_status(final)
        self._store.keep_copy()
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
                        rehearsing=list(stop.rehearsing),
                        status="pending",
                    )
                    for stop in stops
                ]
                session.add_all(rows)
        return rows

    def _describe(self, open_stops: list[Stop], fresh: bool) -> dict[str, int]:
        """Ask every site what it has, so that one without usable cases is known before hours of training.

        A run that goes on can do without a site that none of its open stops needs: its scores will be missing. A site
        that only rehearses must answer, but may have archived its cases: its memory is a copy.
        Returns the training samples of the sites at which the rounds of a stop are dealt out.
        """
        visited = {site for stop in open_stops for site in stop.sites}
        rehearsing = {site for stop in open_stops for site in stop.rehearsing}
        dealt = {site for stop in open_stops if stop.action != "visit" for site in stop.sites}
        samples = {}

        def questions() -> Iterator[Question]:
            for site in self._assignment.columns:
                self._listener.describing(site)
                yield Question(DESCRIBE, self._assignment.request(site, 0, args={"samples": int(site in dealt)}))

        for answer in self._assignment.exchange.ask(questions()):
            needed = ("train", self._plan.scored) if answer.site in visited else (self._plan.scored,)
            if isinstance(answer, Answer):
                self._listener.described(answer.site, {part: int(answer.metrics.get(part, 0)) for part in PARTS})
            found = _short_of_cases(answer, needed)
            if isinstance(found, SiteFailure):
                skips = isinstance(self._patience(found.site).then, SkipInstead)
                if found.code == AWAY and skips and found.site not in dealt:
                    continue  # its own stop may find it back
                if fresh or found.site in visited or (answer is found and found.site in rehearsing):
                    raise self._failed(None, found)
            else:
                samples[found.site] = int(found.metrics.get("samples", 0))
        return samples

    def _make_or_skip(self, stop: Stop, samples: Mapping[str, int]) -> None:
        """Make the stop, or go on without it when its site is waited for in vain and the scenario says so."""
        try:
            self._make(stop, samples)
        except VisitFailed as failed:
            then = self._patience(stop.sites[0]).then
            if (
                failed.code not in (AWAY, UNRELEASED)
                or failed.site != stop.sites[0]
                or not isinstance(then, SkipInstead)
            ):
                raise
            with self._store.transaction() as session:
                mark_skipped(
                    session,
                    self._run,
                    stop.index,
                    by=then.skip,
                    why=f"{failed.site}: {failed.sentence.partition(';')[0]}.",
                )
                session.get_one(Run, self._run).status = "running"
            self._listener.skipped(stop.index, stop.sites, then.skip)

    def _make_again(self, stop: Stop, damaged: MissingArtifact) -> None:
        """Make a stop anew whose artifact was damaged, out of the same samples, and so to the same bits."""
        self._listener.said(f"{str(damaged).partition(';')[0]}; stop {stop.index} is made again.")
        self._make(stop, reopen(self._store, self._run, stop.index))

    def _score(self, stop: Stop) -> None:
        try:
            self._scoring.score(stop)
        except MissingArtifact as damaged:
            self._make_again(stop, damaged)
            self._scoring.score(stop)

    def _make(self, stop: Stop, samples: Mapping[str, int]) -> None:
        began = time.monotonic()
        with self._store.transaction() as session:
            row = session.get_one(StopRow, (self._run, stop.index))
            row.status, row.error = "running", None
            stop = replace(stop, rehearsing=tuple(row.rehearsing))  # fewer, if a stop before it was skipped
            if row.samples != (dealt := {site: samples.get(site, 0) for site in stop.sites}):
                # rounds that were dealt out among other samples cannot go on: the stop begins anew
                row.samples, row.rounds_done, row.rounds_state = dealt, 0, None
            rounds_done, state, traffic = row.rounds_done, row.rounds_state, dict(row.traffic)
            made_before = row.artifact  # and damaged since
            if made_before is not None and self._vault.holds(made_before):  # or restored since
                row.status = "done"
                return
            self._assignment.count_time(session)
        handover, first = self._arriving(stop)
        stop = replace(stop, follows=None) if first else stop
        gathering = self._strategy.gather(stop, handover, samples, average)
        if state is not None:
            try:
                gathering.restore(load(self._vault.get(state)))
            except MissingArtifact:  # its rounds are made again
                rounds_done = 0
        self._listener.stop_began(stop.index, stop.sites, gathering.rounds, rounds_done, stop.rehearsing)
        request = self._assignment.request
        metrics: dict[str, Any] = {}
        rounds_kept = max(1, self._plan.training.checkpoint_every // gathering.steps_per_round)
        for number in range(rounds_done, gathering.rounds):
            asked = (
                (ask, request(site, stop.index, round=number, action=stop.action, args=ask.args, first=first))
                for site, ask in gathering.asks(number)
            )
            gathering.receive(number, self._replies(stop, asked, traffic=traffic, metrics=metrics))
            if gathering.rounds > 1:
                self._listener.stepped(stop.index, "", number + 1, gathering.rounds, _mean_loss(metrics))
                if (number + 1) % rounds_kept == 0 and number + 1 < gathering.rounds:
                    state = self._keep_round(stop, number + 1, gathering, state, traffic)
        handover = gathering.result()
        data = handover.to_bytes()
        if made_before not in (None, address_of(data)):
            raise other_bits(self._vault.path(str(made_before)), stop.index)
        artifact = self._vault.put(data)
        with self._store.transaction() as session:
            row = session.get_one(StopRow, (self._run, stop.index))
            row.status, row.artifact = "done", artifact
            row.weights_sha256 = handover.digest(Kind.WEIGHTS).hex()
            row.metrics, row.traffic = metrics, traffic
            row.rounds_done, row.rounds_state = gathering.rounds, None
            row.seconds += self._assignment.count_time(session)
        self._store.keep_copy()
        if state is not None:
            self._vault.discard(state)
        self._listener.stop_ended(stop.index, stop.sites, time.monotonic() - began)

    def _replies(
        self,
        stop: Stop,
        asked: Iterable[tuple[Ask, Request]],
        *,
        traffic: Traffic,
        metrics: dict[str, Any],
    ) -> Iterator[Reply]:
        """Ask the sites of one round and yield what they return, in the strategy's order."""
        expects = self._expected(stop.action)
        sent: dict[str, dict[str, int]] = {}

        def questions() -> Iterator[Question]:
            for ask, request in asked:
                sent[request.site] = bytes_by_kind(ask.handover)
                yield Question(VISIT, request, ask.handover, expects)

        for answer in self._assignment.exchange.ask(questions()):
            if isinstance(answer, SiteFailure):
                raise self._failed(stop, answer)
            assert answer.handover is not None  # the strategy expects one of every action
            count_traffic(traffic, answer, sent.pop(answer.site))
            metrics[answer.site] = dict(answer.metrics)
            yield Reply(answer.site, answer.handover, answer.metrics)

    def _keep_round(self, stop: Stop, done: int, gathering: Gathering, previous: str | None, traffic: Traffic) -> str:
        """Commit a place within a stop of many rounds, so that a crash repeats few of them."""
        # Named after the run: an equal run has equal tensors, and would discard a file that both refer to.
        state = self._vault.put(save(gathering.state(), {"run": self._run}))
        with self._store.transaction() as session:
            row = session.get_one(StopRow, (self._run, stop.index))
            row.rounds_done, row.rounds_state, row.traffic = done, state, traffic
            row.seconds += self._assignment.count_time(session)
        if previous is not None and previous != state:
            self._vault.discard(previous)
        return state

    def _arriving(self, stop: Stop) -> tuple[Handover, bool]:
        """The handover the model arrives with, and whether it is the first one, before any visit.

        A skipped stop passes on the handover that it would have got.
        """
        before, artifact = stop.follows, None
        with self._store.transaction() as session:
            while before is not None and artifact is None:
                row = session.get_one(StopRow, (self._run, before))
                if row.status == "skipped":
                    before = row.follows
                else:
                    assert row.artifact is not None  # stops are made in order
                    artifact = row.artifact
        if before is None or artifact is None:
            return self._strategy.first_handover(), True
        try:
            data = self._vault.get(artifact)
        except MissingArtifact as damaged:
            self._make_again(self._stops[before], damaged)
            data = self._vault.get(artifact)
        return Handover.from_bytes(data), False

    def _expected(self, action: str) -> HandoverSchema | None:
        """What a site must return; computed once per action, since it takes building a network."""
        if action not in self._expects:
            self._expects[action] = self._strategy.declares(action).handover
        return self._expects[action]

    # The run

    def _status_of(self, stop: Stop) -> str:
        with self._store.transaction() as session:
            return session.get_one(StopRow, (self._run, stop.index)).status

    def _failed(self, stop: Stop | None, failure: SiteFailure) -> VisitFailed:
        with self._store.transaction() as session:
            if stop is not None:
                row = session.get_one(StopRow, (self._run, stop.index))
                row.status = "failed"
                row.error = {"site": failure.site, "code": failure.code, "sentence": failure.sentence}
            session.get_one(Run, self._run).status = "failed"
            self._assignment.count_time(session)
        where = "" if stop is None else f" at stop {stop.index}"
        return VisitFailed(f"Run {self._run} failed{where}: {failure}", failure)

    def _verdict(self) -> str:
        """`done` when every stop was made as planned and every cell that can exist scored, else `incomplete`."""
        with self._store.transaction() as session:
            stops = list(session.scalars(select(StopRow).where(StopRow.run_id == self._run)))
            unscored = session.scalar(
                select(func.count()).where(ScoreRow.run_id == self._run, ScoreRow.error.is_not(None))
            )
        whole = all(stop.status == "done" and not stop.left_out for stop in stops)
        return "done" if whole and not unscored else "incomplete"

    def _status(self) -> str:
        with self._store.transaction() as session:
            return session.get_one(Run, self._run).status

    def _set_status(self, status: str) -> None:
        with self._store.transaction() as session:
            session.execute(update(Run).where(Run.id == self._run).values(status=status))
            self._assignment.count_time(session)


def _short_of_cases(answer: Answer | SiteFailure, needed: Iterable[str]) -> Answer | SiteFailure:
    """A site that has nothing to train on, or nothing to score on, is as useless as one that does not answer."""
    if isinstance(answer, Answer):
        for part in needed:
            if not answer.metrics.get(part):
                sentence = f"no case falls to its {part} part; add cases, or change split.{part} or split.seed."
                return SiteFailure(answer.site, "SITE_DATA", sentence)
    return answer


def _mean_loss(metrics: Mapping[str, Mapping[str, float]]) -> float | None:
    losses = [values[key] for values in metrics.values() for key in ("loss", "loss_last") if key in values]
    return sum(losses) / len(losses) if losses else None

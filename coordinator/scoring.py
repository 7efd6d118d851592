"""The rows of the score matrix: after every stop each site scores the model that it would use then."""

from collections.abc import Iterator, Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from coordinator.assignment import Assignment
from coordinator.exchange import Answer, Question, SiteFailure, Traffic, bytes_by_kind, count_traffic
from coordinator.store import ScoreRow, StopRow
from protos.handover import Handover
from protos.messages import SCORE
from strategies.gathering import Stop


class Scoring:
    """Fills the score matrix of one run, a committed cell at a time."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._store, self._run = assignment.store, assignment.run

    def score(self, stop: Stop) -> None:
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
        sources = {
            site: self._assignment.strategy.model_for(site, stop.index)
            for site in self._assignment.columns
            if site not in known
        }
        for site, source in sources.items():
            if source is not None and source != stop.index and source not in skipped:
                self._copy_score(site, source, stop.index)
        asked = [site for site, source in sources.items() if source == stop.index]
        if not asked:
            return
        with self._store.transaction() as session:
            artifact = session.get_one(StopRow, (self._run, stop.index)).artifact
        assert artifact is not None  # only done stops are scored
        whole = Handover.from_bytes(self._assignment.vault.get(artifact))
        sent: dict[str, dict[str, int]] = {}

        def questions() -> Iterator[Question]:
            for site in asked:
                self._assignment.listener.scoring(stop.index, site)
                handover = self._assignment.strategy.for_scoring(whole, site, stop.index)
                sent[site] = bytes_by_kind(handover)
                yield Question(SCORE, self._assignment.request(site, stop.index), handover)

        for answer in self._assignment.exchange.ask(questions()):
            with self._store.transaction() as session:
                found = self._with_the_same_cases(session, answer)
                session.merge(self._score_row(stop, found, sent[answer.site]))
                self._assignment.count_time(session)
            dsc = None if isinstance(found, SiteFailure) else found.metrics.get("dsc")
            self._assignment.listener.scored(stop.index, answer.site, dsc)

    def _with_the_same_cases(self, session: Session, answer: Answer | SiteFailure) -> Answer | SiteFailure:
        """A column of the matrix is over the same cases from top to bottom, or the new score does not count."""
        earlier = session.scalars(
            select(ScoreRow.metrics)
            .where(ScoreRow.run_id == self._run, ScoreRow.site == answer.site, ScoreRow.error.is_(None))
            .limit(1)
        ).first()
        if isinstance(answer, Answer) and earlier and earlier.get("cases") != answer.metrics.get("cases"):
            sentence = (
                f"it scored {answer.metrics.get('cases')} cases, and {earlier.get('cases')} earlier in this run; "
                "bring its data back to what they were and resume the run."
            )
            return SiteFailure(answer.site, "DATA_CHANGED", sentence)
        return answer

    def _score_row(self, stop: Stop, answer: Answer | SiteFailure, sent: Mapping[str, int]) -> ScoreRow:
        row = ScoreRow(run_id=self._run, stop=stop.index, site=answer.site, metrics=None, traffic={}, error=None)
        if isinstance(answer, SiteFailure):
            row.error = {"code": answer.code, "sentence": answer.sentence}
        else:
            traffic: Traffic = {}
            count_traffic(traffic, answer, sent)
            row.metrics, row.traffic = dict(answer.metrics), traffic[answer.site]
        return row

    def _copy_score(self, site: str, source: int, stop: int) -> None:
        """A site that still uses its model of an earlier stop still has that stop's score."""
        with self._store.transaction() as session:
            row = session.get(ScoreRow, (self._run, source, site))
            if row is not None:
                session.merge(
                    ScoreRow(run_id=self._run, stop=stop, site=site, metrics=row.metrics, traffic={}, error=row.error)
                )

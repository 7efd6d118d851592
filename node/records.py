"""What a node remembers of its visits and scores, for its own people: rows in the node's database, never sent."""

from datetime import UTC, datetime

from sqlalchemy import Engine, String
from sqlalchemy.orm import Mapped, Session, mapped_column

from node.database import Base
from node.scoring import SiteScore
from protos.messages import Request


class VisitRow(Base):
    """One visit (or round) that was carried out here."""

    __tablename__ = "visits"

    run: Mapped[str] = mapped_column(String(80), primary_key=True)
    stop: Mapped[int] = mapped_column(primary_key=True)
    action: Mapped[str] = mapped_column(String(32))
    strategy: Mapped[str] = mapped_column(String(64))
    rounds: Mapped[int] = mapped_column(default=0)  # carried out, repetitions after a crash included
    began: Mapped[str]  # UTC, ISO 8601
    ended: Mapped[str | None]


class CaseScoreRow(Base):
    """One test case's scores after one stop. Per-case scores stay at the site."""

    __tablename__ = "case_scores"

    run: Mapped[str] = mapped_column(String(80), primary_key=True)
    stop: Mapped[int] = mapped_column(primary_key=True)
    case: Mapped[str] = mapped_column(primary_key=True)
    class_number: Mapped[int] = mapped_column(primary_key=True)
    dsc: Mapped[float]
    asd: Mapped[float]


def visit_began(engine: Engine, request: Request) -> None:
    """Note that a visit, or a round of it, begins."""
    with Session(engine.execution_options(write=True)) as session, session.begin():
        row = session.get(VisitRow, (request.run, request.stop))
        if row is None:
            row = VisitRow(
                run=request.run,
                stop=request.stop,
                action=request.action,
                strategy=request.plan.strategy.name,
                rounds=0,
                began=_now(),
            )
            session.add(row)
        row.ended = None


def visit_ended(engine: Engine, request: Request) -> None:
    """Note that it ended."""
    with Session(engine.execution_options(write=True)) as session, session.begin():
        row = session.get_one(VisitRow, (request.run, request.stop))
        row.rounds += 1
        row.ended = _now()


def scored(engine: Engine, request: Request, score: SiteScore) -> None:
    """Keep the scores of every case, replacing those of an earlier try."""
    with Session(engine.execution_options(write=True)) as session, session.begin():
        for case, values in score.cases.items():
            for number, (dsc, asd) in enumerate(zip(values.dsc, values.asd, strict=True), 1):
                session.merge(
                    CaseScoreRow(run=request.run, stop=request.stop, case=case, class_number=number, dsc=dsc, asd=asd)
                )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")

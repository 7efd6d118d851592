"""The scores of single cases, for the site's own people: rows in the node's database, never sent."""

from typing import TYPE_CHECKING

from sqlalchemy import Engine, String, delete, insert
from sqlalchemy.orm import Mapped, mapped_column

from node.database import Base

if TYPE_CHECKING:  # they bring PyTorch and Flower, which reading does not need
    from node.scoring import SiteScore
    from protos.messages import Request


class CaseScoreRow(Base):
    """One scored case's scores after one stop. Per-case scores stay at the site."""

    __tablename__ = "case_scores"

    run: Mapped[str] = mapped_column(String(80), primary_key=True)
    stop: Mapped[int] = mapped_column(primary_key=True)
    case: Mapped[str] = mapped_column(primary_key=True)
    class_number: Mapped[int] = mapped_column(primary_key=True)
    dsc: Mapped[float]
    asd: Mapped[float]


def scored(engine: Engine, request: "Request", score: "SiteScore") -> None:
    """Keep the scores of every case, replacing those of an earlier try."""
    of_this_stop = {"run": request.run, "stop": request.stop}
    rows = [
        {**of_this_stop, "case": case, "class_number": number, "dsc": dsc, "asd": asd}
        for case, values in score.cases.items()
        for number, (dsc, asd) in enumerate(zip(values.dsc, values.asd, strict=True), 1)
    ]
    with engine.execution_options(write=True).begin() as connection:
        connection.execute(delete(CaseScoreRow).filter_by(**of_this_stop))
        connection.execute(insert(CaseScoreRow), rows)

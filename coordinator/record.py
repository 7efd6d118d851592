"""A run's rows as JSON, from which a client of the control service makes the same pages as the coordinator itself."""

from datetime import datetime
from typing import Any

from coordinator.store import Base, Run, ScoreRow, StopRow


def to_record(run: Run) -> dict[str, Any]:
    """The run with its stops and scores, which are loaded."""
    return {
        "run": _columns(run),
        "stops": [_columns(stop) for stop in run.stops],
        "scores": [_columns(score) for score in run.scores],
    }


def from_record(record: dict[str, Any]) -> Run:
    """The rows again, which belong to no database."""
    return Run(
        **record["run"],
        stops=[StopRow(**stop) for stop in record["stops"]],
        scores=[ScoreRow(**score) for score in record["scores"]],
    )


def _columns(row: Base) -> dict[str, Any]:
    values = ((column.key, getattr(row, column.key)) for column in type(row).__mapper__.column_attrs)
    return {key: value.isoformat() if isinstance(value, datetime) else value for key, value in values}

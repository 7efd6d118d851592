"""A run's itinerary as a line of stops, with the model at its place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from coordinator.store import SETTLED

ABOUT = 8  # stops that are shown on either side of the model; of a longer line the rest is counted


@dataclass(frozen=True)
class LineStop:
    """One stop as it stands on the line."""

    number: int  # from 0
    sites: tuple[str, ...]
    rehearsing: tuple[str, ...]
    status: str
    failed_at: str | None
    code: str | None
    why: str | None  # it failed or was skipped
    skipped_by: str | None
    left_out: Mapping[str, str]  # site that was to rehearse -> who left it out, and why


@dataclass(frozen=True)
class Line:
    """The whole line. `step`: the fields of the last step that was told of the stop where the model is."""

    stops: tuple[LineStop, ...]
    step: Mapping[str, Any] | None = None

    @property
    def stop_here(self) -> LineStop | None:
        """The first stop that is not settled: there the model is, or there it goes next; None behind the last."""
        return next((stop for stop in self.stops if stop.status not in SETTLED), None)

    def shown(self) -> list[LineStop | int]:
        """The stops about the model, the first and the last, and between them how many are left out."""
        if len(self.stops) <= 2 * ABOUT + 3:
            return list(self.stops)
        here = self.stop_here
        centre = self.stops[-1].number if here is None else here.number
        kept = [0, *range(max(1, centre - ABOUT), min(len(self.stops) - 1, centre + ABOUT + 1)), len(self.stops) - 1]
        shown: list[LineStop | int] = [self.stops[0]]
        for before, number in pairwise(kept):
            if number > before + 1:
                shown.append(number - before - 1)
            shown.append(self.stops[number])
        return shown


def line_stop(row: Sequence[Any]) -> LineStop:
    """One stop from the store's columns: index, sites, rehearsing, status, error, skipped_by, skipped_why, left_out."""
    number, sites, rehearsing, status, error, skipped_by, skipped_why, left_out = row
    error = error or {}
    return LineStop(
        number=number,
        sites=tuple(sites),
        rehearsing=tuple(rehearsing),
        status=status,
        failed_at=error.get("site"),
        code=error.get("code"),
        why=skipped_why if status == "skipped" else error.get("sentence"),
        skipped_by=skipped_by,
        left_out={site: f"{said['by']}: {said['why']}" for site, said in left_out.items()},
    )

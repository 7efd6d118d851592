"""Score matrices, curves and traffic as documents, from the summary that `locum show` and the reports are made from."""

from collections.abc import Mapping, Sequence

import numpy as np

from coordinator.dashboard.documents import Axis, Chart, Matrix, MatrixRow, Series, TrafficEntry, TrafficList
from coordinator.metrics import Score
from coordinator.summary import RunSummary

MOST_LINES = 8  # as many colours as the charts have; of more sites a chart shows mean, lowest and highest
SHADES = 10  # of a heat map, from 0


def matrix(
    summary: RunSummary,
    score: Score,
    rows: range,
    columns: range,
    refused: Mapping[tuple[int, str], str],
) -> Matrix:
    """A window of R; `refused`: stop and site -> why there is no score, as coordinator.dashboard.queries has them."""
    R = summary.matrix(score)
    names = summary.columns[columns.start : columns.stop]
    stops = scored_stops(summary)
    return Matrix(
        score=score,
        columns=list(names),
        unseen=[name for name in names if name in summary.unseen],
        rows=[
            MatrixRow(
                visit=row + 1,
                sites=list(summary.visited[row]),
                values=[None if np.isnan(value) else value for value in R[row, columns.start : columns.stop].tolist()],
                refused={name: refused[stops[row], name] for name in names if (stops[row], name) in refused},
            )
            for row in range(rows.start, min(rows.stop, len(R)))
        ],
        first_row=rows.start,
        first_column=columns.start,
        total_rows=R.shape[0],
        total_columns=R.shape[1],
        top=1.0 if score == "dsc" else _nice(R),
    )


def scored_stops(summary: RunSummary) -> list[int]:
    """The stop that each row of R belongs to."""
    return [stop.index for stop in summary.stops if stop.status == "done"][: len(summary.visited)]


def shade(value: float | None, score: str, top: float) -> int | None:
    """The shade of a cell, 0 to SHADES: a higher one is better. None where there is no score."""
    if value is None:
        return None
    share = min(max(value / top, 0.0), 1.0)
    return round(SHADES * (share if score == "dsc" else 1.0 - share))


def curves(summary: RunSummary, score: Score, chosen: Sequence[str] = ()) -> Chart:
    """The score of every site over the visits; of more than MOST_LINES sites mean, lowest and highest, and `chosen`."""
    R = summary.matrix(score)
    lines: dict[str, np.ndarray] = {}
    if R.shape[1] > MOST_LINES and len(R):
        known = np.ma.masked_invalid(R)
        for name, line in (("mean", known.mean(axis=1)), ("lowest", known.min(axis=1)), ("highest", known.max(axis=1))):
            lines[name] = np.ma.filled(line.astype(float), np.nan)
    wanted = summary.columns if R.shape[1] <= MOST_LINES else [site for site in summary.columns if site in chosen]
    for site in wanted[:MOST_LINES]:
        name = f"{site} (unseen)" if site in summary.unseen else site
        lines[name] = R[:, summary.columns.index(site)]
    unit = "" if score == "dsc" else "mm"
    return Chart(
        x=Axis(label="visit"),
        series=[Series(label=name, unit=unit) for name in lines],
        values=[
            [float(visit) for visit in range(1, len(R) + 1)],
            *([None if np.isnan(value) else value for value in line.tolist()] for line in lines.values()),
        ],
    )


def traffic(summary: RunSummary) -> TrafficList:
    """The bytes of a run by site and kind."""
    return TrafficList(
        traffic=[
            TrafficEntry(site=row.site, kind=row.kind, sent=row.sent, received=row.received) for row in summary.traffic
        ]
    )


def by_kind(summary: RunSummary) -> dict[str, tuple[int, int]]:
    """Kind -> bytes to the sites and from them."""
    total: dict[str, tuple[int, int]] = {}
    for row in summary.traffic:
        sent, received = total.get(row.kind, (0, 0))
        total[row.kind] = sent + row.sent, received + row.received
    return total


def _nice(R: np.ndarray) -> float:
    return 1.05 * float(np.nanmax(R, initial=0.0)) or 1.0

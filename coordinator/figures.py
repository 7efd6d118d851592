"""Figures of a run, as matplotlib Figure objects: no pyplot, no global state but a style context.

They import matplotlib, so import this module only where something is drawn. Colours are Okabe and Ito's, which stay
apart for colour-blind readers, and every colour is doubled by a marker, a label or a position.
"""

import io
from contextlib import AbstractContextManager
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter

from coordinator.metrics import Score
from coordinator.summary import RunSummary

DPI = 192  # twice a screen's 96, so that figures are sharp
NAMES = {"dsc": "DSC", "asd": "ASD (mm or pixels)"}
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "os^Dvp"
_TEXT_CELLS = 16  # above so many rows or columns a heat map has no numbers
_BAR_SITES = 20  # above so many sites the rest share one bar


@dataclass(frozen=True)
class Theme:
    """Colours of everything but the data."""

    paper: str = "#ffffff"
    ink: str = "#1d2329"
    muted: str = "#667079"
    grid: str = "#dfe3e7"
    empty: str = "#eef0f2"


LIGHT = Theme()
DARK = Theme(paper="#161b21", ink="#e8ebee", muted="#9aa5af", grid="#323a43", empty="#242b33")


def png(figure: Figure) -> bytes:
    """The figure as PNG; equal figures give equal bytes."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def heat_map(summary: RunSummary, score: Score, theme: Theme = LIGHT) -> Figure:
    """R as a heat map: rows after each visit, columns sites, then, set apart, unseen ones. Bright is good.

    Every row's own site is framed; a cell that does not exist shows a dash.
    """
    matrix = summary.matrix(score)
    rows, columns = matrix.shape
    sites = len(summary.sites)
    place = np.arange(columns) + 0.35 * (np.arange(columns) >= sites)  # where each column's centre stands
    width = float(np.clip(1.7 + 0.62 * columns, 3.6, 10.5))
    with style(theme):
        figure, (axes,) = canvas(width, float(np.clip(1.25 + 0.42 * max(rows, 2), 2.1, 9.5)), theme)
        top = 1.0 if score == "dsc" else nice(matrix)
        shade = mpl.colormaps["cividis" if score == "dsc" else "cividis_r"].with_extremes(bad=theme.empty)
        for part in (slice(0, sites), slice(sites, columns)):
            if rows and part.start < part.stop:
                values = np.ma.masked_invalid(matrix[:, part])
                extent = (place[part.start] - 0.5, place[part.stop - 1] + 0.5, rows - 0.5, -0.5)
                image = axes.imshow(values, cmap=shade, vmin=0, vmax=top, extent=extent, aspect="auto")
        if rows:
            bar = figure.colorbar(image, ax=axes, label=score_name(summary, score), pad=0.02, fraction=0.05)
            bar.ax.tick_params(color=theme.muted, labelcolor=theme.ink)
            bar.outline.set_visible(False)
        axes.set(xlim=(-0.5, place[-1] + 0.5), ylim=(max(rows, 1) - 0.5, -0.5))
        if max(rows, columns) <= _TEXT_CELLS:
            for i, j in np.ndindex(rows, columns):
                value = float(matrix[i, j])
                dark = not np.isnan(value) and (value / top < 0.5) == (score == "dsc")
                ink = theme.muted if np.isnan(value) else "#ffffff" if dark else "#111111"
                axes.text(float(place[j]), i, _cell(value), color=ink, ha="center", va="center", fontsize=9)
            for i, sites_of_row in enumerate(summary.visited):
                for site in sites_of_row:
                    j = summary.columns.index(site)
                    axes.add_patch(Rectangle((j - 0.46, i - 0.44), 0.92, 0.88, fill=False, ec="#ffffff", lw=1.6))
                    axes.add_patch(Rectangle((j - 0.46, i - 0.44), 0.92, 0.88, fill=False, ec="#111111", lw=0.7))
        shown_columns, shown_rows = _thinned(columns), _thinned(rows)
        slanted = columns > 3 and max(map(len, summary.columns)) > 6
        axes.set_xticks(
            place[shown_columns],
            [short(summary.columns[j]) + ("\n(unseen)" if j >= sites else "") for j in shown_columns],
            rotation=35 if slanted else 0,
            ha="right" if slanted else "center",
            rotation_mode="anchor" if slanted else "default",
        )
        axes.set_yticks(shown_rows, [f"{_row_name(summary, i)}  {i + 1}" for i in shown_rows])
        axes.set_ylabel("model after visit")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def traffic(summary: RunSummary, theme: Theme = LIGHT) -> Figure:
    """Bytes per site and kind of artifact: to the site on the left, from the site on the right."""
    kinds = sorted({row.kind for row in summary.traffic})
    names = [site for site in summary.columns if any(row.site == site for row in summary.traffic)]
    named = names if len(names) <= _BAR_SITES else names[: _BAR_SITES - 1]
    others = len(names) - len(named)
    labels = [*named, f"{others} others, mean"] if others else named
    bar = {site: min(place, len(labels) - 1) for place, site in enumerate(names)}
    sums = np.zeros((2, len(kinds), max(len(labels), 1)))
    for row in summary.traffic:
        if row.site in bar:
            share = 1 / others if bar[row.site] >= len(named) else 1
            sums[:, kinds.index(row.kind), bar[row.site]] += share * row.sent, share * row.received
    unit, name = _unit(float(sums.sum(axis=1).max(initial=0)))
    sums /= unit
    with style(theme):
        figure, (axes,) = canvas(5.4, 1.2 + 0.3 * max(len(labels), 2), theme)
        for direction, sign in enumerate((-1, 1)):
            start = np.zeros(sums.shape[2])
            for k, kind in enumerate(kinds):
                axes.barh(
                    range(sums.shape[2]),
                    sign * sums[direction, k],
                    left=sign * start,
                    color=LINES[k % len(LINES)],
                    edgecolor=theme.paper,
                    label=kind if sign > 0 else None,
                    height=0.66,
                )
                start += sums[direction, k]
        reach = float(sums.sum(axis=1).max(initial=0)) or 1.0
        axes.set(xlim=(-1.06 * reach, 1.06 * reach), xlabel=f"← to the site      {name}      from the site →")
        axes.set_ylim(sums.shape[2] - 0.5, -0.5)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):g}"))
        axes.set_yticks(range(len(labels)), [short(label) for label in labels])
        axes.tick_params(axis="y", length=0)
        axes.axvline(0, color=theme.ink, lw=0.8)
        axes.grid(axis="x", color=theme.grid, lw=0.6)
        if kinds:
            figure.legend(loc="outside upper center", ncols=len(kinds), frameon=False)
    return figure


def style(theme: Theme) -> AbstractContextManager[None]:
    """Matplotlib's settings within a block."""
    return mpl.rc_context(
        {
            "font.size": 9,
            "figure.facecolor": theme.paper,
            "axes.facecolor": theme.paper,
            "axes.edgecolor": theme.muted,
            "axes.labelcolor": theme.ink,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "text.color": theme.ink,
            "text.parse_math": False,  # a dollar sign in a name is a dollar sign
        }
    )


def canvas(width: float, height: float, theme: Theme, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches with its panels side by side."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    every = list(figure.subplots(1, panels, squeeze=False)[0])
    for axes in every:  # said here, since ticks made while saving would take the colours of no theme
        axes.tick_params(color=theme.muted, labelcolor=theme.ink)
    return figure, every


def score_name(summary: RunSummary, score: Score) -> str:
    """What an axis of this score is called."""
    return NAMES[score] + ("" if summary.plan.scored == "test" else f", {summary.plan.scored_cases}")


def _row_name(summary: RunSummary, row: int) -> str:
    sites = summary.visited[row]
    return short(sites[0]) if len(sites) == 1 else f"{len(sites)} sites"


def short(name: str) -> str:
    """The name, its middle left out where it is long."""
    return name if len(name) <= 18 else f"{name[:10]}…{name[-7:]}"


def _cell(value: float) -> str:
    return (
        "–"
        if np.isnan(value)
        else f"{value:.2f}"
        if value < 9.995
        else f"{value:.1f}"
        if value < 99.95
        else f"{value:.0f}"
    )


def _thinned(count: int, most: int = 24) -> list[int]:
    return list(range(0, count, max(1, -(-count // most))))


def nice(matrix: np.ndarray) -> float:
    """An upper end for an axis of distances: a little above the largest."""
    return 1.05 * float(np.nanmax(matrix, initial=0.0)) or 1.0


def _unit(most: float) -> tuple[float, str]:
    for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if most >= size:
            return size, name
    return 1.0, "bytes"

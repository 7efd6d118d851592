"""Figures of lines over a run's visits or over the steps of its visits, as matplotlib Figure objects."""

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from coordinator.figures import LIGHT, LINES, MARKERS, Theme, canvas, nice, score_name, short, style
from coordinator.learning import COURSES, courses, places
from coordinator.metrics import Matrix, Score
from coordinator.summary import DRIFTS, RunSummary

MOST_LINES = 14  # more sites become a band, more stops share a scale of colours


def scores_over_visits(summary: RunSummary, scores: Sequence[Score] = ("dsc", "asd"), theme: Theme = LIGHT) -> Figure:
    """Every site's score over the visits, one panel per score; the large marker is the site's own visit.

    Unseen sites are dashed. Above 14 sites there are the mean and the range over sites instead.
    """
    with style(theme):
        figure, panels = canvas(5.4 * len(scores), 3.4, theme, len(scores))
        for axes, score in zip(panels, scores, strict=True):
            matrix = summary.matrix(score)
            axes.set(xlabel="visit", ylabel=score_name(summary, score), xlim=(0.8, max(len(matrix), 1) + 0.2))
            axes.set_ylim(0, 1.03 if score == "dsc" else nice(matrix))
            _site_lines(axes, summary, matrix, theme)
    return figure


def drift_over_visits(summary: RunSummary, theme: Theme = LIGHT) -> Figure:
    """How far every site's replay is from its own images over the visits, one panel per statistic of DRIFTS."""
    with style(theme):
        figure, panels = canvas(10.8, 3.0, theme, len(DRIFTS))
        for axes, name, values in zip(panels, DRIFTS, np.moveaxis(summary.drift, 2, 0), strict=True):
            unit = "|log ratio|" if name == "edge" else "standard deviations of the site"
            axes.set(xlabel="visit", ylabel=unit, xlim=(0.8, max(len(values), 1) + 0.2), ylim=(0, nice(values)))
            axes.set_title(name, loc="left", fontsize=9)
            _site_lines(axes, summary, values, theme)
    return figure


def course_over_steps(summary: RunSummary, kind: str, theme: Theme = LIGHT) -> Figure:
    """A course of COURSES in every stop that has it, a line per stop, over the stop's steps where they are known."""
    course, found = COURSES[kind], courses(summary, kind)
    known = course.own_steps and all("steps" in stop.metrics for stop, _ in found)
    with style(theme):
        figure, (axes,) = canvas(5.4, 3.0, theme)
        axes.set(ylabel=course.up)
        if course.limits is not None:
            axes.set_ylim(*course.limits)
        axes.grid(axis="y", color=theme.grid, lw=0.6)
        hues = mpl.colormaps["viridis"].resampled(max(len(found), 2))
        for number, (stop, values) in enumerate(found):
            x, across = places(stop.metrics["steps"] if known else None)
            axes.set_xlabel(across)
            colour = LINES[number % len(LINES)] if len(found) <= MOST_LINES else hues(number)
            marker = MARKERS[(number + number // len(LINES)) % len(MARKERS)]
            label = f"{stop.index}: {short(stop.sites[0])}"
            axes.plot(x, values, color=colour, marker=marker, ms=3, lw=1.4, label=label)
        if len(found) <= MOST_LINES:
            figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure


def _site_lines(axes: Axes, summary: RunSummary, matrix: Matrix, theme: Theme) -> None:
    """A line per site over the visits, or their mean and range where sites are many; the axis' limits are set."""
    rows, columns = matrix.shape
    visits = np.arange(1, rows + 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
    axes.grid(axis="y", color=theme.grid, lw=0.6)
    if columns > MOST_LINES:
        present = np.ma.masked_invalid(matrix)
        axes.fill_between(
            visits, present.min(axis=1), present.max(axis=1), color=LINES[0], alpha=0.2, label="all sites"
        )
        axes.plot(visits, present.mean(axis=1), color=LINES[0], lw=1.8, label="mean over sites")
        axes.legend(frameon=False)
        return
    ends = []
    for j, site in enumerate(summary.columns):
        colour, marker = LINES[j % len(LINES)], MARKERS[(j + j // len(LINES)) % len(MARKERS)]
        unseen = j >= len(summary.sites)
        axes.plot(visits, matrix[:, j], color=colour, ls="--" if unseen else "-", marker=marker, ms=3.5, lw=1.6)
        own = [i for i, row in enumerate(summary.visited) if site in row]
        axes.plot(visits[own], matrix[own, j], color=colour, marker=marker, ms=8, ls="", mec=theme.paper)
        if rows and not np.isnan(matrix[-1, j]):
            ends.append((float(matrix[-1, j]), short(site) + (" (unseen)" if unseen else ""), colour))
    _label_ends(axes, rows, ends)


def _label_ends(axes: Axes, last: float, ends: Sequence[tuple[float, str, str]]) -> None:
    """Name every line at its right end, `last`, pushed apart so that no two names overlap."""
    low, high = axes.get_ylim()
    gap = (high - low) / 16
    ends = sorted(ends)
    places = [value for value, _, _ in ends]
    for k in range(1, len(places)):
        places[k] = max(places[k], places[k - 1] + gap)
    ceiling = high
    for k in reversed(range(len(places))):  # what was pushed over the top comes down again
        places[k] = min(places[k], ceiling)
        ceiling = places[k] - gap
    for place, (value, label, colour) in zip(places, ends, strict=True):
        axes.annotate(
            label,
            (last, value),
            xytext=(1.04, (place - low) / (high - low)),
            textcoords="axes fraction",
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 1.2, "shrinkA": 0, "shrinkB": 4},
        )

"""Figures of a comparison, as matplotlib Figure objects: tables in the manner of a paper, curves over the visits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from coordinator.figures import LIGHT, LINES, MARKERS, canvas, style

LINE = 0.25  # inches


@dataclass(frozen=True)
class TablePanel:
    """One block of a table figure; `best` are (row, column) places to set in bold."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    best: frozenset[tuple[int, int]]

    def right(self) -> np.ndarray:
        """Where every column ends, in inches."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        return np.cumsum([0.075 * width + 0.2 for width in widths])


def table(panels: Sequence[TablePanel], notes: Sequence[str]) -> Figure:
    """Tables one below the other in the manner of a paper: rules above and below, the best per column in bold."""
    height = LINE * (sum(len(panel.rows) + 3.2 for panel in panels) + len(notes) + 0.4)
    widths = [float(panel.right()[-1]) for panel in panels] + [0.065 * len(note) for note in notes]
    width = max(4.0, *widths) + 0.3
    with style(LIGHT):
        figure = Figure(figsize=(width, height))
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1), xlim=(-0.15, figure.get_figwidth() - 0.15), ylim=(height, 0))
        axes.set_axis_off()
        y = LINE
        for panel in panels:
            right = panel.right()
            axes.text(0, y, panel.title, weight="bold", va="center", fontsize=10)
            for offset, weight in ((0.6, 1.3), (1.7, 0.7), (1.9 + len(panel.rows), 1.3)):
                axes.plot((0, right[-1]), (y + offset * LINE,) * 2, color=LIGHT.ink, lw=weight)
            for r, row in enumerate([panel.header, *panel.rows]):
                for c, text in enumerate(row):
                    axes.text(
                        0 if c == 0 else right[c],
                        y + LINE * (1.15 + r + (0.15 if r else 0)),
                        text,
                        ha="left" if c == 0 else "right",
                        va="center",
                        weight="bold" if (r - 1, c) in panel.best else "normal",
                        color=LIGHT.ink if r else LIGHT.muted,
                    )
            y += LINE * (len(panel.rows) + 3.2)
        for note in notes:
            axes.text(0, y - 0.3 * LINE, note, color=LIGHT.muted, va="center", fontsize=8)
            y += LINE
    return figure


@dataclass(frozen=True)
class CurvePanel:
    """Curves over the visits, counted from 1: method -> means and deviations, [visits] each, NaN where undefined."""

    title: str
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]


def over_visits(panels: Sequence[CurvePanel]) -> Figure:
    """Every method's mean DSC over the visits, with a band of one standard deviation, one panel beside the other."""
    with style(LIGHT):
        figure, every = canvas(5.4 * len(panels), 3.6, LIGHT, len(panels))
        for axes, panel in zip(every, panels, strict=True):
            axes.set_title(panel.title, loc="left", fontsize=9)
            axes.set(xlabel="visit", ylabel="DSC", ylim=(0, 1.03))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
            axes.grid(axis="y", color=LIGHT.grid, lw=0.6)
            for number, (label, (means, deviations)) in enumerate(panel.curves.items()):
                colour, mean, sd = LINES[number % len(LINES)], np.array(means), np.nan_to_num(np.array(deviations))
                visits = np.arange(1, len(mean) + 1)
                marker = MARKERS[(number + number // len(LINES)) % len(MARKERS)]
                axes.plot(visits, mean, color=colour, marker=marker, ms=4, lw=1.6, label=label)
                axes.fill_between(visits, mean - sd, mean + sd, color=colour, alpha=0.15, lw=0)
        handles, labels = every[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False)
    return figure

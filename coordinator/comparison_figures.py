"""Figures of a comparison, as matplotlib Figure objects: tables in the manner of a paper, curves and bars."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from coordinator.charts import Bars, Curves
from coordinator.figures import LIGHT, LINES, MARKERS, canvas, style

LINE = 0.25  # inches
DASHES = ("-", "--", ":", "-.")  # where colours come again
HATCHES = ("", "///", "...", "xxx")


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


def curves(panels: Sequence[Curves]) -> Figure:
    """Every method's mean with a band of one standard deviation, one panel beside the other."""
    with style(LIGHT):
        figure, every = canvas(5.4 * len(panels), 3.6, LIGHT, len(panels))
        named: dict[str, Artist] = {}  # a method may be in some panels only, and has one colour in all of them
        numbers = {label: number for number, label in enumerate(dict.fromkeys(k for p in panels for k in p.lines))}
        for axes, panel in zip(every, panels, strict=True):
            axes.set_title(panel.title, loc="left", fontsize=9)
            axes.set(xlabel=panel.across, ylabel=panel.up)
            if panel.limits is not None:
                axes.set_ylim(*panel.limits)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))
            axes.grid(axis="y", color=LIGHT.grid, lw=0.6)
            for label, (means, deviations) in panel.lines.items():
                number = numbers[label]
                colour, mean, sd = LINES[number % len(LINES)], np.array(means), np.nan_to_num(np.array(deviations))
                marker = MARKERS[(number + number // len(LINES)) % len(MARKERS)] if panel.marked else ""
                dash = "-" if panel.marked else DASHES[number // len(LINES) % len(DASHES)]
                (named[label],) = axes.plot(panel.x, mean, color=colour, ls=dash, marker=marker, ms=4, lw=1.6)
                axes.fill_between(panel.x, mean - sd, mean + sd, color=colour, alpha=0.15, lw=0)
        figure.legend(list(named.values()), list(named), loc="outside upper center", ncols=4, frameon=False)
    return figure


def bars(chart: Bars) -> Figure:
    """A group of bars per place, one bar per method, error bars of one standard deviation where there are several."""
    with style(LIGHT):
        count = len(chart.bars)
        figure, (axes,) = canvas(float(np.clip(1.5 + 0.32 * (count + 1) * len(chart.groups), 4, 16)), 3.4, LIGHT)
        middle, width = np.arange(len(chart.groups)), 0.8 / count
        for number, (label, (means, deviations)) in enumerate(chart.bars.items()):
            axes.bar(
                middle + (number - (count - 1) / 2) * width,
                means,
                width,
                yerr=deviations,
                color=LINES[number % len(LINES)],
                hatch=HATCHES[number // len(LINES) % len(HATCHES)],
                edgecolor=LIGHT.paper,
                ecolor=LIGHT.ink,
                capsize=2,
                label=label,
            )
        axes.set_title(chart.title, loc="left", fontsize=9)
        axes.set(ylabel=chart.up, ylim=(0, 1.03))
        axes.set_xticks(middle, chart.groups)
        axes.tick_params(axis="x", length=0)
        axes.grid(axis="y", color=LIGHT.grid, lw=0.6)
        figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure

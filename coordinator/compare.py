"""Comparison of runs as in the papers: methods by sites, mean and standard deviation over seeds."""

import csv
import itertools
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coordinator.metrics import DEFINITIONS, Better, Score
from coordinator.summary import RunSummary

if TYPE_CHECKING:
    from rich.console import Console

SCORES: Mapping[Score, tuple[str, float]] = {"dsc": ("DSC (%)", 100.0), "asd": ("ASD (mm; pixels for pictures)", 1.0)}


_DRAWN_COLUMNS = 24  # a wider picture shows the metrics alone


class NotComparable(ValueError):
    """Runs that cannot stand in one table; the text is one sentence that says why and what to do."""


@dataclass(frozen=True)
class Stat:
    """Mean over `n` seeds and the sample standard deviation, which a single seed does not have."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Stat | None":
        """Over one value per seed; None as soon as one of them is undefined."""
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))

    def text(self, scale: float = 1.0) -> str:
        """`92.22 ± 1.10`, or the mean alone."""
        mean = f"{scale * self.mean:.2f}"
        return mean if self.sd is None else f"{mean} ± {scale * self.sd:.2f}"


@dataclass(frozen=True)
class Column:
    """A site's final score (`kind` "site" or "unseen") or a metric over the matrix (`kind` "metric")."""

    kind: str
    key: str
    title: str


@dataclass(frozen=True)
class Method:
    """One row: runs that differ in nothing but the seed. `values` holds a Stat (or None) per score and column."""

    label: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    values: Mapping[Score, tuple[Stat | None, ...]]


@dataclass(frozen=True)
class Comparison:
    """The table, ready to print, draw and write. Scores are kept as fractions (DSC) and mm (ASD)."""

    columns: tuple[Column, ...]
    methods: tuple[Method, ...]
    notes: tuple[str, ...]

    def best(self, score: Score, column: int) -> set[int]:
        """The methods with the best mean in a column; none when there is nothing to choose from."""
        better = self._better(score, column)
        means = {
            row: stat.mean
            for row, method in enumerate(self.methods)
            if (stat := method.values[score][column]) is not None
        }
        if len(means) < 2 or better is None:
            return set()
        top = max(means.values()) if better == "higher" else min(means.values())
        return {row for row, mean in means.items() if mean == top}

    def document(self) -> dict[str, Any]:
        """The comparison as JSON: DSC as fractions, ASD in mm; null where a value is undefined."""
        return {
            "columns": [{"kind": column.kind, "key": column.key} for column in self.columns],
            "methods": [
                {
                    "label": method.label,
                    "runs": list(method.runs),
                    "seeds": list(method.seeds),
                    **{
                        score: [
                            stat and {"mean": stat.mean, "sd": stat.sd, "n": stat.n} for stat in method.values[score]
                        ]
                        for score in SCORES
                    },
                }
                for method in self.methods
            ],
            "notes": list(self.notes),
        }

    def show(self, console: "Console | None" = None) -> None:
        """Print both scores' tables: with rules and colour on a terminal, else plain aligned lines of any width."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = console or Console()
        if not console.is_terminal:  # rich would fold at 80 columns what another program reads
            console = Console(file=console.file, width=100_000, no_color=True)
        for score, (title, _) in SCORES.items():
            table = Table(title=title, title_justify="left", box=SIMPLE_HEAD if console.is_terminal else None)
            grid = self._grid(score)
            if (
                console.is_terminal
                and sum(max(map(len, column)) + 3 for column in zip(*grid, strict=True)) > console.width
            ):
                grid = [list(row) for row in zip(*grid, strict=True)]  # too wide: methods become columns
            for index, name in enumerate(grid[0]):
                table.add_column(Text(name), justify="right" if index else "left", no_wrap=not console.is_terminal)
            for row in grid[1:]:
                table.add_row(*(Text(cell, style="bold" if cell.startswith("* ") else "") for cell in row))
            console.print(table)
        for note in self._footnotes():
            console.print(Text(note, style="dim"))

    def write(self, folder: Path) -> tuple[Path, ...]:
        """Write `comparison.png`, `comparison.csv` and `comparison.json` to `folder`, and return their paths."""
        from coordinator import figures

        folder.mkdir(parents=True, exist_ok=True)
        image, table, document = (folder / f"comparison.{kind}" for kind in ("png", "csv", "json"))
        drawn = self if len(self.columns) <= _DRAWN_COLUMNS else self._metrics_only()
        panels = []
        for score, (title, _) in SCORES.items():
            header, *rows = drawn._grid(score)
            best = {(row, c + 2) for c in range(len(drawn.columns)) for row in drawn.best(score, c)}
            plain = [[cell.removeprefix("* ") for cell in row] for row in rows]
            panels.append(figures.Panel(title, header, plain, frozenset(best)))
        image.write_bytes(figures.png(figures.table(panels, drawn._footnotes("Bold"))))
        with table.open("w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(["method", "seeds", "score", "kind", "column", "mean", "sd", "n"])
            for method, score in itertools.product(self.methods, SCORES):
                seeds = " ".join(map(str, method.seeds))
                for column, stat in zip(self.columns, method.values[score], strict=True):
                    numbers = [stat.mean, "" if stat.sd is None else stat.sd, stat.n] if stat else ["", "", 0]
                    out.writerow([method.label, seeds, score, column.kind, column.key, *numbers])
        document.write_text(json.dumps(self.document(), allow_nan=False) + "\n", encoding="utf-8")
        return image, table, document

    def _metrics_only(self) -> "Comparison":
        kept = [index for index, column in enumerate(self.columns) if column.kind == "metric"]
        methods = [
            replace(
                method, values={score: tuple(stats[index] for index in kept) for score, stats in method.values.items()}
            )
            for method in self.methods
        ]
        note = f"The {len(self.columns) - len(kept)} sites stand in comparison.csv."
        return Comparison(tuple(self.columns[index] for index in kept), tuple(methods), (note,))

    def _better(self, score: Score, column: int) -> Better | None:
        chosen = self.columns[column]
        return DEFINITIONS[chosen.key if chosen.kind == "metric" else "overall"].better(score)

    def _grid(self, score: Score) -> list[list[str]]:
        """Header and rows as text; a star marks the best of a column."""
        arrows = {"higher": " ↑", "lower": " ↓", None: ""}
        header = [
            c.title + (arrows[self._better(score, i)] if c.kind == "metric" else "") for i, c in enumerate(self.columns)
        ]
        best = [self.best(score, c) for c in range(len(self.columns))]
        return [["Method", "n", *header]] + [
            [
                method.label,
                str(len(method.seeds)),
                *(
                    ("* " if row in best[c] else "") + (stat.text(SCORES[score][1]) if stat else "–")
                    for c, stat in enumerate(method.values[score])
                ),
            ]
            for row, method in enumerate(self.methods)
        ]

    def _footnotes(self, mark: str = "A star") -> list[str]:
        return [
            "n: seeds; ±: the sample standard deviation over them, which one seed does not have; –: undefined.",
            f"{mark} marks the best mean of a column, which may be chance where the deviations overlap.",
            *self.notes,
        ]


def comparison(runs: Sequence[RunSummary]) -> Comparison:
    """Group runs that differ in nothing but the seed, and average each group over its seeds.

    Raises NotComparable when there is no run, when sites, unseen sites or classes differ, when a run has no scores,
    or when one experiment is there twice with the same seed.
    """
    _check(runs)
    first = runs[0]
    settings = {id(run): _settings(run) for run in runs}
    groups: dict[str, list[RunSummary]] = {}
    for run in runs:
        groups.setdefault(json.dumps([settings[id(run)], run.sites, run.visited]), []).append(run)
    for group in groups.values():
        seeds: dict[int, str] = {}
        for run in group:
            if run.seed in seeds:
                raise NotComparable(
                    f"Runs {seeds[run.seed]} and {run.run} are one experiment with seed {run.seed}; leave one out."
                )
            seeds[run.seed] = run.run
    columns = (
        *(Column("site", site, site) for site in first.sites),
        *(Column("unseen", site, f"{site} (unseen)") for site in first.unseen),
        *(Column("metric", key, definition.title) for key, definition in DEFINITIONS.items()),
    )
    orders = list(dict.fromkeys(run.sites for run in runs))
    methods = [
        Method(
            label=_label(group[0], settings, runs, orders),
            runs=tuple(run.run for run in group),
            seeds=tuple(run.seed for run in group),
            values={
                score: tuple(Stat.of([_value(run, score, column) for run in group]) for column in columns)
                for score in SCORES
            },
        )
        for group in groups.values()
    ]
    return Comparison(columns, tuple(methods), tuple(_notes(runs, orders)))


def _check(runs: Sequence[RunSummary]) -> None:
    if not runs:
        raise NotComparable("There is no run to compare; name at least one.")
    first = runs[0]
    if len({run.run for run in runs}) < len(runs):
        raise NotComparable("One run is named twice; name every run once.")
    for run in runs:
        for what, mine, its in (
            ("sites", sorted(first.sites), sorted(run.sites)),
            ("unseen sites", sorted(first.unseen), sorted(run.unseen)),
            ("classes", list(first.classes), list(run.classes)),
            ("scored cases", [first.plan.scored_cases], [run.plan.scored_cases]),
        ):
            if mine != its:
                raise NotComparable(
                    f"Runs {first.run} and {run.run} have different {what} ({', '.join(mine) or 'none'}; "
                    f"{', '.join(its) or 'none'}); compare runs over the same ones."
                )
        if not run.visited:
            raise NotComparable(
                f"Run {run.run} has no scores yet; finish it with `locum resume {run.run}` or leave it out."
            )


def _settings(run: RunSummary) -> dict[str, Any]:
    """Everything in the plan that could change a result, but the seed and the order, with dotted keys."""
    return dict(_flat("", run.plan.model_dump(mode="json", exclude={"seed", "sites"})))


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key in sorted(value):
            yield from _flat(f"{prefix}.{key}" if prefix else key, value[key])
    else:
        yield prefix, value


def _label(
    run: RunSummary,
    settings: Mapping[int, Mapping[str, Any]],
    runs: Sequence[RunSummary],
    orders: Sequence[tuple[str, ...]],
) -> str:
    """The strategy's name, and what sets this run apart: own parameters among runs of the same strategy, all else
    among all runs, the order, and how far it came."""
    mine = settings[id(run)]
    apart = []
    for key, value in mine.items():
        rivals = [other for other in runs if not key.startswith("strategy.") or other.strategy == run.strategy]
        if any(settings[id(other)].get(key) != value for other in rivals):
            apart.append(f"{key.removeprefix('strategy.')}={value}")
    if len(orders) > 1:
        apart.append(f"order {orders.index(run.sites) + 1}")
    if not run.complete:
        apart.append(f"{run.status} after {len(run.visited)} visits")
    return run.strategy + (f" ({', '.join(apart)})" if apart else "")


def _value(run: RunSummary, score: Score, column: Column) -> float | None:
    if column.kind == "metric":
        return run.metrics[score][column.key]
    value = float(run.matrix(score)[-1, run.columns.index(column.key)])
    return None if np.isnan(value) else value


def _notes(runs: Sequence[RunSummary], orders: Sequence[tuple[str, ...]]) -> Iterator[str]:
    if runs[0].plan.scored != "test":
        yield f"All scores are over {runs[0].plan.scored_cases}, not over test cases."
    if len(orders) > 1:
        for number, order in enumerate(orders, 1):
            yield f"Order {number}: {', '.join(order)}."
    if len(scenarios := dict.fromkeys(run.scenario for run in runs)) > 1:
        yield f"The runs come from different scenarios: {', '.join(scenarios)}."
    counts = {tuple(sorted(zip(run.columns, run.cases.tolist(), strict=True))) for run in runs}
    if len(counts) > 1:
        yield "The runs were scored on different numbers of cases, so their data or splits differ."
    if unfinished := [run.run for run in runs if not run.complete]:
        yield f"Not complete: {', '.join(unfinished)}."

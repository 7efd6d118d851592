"""Tables of methods, printed, drawn and written: means and deviations over runs, the best of a column marked."""

import csv
import itertools
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from coordinator.charts import Bars, Curves
from coordinator.metrics import Better, Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

_DRAWN_COLUMNS = 24  # a wider picture shows the metrics alone
_ARROWS = {"higher": " ↑", "lower": " ↓", None: ""}


@dataclass(frozen=True)
class Stat:
    """Mean over `n` runs and the sample standard deviation, which a single run does not have."""

    mean: float
    sd: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "Stat | None":
        """Over one value per run; None as soon as one of them is undefined."""
        known = [value for value in values if value is not None]
        if not known or len(known) < len(values):
            return None
        return cls(statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None, len(known))

    def text(self, scale: float = 1.0, digits: int = 2) -> str:
        """`92.22 ± 1.10`, or the mean alone."""
        mean = f"{scale * self.mean:.{digits}f}"
        return mean if self.sd is None else f"{mean} ± {scale * self.sd:.{digits}f}"


@dataclass(frozen=True)
class Column:
    """What stands in a column: `kind` and `key` say what it is, see coordinator/compare.py."""

    kind: str
    key: str
    title: str
    better: Better | None
    scale: float | None = None  # instead of the panel's


@dataclass(frozen=True)
class Panel:
    """One block of a comparison: columns of one score, shown times `scale` with so many digits."""

    key: str
    title: str
    score: Score
    columns: tuple[Column, ...]
    scale: float = 1.0
    digits: int = 2
    drawn: bool = False  # as a curve besides, its columns being the visits


@dataclass(frozen=True)
class Method:
    """One row: runs that are averaged. `values` holds a Stat (or None) per panel and column."""

    label: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]  # of the runs; one may be there once per order
    values: Mapping[str, tuple[Stat | None, ...]]
    closed: tuple[float | None, ...] | None = None  # per run the share of the gap in overall DSC, where there is one


@dataclass(frozen=True)
class Comparison:
    """Panels over the same methods, ready to print, draw and write. Scores are fractions (DSC) and mm (ASD)."""

    panels: tuple[Panel, ...]
    methods: tuple[Method, ...]
    notes: tuple[str, ...]
    words: tuple[str, ...] = ()  # what the tables come to, in sentences
    learning: tuple[Curves, ...] = ()  # drawn only
    orders: Bars | None = None  # drawn only: the overall column by visiting order

    def best(self, panel: Panel, column: int) -> set[int]:
        """The methods with the best mean in a column; none when there is nothing to choose from."""
        better = panel.columns[column].better
        means = {
            row: stat.mean
            for row, method in enumerate(self.methods)
            if (stat := method.values[panel.key][column]) is not None
        }
        if len(means) < 2 or better is None:
            return set()
        top = max(means.values()) if better == "higher" else min(means.values())
        return {row for row, mean in means.items() if mean == top}

    def document(self) -> dict[str, Any]:
        """The comparison as JSON: DSC as fractions, ASD in mm; null where a value is undefined."""
        return {
            "panels": [
                {
                    "key": panel.key,
                    "score": panel.score,
                    "columns": [{"kind": column.kind, "key": column.key} for column in panel.columns],
                }
                for panel in self.panels
            ],
            "methods": [
                {
                    "label": method.label,
                    "runs": list(method.runs),
                    "seeds": list(method.seeds),
                    **({} if method.closed is None else {"gap_closed": list(method.closed)}),
                    **{
                        panel.key: [
                            stat and {"mean": stat.mean, "sd": stat.sd, "n": stat.n}
                            for stat in method.values[panel.key]
                        ]
                        for panel in self.panels
                    },
                }
                for method in self.methods
            ],
            "words": list(self.words),
            "notes": list(self.notes),
        }

    def show(self, console: "Console | None" = None) -> None:
        """Print the panels: with rules and colour on a terminal, else plain aligned lines of any width."""
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = console or Console()
        if not console.is_terminal:  # rich would fold at 80 columns what another program reads
            console = Console(file=console.file, width=100_000, no_color=True)
        for panel in self.panels:
            console.print(Text(panel.title, style="italic"))  # as the table's own title it would be folded to its width
            table = Table(box=SIMPLE_HEAD if console.is_terminal else None)
            grid = self.grid(panel)
            widths = (max(map(len, column)) + 3 for column in zip(*grid, strict=True))
            if console.is_terminal and sum(widths) > console.width:
                grid = [list(row) for row in zip(*grid, strict=True)]  # too wide: methods become columns
            for index, name in enumerate(grid[0]):
                table.add_column(Text(name), justify="right" if index else "left", no_wrap=not console.is_terminal)
            for row in grid[1:]:
                table.add_row(*(Text(cell, style="bold" if cell.startswith("* ") else "") for cell in row))
            console.print(table)
        for sentence in self.words:
            console.print(Text(sentence))
        for note in self.footnotes():
            console.print(Text(note, style="dim"))

    def write(self, folder: Path) -> tuple[Path, ...]:
        """Write `comparison.png`, `.md`, `.csv` and `.json`, and where there are any `curves.png` (over visits),
        `learning.png` (over steps) and `orders.png` (by visiting order); return the paths."""
        from coordinator.comparison_figures import bars, curves
        from coordinator.figures import png

        folder.mkdir(parents=True, exist_ok=True)
        image, page, table, document = (folder / f"comparison.{kind}" for kind in ("png", "md", "csv", "json"))
        image.write_bytes(png(self._picture()))
        page.write_text("\n".join(self._markdown()), encoding="utf-8")
        with table.open("w", newline="", encoding="utf-8") as file:
            self.write_csv(file)
        document.write_text(json.dumps(self.document(), allow_nan=False) + "\n", encoding="utf-8")
        pictures: dict[Path, Figure] = {}
        if over_visits := [self._over_visits(panel) for panel in self.panels if panel.drawn]:
            pictures[folder / "curves.png"] = curves(over_visits)
        if self.learning:
            pictures[folder / "learning.png"] = curves(self.learning)
        if self.orders is not None:
            pictures[folder / "orders.png"] = bars(self.orders)
        for path, picture in pictures.items():
            path.write_bytes(png(picture))
        return image, page, table, document, *pictures

    def write_csv(self, file: TextIO) -> None:
        """Write one line per method, panel and column."""
        csv.writer(file).writerows(self._lines())

    def grid(self, panel: Panel, mark: str = "* {}") -> list[list[str]]:
        """Header and rows as text; the best of a column is put into `mark`."""
        header = [c.title + (_ARROWS[c.better] if c.kind == "metric" else "") for c in panel.columns]
        best = [self.best(panel, c) for c in range(len(panel.columns))]
        rows = [
            [
                method.label,
                str(len(method.runs)),
                *(
                    (mark if row in best[c] else "{}").format(stat.text(column.scale or panel.scale, panel.digits))
                    if (stat := method.values[panel.key][c])
                    else "–"
                    for c, column in enumerate(panel.columns)
                ),
            ]
            for row, method in enumerate(self.methods)
        ]
        return [["Method", "n", *header], *rows]

    def footnotes(self, mark: str = "A star") -> list[str]:
        """What a reader must know."""
        return [
            "n: runs; ±: the sample standard deviation over them, which one run does not have; –: undefined.",
            f"{mark} marks the best mean of a column, which may be chance where the deviations overlap.",
            *self.notes,
        ]

    def _lines(self) -> Iterable[list[Any]]:
        """The CSV: one line per method, panel and column."""
        yield ["method", "seeds", "score", "kind", "column", "mean", "sd", "n"]
        for method, panel in itertools.product(self.methods, self.panels):
            seeds = " ".join(map(str, method.seeds))
            for column, stat in zip(panel.columns, method.values[panel.key], strict=True):
                numbers = [stat.mean, "" if stat.sd is None else stat.sd, stat.n] if stat else ["", "", 0]
                yield [method.label, seeds, panel.score, column.kind, column.key, *numbers]

    def _markdown(self) -> Iterable[str]:
        for panel in self.panels:
            header, *rows = self.grid(panel, mark="**{}**")
            yield f"{panel.title}\n"
            yield f"| {' | '.join(header)} |"
            yield "|---" + "|---:" * (len(header) - 1) + "|"
            yield from (f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows)
            yield ""
        if self.words:
            yield from (*(f"- {sentence}" for sentence in self.words), "")
        yield from (f"- {note}" for note in self.footnotes("Bold"))
        yield ""

    def _picture(self) -> "Figure":
        from coordinator.comparison_figures import TablePanel, table

        drawn, left_out = [], 0
        for panel in self.panels:
            kept = list(range(len(panel.columns)))
            if len(kept) > _DRAWN_COLUMNS:
                kept = [c for c in kept if panel.columns[c].kind not in ("site", "unseen")]
                left_out = len(panel.columns) - len(kept)
            best = {(row, place + 2) for place, c in enumerate(kept) for row in self.best(panel, c)}
            header, *rows = ([row[c] for c in (0, 1, *(c + 2 for c in kept))] for row in self.grid(panel, mark="{}"))
            drawn.append(TablePanel(panel.title, header, rows, frozenset(best)))
        notes = self.footnotes("Bold")
        return table(drawn, [*notes, f"The {left_out} sites stand in comparison.csv."] if left_out else notes)

    def _over_visits(self, panel: Panel) -> Curves:
        return Curves(
            panel.title,
            "visit",
            "DSC",
            range(1, len(panel.columns) + 1),
            {
                method.label: (
                    [stat.mean if stat else math.nan for stat in method.values[panel.key]],
                    [math.nan if stat is None or stat.sd is None else stat.sd for stat in method.values[panel.key]],
                )
                for method in self.methods
            },
            limits=(0, 1.03),
            marked=True,
        )

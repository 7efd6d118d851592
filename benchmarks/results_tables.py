"""The tables of docs/results.md, from the runs of a home: one per scenario and score, mean and deviation over seeds.

Usage: python benchmarks/results_tables.py HOME SCENARIO_NAME...
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from coordinator.compare import comparison
from coordinator.home import Home
from coordinator.listing import listed
from coordinator.metrics import Score
from coordinator.results import summarise
from coordinator.store import sqlite_url
from coordinator.tables import Comparison

TITLES: dict[Score, str] = {"dsc": "DSC, %", "asd": "ASD, mm (pixels for pictures)"}
SHOWN = ("overall", "gap", "bwt", "rem", "fwt", "tl", "cl")


def tables(found: Comparison) -> Iterator[str]:
    """Markdown: methods by sites and by the metrics that show forgetting."""
    for panel in found.panels:
        kept = [
            i for i, column in enumerate(panel.columns) if column.kind not in ("metric", "gap") or column.key in SHOWN
        ]
        title = TITLES[panel.score]
        yield f"| {title} | seeds | " + " | ".join(panel.columns[i].title for i in kept) + " |"
        yield "|---" * (len(kept) + 2) + "|"
        for method in found.methods:
            cells = [stat.text(panel.scale) if (stat := method.values[panel.key][i]) else "–" for i in kept]
            yield f"| {method.label} | {', '.join(map(str, method.seeds))} | " + " | ".join(cells) + " |"
        yield ""


def main() -> None:
    home = Home(Path(sys.argv[1]), sqlite_url(Path(sys.argv[1])))
    for name in sys.argv[2:]:
        newest_last = reversed([row for row in listed(home) if row["status"] == "done"])
        names = {
            (row["strategy"], str(row["parameters"]), row["seed"]): row["run"]
            for row in newest_last
            if row["scenario"] == name
        }
        exact = [summarise(home.store().run(run)) for run in sorted(names.values())]
        words = [run.plan.strategy.in_words for run in exact]
        seconds = {w: [run.seconds for run, of in zip(exact, words, strict=True) if of == w] for w in words}
        sys.stdout.write(f"\n## {name}\n\n" + "\n".join(tables(comparison(exact))))
        for strategy, times in seconds.items():
            sys.stdout.write(f"{strategy}: {', '.join(f'{t:.0f}' for t in times)} s. ")
        penalised = sum(int(run.penalised[-1].sum()) for run in exact)
        sys.stdout.write(f"\nPenalised pairs in the final rows: {penalised}\n")


if __name__ == "__main__":
    main()

"""What the command line prints: score matrices, metrics, runs, strategies. Plain text when not a terminal."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.columns import Columns
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from coordinator.gap import gap_in_words
from coordinator.metrics import Score
from coordinator.report import plain_words
from coordinator.summary import RunSummary
from protos.plan import StrategyChoice

WIDTH_OFF_TERMINAL = 160  # tables are not cut when they go to a file or a pipe


def console() -> Console:
    """Standard output."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=WIDTH_OFF_TERMINAL)


def print_conclusion(summaries: Sequence[RunSummary], reports: Sequence[Path]) -> None:
    """The matrices side by side, what was forgotten and what of the gap was closed in words, where the reports are."""
    out = console()
    out.print(Columns([matrix_table(summary, "dsc") for summary in summaries], padding=(0, 4)))
    for summary in summaries:
        if len(summaries) > 1:
            out.print(f"\n[bold]{escape(summary.plan.strategy.in_words)}[/] (seed {summary.seed})")
        for sentence in plain_words(summary):
            out.print(sentence, markup=False)
    scored = [summary for summary in summaries if summary.visited]
    if words := gap_in_words(scored):
        out.print()
        for sentence in words:
            out.print(sentence, markup=False, style="bold")
    if reports:
        out.print()
    for path in reports:
        out.print(f"report: {path}", markup=False, soft_wrap=True)


def print_run(summary: RunSummary) -> None:
    """One run: both matrices, the metrics, the stops."""
    out = console()
    out.print(f"run {summary.run}: {summary.status}", markup=False)
    out.print(Columns([matrix_table(summary, "dsc"), matrix_table(summary, "asd")], padding=(0, 4)))
    out.print(_metrics_table(summary))
    out.print(_stops_table(summary))
    for sentence in plain_words(summary):
        out.print(sentence, markup=False)


def matrix_table(summary: RunSummary, score: Score) -> Table:
    """R as a table: a row per visit, a column per site, the unseen ones marked."""
    title = {"dsc": "DSC", "asd": "ASD (mm; pixels for pictures)"}[score]
    over = "" if summary.plan.scored == "test" else f", {summary.plan.scored_cases}"
    table = Table(title=f"{escape(summary.plan.strategy.in_words)}: {title}{over}", title_justify="left")
    table.add_column("after visiting")
    for site in summary.columns:
        table.add_column(escape(site) + (" (unseen)" if site in summary.unseen else ""), justify="right")
    for sites, row in zip(summary.visited, summary.matrix(score), strict=True):
        name = sites[0] if len(sites) == 1 else f"all {len(sites)} at once"
        table.add_row(escape(name), *(_cell(value, score) for value in row))
    return table


def print_runs(rows: Iterable[Mapping[str, Any]]) -> None:
    """The list of runs."""
    table, rows = Table(), list(rows)
    waiting = any(row["waits_for"] for row in rows)
    for name in ("run", "status", "strategy", "seed", "stops", "created", "seconds", *(["waits for"] * waiting)):
        table.add_column(
            name, justify="right" if name in ("seed", "stops", "seconds") else "left", no_wrap=name == "run"
        )
    for row in rows:
        table.add_row(
            escape(row["run"]),
            row["status"],
            escape(StrategyChoice(name=row["strategy"], **row["parameters"]).in_words),
            str(row["seed"]),
            f"{row['stops_done']}/{row['stops']}",
            row["created"],
            f"{row['seconds']:.1f}",
            *([escape(row["waits_for"] or "")] * waiting),
        )
    console().print(table)


def print_sites(rows: Iterable[Mapping[str, Any]]) -> None:
    """The list of a coordinator's sites."""
    table = Table()
    for name in ("site", "online", "last seen", "software", "code", "torch", "schema", "cases"):
        table.add_column(name, no_wrap=name in ("site", "software", "code"))
    for row in rows:
        cases = ", ".join(f"{part} {count}" for part, count in row["cases"].items())
        code = row["code_sha256"] and row["code_sha256"][:8]
        known = (row["last_seen"], row["software"], code, row["torch"], row["schema_version"], cases or None)
        said = ("-" if value is None else escape(str(value)) for value in known)
        table.add_row(escape(row["site"]), "yes" if row["online"] else "no", *said)
    console().print(table)


def print_strategies(rows: Iterable[Mapping[str, Any]]) -> None:
    """The list of strategies."""
    table = Table()
    for name in ("strategy", "carries", "parameters (defaults)", "what it does"):
        table.add_column(name, no_wrap=name == "strategy")
    for row in rows:
        parameters = ", ".join(f"{name}={value}" for name, value in row["parameters"].items())
        table.add_row(row["strategy"], ", ".join(row["carries"]), parameters, row["summary"])
    console().print(table)


def _metrics_table(summary: RunSummary) -> Table:
    table = Table(title="metrics", title_justify="left")
    table.add_column("")
    names = list(summary.metrics["dsc"])
    for name in names:
        table.add_column(name, justify="right")
    for score, values in summary.metrics.items():
        table.add_row(score.upper(), *("-" if (v := values[name]) is None else f"{v:.3f}" for name in names))
    return table


def _stops_table(summary: RunSummary) -> Table:
    table = Table(title="stops", title_justify="left")
    for name in ("stop", "site", "status", "seconds", "note"):
        table.add_column(name)
    for stop in summary.stops:
        notes = stop.without
        if stop.status == "skipped":
            notes = [f"skipped by {stop.skipped_by}: {stop.why}"]
        elif stop.code is not None:
            notes = [f"{stop.failed_at}: {stop.code}", *notes]
        seconds = "" if stop.seconds is None else f"{stop.seconds:.1f}"
        table.add_row(str(stop.index), escape(stop.where), stop.status, seconds, escape("; ".join(notes)))
    return table


def _cell(value: float, score: Score) -> str:
    if np.isnan(value):
        return "-"
    if score == "asd":
        return f"{value:.2f}"
    # on a terminal the digits' colour is the heat: from red (0) over yellow to green (1)
    shade = 255 - int(120 * value), 80 + int(150 * value), 80
    return f"[rgb({shade[0]},{shade[1]},{shade[2]})]{value:.3f}[/]"

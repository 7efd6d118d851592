"""Comparison of runs as in the papers: which values stand in which table, and what is drawn beside it."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from coordinator.charts import Bars, Curves
from coordinator.gap import CEILING, FLOOR, Gap
from coordinator.learning import COURSES, courses, places
from coordinator.methods import Methods
from coordinator.metrics import DEFINITIONS, Score, all_sites, bwt_by_site, zero_shot
from coordinator.summary import RunSummary
from coordinator.tables import Column, Comparison, Method, Panel, Stat

TableName = Literal["overview", "mas-lr", "ms-er"]
SCORES: tuple[Score, ...] = ("dsc", "asd")

_TITLES: Mapping[Score, tuple[str, float]] = {"dsc": ("DSC (%)", 100.0), "asd": ("ASD (mm; pixels for pictures)", 1.0)}
_NOTES: Mapping[TableName, tuple[str, ...]] = {
    "mas-lr": ("The ± of the paper's Table 1 is over segmented structures, here it is over runs.",),
    "ms-er": (
        "A site's BWT is its final score minus that right after its own visit, so 0 in a run that visits it last.",
        "One model learnt from all sites at once has one score after every visit.",
    ),
}


class NotComparable(ValueError):
    """Runs that cannot stand in one table; the text is one sentence that says why and what to do."""


def comparison(runs: Sequence[RunSummary], table: TableName = "overview", *, pool: bool = False) -> Comparison:
    """Group runs that differ in nothing but the seed, and with `pool` the order too, and average each group.

    `overview` has the final scores and all metrics, for DSC and ASD; `mas-lr` the columns of MAS-LR's Table 1, and
    `ms-er` the BWT per site of MS-ER's with its curves over the visits, for DSC alone. Raises NotComparable when there
    is no run, when sites, unseen sites, classes or scored cases differ, when a run has no scores, or when one
    experiment is there twice with the same seed (and order).
    """
    _check(runs)
    methods = Methods(runs, pool=pool)
    for group in methods.groups:
        known: dict[Any, str] = {}
        for run in group:
            if (run.seed, run.sites) in known:
                other = known[run.seed, run.sites]
                raise NotComparable(
                    f"Runs {other} and {run.run} are one experiment with seed {run.seed}; leave one out."
                )
            known[run.seed, run.sites] = run.run
    gap = Gap(methods)
    panels = tuple(_panels(table, runs, gap))
    shown = any(column.kind == "gap" for panel in panels for column in panel.columns)
    rows = tuple(
        Method(
            label=methods.label(group[0]),
            runs=tuple(run.run for run in group),
            seeds=tuple(run.seed for run in group),
            values={
                panel.key: tuple(
                    Stat.of([_value(run, panel.score, column, gap) for run in group]) for column in panel.columns
                )
                for panel in panels
            },
            closed=tuple(gap.closed(run) for run in group) if shown else None,
        )
        for group in methods.groups
    )
    notes = list(_notes(methods, pool))
    if shown:
        notes.append(f"Gap closed: (Overall - {FLOOR}'s) / ({CEILING}'s - {FLOOR}'s), run by run; –: no gap.")
    return Comparison(
        panels,
        rows,
        (*notes, *_NOTES.get(table, ())),
        words=gap.words() if shown else (),
        learning=tuple(_learning(methods)),
        orders=None if pool or table != "overview" else _orders(methods),
    )


# Tables


def _panels(table: TableName, runs: Sequence[RunSummary], gap: Gap) -> Iterator[Panel]:
    first = runs[0]
    match table:
        case "overview":
            for score in SCORES:
                better = DEFINITIONS["overall"].better(score)
                columns = (
                    *(Column("site", site, site, better) for site in first.sites),
                    *(Column("unseen", site, f"{site} (unseen)", better) for site in first.unseen),
                    *(_metric(key, score) for key in DEFINITIONS),
                    *([Column("gap", "gap", "Gap closed (%)", "higher", 100.0)] if gap.there else []),
                )
                title, scale = _TITLES[score]
                yield Panel(score, title, score, columns, scale)
        case "mas-lr":
            keys = {"cl": "CL DSC"} | {key: DEFINITIONS[key].title for key in ("rem", "bwt_plus", "tl", "fwt")}
            columns = tuple(_metric(key, "dsc", title) for key, title in keys.items())
            yield Panel("dsc", "As MAS-LR's Table 1", "dsc", columns, digits=3)
        case "ms-er":
            columns = (*(Column("bwt", site, site, "higher") for site in first.sites), _metric("bwt", "dsc", "mean"))
            yield Panel("bwt", "BWT (DSC), as MS-ER's Table 1", "dsc", columns, digits=3)
            for key, title, visits in (
                ("zero_shot", "DSC on sites not visited yet", len(first.sites) - 1),
                ("all_sites", "DSC on all sites, visited yet or not", len(first.sites)),
            ):
                numbers = range(1, visits + 1)
                columns = tuple(Column(key, str(number), f"visit {number}", "higher") for number in numbers)
                if columns:
                    yield Panel(key, f"Mean {title}, after each visit", "dsc", columns, digits=3, drawn=True)


def _metric(key: str, score: Score, title: str | None = None) -> Column:
    return Column("metric", key, title or DEFINITIONS[key].title, DEFINITIONS[key].better(score))


def _value(run: RunSummary, score: Score, column: Column, gap: Gap) -> float | None:
    """The value of a run in a column of any kind; None where it is undefined."""
    R = run.matrix(score)
    match column.kind:
        case "metric":
            return run.metrics[score][column.key]
        case "gap":
            return gap.closed(run, score)
        case "bwt":
            return None if run.order is None else bwt_by_site(R, run.order)[run.columns.index(column.key)]
        case "zero_shot":
            return None if run.order is None else _at(zero_shot(R[:, : len(run.sites)], run.order), column)
        case "all_sites":
            means = all_sites(R[:, : len(run.sites)])
            return means[-1] if run.order is None else _at(means, column)
        case _:
            final = float(R[-1, run.columns.index(column.key)])
            return None if np.isnan(final) else final


def _at(values: Sequence[float | None], column: Column) -> float | None:
    """The value after the visit that the column names; None where the run has not come so far."""
    visit = int(column.key)
    return values[visit - 1] if visit <= len(values) else None


# Pictures


def _learning(methods: Methods) -> Iterator[Curves]:
    """How the gradients' alignment and the loss went on in the last visit, the mean over a method's runs."""
    for kind in ("alignment", "loss"):
        lines, lengths = {}, set()
        for group in methods.groups:
            last = [found[-1] for run in group if (found := courses(run, kind))]
            if len(last) == len(group):
                every = np.array([values for _, values in last])
                sd = every.std(axis=0, ddof=1) if len(every) > 1 else np.full(every.shape[1], np.nan)
                lines[methods.label(group[0])] = every.mean(axis=0).tolist(), sd.tolist()
                lengths |= {stop.metrics.get("steps") for stop, _ in last}
        if lines:
            x, across = places(lengths.pop() if len(lengths) == 1 else None)
            shown = COURSES[kind]
            yield Curves(f"{shown.title}, last visit", across, shown.up, x.tolist(), lines, shown.limits)


def _orders(methods: Methods) -> Bars | None:
    """The overall DSC of every method by visiting order; None where there is one order."""
    if len(methods.orders) < 2:
        return None
    bars: dict[str, tuple[list[float], list[float]]] = {}
    for group in methods.groups:
        stat = Stat.of([run.metrics["dsc"]["overall"] for run in group])
        empty = [np.nan] * len(methods.orders), [np.nan] * len(methods.orders)
        means, deviations = bars.setdefault(methods.label(group[0], order=False), empty)
        if stat is not None:
            place = methods.order(group[0]) - 1
            means[place] = stat.mean
            deviations[place] = np.nan if stat.sd is None else stat.sd
    names = [f"order {number}" for number in range(1, len(methods.orders) + 1)]
    return Bars("Overall DSC by visiting order", "DSC", names, bars)


# Runs


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


def _notes(methods: Methods, pool: bool) -> Iterator[str]:
    runs = methods.runs
    if runs[0].plan.scored != "test":
        yield f"All scores are over {runs[0].plan.scored_cases}, not over test cases."
    if pool and len(methods.orders) > 1:
        seeds = len({run.seed for run in runs})
        yield f"Pooled over {seeds} seed{'s' * (seeds > 1)} and {len(methods.orders)} orders of the visits."
    yield from methods.order_notes()
    if len(scenarios := dict.fromkeys(run.scenario for run in runs)) > 1:
        yield f"The runs come from different scenarios: {', '.join(scenarios)}."
    counts = {tuple(sorted(zip(run.columns, run.cases.tolist(), strict=True))) for run in runs}
    if len(counts) > 1:
        yield "The runs were scored on different numbers of cases, so their data or splits differ."
    if unfinished := [run.run for run in runs if not run.complete]:
        yield f"Not complete: {', '.join(unfinished)}."

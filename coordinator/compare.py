"""Comparison of runs as in the papers: which runs make a method, and which values stand in which table."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from coordinator.metrics import DEFINITIONS, Score, all_sites, bwt_by_site, gap_closed, zero_shot
from coordinator.summary import RunSummary
from coordinator.tables import Column, Comparison, Method, Panel, Stat

TableName = Literal["overview", "mas-lr", "ms-er"]
SCORES: tuple[Score, ...] = ("dsc", "asd")

_TITLES: Mapping[Score, tuple[str, float]] = {"dsc": ("DSC (%)", 100.0), "asd": ("ASD (mm; pixels for pictures)", 1.0)}
_FLOOR, _CEILING = "finetune", "joint"  # between which a gap is closed
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
    settings = {id(run): _settings(run) for run in runs}
    groups: dict[str, list[RunSummary]] = {}
    for run in runs:
        came_to = [len(run.visited), run.complete] if pool else [run.sites, run.visited]
        groups.setdefault(json.dumps([settings[id(run)], came_to]), []).append(run)
    for group in groups.values():
        known: dict[Any, str] = {}
        for run in group:
            if (run.seed, run.sites) in known:
                other = known[run.seed, run.sites]
                raise NotComparable(
                    f"Runs {other} and {run.run} are one experiment with seed {run.seed}; leave one out."
                )
            known[run.seed, run.sites] = run.run
    orders = list(dict.fromkeys(run.sites for run in runs))
    panels = tuple(_panels(table, runs))
    values = _reader(runs, settings)
    methods = [
        Method(
            label=_label(group[0], settings, runs, [] if pool else orders),
            runs=tuple(run.run for run in group),
            seeds=tuple(run.seed for run in group),
            values={
                panel.key: tuple(
                    Stat.of([values(run, panel.score, column) for run in group]) for column in panel.columns
                )
                for panel in panels
            },
        )
        for group in groups.values()
    ]
    notes = list(_notes(runs, orders, pool))
    if any(column.kind == "gap" for panel in panels for column in panel.columns):
        notes.append(f"Gap closed: (Overall - {_FLOOR}'s) / ({_CEILING}'s - {_FLOOR}'s), run by run; –: no gap.")
    return Comparison(panels, tuple(methods), (*notes, *_NOTES.get(table, ())))


# Tables


def _panels(table: TableName, runs: Sequence[RunSummary]) -> Iterator[Panel]:
    first = runs[0]
    match table:
        case "overview":
            gap = {_FLOOR, _CEILING} <= {run.strategy for run in runs}
            for score in SCORES:
                better = DEFINITIONS["overall"].better(score)
                columns = (
                    *(Column("site", site, site, better) for site in first.sites),
                    *(Column("unseen", site, f"{site} (unseen)", better) for site in first.unseen),
                    *(_metric(key, score) for key in DEFINITIONS),
                    *([Column("gap", "gap", "Gap closed (%)", "higher", 100.0)] if gap else []),
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


def _reader(
    runs: Sequence[RunSummary], settings: Mapping[int, Mapping[str, Any]]
) -> Callable[[RunSummary, Score, Column], float | None]:
    """What gives the value of a run in a column of any kind; None where it is undefined."""
    beside: dict[Any, float | None] = {}  # what surrounds the strategy -> the overall score of floor and ceiling

    def place(run: RunSummary, score: Score, strategy: str) -> Any:
        frame = {key: value for key, value in settings[id(run)].items() if not key.startswith("strategy.")}
        return strategy, score, json.dumps([frame, run.seed, run.sites])

    for run in runs:
        for score in SCORES:
            beside[place(run, score, run.strategy)] = run.metrics[score]["overall"] if run.complete else None

    def value(run: RunSummary, score: Score, column: Column) -> float | None:
        R = run.matrix(score)
        match column.kind:
            case "metric":
                return run.metrics[score][column.key]
            case "gap":
                better = DEFINITIONS["overall"].better(score)
                mine = run.metrics[score]["overall"]
                floor, ceiling = (beside.get(place(run, score, strategy)) for strategy in (_FLOOR, _CEILING))
                if mine is None or floor is None or ceiling is None or better is None:
                    return None
                return gap_closed(mine, floor, ceiling, better)
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

    return value


def _at(values: Sequence[float | None], column: Column) -> float | None:
    """The value after the visit that the column names; None where the run has not come so far."""
    visit = int(column.key)
    return values[visit - 1] if visit <= len(values) else None


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


def _notes(runs: Sequence[RunSummary], orders: Sequence[tuple[str, ...]], pool: bool) -> Iterator[str]:
    if runs[0].plan.scored != "test":
        yield f"All scores are over {runs[0].plan.scored_cases}, not over test cases."
    if pool and len(orders) > 1:
        seeds = len({run.seed for run in runs})
        yield f"Pooled over {seeds} seed{'s' * (seeds > 1)} and {len(orders)} orders of the visits."
    elif len(orders) > 1:
        for number, order in enumerate(orders, 1):
            yield f"Order {number}: {', '.join(order)}."
    if len(scenarios := dict.fromkeys(run.scenario for run in runs)) > 1:
        yield f"The runs come from different scenarios: {', '.join(scenarios)}."
    counts = {tuple(sorted(zip(run.columns, run.cases.tolist(), strict=True))) for run in runs}
    if len(counts) > 1:
        yield "The runs were scored on different numbers of cases, so their data or splits differ."
    if unfinished := [run.run for run in runs if not run.complete]:
        yield f"Not complete: {', '.join(unfinished)}."

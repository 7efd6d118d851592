"""From the store's rows to the run document."""

from pathlib import Path

import numpy as np

from coordinator.scenario import Scenario
from coordinator.store import Run, ScoreRow, StopRow
from coordinator.summary import DRIFTS, RunSummary, Stop, Traffic


def summarise(run: Run) -> RunSummary:
    """The summary of a run as far as it has come."""
    scenario = Scenario.model_validate(run.scenario)
    plan = scenario.plan()
    unseen = tuple(site.name for site in scenario.unseen)
    columns = (*plan.sites, *unseen)
    scores = {(row.stop, row.site): row.metrics for row in run.scores}
    rows = {row.stop for row in run.scores}
    scored = [stop for stop in run.stops if stop.status == "done" and stop.index in rows]
    classes = range(1, len(plan.task.classes))

    def grid(key: str, missing: float) -> list[list[float]]:
        return [[(scores.get((stop.index, site)) or {}).get(key, missing) for site in columns] for stop in scored]

    def stacked(*keys: str) -> np.ndarray:
        layers = [grid(key, np.nan) for key in keys]
        return np.array(layers, float).reshape(len(layers), len(scored), len(columns)).transpose(1, 2, 0)

    def counts(key: str) -> np.ndarray:
        return np.array(grid(key, 0), int).reshape(len(scored), len(columns))

    cases = counts("cases")
    done = [stop for stop in run.stops if stop.status == "done"]
    return RunSummary(
        run=run.id,
        status=run.status,
        scenario=run.name,
        plan=plan,
        unseen=unseen,
        stops=tuple(_stop(row) for row in run.stops),
        visited=tuple(tuple(stop.sites) for stop in scored),
        dsc=stacked(*(f"dsc.{number}" for number in classes)),
        asd=stacked(*(f"asd.{number}" for number in classes)),
        both_empty=counts("both_empty"),
        penalised=counts("penalised"),
        cases=cases.max(axis=0, initial=0),
        drift=stacked(*(f"drift_{name}" for name in DRIFTS)),
        traffic=_traffic(run.stops, run.scores),
        seconds=run.seconds,
        weights_sha256=done[-1].weights_sha256 if done else None,
        software=run.software,
        command=run.command,
        policies=tuple(run.policies),
    )


def overlays(summary: RunSummary, home: Path) -> list[tuple[str, int, bytes]]:
    """The samples that the nodes of synthetic sites left in their own folders: site, visit from 1, PNG.

    Only those after each site's own visit and after the last, so that a page stays small.
    """
    return _left_at_nodes(summary, home, "overlays")


def replays(summary: RunSummary, home: Path) -> list[tuple[str, int, bytes]]:
    """The pictures of real above replayed images that the nodes of synthetic sites left, chosen as `overlays` does."""
    return _left_at_nodes(summary, home, "replays")


def _left_at_nodes(summary: RunSummary, home: Path, kind: str) -> list[tuple[str, int, bytes]]:
    found = []
    rows = [stop.index for stop in summary.stops if stop.status == "done"]
    for site in summary.columns:
        own = [visit for visit, sites in enumerate(summary.visited) if site in sites]
        for visit in sorted({*own, len(rows) - 1}):
            path = home / "nodes" / site / kind / summary.run / f"{rows[visit]:04d}.png" if rows else home
            if path.is_file():
                found.append((site, visit + 1, path.read_bytes()))
    return found


def _stop(row: StopRow) -> Stop:
    error = row.error or {}
    return Stop(
        index=row.index,
        sites=tuple(row.sites),
        action=row.action,
        status=row.status,  # type: ignore[arg-type]
        seconds=row.seconds if row.status == "done" else None,
        sent=_by_kind(row, "sent"),
        received=_by_kind(row, "received"),
        metrics=row.metrics.get(row.sites[0], {}) if len(row.sites) == 1 else {},
        skipped_by=row.skipped_by,
        why=row.skipped_why,
        failed_at=error.get("site"),
        code=error.get("code"),
        rehearsing=tuple(row.rehearsing),
        left_out={site: f"{said['by']}: {said['why']}" for site, said in row.left_out.items()},
    )


def _by_kind(row: StopRow, direction: str) -> dict[str, int]:
    total: dict[str, int] = {}
    for site in row.traffic.values():
        for kind, size in site[direction].items():
            total[kind] = total.get(kind, 0) + size
    return total


def _traffic(stops: list[StopRow], scores: list[ScoreRow]) -> tuple[Traffic, ...]:
    """Bytes per site and kind over the whole run, scoring included."""
    exchanges = [(site, both) for stop in stops for site, both in stop.traffic.items()]
    exchanges += [(score.site, score.traffic) for score in scores if score.traffic]
    total: dict[tuple[str, str], dict[str, int]] = {}
    for site, both in exchanges:
        for direction, sizes in both.items():
            for kind, size in sizes.items():
                cell = total.setdefault((site, kind), {"sent": 0, "received": 0})
                cell[direction] += size
    return tuple(Traffic(site=site, kind=kind, **cell) for (site, kind), cell in sorted(total.items()))

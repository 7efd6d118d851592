"""From the store's rows to the run document."""

from collections.abc import Iterable, Mapping
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from coordinator.scenario import Scenario
from coordinator.store import Run, StopRow
from coordinator.summary import DRIFTS, RunSummary, Stop, Traffic


class ScoreLike(Protocol):
    """A row of scores as far as it is wanted here."""

    @property
    def site(self) -> str:
        """Who scored."""

    @property
    def metrics(self) -> Mapping[str, Any] | None:
        """What it measured; None where it could not."""

    @property
    def traffic(self) -> Mapping[str, Any]:
        """Bytes by direction and kind."""


Totals = dict[tuple[str, str], dict[str, int]]  # (site, kind) -> sent/received -> bytes


class Scores:
    """What the scores of a run come to, stop by stop, in little memory."""

    def __init__(self, scenario: Scenario) -> None:
        self.plan = scenario.plan()
        self.unseen = tuple(site.name for site in scenario.unseen)
        self.columns = (*self.plan.sites, *self.unseen)
        classes = range(1, len(self.plan.task.classes))
        self._classes = len(classes)
        scored = (*(f"dsc.{number}" for number in classes), *(f"asd.{number}" for number in classes))
        self._keys = (*scored, "both_empty", "penalised", "cases", *(f"drift_{name}" for name in DRIFTS))
        self._place = {site: column for column, site in enumerate(self.columns)}
        self._rows: dict[int, NDArray[np.float64]] = {}  # stop -> [keys, columns], NaN where there is nothing
        self._traffic: Totals = {}

    def put(self, stop: int, scores: Iterable[ScoreLike]) -> None:
        """Add to what is known of a stop; a score that is known already is not counted twice."""
        row = self._rows.setdefault(stop, np.full((len(self._keys), len(self.columns)), np.nan))
        absent = self._absent(stop)
        new = [score for score in scores if score.metrics and absent.get(score.site)]
        for score in new:
            _add(self._traffic, {score.site: score.traffic})
        values = [[score.metrics.get(key, np.nan) for key in self._keys] for score in new if score.metrics]
        if new:
            row[:, [self._place[score.site] for score in new]] = np.array(values, float).T

    def missing(self, stop: int) -> list[str]:
        """The columns without a score, in order."""
        return [site for site, is_absent in self._absent(stop).items() if is_absent]

    def _absent(self, stop: int) -> dict[str, bool]:
        row = self._rows.get(stop)
        absent = [True] * len(self.columns) if row is None else np.all(np.isnan(row), axis=0).tolist()
        return dict(zip(self.columns, absent, strict=True))

    def summary(self, run: Run) -> RunSummary:
        """The summary of the run, whose own columns and stops are loaded."""
        scored = [stop for stop in run.stops if stop.status == "done" and stop.index in self._rows]
        rows = [self._rows[stop.index] for stop in scored]
        shape = (len(self._keys), len(rows), len(self.columns))
        values = np.stack(rows, axis=1) if rows else np.empty(shape)
        both_empty, penalised, cases = np.nan_to_num(values[2 * self._classes : 2 * self._classes + 3]).astype(int)
        dsc, asd, drift = (
            values[first : first + count].transpose(1, 2, 0)
            for first, count in (
                (0, self._classes),
                (self._classes, self._classes),
                (len(self._keys) - len(DRIFTS), len(DRIFTS)),
            )
        )
        done = [stop for stop in run.stops if stop.status == "done"]
        traffic: Totals = {cell: dict(both) for cell, both in self._traffic.items()}
        for stop in run.stops:
            _add(traffic, stop.traffic)
        return RunSummary(
            run=run.id,
            status=run.status,
            scenario=run.name,
            plan=self.plan,
            unseen=self.unseen,
            stops=tuple(_stop(row) for row in run.stops),
            visited=tuple(tuple(stop.sites) for stop in scored),
            dsc=dsc,
            asd=asd,
            both_empty=both_empty,
            penalised=penalised,
            cases=cases.max(axis=0, initial=0),
            drift=drift,
            traffic=tuple(Traffic(site=site, kind=kind, **both) for (site, kind), both in sorted(traffic.items())),
            seconds=run.seconds,
            weights_sha256=done[-1].weights_sha256 if done else None,
            software=run.software,
            command=run.command,
            policies=tuple(run.policies),
        )


def summarise(run: Run) -> RunSummary:
    """The summary of a run as far as it has come."""
    scores = Scores(Scenario.model_validate(run.scenario))
    of_stop = attrgetter("stop")
    for stop, rows in groupby(sorted(run.scores, key=of_stop), key=of_stop):
        scores.put(stop, rows)
    return scores.summary(run)


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


def _add(totals: Totals, traffic: Mapping[str, Mapping[str, Mapping[str, int]]]) -> None:
    """Count bytes: site -> sent/received -> kind -> bytes."""
    for site, both in traffic.items():
        for direction, sizes in both.items():
            for kind, size in sizes.items():
                cell = totals.setdefault((site, kind), {"sent": 0, "received": 0})
                cell[direction] += size

"""The run document: all that reports, comparisons and `--json` say about a run, in one immutable value."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from coordinator.metrics import Matrix, Score, evaluate
from protos.plan import Plan

StopStatus = Literal["pending", "running", "done", "failed", "skipped"]
DRIFTS = ("mean", "std", "edge")


@dataclass(frozen=True, kw_only=True)
class Stop:
    """One stop of the itinerary and what came of it. Bytes are given by kind of artifact."""

    index: int  # from 0
    sites: tuple[str, ...]
    action: str
    status: StopStatus
    seconds: float | None = None
    sent: Mapping[str, int] = field(default_factory=dict)  # to the sites
    received: Mapping[str, int] = field(default_factory=dict)  # from the sites
    metrics: Mapping[str, float] = field(default_factory=dict)  # declared scalars of the training
    skipped_by: str | None = None
    why: str | None = None  # of a skip
    failed_at: str | None = None  # the site that refused or failed
    code: str | None = None  # of the failure
    rehearsing: tuple[str, ...] = ()  # sites that took part with the cases they keep
    left_out: Mapping[str, str] = field(default_factory=dict)  # site that was to rehearse -> who left it out, and why

    @property
    def where(self) -> str:
        """All sites that take part, in words."""
        rehearsal = f", rehearsing at {', '.join(self.rehearsing)}" if self.rehearsing else ""
        return ", ".join(self.sites) + rehearsal

    @property
    def without(self) -> list[str]:
        """The rehearsals that were left out, in words."""
        if self.status == "skipped":
            return []
        return [f"the rehearsal at {site} was left out by {said}" for site, said in self.left_out.items()]


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes between the coordinator and one site over the whole run, scoring included, for one kind of artifact."""

    site: str
    kind: str
    sent: int  # to the site
    received: int  # from the site


@dataclass(frozen=True, kw_only=True, eq=False)
class RunSummary:
    """One run: what was planned, what was done, and every score.

    Axes: rows are the scored models in order (a skipped or failed stop has none), columns are `plan.sites`, then
    `unseen`, classes are those of the task without the background. A score that does not exist is NaN.
    Raises ValueError when the arrays' shapes or the sites do not fit together.
    """

    run: str
    status: str  # "done" when every stop is
    scenario: str  # its name
    plan: Plan
    unseen: tuple[str, ...]
    stops: tuple[Stop, ...]
    visited: tuple[tuple[str, ...], ...]  # per row: the sites learnt from; several at once for joint training
    dsc: NDArray[np.float64]  # [rows, columns, classes], fractions: mean over the site's scored cases
    asd: NDArray[np.float64]  # [rows, columns, classes], mm (pixels for pictures)
    both_empty: NDArray[np.int64]  # [rows, columns]: (case, class) pairs with neither truth nor prediction
    penalised: NDArray[np.int64]  # [rows, columns]: (case, class) pairs with only one of the two
    cases: NDArray[np.int64]  # [columns]: scored cases
    drift: NDArray[np.float64]  # [rows, columns, 3]: DRIFTS of a site's replays; 0 is none
    traffic: tuple[Traffic, ...]
    seconds: float
    weights_sha256: str | None  # of the final handover's weights; None before the first visit
    software: str  # name and version that made the run
    command: str  # makes the same run again
    # site -> what its policy changed in the run, see coordinator/introductions.py; a further one for every change
    policies: tuple[Mapping[str, Mapping[str, Any]], ...] = ()

    def __post_init__(self) -> None:
        rows, columns, classes = len(self.visited), len(self.columns), len(self.classes)
        shapes = {
            "dsc": (rows, columns, classes),
            "asd": (rows, columns, classes),
            "both_empty": (rows, columns),
            "penalised": (rows, columns),
            "cases": (columns,),
            "drift": (rows, columns, len(DRIFTS)),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} of run {self.run} has shape {getattr(self, name).shape}; it must be {shape}.")
        if len(set(self.columns)) != columns:
            raise ValueError(f"Run {self.run} names one site twice; sites and unseen must be distinct.")
        if strangers := {site for row in self.visited for site in row} - set(self.sites):
            raise ValueError(f"Run {self.run} has visits to {sorted(strangers)}, which its plan does not list.")

    @property
    def strategy(self) -> str:
        """The strategy's name."""
        return self.plan.strategy.name

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.plan.seed

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites to visit, in visiting order."""
        return self.plan.sites

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Every scored site: the visited, then the unseen."""
        return (*self.plan.sites, *self.unseen)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The scored classes: all but the background."""
        return self.plan.task.classes[1:]

    @property
    def complete(self) -> bool:
        """Whether every stop is done as planned and every cell scored."""
        return self.status == "done"

    @cached_property
    def traffic_bytes(self) -> int:
        """All bytes between the coordinator and the sites, both ways."""
        return sum(row.sent + row.received for row in self.traffic)

    @cached_property
    def drifts(self) -> bool:
        """Whether there are replays whose drift was measured."""
        return not np.isnan(self.drift).all()

    @cached_property
    def order(self) -> tuple[int, ...] | None:
        """The column that each row visited; None where a row stands for several sites, or a site for several rows."""
        visited = [row[0] for row in self.visited if len(row) == 1]
        if len(visited) != len(self.visited) or len(set(visited)) != len(visited):
            return None
        position = {site: column for column, site in enumerate(self.columns)}
        return tuple(position[site] for site in visited)

    def matrix(self, score: Score) -> Matrix:
        """R: float64 [rows, columns], the mean over classes; NaN where there is no score."""
        mean: Matrix = (self.dsc if score == "dsc" else self.asd).mean(axis=2)
        return mean

    @cached_property
    def metrics(self) -> Mapping[Score, Mapping[str, float | None]]:
        """All metrics over R, for both scores; None where a metric is undefined."""
        scores: tuple[Score, ...] = ("dsc", "asd")
        return {score: evaluate(self.matrix(score), self.order, score) for score in scores}

    def document(self) -> dict[str, Any]:
        """The JSON document of the run; scores that do not exist and undefined metrics are null.

        A run that is scored on other than test cases says so under `scored`; `drift` is there where replays drifted,
        `policies` where those of sites changed something.
        """
        return {
            "run": self.run,
            "status": self.status,
            "strategy": self.strategy,
            "parameters": self.plan.strategy.parameters,
            "sites": list(self.sites),
            "unseen": list(self.unseen),
            **({} if self.plan.scored == "test" else {"scored": self.plan.scored}),
            "matrix": {score: _nullable(self.matrix(score)) for score in self.metrics},
            "metrics": {score: dict(values) for score, values in self.metrics.items()},
            **({"drift": {d: _nullable(self.drift[..., i]) for i, d in enumerate(DRIFTS)}} if self.drifts else {}),
            **({"policies": list(self.policies)} if any(self.policies) else {}),
            "weights_sha256": self.weights_sha256,
            "traffic_bytes": self.traffic_bytes,
            "seconds": self.seconds,
        }


def _nullable(matrix: Matrix) -> list[list[float | None]]:
    return [[None if np.isnan(value) else value for value in row] for row in matrix.tolist()]

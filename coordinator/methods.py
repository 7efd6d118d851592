"""Which runs make a method: those that differ in nothing but the seed, and pooled also in the order of the visits."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from coordinator.summary import RunSummary

_LONGEST = 16  # a longer list, such as a vector, would make a label that nobody reads


class Methods:
    """Runs by method. `groups` holds each method's runs, `orders` the visiting orders, both as they first occur."""

    def __init__(self, runs: Sequence[RunSummary], *, pool: bool = False) -> None:
        self.runs = tuple(runs)
        self.orders = tuple(dict.fromkeys(run.sites for run in runs))
        self._pool = pool
        self._settings: dict[str, Mapping[str, Any]] = {run.run: _settings(run) for run in runs}
        groups: dict[str, list[RunSummary]] = {}
        for run in runs:
            came_to = [len(run.visited), run.complete] if pool else [run.sites, run.visited]
            groups.setdefault(json.dumps([self._settings[run.run], came_to]), []).append(run)
        self.groups = tuple(map(tuple, groups.values()))

    def label(self, run: RunSummary, *, order: bool = True) -> str:
        """The strategy's name, and what sets its method apart: own parameters among runs of the same strategy, all
        else among all runs, the order unless it is pooled or `order` is false, and how far it came."""
        apart = []
        for key, value in self._settings[run.run].items():
            rivals = [r for r in self.runs if not key.startswith("strategy.") or r.strategy == run.strategy]
            if isinstance(value, list) and len(value) > _LONGEST:
                continue
            if any(self._settings[rival.run].get(key) != value for rival in rivals):
                apart.append(f"{key.removeprefix('strategy.')}={value}")
        if order and not self._pool and len(self.orders) > 1:
            apart.append(f"order {self.order(run)}")
        if not run.complete:
            apart.append(f"{run.status} after {len(run.visited)} visits")
        return run.strategy + (f" ({', '.join(apart)})" if apart else "")

    def order(self, run: RunSummary) -> int:
        """The number of the run's visiting order, from 1."""
        return self.orders.index(run.sites) + 1

    def around(self, run: RunSummary) -> str:
        """All that surrounds the run's strategy, seed and order included: equal for runs that may be held together."""
        frame = {key: value for key, value in self._settings[run.run].items() if not key.startswith("strategy.")}
        return json.dumps([frame, run.seed, run.sites, run.unseen])

    def order_notes(self) -> Iterator[str]:
        """What the orders are that are named by number; nothing where there is but one."""
        if len(self.orders) > 1:
            for number, order in enumerate(self.orders, 1):
                yield f"Order {number}: {', '.join(order)}."


def _settings(run: RunSummary) -> Mapping[str, Any]:
    """Everything in the plan that could change a result, but the seed and the order, with dotted keys."""
    return dict(_flat("", run.plan.model_dump(mode="json", exclude={"seed", "sites"})))


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key in sorted(value):
            yield from _flat(f"{prefix}.{key}" if prefix else key, value[key])
    else:
        yield prefix, value

"""What a request may ask and a reply may hold, declared by the strategy before anything is computed."""

from collections.abc import Mapping
from dataclasses import dataclass

from protos.handover import HandoverSchema


@dataclass(frozen=True)
class Bound:
    """A declared scalar lies in [low, high]; with `whole` it is an integer besides."""

    low: float
    high: float
    whole: bool = False

    def holds(self, value: int | float) -> bool:
        """Whether `value` is such a scalar; NaN is none."""
        return self.low <= value <= self.high and (type(value) is int or not self.whole)


@dataclass(frozen=True)
class Declaration:
    """All that a reply may hold: exactly the tensors of `handover` (None: no tensor), and no metric but `metrics`."""

    handover: HandoverSchema | None
    metrics: Mapping[str, Bound]

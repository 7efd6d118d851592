"""What a reply may hold, declared by the strategy before anything is computed."""

from collections.abc import Mapping
from dataclasses import dataclass

from protos.handover import HandoverSchema


@dataclass(frozen=True)
class Bound:
    """A declared scalar metric lies in [low, high]."""

    low: float
    high: float


@dataclass(frozen=True)
class Declaration:
    """All that a reply may hold: exactly the tensors of `handover` (None: no tensor), and no metric but `metrics`."""

    handover: HandoverSchema | None
    metrics: Mapping[str, Bound]

"""One stay of a model at one site, with whatever handover a test lets arrive."""

from collections.abc import Mapping
from typing import Any

import torch

from protos.handover import Handover, Kind
from protos.plan import Plan
from strategies.randomness import Seeds
from strategies.registry import strategy_for
from strategies.visit import Visit
from tests.strategies.harness import CPU, Blobs, Shelf, ShelvedMemory, ShelvedWork, Slot, turned


def visit_at(plan: Plan, handover: Handover | None = None, samples: Any = None, stop: int = 1) -> Visit:
    """A visit to site A; without a handover the first one arrives."""
    samples = Blobs("A", 5, plan.task.size) if samples is None else samples
    return Visit(
        action="visit",
        handover=strategy_for(plan).first_handover() if handover is None else handover,
        train=samples,
        val=samples,
        seeds=Seeds(plan.seed, stop, "A"),
        args={},
        device=CPU,
        report=lambda step, steps, scalars: None,
        checkpoint=Slot(Shelf(), (stop, 0, "A")),
        memory=ShelvedMemory(Shelf(), "A", samples),
        once=ShelvedWork(Shelf(), "A"),
        augment=turned,
        first=stop == 0,
    )


def with_importance(handover: Handover, values: Mapping[str, torch.Tensor]) -> Handover:
    """The handover with some of its importance replaced."""
    importance = handover.state(Kind.IMPORTANCE)
    assert values.keys() <= importance.keys()
    return Handover.of(weights=handover.state(Kind.WEIGHTS), importance=importance | dict(values))


def important_alike(handover: Handover, value: float, samples: int = 8) -> Handover:
    """The handover with every unit of the same importance."""
    names = [name for name in handover.importance if name.startswith("omega/")]
    state = handover.state(Kind.IMPORTANCE)
    return with_importance(
        handover, {name: torch.full_like(state[name], value) for name in names} | {"samples": torch.tensor(samples)}
    )

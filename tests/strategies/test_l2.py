"""The L2 pull: nothing at the arrived weights, its closed form elsewhere, nothing at the first stop."""

from typing import Any

import pytest
import torch

from protos.handover import Kind
from protos.plan import Plan
from strategies.registry import strategy_for
from strategies.training import gradient
from tests.strategies.harness import CPU, Blobs, conduct, make_plan, make_sites
from tests.strategies.stays import visit_at


def arrival(plan: Plan, stop: int = 1) -> tuple[Any, torch.nn.Module, Any]:
    """The strategy, a model with the arrived weights, and what it noted."""
    strategy = strategy_for(plan)
    visit = visit_at(plan, stop=stop)
    model = strategy.loaded(visit.handover, CPU)
    return strategy, model, strategy.arrive(visit, model)


BATCH = Blobs("A", 4).batch([0, 1])


def test_no_pull_at_the_arrived_weights() -> None:
    strategy, model, notes = arrival(make_plan("l2", parameters={"strength": 1e3}))
    plain = strategy_for(make_plan("finetune"))
    value, reference = strategy.loss(model, BATCH, notes), plain.loss(model, BATCH, None)
    assert value.item() == reference.item()
    pulled, free = gradient(model, value), gradient(model, reference)
    assert all(torch.equal(pulled[name], free[name]) for name in free)


@pytest.mark.parametrize("strength", [0.01, 2.0])
def test_the_pull_is_strength_times_the_distance(strength: float) -> None:
    strategy, model, notes = arrival(make_plan("l2", parameters={"strength": strength}))
    plain = strategy_for(make_plan("finetune"))
    generator = torch.Generator().manual_seed(1)
    away = {name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(away[name])
    value, reference = strategy.loss(model, BATCH, notes), plain.loss(model, BATCH, None)
    distance = sum(float(step.double().square().sum()) for step in away.values())
    assert value.item() - reference.item() == pytest.approx(strength / 2 * distance, rel=1e-4)
    pulled, free = gradient(model, value), gradient(model, reference)
    for name, step in away.items():
        torch.testing.assert_close(pulled[name] - free[name], strength * step, rtol=1e-3, atol=1e-5)


def test_no_pull_towards_an_initialisation() -> None:
    _, _, notes = arrival(make_plan("l2"), stop=0)
    assert not notes


def test_a_stronger_pull_stays_nearer() -> None:
    distances = []
    for strength in (0.0, 1.0, 20.0):
        plan = make_plan("l2", ("A", "B"), parameters={"strength": strength}, steps=12, optimizer="sgd", lr=0.05)
        first, second = (handover.state(Kind.WEIGHTS) for handover in conduct(plan, make_sites(plan)))
        distances.append(sum(float((second[name] - value).square().sum()) for name, value in first.items()))
    assert distances[0] > distances[1] > distances[2] > 0

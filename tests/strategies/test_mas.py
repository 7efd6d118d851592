"""MAS's surrogate: nothing at the arrived weights, and divided by the number of parameters elsewhere."""

import pytest
import torch

from strategies.registry import strategy_for
from strategies.regularisation.importance import arrived_importance
from tests.strategies.harness import CPU, Blobs, make_plan
from tests.strategies.stays import visit_at, with_importance

BATCH = Blobs("A", 4).batch([0, 1])


@pytest.mark.parametrize("level", ["parameter", "kernel", "filter"])
def test_the_pull_is_weighted_by_importance_and_divided_by_the_number_of_parameters(level: str) -> None:
    plan = make_plan("mas", parameters={"strength": 7.0, "level": level})
    strategy, plain = strategy_for(plan), strategy_for(make_plan("finetune"))
    generator = torch.Generator().manual_seed(0)
    first = strategy.first_handover()
    omega = {
        f"omega/{name}": torch.rand(value.shape, generator=generator)
        for name, value in arrived_importance(first).omega.items()
    }
    visit = visit_at(plan, with_importance(first, omega | {"samples": torch.tensor(3)}))
    model = strategy.loaded(visit.handover, CPU)
    notes = strategy.arrive(visit, model)
    expected, count = 0.0, 0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            step = torch.randn(parameter.shape, generator=generator)
            parameter.add_(step)
            expected += float((omega[f"omega/{name}"].double() * step.double().square()).sum())
            count += parameter.numel()
    value, free = strategy.loss(model, BATCH, notes), plain.loss(model, BATCH, None)
    assert value.item() - free.item() == pytest.approx(7.0 / count * expected, rel=1e-4)

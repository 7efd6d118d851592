"""MAS-LR acts on the applied update: exact at both ends, and a smaller learning rate in between."""

from typing import Any

import pytest
import torch

from protos.handover import Handover, Kind
from strategies.registry import strategy_for
from strategies.regularisation.importance import arrived_importance
from tests.strategies.harness import make_plan
from tests.strategies.stays import important_alike, visit_at, with_importance

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": {"optimizer": "adam", "weight_decay": 0.1},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1},
    "sgd": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
}
every_optimizer = pytest.mark.parametrize("training", OPTIMIZERS.values(), ids=OPTIMIZERS)


def left_with(importance: float, parameters: dict[str, Any], **training: Any) -> tuple[Handover, Handover]:
    """What arrives with every unit of one importance, and what leaves."""
    plan = make_plan("mas-lr", parameters=parameters, **{"steps": 6} | training)
    strategy = strategy_for(plan)
    arriving = important_alike(strategy.first_handover(), importance)
    return arriving, strategy.visit(visit_at(plan, arriving)).handover


@every_optimizer
def test_importance_1_leaves_every_bit(training: dict[str, Any]) -> None:
    arriving, left = left_with(1.0, {}, **training)
    assert left.weights == arriving.weights


@every_optimizer
def test_importance_0_is_fine_tuning_bit_for_bit(training: dict[str, Any]) -> None:
    arriving, left = left_with(0.0, {}, **training)
    finetune = make_plan("finetune", **{"steps": 6} | training)
    plain = strategy_for(finetune).visit(visit_at(finetune, Handover(weights=arriving.weights)))
    assert left.weights == plain.handover.weights != arriving.weights


@pytest.mark.parametrize("momentum", [0.0, 0.95])
def test_importance_in_between_is_a_smaller_learning_rate(momentum: float) -> None:
    training = {"optimizer": "sgd", "momentum": momentum}
    arriving, left = left_with(0.75, {}, lr=0.1, **training)
    finetune = make_plan("finetune", steps=6, lr=0.025, **training)
    plain = strategy_for(finetune).visit(visit_at(finetune, Handover(weights=arriving.weights))).handover
    for name, weight in plain.state(Kind.WEIGHTS).items():
        torch.testing.assert_close(left.weights[name].torch(), weight, rtol=1e-3, atol=1e-5)


@every_optimizer
def test_only_the_important_filters_stay(training: dict[str, Any]) -> None:
    plan = make_plan("mas-lr", steps=6, **training)
    strategy = strategy_for(plan)
    first = important_alike(strategy.first_handover(), 0.0)
    key = "omega/model.0.conv.weight"
    omega = first.state(Kind.IMPORTANCE)[key]
    omega[1] = 1.0
    arriving = with_importance(first, {key: omega})
    left = strategy.visit(visit_at(plan, arriving)).handover
    before, after = (h.state(Kind.WEIGHTS)["model.0.conv.weight"] for h in (arriving, left))
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[0], after[0])


def test_the_released_reading_never_freezes_altogether() -> None:
    arriving, left = left_with(1.0, {"reading": "released"}, optimizer="sgd", lr=1.0, momentum=0.0)
    moved = [(left.weights[name].torch() - arriving.weights[name].torch()).abs().max() for name in arriving.weights]
    assert 0 < max(moved) < 1e-4


def test_scoring_needs_no_importance() -> None:
    strategy = strategy_for(make_plan("mas-lr"))
    assert not strategy.for_scoring(strategy.first_handover(), "A", 0).importance
    assert arrived_importance(strategy.first_handover()).samples == 0

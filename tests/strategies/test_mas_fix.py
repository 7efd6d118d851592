"""MAS-Fix: the frozen set only grows, holds at most its share, and keeps every bit."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.handover import Handover, Kind
from strategies.registry import strategy_for
from strategies.regularisation.mas_fix import most_important
from tests.strategies.harness import conduct, make_plan, make_sites
from tests.strategies.stays import important_alike, visit_at, with_importance
from tests.strategies.test_mas_lr import every_optimizer


def frozen(handover: Handover) -> dict[str, torch.Tensor]:
    """Which entries of every parameter are frozen."""
    weights = handover.state(Kind.WEIGHTS)
    state = handover.state(Kind.IMPORTANCE)
    masks = {name.removeprefix("frozen/"): mask for name, mask in state.items() if name.startswith("frozen/")}
    return {name: mask.expand_as(weights[name]) for name, mask in masks.items()}


def share_of(masks: dict[str, torch.Tensor]) -> float:
    return sum(int(mask.sum()) for mask in masks.values()) / sum(mask.numel() for mask in masks.values())


@pytest.mark.parametrize("level", ["parameter", "kernel", "filter"])
@pytest.mark.parametrize("among", ["all", "remaining"])
@every_optimizer
def test_frozen_units_keep_their_bits_and_only_grow(training: dict[str, Any], among: str, level: str) -> None:
    parameters = {"share": 0.25, "among": among, "level": level}
    plan = make_plan("mas-fix", sites=("A", "B", "C", "D"), parameters=parameters, **{"steps": 4} | training)
    handovers = conduct(plan, make_sites(plan))
    for number, (before, after) in enumerate(itertools.pairwise(handovers), start=1):
        held, now = frozen(before), frozen(after)
        assert 0 < share_of(held) <= 0.25 * number
        old, new = before.state(Kind.WEIGHTS), after.state(Kind.WEIGHTS)
        for name, mask in held.items():
            assert (now[name] | ~mask).all()
            assert torch.equal(old[name][mask], new[name][mask])
        assert any(not torch.equal(old[name], new[name]) for name in old)
    if among == "remaining" and level == "parameter":
        assert share_of(frozen(handovers[-1])) > 0.9  # a quarter each, as long as there is anything of importance


@every_optimizer
def test_all_frozen_is_no_change(training: dict[str, Any]) -> None:
    plan = make_plan("mas-fix", **{"steps": 4} | training)
    strategy = strategy_for(plan)
    first = important_alike(strategy.first_handover(), 0.5)
    masks = {name: torch.ones_like(t.torch()) for name, t in first.importance.items() if name.startswith("frozen/")}
    arriving = with_importance(first, masks)
    assert strategy.visit(visit_at(plan, arriving)).handover.weights == arriving.weights


def test_what_is_frozen_already_is_not_made_up_for() -> None:
    omega = {"a": torch.tensor([5.0, 4, 3, 2, 1, 0.5, 0.2, 0.1])}
    already = {"a": omega["a"] > 3}
    assert most_important(omega, {"a": 1}, 0.25, {})["a"].tolist() == already["a"].tolist()
    further = most_important(omega, {"a": 1}, 0.25, already)["a"]
    assert further.tolist() == [False, False, True, True, False, False, False, False]


@settings(max_examples=80)
@given(
    values=st.lists(st.floats(0, 1, width=32), min_size=3, max_size=40),
    share=st.floats(0, 1),
    sizes=st.tuples(st.integers(1, 30), st.integers(1, 30)),
)
def test_the_chosen_are_the_most_important_that_fit(values: list[float], share: float, sizes: tuple[int, int]) -> None:
    omega = {"a": torch.tensor(values[:2]), "b": torch.tensor(values[2:])}
    held = {"a": sizes[0], "b": sizes[1]}
    chosen = most_important(omega, held, share, {})
    whole = sum(held[name] * value.numel() for name, value in omega.items())
    assert sum(held[name] * int(mask.sum()) for name, mask in chosen.items()) <= share * whole
    inside = torch.cat([omega[name][mask] for name, mask in chosen.items()])
    outside = torch.cat([omega[name][~mask] for name, mask in chosen.items()])
    if len(inside):
        assert inside.min() > 0
        if len(outside):
            assert inside.min() >= outside.max()

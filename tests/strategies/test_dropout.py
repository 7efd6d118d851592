"""Dropout acts while a site learns and nowhere else."""

import torch

from strategies.registry import strategy_for
from tests.strategies.harness import CPU, Blobs, conduct, make_plan, make_sites

DROPOUT, PLAIN = strategy_for(make_plan("dropout", parameters={"p": 0.5})), strategy_for(make_plan("finetune"))
IMAGE = Blobs("A", 2).batch([0, 1]).image


def test_the_handover_is_that_of_fine_tuning() -> None:
    assert DROPOUT.schema() == PLAIN.schema()
    assert DROPOUT.first_handover() == PLAIN.first_handover()


def test_scoring_drops_nothing() -> None:
    first = PLAIN.first_handover()
    with torch.inference_mode():
        assert torch.equal(DROPOUT.predictor(first, CPU)(IMAGE), PLAIN.predictor(first, CPU)(IMAGE))


def test_learning_drops() -> None:
    model = DROPOUT.loaded(PLAIN.first_handover(), CPU).train()
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(0)
        assert not torch.equal(model(IMAGE), model(IMAGE))
    one, other = make_plan("dropout", ("A",)), make_plan("finetune", ("A",))
    assert conduct(one, make_sites(one)) != conduct(other, make_sites(other))

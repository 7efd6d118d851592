"""Importance: what it depends on, how it is made comparable, by which units it travels, how sites add up."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from protos.handover import Kind
from protos.plan import NetworkChoice
from strategies.data import Batch
from strategies.registry import strategy_for
from strategies.regularisation.ewc import log_likelihood
from strategies.regularisation.importance import (
    arrived_importance,
    comparable,
    measure,
    measured,
    sensitivity,
    unit_axes,
    unit_means,
)
from strategies.training import gradient
from tests.strategies.harness import Blobs, conduct, make_plan, make_sites
from tests.strategies.stays import important_alike, visit_at

IMPORTANCE_DRIVEN = ("ewc", "mas", "mas-fix", "mas-lr")


def measured_by(samples: Any) -> dict[str, torch.Tensor]:
    """MAS's importance of the first network at a site."""
    plan = make_plan("mas")
    strategy = strategy_for(plan)
    model = strategy.loaded(strategy.first_handover(), torch.device("cpu"))
    return measure(model, sensitivity(strategy), visit_at(plan, samples=samples))


class Changed:
    """A site's samples in another order, or with other labels."""

    def __init__(self, samples: Blobs, order: list[int] | None = None, label: int | None = None) -> None:
        self._samples, self._order, self._label = samples, order or list(range(len(samples))), label

    def __len__(self) -> int:
        return len(self._samples)

    def batch(self, indices: Any, seeds: Any = None, only: Any = None) -> Batch:
        batch = self._samples.batch([self._order[index] for index in indices], seeds, only)
        label = batch.label if self._label is None else torch.full_like(batch.label, self._label)
        return Batch(batch.image, label)


# Measuring


def test_mas_does_not_look_at_labels() -> None:
    samples = Blobs("A", 4)
    plain, relabelled = measured_by(samples), measured_by(Changed(samples, label=2))
    assert all(torch.equal(plain[name], relabelled[name]) for name in plain)


def test_the_order_of_samples_does_not_matter() -> None:
    samples = Blobs("A", 4)
    plain, turned = measured_by(samples), measured_by(Changed(samples, order=[2, 0, 3, 1]))
    for name in plain:
        torch.testing.assert_close(turned[name], plain[name], rtol=1e-4, atol=1e-5)


def test_an_undecided_output_is_not_sensitive_to_the_last_bias() -> None:
    """The gradient of ||softmax||² vanishes where all classes are equally likely."""
    plan = make_plan("mas", network=NetworkChoice(channels=(4, 8)))
    strategy = strategy_for(plan)
    model = strategy.loaded(strategy.first_handover(), torch.device("cpu"))
    *_, last = (module for module in model.modules() if isinstance(module, nn.ConvTranspose2d))
    with torch.no_grad():
        last.weight.zero_()
        assert last.bias is not None
        last.bias.zero_()
    found = measure(model, sensitivity(strategy), visit_at(plan))
    assert max(float(value.max()) for value in found.values()) < 1e-6


def test_a_bias_that_instance_norm_takes_away_is_not_important() -> None:
    plan = make_plan("mas", network=NetworkChoice(channels=(4, 8), norm="instance"))
    strategy = strategy_for(plan)
    model = strategy.loaded(strategy.first_handover(), torch.device("cpu"))
    found = measure(model, sensitivity(strategy), visit_at(plan))
    assert found["model.0.conv.bias"].max() < 1e-4 * found["model.0.conv.weight"].max()


@pytest.mark.parametrize("training", [True, False])
def test_measuring_happens_in_eval_mode_and_leaves_the_mode_alone(training: bool) -> None:
    plan = make_plan("mas", parameters={"dropout": 0.5})
    strategy = strategy_for(plan)
    model = strategy.loaded(strategy.first_handover(), torch.device("cpu")).train(training)
    once, again = (measure(model, sensitivity(strategy), visit_at(plan)) for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert model.training == training


class Pixels:
    """Images of one pixel and one channel, labels 0 or 1: for these a 1 x 1 convolution is logistic regression."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Any, seeds: Any = None, only: Any = None) -> Batch:
        chosen = list(indices)
        return Batch(self.x[chosen].reshape(-1, 1, 1, 1), self.y[chosen].reshape(-1, 1, 1, 1))


def test_fisher_information_of_logistic_regression_is_its_closed_form() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=40)).float()
    y = torch.from_numpy(rng.integers(2, size=40))
    model = nn.Conv2d(1, 2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([0.3, -0.7]).reshape(2, 1, 1, 1))
        assert model.bias is not None
        model.bias.copy_(torch.tensor([0.1, 0.2]))
    found = measured(model, log_likelihood, visit_at(make_plan("ewc"), samples=Pixels(x, y)), torch.square)
    p = torch.softmax(torch.stack([0.3 * x + 0.1, -0.7 * x + 0.2]), dim=0)
    miss = torch.stack([(y == k).float() - p[k] for k in (0, 1)])
    torch.testing.assert_close(found["weight"].flatten(), (miss * x).square().mean(1))
    torch.testing.assert_close(found["bias"], miss.square().mean(1))


# Made comparable

some_importance = st.lists(st.floats(0, 1e6, width=32), min_size=4, max_size=60)


@pytest.mark.parametrize("reading", ["paper", "released"])
@settings(max_examples=60)
@given(values=some_importance)
def test_comparable_importance_lies_between_0_and_1_and_keeps_the_ranking(reading: Any, values: list[float]) -> None:
    importance = {"a": torch.tensor(values[:2]), "b": torch.tensor(values[2:])}
    found = comparable(importance, reading)
    flat = torch.cat([found["a"], found["b"]])
    assert torch.isfinite(flat).all()
    assert flat.min() == 0
    assert flat.max() in (0, 1)
    order = torch.argsort(torch.tensor(values), stable=True)
    assert (flat[order].diff() >= 0).all()


def test_one_outlier_does_not_squeeze_the_rest() -> None:
    values = torch.linspace(0, 1, 101)
    without = comparable({"a": values}, "paper")["a"]
    values = values.clone()
    values[-1] = 1e9
    found = comparable({"a": values}, "paper")["a"]
    assert found[-1] == 1
    assert (found[:-1].diff() > 0).all()
    assert found[50] > 0.2 * without[50]


def test_outliers_are_found_over_all_parameters_together() -> None:
    found = comparable({"small": torch.full((50,), 0.1), "large": torch.full((50,), 0.9)}, "paper")
    assert found["small"].unique().tolist() == [0]
    assert found["large"].unique().tolist() == [1]


def test_the_quartiles_decide_what_is_an_outlier() -> None:
    """q1 = 2, q3 = 6, so all above 12 is brought to 12."""
    found = comparable({"a": torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 12, 100])}, "paper")["a"]
    torch.testing.assert_close(found, torch.tensor([0.0, 1, 2, 3, 4, 5, 6, 12, 12]) / 12)


def test_the_released_reading_takes_logarithms_and_survives_zeros() -> None:
    found = comparable({"a": torch.tensor([0.0, 1e-3, 1e-2, 1e-1, 1.0] * 20)}, "released")["a"]
    assert torch.isfinite(found).all()
    assert found[0] == 0
    torch.testing.assert_close(found[2:5].diff(), found[1:4].diff())  # equal factors are equal steps


def test_equal_quartiles_are_no_reason_to_forget_the_rest() -> None:
    """Most parameters of no importance: the few others must not count as outliers of nothing."""
    found = comparable({"a": torch.tensor([0.0] * 80), "b": torch.arange(1.0, 21)}, "paper")
    torch.testing.assert_close(found["b"], torch.arange(1.0, 21) / 20)


@pytest.mark.parametrize("reading", ["paper", "released"])
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_equal_importance_is_none(reading: Any, value: float) -> None:
    assert comparable({"a": torch.full((9,), value)}, reading)["a"].unique().tolist() == [0]


# Units


def test_units_are_averaged_as_their_names_say() -> None:
    model = nn.ModuleDict({"down": nn.Conv2d(2, 3, 3), "up": nn.ConvTranspose2d(3, 2, 3), "norm": nn.GroupNorm(1, 2)})
    values = {
        name: torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) for name, p in model.named_parameters()
    }
    down, up = values["down.weight"], values["up.weight"]
    kernel = unit_means(values, unit_axes(model, "kernel"))
    assert kernel["down.weight"].shape == (3, 2, 1, 1)
    torch.testing.assert_close(kernel["up.weight"][2, 1, 0, 0], up[2, 1].mean())
    by_filter = unit_means(values, unit_axes(model, "filter"))
    assert by_filter["down.weight"].shape == (3, 1, 1, 1)
    assert by_filter["up.weight"].shape == (1, 2, 1, 1)
    torch.testing.assert_close(by_filter["down.weight"][1, 0, 0, 0], down[1].mean())
    torch.testing.assert_close(by_filter["up.weight"][0, 1, 0, 0], up[:, 1].mean())
    for means in (kernel, by_filter, unit_means(values, unit_axes(model, "parameter"))):
        assert all(torch.equal(means[name], values[name]) for name in ("down.bias", "up.bias", "norm.weight"))
        for name, value in values.items():
            torch.broadcast_shapes(means[name].shape, value.shape)


@pytest.mark.parametrize("name", IMPORTANCE_DRIVEN)
def test_importance_by_filter_is_a_hundredth_of_the_weights(name: str) -> None:
    plan = make_plan(name, parameters={"level": "filter"}, network=NetworkChoice())
    plan = plan.model_copy(update={"task": plan.task.model_copy(update={"size": (64, 64)})})
    schema = strategy_for(plan).schema()
    assert schema.nbytes(Kind.WEIGHTS) > 100 * schema.nbytes(Kind.IMPORTANCE)
    levels = [
        strategy_for(plan.model_copy(update={"strategy": plan.strategy.model_copy(update={"level": level})})).schema()
        for level in ("filter", "kernel", "parameter")
    ]
    sizes = [level.nbytes(Kind.IMPORTANCE) for level in levels]
    assert sizes == sorted(sizes)
    assert sizes[2] >= schema.nbytes(Kind.WEIGHTS)


# Sites add up


@pytest.mark.parametrize("name", ["mas", "mas-fix", "mas-lr"])
def test_every_sample_counts_the_same_wherever_it_was(name: str) -> None:
    """Without a step the weights stay, so each site's importance can be measured at the same ones."""
    plan = make_plan(name, steps=0)
    sites = make_sites(plan)
    *_, last = conduct(plan, sites)
    carried = arrived_importance(last)
    assert carried.samples == sum(map(len, sites.values()))
    strategy = strategy_for(plan)
    model = strategy.loaded(last, torch.device("cpu"))
    expected: dict[str, torch.Tensor] = {}
    for samples in sites.values():
        own = comparable(measure(model, sensitivity(strategy), visit_at(plan, samples=samples)), "paper")
        for key, unit in unit_means(own, unit_axes(model, strategy.parameters.level)).items():  # type: ignore[attr-defined]
            expected[key] = expected.get(key, 0) + unit * len(samples) / carried.samples
    for key, value in expected.items():
        torch.testing.assert_close(carried.omega[key], value)


@pytest.mark.parametrize("name", IMPORTANCE_DRIVEN)
def test_dropout_changes_training_and_nothing_that_travels(name: str) -> None:
    plain, dropped = (make_plan(name, parameters={"dropout": p}) for p in (0.0, 0.4))
    assert strategy_for(plain).schema() == strategy_for(dropped).schema()
    sites = make_sites(plain)
    assert conduct(plain, sites)[0].weights != conduct(dropped, sites)[0].weights
    dropout = make_plan("dropout", parameters={"p": 0.4})
    assert conduct(dropped, sites)[0].weights == conduct(dropout, sites)[0].weights


@pytest.mark.parametrize("name", IMPORTANCE_DRIVEN)
def test_the_first_visit_is_fine_tuning(name: str) -> None:
    plan, finetune = make_plan(name), make_plan("finetune")
    sites = make_sites(plan)
    assert conduct(plan, sites)[0].weights == conduct(finetune, sites)[0].weights
    assert conduct(plan, sites)[1].weights != conduct(finetune, sites)[1].weights


@pytest.mark.parametrize("name", ["ewc", "mas"])
def test_no_pull_at_the_arrived_weights(name: str) -> None:
    batch = Blobs("A", 4).batch([0, 1])
    plan = make_plan(name, parameters={"strength": 1e6})
    strategy, plain = strategy_for(plan), strategy_for(make_plan("finetune"))
    visit = visit_at(plan, important_alike(strategy.first_handover(), 1.0))
    model = strategy.loaded(visit.handover, torch.device("cpu"))
    value, free = strategy.loss(model, batch, strategy.arrive(visit, model)), plain.loss(model, batch, None)
    assert value.item() == free.item()
    pulled, unpulled = gradient(model, value), gradient(model, free)
    assert all(torch.equal(pulled[name], unpulled[name]) for name in pulled)

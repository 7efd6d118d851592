"""Gradients of single samples: the vectorised pass against the plain loop and against single backward passes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

from protos.plan import NetworkChoice
from strategies import networks
from strategies.data import Batch
from strategies.per_sample import (
    chunk_length,
    fold_gradients,
    fold_gradients_one_by_one,
    per_sample_gradients,
)
from strategies.regularisation.ewc import log_likelihood
from tests.strategies.harness import Blobs, make_plan

FOLDS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"absolute": torch.abs, "squared": torch.square}


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def objective(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return logits.softmax(1).square().sum() + torch.nn.functional.cross_entropy(logits, label.squeeze(1))


def built(dims: Any = 2, **choice: Any) -> torch.nn.Module:
    plan = make_plan(dims=dims, network=NetworkChoice(**({"channels": (4, 8)} | choice)))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return networks.build(plan.task, plan.network).eval()


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("fold", FOLDS.values(), ids=FOLDS)
@pytest.mark.parametrize("norm", ["instance", "group"])
@pytest.mark.parametrize(("dims", "residual_units"), [(2, 0), (2, 1), (3, 0)])
def test_vectorised_equals_the_loop(dims: int, residual_units: int, norm: str, fold: Any) -> None:
    model = built(dims, norm=norm, residual_units=residual_units)
    samples = Blobs("A", 5, (16, 16) if dims == 2 else (8, 8, 8))
    close(fold_gradients(model, objective, samples, fold), fold_gradients_one_by_one(model, objective, samples, fold))


def test_the_loop_is_the_mean_of_single_backward_passes() -> None:
    model, samples = built(), Blobs("A", 3)
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for index in range(3):
        model.zero_grad()
        batch = samples.batch([index])
        objective(model(batch.image), batch.label).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            total[name] += parameter.grad.abs() / 3
    close(fold_gradients_one_by_one(model, objective, samples, torch.abs), total)


@pytest.mark.parametrize("memory", [1, 100_000, 10**9])
def test_chunks_change_nothing_but_the_last_bits(memory: int) -> None:
    model, samples = built(), Blobs("A", 7)
    once = fold_gradients(model, objective, samples, torch.abs)
    close(fold_gradients(model, objective, samples, torch.abs, memory=memory), once)


def test_chunks_fit_into_the_memory_given() -> None:
    model, samples = built(), Blobs("A", 7)
    assert chunk_length(model, samples, 1) == 1
    assert chunk_length(model, samples, 10**9) == 7
    longer = [chunk_length(model, samples, memory) for memory in range(0, 10**6, 10**5)]
    assert longer == sorted(longer)
    assert len(set(longer)) > 2


def test_squares_of_single_gradients_are_not_the_square_of_the_mean() -> None:
    """The mistake of many implementations of EWC, which makes importance smaller the larger the batch."""
    model, samples = built(), Blobs("A", 6)
    squared = fold_gradients(model, log_likelihood, samples, torch.square)
    batch = samples.batch(range(6))
    gradients = per_sample_gradients(model, log_likelihood, batch)
    of_the_mean = sum(float(g.mean(0).square().sum()) for g in gradients.values())
    assert sum(float(value.sum()) for value in squared.values()) > 1.1 * of_the_mean


class Repeated:
    """Every sample of another site, several times."""

    def __init__(self, samples: Blobs, times: int) -> None:
        self._samples, self._times = samples, times

    def __len__(self) -> int:
        return len(self._samples) * self._times

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None, only: Any = None) -> Batch:
        return self._samples.batch([index % len(self._samples) for index in indices], seeds, only)


@pytest.mark.parametrize("fold", FOLDS.values(), ids=FOLDS)
def test_samples_given_twice_change_nothing(fold: Any) -> None:
    model, samples = built(), Blobs("A", 4)
    once = fold_gradients(model, objective, samples, fold)
    close(fold_gradients(model, objective, Repeated(samples, 3), fold), once)

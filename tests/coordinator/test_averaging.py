"""FedAvg's mean of handovers: weighted by samples, in the tensors' own dtype."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.averaging import average
from coordinator.events import Listener
from coordinator.grid import InProcessGrid
from protos.handover import Handover
from strategies.gathering import Reply

SHAPES = {"conv.weight": (3, 2, 2), "conv.bias": (3,), "scale": ()}


@pytest.fixture(autouse=True, scope="module")
def _within_a_run() -> None:
    """Flower makes messages only where a run's identity is known, which the grid sets."""
    InProcessGrid([], Listener())


def reply(seed: int, samples: int, dtype: torch.dtype = torch.float32) -> Reply:
    generator = torch.Generator().manual_seed(seed)
    weights = {name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in SHAPES.items()}
    importance = {"conv.bias": torch.rand(3, generator=generator, dtype=dtype)}
    return Reply(f"site {seed}", Handover.of(weights=weights, importance=importance), {"samples": samples})


@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=6), st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=30)
def test_it_is_the_mean_weighted_by_samples(samples, dtype):
    replies = [reply(seed, count, dtype) for seed, count in enumerate(samples)]
    found = average(iter(replies))
    assert [(kind, name) for kind, name, _ in found.items()] == [(k, n) for k, n, _ in replies[0].handover.items()]
    for kind, name, tensor in found.items():
        values = [r.handover.group(kind)[name].torch().double().numpy() for r in replies]
        expected = np.average(values, axis=0, weights=samples)
        assert tensor.spec == replies[0].handover.group(kind)[name].spec
        np.testing.assert_allclose(tensor.torch().numpy(), expected, rtol=1e-5, atol=1e-6)


def test_a_site_alone_is_its_own_mean_bit_for_bit():
    one = reply(0, 7)
    assert average([one]) == one.handover


def test_equal_replies_are_combined_alike_every_time():
    replies = [reply(seed, seed + 1) for seed in range(5)]
    assert average(replies).digest() == average(replies).digest()


def test_a_reply_without_samples_cannot_be_weighted():
    with pytest.raises(KeyError):
        average([Reply("north", reply(0, 1).handover, {})])

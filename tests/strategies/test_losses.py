"""The loss: a mean over samples, so that sums over sites equal the pooled loss, and Dice where Dice can be."""

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from strategies.losses import segmentation_loss

Name = Literal["dice_ce", "dice", "ce"]
every_loss = pytest.mark.parametrize("name", ["dice_ce", "dice", "ce"])


def draw(seed: int, samples: int, classes: int, size: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(samples, classes, *size, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, classes, (samples, 1, *size), generator=generator)


@every_loss
@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    samples=st.integers(1, 5),
    classes=st.integers(2, 4),
    size=st.sampled_from([(4, 4), (3, 5), (2, 3, 4)]),
)
def test_the_loss_is_the_mean_over_samples(
    name: Name, seed: int, samples: int, classes: int, size: tuple[int, ...]
) -> None:
    logits, label = draw(seed, samples, classes, size)
    label[0] = 0  # a sample without any structure, where a Dice over the batch would differ most
    whole = segmentation_loss(logits, label, name)
    each = [segmentation_loss(logits[n : n + 1], label[n : n + 1], name) for n in range(samples)]
    torch.testing.assert_close(whole, torch.stack(each).mean(), rtol=1e-6, atol=1e-9)
    if name == "dice":
        assert -1e-9 <= whole.item() <= 1 + 1e-9


@every_loss
def test_the_truth_costs_nothing_and_its_opposite_a_lot(name: Name) -> None:
    _, label = draw(1, 2, 2, (6, 6))
    truth = torch.cat([1 - label, label], dim=1).double()
    assert segmentation_loss(200 * truth, label, name).item() == pytest.approx(0, abs=1e-5)
    assert segmentation_loss(200 * (1 - truth), label, name).item() > 0.99


def test_both_is_the_sum_of_each() -> None:
    logits, label = draw(2, 3, 3, (5, 5))
    both = segmentation_loss(logits, label, "dice_ce")
    torch.testing.assert_close(both, segmentation_loss(logits, label, "dice") + segmentation_loss(logits, label, "ce"))

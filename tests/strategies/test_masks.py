"""Masks fitted to another site's anatomy: what is told of them, and what is made of it."""

from collections.abc import Sequence
from math import log
from typing import Any

import numpy as np
import pytest
import torch

from strategies.data import Batch
from strategies.generative.masks import NUMBERS, described, fitted, measure
from strategies.randomness import Seeds

UNKNOWN = torch.zeros(NUMBERS)


def discs(radius: float, count: int, seed: int, size: Sequence[int] = (64, 64)) -> torch.Tensor:
    """A mask of so many balls at random, some over each other: int64 [1, 1, *size]; class 2 in every second."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), -1)
    mask = np.zeros(tuple(size), dtype=np.int64)
    for number in range(count):
        apart = np.linalg.norm(grid - rng.uniform(radius, np.array(size) - radius), axis=-1)
        mask[apart < radius] = 1 + number % 2
    return torch.from_numpy(mask)[None, None]


class Masks:
    """A site's samples, of which only the masks are looked at."""

    def __init__(self, labels: Sequence[torch.Tensor]) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Any, seeds: Any = None, only: Any = None) -> Batch:
        """As strategies.data.Samples says."""
        label = torch.cat([self.labels[index] for index in indices])
        return Batch(label.float(), label)


def site(radius: float, count: int, spread: float = 0.0, **given: Any) -> Masks:
    rng = np.random.default_rng(7)
    return Masks([discs(radius * float(np.exp(spread * rng.normal())), count, n, **given) for n in range(12)])


def told(samples: Masks) -> torch.Tensor:
    return measure(samples, Seeds(0, 0, "A"))


def refitted(source: Masks, target: Masks, number: int) -> torch.Tensor:
    return fitted(lambda n: source.labels[(number + 5 * n) % 12], told(source), told(target), number)


@pytest.mark.parametrize("size", [(64, 64), (32, 32, 32)])
@pytest.mark.parametrize("radius", [3.0, 6.0])
def test_a_ball_is_described_by_its_width_and_its_share(radius: float, size: tuple[int, ...]) -> None:
    label = discs(radius, 1, 0, size)
    found = described(label)
    assert found is not None
    assert found[1] == pytest.approx(log(float((label > 0).float().mean())))
    assert 0.6 * 2 * radius < np.exp(found[0]) < 1.1 * 2 * radius


def test_what_the_border_cuts_off_is_no_surface() -> None:
    half, whole = torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)
    half[..., :8] = 1
    assert described(half) == pytest.approx((log(4 * 128 / 16), log(0.5)))
    assert described(whole) == pytest.approx((log(4 * 256), 0))
    assert described(0 * whole) is None


def test_little_is_told_and_of_masks_without_structure_nothing() -> None:
    samples = site(4, 3, spread=0.3)
    found = told(samples)
    assert found.shape == (NUMBERS,)
    assert torch.equal(found, found.double().round(decimals=2).float())
    assert torch.equal(told(Masks([torch.zeros(1, 1, 8, 8, dtype=torch.int64)] * 3)), UNKNOWN)
    empty = torch.zeros_like(samples.labels[0])
    assert torch.equal(told(Masks([*samples.labels, empty])), found)


@pytest.mark.parametrize(
    ("source", "target"),
    [((8, 4), (3, 12)), ((3, 12), (8, 4)), ((8, 8), (2.5, 4)), ((2.5, 4), (8, 6)), ((5, 12), (5, 3))],
    ids=str,
)
def test_fitted_masks_have_the_other_sites_size_and_share(source: Any, target: Any) -> None:
    here, there = site(*source), site(*target)
    made = told(Masks([refitted(here, there, number) for number in range(12)]))
    before, wanted = told(here), told(there)
    for place in (0, 2):  # the means, of size and share
        off, was = abs(float(made[place] - wanted[place])), abs(float(before[place] - wanted[place]))
        assert off < max(0.35, 0.35 * was)


def test_what_is_large_for_one_site_becomes_large_for_the_other() -> None:
    here, there = site(4, 4, spread=0.3), site(8, 3, spread=0.2)
    pairs = [(described(here.labels[n]), described(refitted(here, there, n))) for n in range(12)]
    before, after = zip(*[(a[0], b[0]) for a, b in pairs if a and b], strict=True)
    assert np.corrcoef(before, after)[0, 1] > 0.7


def test_between_sites_alike_masks_hardly_change() -> None:
    """As between scanners of one organ: what is fitted there is within what augmentation does."""
    here, there = site(10, 1), site(10.3, 1)
    for number in range(12):
        before, after = here.labels[number] > 0, refitted(here, there, number) > 0
        dice = 2 * float((before & after).sum()) / float(before.sum() + after.sum())
        assert dice > 0.85


def test_no_class_is_made_up_and_shape_and_dtype_stay() -> None:
    here, there = site(3, 1), site(8, 4)  # of class 1 alone, and of two
    for number in range(4):
        made = refitted(here, there, number)
        assert made.shape == here.labels[0].shape
        assert made.dtype == here.labels[0].dtype
        assert set(made.unique().tolist()) == {0, 1}


def test_volumes_are_fitted_too() -> None:
    here, there = (site(radius, 2, size=(24, 24, 24)) for radius in (3, 6))
    made = told(Masks([refitted(here, there, number) for number in range(12)]))
    assert abs(float(made[0] - told(there)[0])) < 0.3


def test_a_mask_stays_where_nothing_is_known_or_nothing_is_in_it() -> None:
    here, there = site(3, 4), site(8, 4)
    for own, other in ((UNKNOWN, told(there)), (told(here), UNKNOWN)):
        assert torch.equal(fitted(lambda n: here.labels[n], own, other, 0), here.labels[0])
    empty = torch.zeros_like(here.labels[0])
    assert not fitted(lambda n: here.labels[1] if n else empty, told(here), told(there), 0).any()


def test_fitting_follows_from_its_seed() -> None:
    here, there = site(3, 4), site(8, 4)
    first, again, other = (fitted(lambda n: here.labels[n % 12], told(here), told(there), seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)

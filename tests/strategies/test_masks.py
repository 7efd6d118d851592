"""Masks fitted to another site's anatomy: what is told of them, and what is made of it."""

from collections.abc import Sequence
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from strategies.data import Batch
from strategies.generative.masks import LEAST, NUMBERS, described, fitted, measure
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
    half[..., :2] = 1
    assert described(half) == pytest.approx((log(4 * 32 / 16), log(1 / 8)))
    assert described(whole) == pytest.approx((log(16), 0))  # no structure is larger than the image
    assert described(0 * whole) is None


def test_little_is_told_and_of_masks_without_structure_nothing() -> None:
    samples = site(4, 3, spread=0.3)
    found = told(samples)
    assert found.shape == (NUMBERS,)
    assert torch.equal(found, found.double().round(decimals=1).float())
    empty = torch.zeros_like(samples.labels[0])
    assert torch.equal(told(Masks([*samples.labels, empty])), found)
    assert torch.equal(told(Masks([empty] * 9)), UNKNOWN)
    few = samples.labels[: LEAST - 1]
    assert torch.equal(told(Masks([*few, empty, empty])), UNKNOWN)
    assert bool(told(Masks([*few, samples.labels[-1]])).any())


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


def test_deviations_are_fitted_as_means_are() -> None:
    here, there = site(4, 4, spread=0.1), site(8, 3, spread=0.4)
    made = told(Masks([refitted(here, there, number) for number in range(12)]))
    assert float(made[1]) > 0.6 * float(told(there)[1]) > 1.5 * float(told(here)[1])


def one_organ(radius: float) -> Masks:
    """A ball of two classes, one about the other, near the middle: like a heart."""
    rng = np.random.default_rng(3)
    grid = np.stack(np.meshgrid(*[np.arange(64)] * 2, indexing="ij"), -1)
    labels = []
    for _ in range(12):
        apart = np.linalg.norm(grid - rng.uniform(28, 36, 2), axis=-1) / (radius * rng.uniform(0.9, 1.1))
        labels.append(torch.from_numpy((apart < 1).astype(np.int64) + (apart < 0.6))[None, None])
    return Masks(labels)


@pytest.mark.parametrize(("here", "there"), [(12, 9), (12, 8), (14, 7), (7, 14), (6, 16)])
def test_an_organ_stays_one_whole_organ_where_it_was(here: float, there: float) -> None:
    source = one_organ(here)
    for number in range(12):
        before, made = source.labels[number], refitted(source, one_organ(there), number)
        for least in (1, 2):
            parts, count = ndimage.label(made[0, 0].numpy() >= least)
            assert count == 1
            for one, other in zip(
                ndimage.center_of_mass(parts > 0), ndimage.center_of_mass(before[0, 0].numpy() >= least), strict=True
            ):
                assert abs(one - other) < 1.5
        border = torch.ones_like(made, dtype=torch.bool)
        border[..., 1:-1, 1:-1] = False
        assert not (made[border] > 0).any()


def test_thin_structures_do_not_break_when_shrunk() -> None:
    line = torch.zeros(1, 1, 64, 64, dtype=torch.int64)
    line[..., 20:44, 30:32] = 1
    near = torch.tensor([float(described(line)[0]), 0.1, float(described(line)[1]), 0.1])  # type: ignore[index]
    smaller = near - torch.tensor([0.4, 0, 0.8, 0])
    made = fitted(lambda n: line, near, smaller, 0)
    assert ndimage.label(made[0, 0].numpy())[1] == 1


@pytest.mark.parametrize("hostile", [1e30, -1e30, 1e4])
def test_numbers_that_are_lies_end_in_some_mask(hostile: float) -> None:
    here = site(4, 4)
    for place in range(NUMBERS):
        lie = told(here).clone()
        lie[place] = hostile
        made = fitted(lambda n: here.labels[n % 12], told(here), lie, 0)
        assert made.shape == here.labels[0].shape
        assert made.any()


def test_one_mask_that_is_all_structure_does_not_decide_for_all() -> None:
    labels = [*site(6, 3).labels]
    full = Masks([*labels[:-1], torch.ones_like(labels[0])])
    assert abs(float(told(full)[0] - told(Masks(labels))[0])) < 0.25


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

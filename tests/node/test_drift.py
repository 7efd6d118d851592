"""Drift is nought for images like the site's own, says what differs, and stays within its bounds whatever arrives."""

import io
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional

from node.copies import Pairs
from node.data.site import EmptySite, SiteData
from node.drift import DRIFT, drift_pairs, measure_drift, pairs_png
from tests.node.test_copies import Toy, copier, hospital, whole


@pytest.fixture
def site(tmp_path: Path) -> SiteData:
    return hospital(tmp_path)


@pytest.fixture
def same(site: SiteData) -> Pairs:
    """Replays that are the real images."""
    return drift_pairs(copier(whole(site.samples("train"))), site, 5, "north")


def drifted(pairs: Pairs, replay: Tensor) -> dict[str, float]:
    found = measure_drift(replace(pairs, replay=replay))
    assert found.keys() == DRIFT.keys()
    assert all(bound.holds(found[name]) for name, bound in DRIFT.items())
    return found


def test_a_generator_that_makes_the_real_images_has_not_drifted(same: Pairs) -> None:
    assert torch.equal(same.real, same.replay)
    assert list(measure_drift(same).values()) == [0, 0, 0]


def test_brightness_is_measured_in_standard_deviations(same: Pairs) -> None:
    unit = float(same.real.double().std(correction=0))
    found = drifted(same, same.real + 0.5 * unit)
    assert list(found.values()) == pytest.approx([0.5, 0, 0], abs=1e-5)
    assert drifted(replace(same, real=7 * same.real), 7 * (same.real + 0.5 * unit)) == pytest.approx(found, abs=1e-5)


def test_classes_count_alike_however_small(same: Pairs) -> None:
    unit = float(same.real.double().std(correction=0))
    assert 0 < (same.label == 1).double().mean() < 0.3
    assert drifted(same, same.real + unit * (same.label == 1))["drift_mean"] == pytest.approx(0.5, abs=1e-5)


@pytest.mark.parametrize("times", [0.5, 3.0])
def test_edges_are_compared_on_a_scale_of_ratios(same: Pairs, times: float) -> None:
    found = drifted(same, times * same.real)
    assert found["drift_edge"] == pytest.approx(abs(math.log(times)), abs=0.006)
    assert found["drift_std"] > 0.1


def test_blur_shows_in_the_edges_and_noise_in_the_spread_too(same: Pairs) -> None:
    blurred = drifted(same, functional.avg_pool2d(functional.pad(same.real, (1,) * 4, mode="reflect"), 3, 1))
    assert blurred["drift_edge"] > 2 * blurred["drift_std"]
    assert blurred["drift_mean"] < 0.1
    noise = torch.randn(same.real.shape, generator=torch.Generator().manual_seed(0))
    noisy = drifted(same, same.real + noise * same.real.std())
    assert noisy["drift_mean"] < 0.1
    assert min(noisy["drift_std"], noisy["drift_edge"]) > 0.3


def test_images_that_have_lost_their_variety_have_drifted(same: Pairs) -> None:
    """A generator that makes one patient again and again."""
    assert drifted(same, same.real[:1].expand_as(same.real))["drift_std"] > 0.02


def test_channels_count_alike_and_each_in_its_own_unit(same: Pairs) -> None:
    two = replace(same, real=torch.cat([same.real, 100 * same.real], dim=1))
    unit = same.real.double().std(correction=0)
    assert drifted(two, two.real + torch.stack([unit, 0 * unit])[:, None, None])["drift_mean"] == pytest.approx(0.5)


@pytest.mark.parametrize("value", [0.0, 1e30, math.inf, -math.inf, math.nan])
def test_anything_that_arrives_stays_within_the_bounds(same: Pairs, value: float) -> None:
    found = drifted(same, torch.full_like(same.real, value))
    assert found["drift_mean"] == DRIFT["drift_mean"].high or value == 0
    drifted(replace(same, real=torch.zeros_like(same.real)), torch.full_like(same.real, value))


@given(st.lists(st.floats(width=32), min_size=16, max_size=16), st.lists(st.floats(-1e6, 1e6, width=32), min_size=16))
def test_bounds_hold_for_any_pixels(replay: list[float], real: list[float]) -> None:
    label = torch.arange(16).reshape(2, 1, 2, 4) % 3
    pairs = Pairs(torch.tensor(real[:16]).reshape(2, 1, 2, 4), torch.zeros(2, 1, 2, 4), label)
    drifted(pairs, torch.tensor(replay).reshape(2, 1, 2, 4))


def test_a_few_replays_do_of_training_cases_alone(site: SiteData) -> None:
    cases = whole(site.samples("train"))
    toy = copier(cases)
    pairs = drift_pairs(toy, site, 5, "north")
    assert [(name, len(seeds)) for name, seeds in toy.asked] == [("north", 16)]
    assert all(any(torch.equal(image, other) for other in cases.image) for image in pairs.real)
    again = drift_pairs(toy, site, 5, "north")
    assert torch.equal(pairs.real, again.real)
    assert toy.asked[0] == toy.asked[1]


def picture(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def test_the_picture_shows_real_images_above_their_replays(same: Pairs) -> None:
    canvas = picture(pairs_png(replace(same, replay=-same.real), synthetic=True))
    assert canvas.shape == (2 * 32 + 2, 6 * 32 + 5 * 2, 3)
    above, below = canvas[:32].astype(float), canvas[34:].astype(float)
    assert np.corrcoef(above[:, :32, 0].ravel(), below[:, :32, 0].ravel())[0, 1] < -0.5
    low, high = np.percentile(same.real[:6].numpy(), (1, 99))
    first = np.clip((same.real[0, 0].numpy() - low) / (high - low), 0, 1) * 255
    assert np.abs(above[:, :32, 0] - first).max() < 1.001


def test_volumes_colours_and_images_that_are_not_finite_are_drawn_too() -> None:
    label = torch.zeros(2, 1, 8, 6, 4, dtype=torch.int64)
    label[:, :, 2:4, 2:4, 3] = 1
    volumes = Pairs(torch.rand(label.shape), torch.full(label.shape, torch.nan), label)
    assert picture(pairs_png(volumes, synthetic=True)).shape == (2 * 8 + 2, 2 * 6 + 2, 3)
    colours = torch.zeros(1, 3, 8, 8)
    colours[:, 2] = torch.rand(8, 8)
    canvas = picture(pairs_png(Pairs(colours, colours, torch.zeros(1, 1, 8, 8, dtype=torch.int64)), synthetic=True))
    assert canvas[:, :, 2].max() == 255
    assert canvas[:8, :, :2].max() == 0


def test_patients_are_not_drawn(same: Pairs) -> None:
    with pytest.raises(ValueError, match="synthetic"):
        pairs_png(same, synthetic=False)


def test_a_site_without_training_cases_is_said(tmp_path: Path) -> None:
    with pytest.raises(EmptySite):
        drift_pairs(Toy(lambda mask, seed: mask.float()), hospital(tmp_path, cases=1, seed=1), 5, "north")

"""Scores against masks whose overlap and distances are known, and against MONAI's plain functions."""

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import compute_average_surface_distance, compute_dice
from PIL import Image

from node.data.samples import TestCase as Case  # pytest would collect the name
from node.data.site import SiteData
from node.data.source import Scan
from node.scoring import declared_metrics, overlay_png, score_case, score_site
from node.settings import SiteSettings
from protos.plan import PhantomSite, Plan, StrategyChoice, Task

PIXELS = (1.0, 1.0)


def mask(space, *boxes):
    label = np.zeros(space, dtype=np.uint8)
    for number, box in enumerate(boxes, start=1):
        label[box] = number
    return label


def test_two_parallel_planes():
    one = mask((10, 12, 14), np.s_[2])
    other = mask((10, 12, 14), np.s_[5])
    score = score_case(one, other, (2.5, 0.7, 0.7), 2)
    assert score.dsc == (0.0,)
    assert score.asd == pytest.approx((3 * 2.5,))
    assert (score.both_empty, score.penalised) == (0, 0)


def test_known_overlap():
    one, other = mask((20, 20), np.s_[0:4, 0:5]), mask((20, 20), np.s_[0:4, 3:8])
    assert score_case(one, other, PIXELS, 2).dsc == (2 * 8 / 40,)


def test_the_mean_of_both_directions_is_not_the_pooled_mean():
    point, line = mask((9, 41), np.s_[4:5, 0:1]), mask((9, 41), np.s_[4:5, 0:41])
    # from the point 0; from the line 0, 1, ..., 40
    assert score_case(point, line, PIXELS, 2).asd == (10.0,)


def test_equal_masks_are_perfect():
    label = mask((20, 20), np.s_[2:9, 2:9], np.s_[12:15, 3:18])
    score = score_case(label, label, PIXELS, 3)
    assert (score.dsc, score.asd) == ((1.0, 1.0), (0.0, 0.0))
    assert (score.mean_dsc, score.mean_asd) == (1.0, 0.0)


def test_empty_masks_are_counted_and_never_dropped():
    full, empty = mask((30, 40), np.s_[3:5, 3:5]), mask((30, 40))
    both = score_case(empty, empty, PIXELS, 2)
    assert (both.dsc, both.asd, both.both_empty, both.penalised) == ((1.0,), (0.0,), 1, 0)
    for pair in ((full, empty), (empty, full)):
        score = score_case(*pair, (2.0, 2.0), 2)
        assert (score.dsc, score.asd, score.both_empty, score.penalised) == ((0.0,), (100.0,), 0, 1)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\(3, 4\)"):
        score_case(mask((3, 4)), mask((4, 3)), PIXELS, 2)


spaces = st.one_of(st.tuples(*[st.integers(1, 14)] * 2), st.tuples(*[st.integers(1, 8)] * 3))


@st.composite
def pairs(draw):
    space = draw(spaces)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    density = draw(st.sampled_from([0.02, 0.3, 0.9]))
    masks = [(rng.integers(1, 4, space) * (rng.random(space) < density)).astype(np.uint8) for _ in range(2)]
    spacing = tuple(draw(st.floats(0.3, 5)) for _ in space)
    return *masks, spacing


@given(pairs())
@settings(max_examples=60)
def test_swapping_changes_nothing_and_spacing_scales_distances(pair):
    one, other, spacing = pair
    score = score_case(one, other, spacing, 4)
    swapped = score_case(other, one, spacing, 4)
    assert swapped.dsc == score.dsc
    assert swapped.asd == pytest.approx(score.asd, rel=1e-6)
    triple = score_case(one, other, tuple(3 * mm for mm in spacing), 4)
    assert triple.asd == pytest.approx([3 * value for value in score.asd], rel=1e-5)


@given(pairs())
@settings(max_examples=60)
@pytest.mark.filterwarnings("ignore:the (ground truth|prediction) of class")
@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")  # MONAI passes it to itself
def test_cropping_and_counting_change_nothing_against_monai(pair):
    one, other, spacing = pair
    score = score_case(one, other, spacing, 4)
    hot = [torch.nn.functional.one_hot(torch.from_numpy(m).long(), 4).movedim(-1, 0)[None] for m in (one, other)]
    dice = compute_dice(hot[0].float(), hot[1].float(), include_background=False, ignore_empty=False)[0]
    assert score.dsc == pytest.approx(dice.tolist(), abs=1e-6)
    there = compute_average_surface_distance(hot[0], hot[1], spacing=spacing)[0]
    back = compute_average_surface_distance(hot[1], hot[0], spacing=spacing)[0]
    for number in range(3):
        if (one == number + 1).any() and (other == number + 1).any():
            assert score.asd[number] == pytest.approx(float(there[number] + back[number]) / 2, rel=1e-5, abs=1e-6)


# --- a site -------------------------------------------------------------------------------------------------------


class MemorySource:
    problems = ()

    def __init__(self, scans, synthetic=True):
        self.scans = {scan.name: scan for scan in scans}
        self.synthetic = synthetic
        self.names = tuple(sorted(self.scans))

    def patient(self, name):
        return name

    def load(self, name):
        return self.scans[name]


def site(scans, task, synthetic=True):
    plan = Plan(task=task, strategy=StrategyChoice(name="finetune"), sites=("spain",))
    settings = SiteSettings(name="italy", home=".", phantom=PhantomSite(task="disc"))
    return SiteData(settings, plan, unseen=True, source=MemorySource(scans, synthetic))


def read_the_image(images):
    """A network that takes the rounded intensities for classes."""
    return torch.nn.functional.one_hot(images[:, 0].round().long(), 3).movedim(-1, 1).float()


def test_slices_put_together_are_scored_as_a_volume():
    rng = np.random.default_rng(0)
    space, spacing = (16, 16, 40), (1.0, 1.0, 4.0)
    truth = mask(space, np.s_[3:12, 3:12, 5:9], np.s_[2:4, 2:9, 20:33])
    image = np.where(rng.random(space) < 0.02, rng.integers(0, 3, space), truth).astype(np.uint8)
    task = Task(size=(16, 16), classes=("none", "a", "b"), intensity="none")
    data = site([Scan("v", image[None].astype(np.float32), truth, spacing)], task)
    assert score_site(data, read_the_image).cases == {"v": score_case(image, truth, spacing, 3)}


def test_a_site_sends_exactly_the_declared_aggregates():
    task = Task(size=(16, 16), classes=("none", "a", "b"), intensity="none")
    truth = mask((16, 16), np.s_[2:6, 2:6])
    wrong = mask((16, 16), np.s_[2:6, 2:8])
    scans = [Scan("one", truth[None].astype(np.float32), truth, PIXELS)]
    scans += [Scan("two", wrong[None].astype(np.float32), truth, PIXELS)]
    scans += [Scan("zero", np.zeros((1, 16, 16), np.float32), truth, PIXELS)]
    seen = []
    score = score_site(site(scans, task), read_the_image, lambda done, total: seen.append((done, total)))
    metrics = score.metrics()
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert metrics["dsc.1"] == pytest.approx((1 + 2 * 16 / 40 + 0) / 3)
    assert metrics["dsc.2"] == 1
    assert metrics["dsc"] == pytest.approx((metrics["dsc.1"] + 1) / 2)
    assert metrics["asd.1"] == pytest.approx((0 + score.cases["two"].asd[0] + 16 * math.sqrt(2)) / 3)
    assert metrics["asd"] == pytest.approx(np.mean([case.mean_asd for case in score.cases.values()]))
    assert (metrics["cases"], metrics["both_empty"], metrics["penalised"]) == (3, 3, 1)
    declared = declared_metrics(task)
    assert set(metrics) == set(declared)
    assert all(declared[name].low <= value <= declared[name].high for name, value in metrics.items())


def test_the_same_inputs_give_the_same_bits():
    rng = np.random.default_rng(0)
    scans = [
        Scan(f"c{i}", rng.normal(0, 1, (1, 33, 27)).astype(np.float32), mask((33, 27), np.s_[4:9]), PIXELS)
        for i in range(3)
    ]
    task = Task(size=(16, 16), classes=("none", "a", "b"))
    weight = torch.randn(3, 1, 3, 3, generator=torch.Generator().manual_seed(0))

    def network(images):
        return torch.nn.functional.conv2d(images, weight, padding=1)

    assert score_site(site(scans, task), network) == score_site(site(scans, task), network)


@pytest.mark.parametrize("space", [(20, 30), (20, 30, 5)])
def test_only_synthetic_cases_are_drawn(space):
    truth = mask(space, np.s_[4:12, 6:20])
    task = Task(size=(16, 16), classes=("none", "a", "b"))
    scan = Scan("a", truth[None].astype(np.float32), truth, (1.0,) * len(space))
    [case] = site([scan], task).scored_cases()
    drawn = Image.open(io.BytesIO(overlay_png(case, np.zeros_like(truth))))
    assert drawn.size == (30, 20)
    plain, tinted = np.asarray(drawn), np.asarray(Image.open(io.BytesIO(overlay_png(case, truth))))
    assert not np.array_equal(plain, tinted)
    [patient] = site([scan], task, synthetic=False).scored_cases()
    assert isinstance(patient, Case)
    with pytest.raises(ValueError, match="synthetic"):
        overlay_png(patient, truth)

"""Planes: a volume sliced along another axis is the volume with its axes permuted, sliced along the last."""

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from node.data import samples as samples_module
from node.data.samples import samples_of
from node.data.site import SiteData
from node.data.source import Scan
from node.phantoms import PhantomSource
from node.scoring import overlay_png, score_case, score_site
from node.settings import SiteSettings
from protos.plan import PhantomSite, Plan, Split, StrategyChoice, Task, Training

CLASSES = ("background", "disc", "ring")
ORDER = {"axial": (0, 1, 2), "coronal": (0, 2, 1), "sagittal": (1, 2, 0)}  # in the plane, then along the slices
planes = pytest.mark.parametrize("plane", ["coronal", "sagittal"])


def scan_of(space, soft=False, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, space, dtype=np.uint8)
    if soft:
        label = rng.random((2, *space)).astype(np.float32) ** 2
    return Scan("a", rng.normal(size=(1, *space)).astype(np.float32), label, (1.0, 1.7, 2.9))


def permuted(scan, plane):
    """The scan as it lies in memory when its file was written with the axes in the plane's order."""
    axes = [axis - 3 for axis in ORDER[plane]]
    turned = [array.transpose(*range(array.ndim - 3), *axes) for array in (scan.image, scan.label)]
    return Scan(scan.name, *(np.ascontiguousarray(array) for array in turned), tuple(scan.spacing[a] for a in axes))


def network(channels):
    weight = torch.randn(channels, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    return lambda images: torch.nn.functional.conv2d(images, weight, padding=1)


@planes
@given(
    space=st.tuples(*[st.integers(3, 14)] * 3),
    fit=st.sampled_from([{}, {"fit": "patch"}, {"fit": "patch", "spacing": (1.3, 2.0)}]),
    soft=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=25)
def test_a_plane_is_the_last_axis_of_the_permuted_volume(plane, space, fit, soft, seed):
    """Samples and predictions bit for bit; scores but for the rounding of sums over a surface."""
    task = Task(size=(8, 6), classes=CLASSES, soft=soft, **fit)
    sliced = Task(size=(8, 6), classes=CLASSES, soft=soft, plane=plane, **fit)
    scan = scan_of(space, soft, seed)
    turned = permuted(scan, plane)
    mine, theirs = samples_of(scan, sliced), samples_of(turned, task)
    assert len(mine) == len(theirs) == space[ORDER[plane][2]]
    for one, other in zip(mine, theirs, strict=True):
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.label, other.label)
        assert np.array_equal(one.foreground, other.foreground)
    one, other = samples_module.TestCase.of(scan, sliced, True), samples_module.TestCase.of(turned, task, True)
    logits = network(3 - soft)
    prediction, expected = one.predict(logits), other.predict(logits)
    assert prediction.shape == one.truth.shape == space
    assert np.array_equal(prediction.transpose(ORDER[plane]), expected)
    assert np.array_equal(one.picture().transpose(0, *(1 + axis for axis in ORDER[plane])), other.picture())
    scores = score_case(prediction, one.truth, one.spacing, 3), score_case(expected, other.truth, other.spacing, 3)
    assert scores[0].dsc == scores[1].dsc
    assert scores[0].asd == pytest.approx(scores[1].asd)


def test_the_planes_are_those_of_anatomy():
    """Axes are right, anterior, superior: a coronal slice shows right and superior."""
    scan = Scan("a", np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4), np.zeros((2, 3, 4), np.uint8), (1.0,) * 3)
    volume = scan.image[0]
    expected = {
        "axial": [volume[:, :, number] for number in range(4)],
        "coronal": [volume[:, number] for number in range(3)],
        "sagittal": [volume[number] for number in range(2)],
    }
    for plane, slices in expected.items():
        task = Task(size=slices[0].shape, classes=CLASSES, plane=plane, intensity="none")
        found = [sample.image[0].numpy() for sample in samples_of(scan, task)]
        assert np.array_equal(found, slices), plane


@planes
def test_pictures_and_whole_volumes_have_no_plane(plane):
    picture = Scan("a", np.eye(8, dtype=np.float32)[None], np.eye(8, dtype=np.uint8), (1.0, 1.0))
    [one] = samples_of(picture, Task(size=(8, 8), classes=CLASSES, plane=plane))
    [other] = samples_of(picture, Task(size=(8, 8), classes=CLASSES))
    assert torch.equal(one.image, other.image)
    with pytest.raises(ValueError, match=f"plane is {plane} but dims is 3"):
        Task(dims=3, classes=CLASSES, plane=plane)


@planes
def test_a_synthetic_volume_is_scored_and_drawn_in_its_plane(plane, tmp_path):
    task = Task(size=(16, 16), classes=("background", "lesion"), plane=plane, intensity="none")
    plan = Plan(
        task=task,
        strategy=StrategyChoice(name="finetune"),
        training=Training(steps=1),
        split=Split(train=0, val=0, test=1),
        sites=("north",),
    )
    phantom = PhantomSite(task="lesions", cases=2, size=24)
    data = SiteData(SiteSettings(name="north", home=tmp_path, phantom=phantom), plan)
    case = next(data.scored_cases())
    scan = PhantomSource(phantom, task).load(case.name)
    assert np.array_equal(case.truth, scan.label)
    assert case.image.shape[0] == scan.space[ORDER[plane][2]]
    assert 0 <= score_site(data, network(2)).metrics()["dsc"] <= 1
    rows, columns, along = ORDER[plane]
    with Image.open(io.BytesIO(overlay_png(case, case.truth))) as drawn:
        assert drawn.size == (scan.space[columns], scan.space[rows])
        tinted = np.ptp(np.asarray(drawn).astype(int), axis=-1) > 0
    fullest = max(range(scan.space[along]), key=lambda number: np.count_nonzero(scan.label.take(number, along)))
    assert np.array_equal(tinted, scan.label.take(fullest, along) > 0)


def test_each_plane_is_a_plan_of_its_own():
    digests = [
        Plan(task=Task(classes=CLASSES, plane=plane), strategy=StrategyChoice(name="finetune"), sites=("a",)).digest()
        for plane in ORDER
    ]
    assert all(one != other for one, other in pairwise(digests))

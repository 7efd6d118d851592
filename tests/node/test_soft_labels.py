"""Soft labels at the node: shares from the file to the batch, windows drawn by them, hard scores at one half."""

import nibabel
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.data import samples as samples_module
from node.data.examination import examine
from node.data.layouts import FolderSource
from node.data.readers import LabelValues
from node.data.samples import SiteSamples, samples_of
from node.data.site import SiteData
from node.data.source import Scan, Unreadable
from node.data.transforms import augment, hardened, prepare_label
from node.phantoms import PhantomSource
from node.scoring import score_site
from node.settings import SiteSettings
from protos.plan import PhantomSite, Plan, Split, StrategyChoice, Task, Training

ONE = ("background", "lesion")
TWO = ("background", "one", "two")
ALL = ("flip", "rotate", "scale", "intensity", "noise")


def task_of(size, classes=TWO, **more):
    return Task(dims=len(size), size=size, classes=classes, soft=True, **more)


def scan_of(space, structures=2, seed=0, spacing=None):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(1, *space)).astype(np.float32)
    label = rng.random((structures, *space)) ** 3 / structures
    return Scan("a", image, label.astype(np.float32), spacing or (1.0,) * len(space))


# --- files --------------------------------------------------------------------------------------------------------


def folder_of(tmp_path, label, suffix=".nii.gz"):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    image = np.zeros(label.shape, np.float32)
    for kind, array in (("images", image), ("labels", label)):
        path = tmp_path / kind / f"a{suffix}"
        if suffix == ".tif":
            tifffile.imwrite(path, array)
        else:
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    return SiteSettings(name="italy", home=tmp_path / "home", data=tmp_path)


def fractions(space, seed=0):
    return np.random.default_rng(seed).random(space).astype(np.float32)


@pytest.mark.parametrize(("space", "suffix"), [((6, 5, 4), ".nii.gz"), ((6, 5), ".tif")])
def test_fractions_in_a_file_reach_the_batch(space, suffix, tmp_path):
    label = fractions(space)
    task = task_of(space, ONE)
    source = FolderSource(folder_of(tmp_path, label, suffix), task, Split())
    scan = source.load("a")
    assert scan.label.dtype == np.float32
    assert np.array_equal(scan.label, label[None])
    batch = SiteSamples(samples_of(scan, task), task).batch([0])
    assert batch.label.dtype == torch.float32
    assert np.array_equal(batch.label[0], label[None])


def test_fractions_by_a_scale_factor_are_taken(tmp_path):
    label = np.arange(120).reshape(6, 5, 4).astype(np.uint8)
    settings = folder_of(tmp_path, label)
    image = nibabel.Nifti1Image(label / 119, np.eye(4))
    image.set_data_dtype(np.uint8)  # nibabel finds the factor
    nibabel.save(image, tmp_path / "labels" / "a.nii.gz")
    scan = FolderSource(settings, task_of((6, 5, 4), ONE), Split()).load("a")
    assert np.allclose(scan.label[0], label / 119, atol=1 / 255)
    assert 0 <= scan.label.min() < scan.label.max() <= 1


def test_class_numbers_become_shares(tmp_path):
    label = np.random.default_rng(0).integers(0, 3, (6, 5, 4)).astype(np.uint8)
    scan = FolderSource(folder_of(tmp_path, label), task_of((6, 5, 4)), Split()).load("a")
    assert np.array_equal(scan.label, np.stack([label == 1, label == 2]).astype(np.float32))
    assert np.array_equal(hardened(scan.label), label)


@pytest.mark.parametrize(
    ("raw", "values"),
    [
        (np.array([0.0, 0.5, 1.0]), LabelValues(ONE)),  # not soft
        (np.array([0.0, 0.5, 1.0]), LabelValues(TWO, soft=True)),  # whose share?
        (np.array([0.0, 0.5, 1.5]), LabelValues(ONE, soft=True)),
        (np.array([-0.2, 0.5]), LabelValues(ONE, soft=True)),
        (np.array([0.0, 0.5, 7.0]), LabelValues(ONE, {7: "lesion"}, soft=True)),
        (np.array([0.5, np.nan]), LabelValues(ONE, soft=True)),
        (np.array([0.5, np.inf]), LabelValues(ONE, soft=True)),
        (np.array([0, 2], np.uint8), LabelValues(ONE, soft=True)),
    ],
)
def test_other_fractions_are_refused_in_one_sentence(raw, values, tmp_path):
    with pytest.raises(Unreadable, match=r"^[^\n]*labels/a\.nii[^\n]*; [^\n]*\.$") as caught:
        values.apply(raw, tmp_path / "labels" / "a.nii")
    assert str(caught.value).count(". ") == 0


def test_check_counts_shares(tmp_path):
    label = fractions((6, 5, 4))
    found = examine(FolderSource(folder_of(tmp_path, label), task_of((6, 5, 4), ONE), Split(train=1, val=0, test=0)))
    assert found.classes[1].pixels == pytest.approx(label.sum(), rel=1e-5)
    assert sum(c.pixels for c in found.classes) == pytest.approx(label.size)
    assert found.classes[1].cases == 1


# --- resampling and augmentation ----------------------------------------------------------------------------------


def test_shrinking_a_hard_mask_leaves_the_share_of_each_pixel():
    label = np.zeros((1, 64, 64), np.float32)
    label[0, :, :33] = 1
    scan = Scan("a", np.zeros((1, 64, 64), np.float32), label, (1.0, 1.0))
    small = prepare_label(scan, task_of((16, 16), ONE))
    assert small.shape == (1, 1, 16, 16)
    assert small.mean() == pytest.approx(33 / 64, abs=0.01)
    assert ((small > 0.01) & (small < 0.99)).any()


@given(
    space=st.tuples(*[st.integers(3, 20)] * 3),
    size=st.tuples(*[st.integers(2, 16)] * 3),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40)
def test_labels_stay_shares_through_everything(space, size, seed):
    task = task_of(size, fit="patch", spacing=(0.8, 1.5, 1.0), foreground=0.5)
    samples = SiteSamples(samples_of(scan_of(space, seed=seed), task), task, ALL)
    batch = samples.batch([0, 0], [seed, seed // 2])
    assert batch.label.shape == (2, 2, *size)
    assert batch.label.isfinite().all()
    assert batch.label.min() >= 0
    assert batch.label.max() <= 1
    assert batch.label.sum(1).max() <= 1 + 1e-5  # what is shared out is at most the pixel


def test_turning_makes_fractions_of_a_hard_mask_and_moves_it_like_the_image():
    label = torch.zeros(1, 32, 32)
    label[0, 8:20, 10:25] = 1
    for seed in range(5):
        image, turned = augment(label.clone(), label, ("flip", "rotate", "scale"), np.random.default_rng(seed))
        torch.testing.assert_close(image, turned)  # both are interpolated alike
        assert ((turned > 0.01) & (turned < 0.99)).any()


def test_soft_and_hard_labels_see_the_same_geometry():
    hard = torch.randint(0, 2, (24, 24), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    image = torch.randn(1, 24, 24, generator=torch.Generator().manual_seed(1))
    for seed in range(5):
        with_hard, _ = augment(image, hard, ALL, np.random.default_rng(seed))
        with_soft, _ = augment(image, hard[None].float(), ALL, np.random.default_rng(seed))
        assert torch.equal(with_hard, with_soft)


# --- windows ------------------------------------------------------------------------------------------------------


def test_windows_are_drawn_in_proportion_to_the_label():
    label = np.zeros((1, 60, 60), np.float32)
    label[0, 10, 10], label[0, 50, 50] = 0.25, 0.75
    position = np.arange(3600, dtype=np.float32).reshape(1, 60, 60)
    task = task_of((8, 8), ONE, fit="patch", intensity="none", foreground=1.0)
    samples = SiteSamples(samples_of(Scan("a", position, label, (1.0, 1.0)), task), task)
    batch = samples.batch([0] * 400, range(400))
    corners = batch.image[:, 0, 0, 0].tolist()
    counts = {corner: corners.count(corner) for corner in set(corners)}
    assert counts.keys() == {6 * 60 + 6, 46 * 60 + 46}
    assert 250 < counts[46 * 60 + 46] < 350


@pytest.mark.parametrize(("foreground", "low", "high"), [(0.0, 0, 10), (0.25, 70, 130), (1.0, 400, 400)])
@pytest.mark.parametrize("soft", [True, False])
def test_the_share_of_windows_about_foreground_is_the_tasks(soft, foreground, low, high):
    label = np.zeros((200, 200), np.uint8)
    label[100, 100] = 1
    task = Task(size=(8, 8), classes=ONE, soft=soft, fit="patch", foreground=foreground)
    given_label = label[None].astype(np.float32) if soft else label
    scan = Scan("a", np.zeros((1, 200, 200), np.float32), given_label, (1.0, 1.0))
    batch = SiteSamples(samples_of(scan, task), task).batch([0] * 400, range(400))
    assert low <= int(batch.label.flatten(1).any(1).sum()) <= high


@given(
    space=st.tuples(*[st.integers(1, 24)] * 3),
    size=st.tuples(*[st.integers(2, 12)] * 3),
    soft=st.booleans(),
    foreground=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60)
def test_a_window_is_a_part_of_the_padded_volume(space, size, soft, foreground, seed):
    """Whatever axes are shorter than the window: image and label are cut alike, and what is beyond them is zero."""
    position = (1 + np.arange(np.prod(space), dtype=np.float32)).reshape(1, *space)
    hard = (np.arange(np.prod(space)) % 3 == 0).astype(np.uint8).reshape(space)
    task = Task(dims=3, size=size, classes=ONE, soft=soft, fit="patch", intensity="none", foreground=foreground)
    scan = Scan("a", position, hard[None].astype(np.float32) if soft else hard, (1.0,) * 3)
    [sample] = samples_of(scan, task)
    assert sample.grid == tuple(np.maximum(space, size))
    for seeds in (None, [seed]):
        batch = SiteSamples([sample], task).batch([0], seeds)
        window, label = batch.image[0, 0].numpy(), batch.label[0, 0].numpy()
        assert window.shape == size
        inside = window > 0
        assert inside.any()
        assert not label[~inside].any()
        where = window[inside].astype(int) - 1
        assert np.array_equal(label[inside], hard.ravel()[where])
        places = np.array(np.unravel_index(where, space))
        assert np.array_equal(places - places.min(1, keepdims=True), _from_corner(inside))
        for axis in range(3):  # as much of the volume as the window holds
            assert np.ptp(places[axis]) + 1 == min(space[axis], size[axis])


def _from_corner(inside):
    places = np.array(np.nonzero(inside))
    return places - places.min(1, keepdims=True)


# --- scores -------------------------------------------------------------------------------------------------------


def site_of(source, task, tmp_path, part="test"):
    plan = Plan(
        task=task,
        strategy=StrategyChoice(name="finetune"),
        training=Training(loss="dice"),
        split=Split(**({"train": 0, "val": 0, "test": 0} | {part: 1})),
        sites=("italy",),
    )
    settings = SiteSettings(name="italy", home=tmp_path, phantom=PhantomSite(task="lesions"))
    return SiteData(settings, plan, source=source)


class OneScan:
    """A source of one scan."""

    synthetic = True
    problems = ()
    names = ("a",)

    def __init__(self, scan):
        self.scan = scan

    def patient(self, name):
        return name

    def load(self, name):
        return self.scan


def test_the_truth_is_cut_at_one_half_and_the_largest_counts():
    label = np.array([[[0.5, 0.51, 0.2, 0.6, 0.0]], [[0.5, 0.1, 0.8, 0.6, 0.0]]], np.float32)
    assert hardened(label).tolist() == [[0, 1, 2, 1, 0]]
    case = samples_module.TestCase.of(
        Scan("a", np.zeros((1, 1, 5), np.float32), label, (1.0, 1.0)), task_of((1, 5)), True
    )
    assert case.truth.tolist() == [[0, 1, 2, 1, 0]]


@pytest.mark.parametrize("fit", ["resize", "patch"])
@pytest.mark.parametrize("space", [(24, 24, 16), (30, 18, 7)])
def test_a_network_that_says_the_shares_scores_one(fit, space, tmp_path):
    """And one that says them seven times over, since the activation knows no scale."""
    task = task_of((24, 24, 8) if fit == "patch" else space, fit=fit)
    label = np.zeros((2, *space), np.float32)
    label[0, 4:12, 5:14, 1:6] = 1
    label[1, 15:22, 3:9, 2:7] = 1
    scan = Scan("a", label.sum(0, keepdims=True) + label[1:], label, (1.0,) * 3)
    task = task.model_copy(update={"intensity": "none"})
    data = site_of(OneScan(scan), task, tmp_path)

    def read_the_image(images):
        shares = torch.cat([(images == 1).float(), (images == 2).float()], dim=1)
        return 7 * shares - 3

    metrics = score_site(data, read_the_image).metrics()
    assert metrics["dsc"] == 1
    assert score_site(data, lambda images: -torch.ones(len(images), 2, *task.size)).metrics()["dsc"] == 0


def test_each_window_is_normalised_alone():
    """The trap that strategies/losses.py names: a faint response becomes certain where it is alone in its window."""
    scan = Scan("a", np.zeros((1, 8, 32), np.float32), np.zeros((1, 8, 32), np.float32), (1.0, 1.0))
    scan.image[0, 4, 4], scan.image[0, 4, 28] = 1.0, 0.01
    task = task_of((8, 8), ONE, fit="patch", intensity="none")
    assert samples_module.TestCase.of(scan, task, True).predict(lambda images: images)[4, 28] == 1
    whole = task_of((8, 32), ONE, intensity="none")
    assert samples_module.TestCase.of(scan, whole, True).predict(lambda images: images)[4, 28] == 0


# --- phantoms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "dims", "structures"), [("organ", 2, 1), ("heart", 2, 3), ("lesions", 3, 1)])
def test_phantoms_give_partial_volumes(name, dims, structures):
    classes = tuple(map(str, range(structures + 1)))
    phantom = PhantomSite(task=name, cases=2, size=32)
    hard = PhantomSource(phantom, Task(dims=dims, size=(32,) * dims, classes=classes)).load("case-000")
    soft = PhantomSource(phantom, task_of((32,) * dims, classes)).load("case-000")
    assert np.array_equal(soft.image, hard.image)
    assert soft.label.shape == (structures, *hard.label.shape)
    assert soft.label.dtype == np.float32
    assert 0 <= soft.label.min() < soft.label.max() <= 1
    assert soft.label.sum(0).max() <= 1.01
    assert ((soft.label > 0.1) & (soft.label < 0.9)).any()
    assert (hardened(soft.label) == hard.label).mean() > 0.98
    assert np.allclose(1000 * soft.label, np.rint(1000 * soft.label), atol=1e-3)

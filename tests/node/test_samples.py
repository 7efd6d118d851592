"""Cases become samples: once decoded, on the right grid, augmented alike for image and label, the same bits always."""

import warnings
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.transforms import AdjustContrast, Affine, Resize

from node.data import samples as samples_module
from node.data.samples import SiteSamples, augmented, samples_of
from node.data.site import EmptySite, SiteData
from node.data.source import Problem, Scan, Unreadable
from node.data.transforms import augment, normalise, prepare_image, prepare_label, resample, turn
from node.settings import SiteSettings
from protos.plan import PhantomSite, Plan, Split, StrategyChoice, Task, Training
from strategies.data import GEOMETRY

CLASSES = ("background", "disc", "ring")
ALL = ("flip", "rotate", "scale", "intensity", "noise")


class MemorySource:
    """Scans in memory that counts how often each is decoded."""

    synthetic = True

    def __init__(self, scans, broken=()):
        self.scans = {scan.name: scan for scan in scans}
        self.broken = set(broken)
        self.loads = Counter()
        self.problems = (Problem("odd.png", "odd.png has no label.", spoils=False),)

    @property
    def names(self):
        return tuple(sorted(self.scans))

    def patient(self, name):
        return name

    def load(self, name):
        self.loads[name] += 1
        if name in self.broken:
            raise Unreadable(f"{name} is cut off.")
        return self.scans[name]


def scan_of(space, channels=1, seed=0, spacing=None, name=None):
    rng = np.random.default_rng(seed)
    grid = np.indices(space) - (np.array(space) / 2 - 0.5).reshape(-1, *(1,) * len(space))
    radius = np.sqrt((grid[:2] ** 2).sum(0)) / min(space[:2])
    label = (radius < 0.35).astype(np.uint8) + (radius < 0.2).astype(np.uint8)
    image = (label + rng.normal(0, 0.2, (channels, *space))).astype(np.float32)
    return Scan(name or f"case{seed}", image, label, spacing or (1.0,) * len(space))


def site(source, task, split=None, unseen=False, **training):
    plan = Plan(
        task=task,
        strategy=StrategyChoice(name="finetune"),
        training=Training(**training),
        split=split or Split(train=1, val=0, test=0),
        sites=("italy",),
    )
    return SiteData(SiteSettings(name="italy", home=".", phantom=PhantomSite(task="disc")), plan, unseen, source)


def logits_of(label, classes=3):
    return torch.nn.functional.one_hot(label.long(), classes).movedim(-1, 1).float()


# --- the site -----------------------------------------------------------------------------------------------------


def test_every_file_is_decoded_once_and_no_part_wakes_another():
    source = MemorySource([scan_of((20, 24), seed=seed) for seed in range(30)])
    data = site(source, Task(size=(16, 16), classes=CLASSES), Split(train=0.4, val=0.3, test=0.3))
    assert not source.loads
    counts = data.counts()
    assert sum(counts.values()) == 30
    train = data.samples("train")
    assert sum(source.loads.values()) == counts["train"] == len(train)
    for step in range(3):
        train.batch([0, 1, 0], [step, step, step])
        data.samples("train")
    assert len(data.samples("val")) == counts["val"]
    held = data.nbytes
    assert len(list(data.scored_cases())) == len(list(data.scored_cases())) == counts["test"]
    assert set(source.loads.values()) == {1}
    assert len(source.loads) == 30
    assert data.nbytes > held > 0


def test_test_cases_are_decoded_as_the_iteration_comes_to_them():
    source = MemorySource([scan_of((16, 16), seed=seed) for seed in range(3)])
    cases = site(source, Task(size=(16, 16), classes=CLASSES), unseen=True).scored_cases()
    assert next(cases).name == "case0"
    assert source.loads == {"case0": 1}


def test_an_unreadable_case_is_left_out_and_named_at_the_node(caplog):
    source = MemorySource([scan_of((16, 16), seed=seed) for seed in range(3)], broken=["case1"])
    data = site(source, Task(size=(16, 16), classes=CLASSES))
    assert data.counts() == {"train": 3, "val": 0, "test": 0}
    assert len(data.samples("train")) == 2
    assert data.counts() == {"train": 2, "val": 0, "test": 0}
    assert data.problems == (*source.problems, Problem("case1", "case1 is cut off."))
    assert [record.getMessage() for record in caplog.records] == ["site italy leaves out a case: case1 is cut off."]
    data.samples("train")
    assert source.loads["case1"] == 1


def test_an_empty_part_says_which_site_which_part_and_what_to_do():
    source = MemorySource([scan_of((16, 16))], broken=["case0"])
    task = Task(size=(16, 16), classes=CLASSES)
    with pytest.raises(EmptySite, match=r"^Site italy has no usable training case.*split\.train\.$"):
        site(source, task).samples("train")
    with pytest.raises(EmptySite, match=r"^Site italy has no usable test case.*split\.test\.$"):
        list(site(source, task, unseen=True).scored_cases())
    assert len(site(source, task).samples("val")) == 0


def test_all_cases_of_an_unseen_site_are_test_cases():
    source = MemorySource([scan_of((16, 16), seed=seed) for seed in range(4)])
    data = site(source, Task(size=(16, 16), classes=CLASSES), unseen=True)
    assert data.counts() == {"train": 0, "val": 0, "test": 4}
    with pytest.raises(EmptySite):
        data.samples("train")


# --- grids and intensities ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "task", "count"),
    [
        ((30, 50), Task(size=(16, 24), classes=CLASSES), 1),
        ((30, 50), Task(size=(16, 24), classes=CLASSES, fit="patch"), 1),
        ((12, 50), Task(size=(16, 24), classes=CLASSES, fit="patch"), 1),
        ((30, 50, 7), Task(size=(16, 24), classes=CLASSES), 7),
        ((30, 50, 7), Task(size=(16, 24), classes=CLASSES, fit="patch"), 7),
        ((30, 50, 7), Task(dims=3, size=(16, 24, 8), classes=CLASSES), 1),
        ((30, 50, 7), Task(dims=3, size=(16, 24, 8), classes=CLASSES, fit="patch"), 1),
    ],
)
def test_batches_have_the_tasks_size_with_and_without_seeds(space, task, count):
    task = task.model_copy(update={"channels": 2})
    samples = SiteSamples(samples_of(scan_of(space, channels=2), task), task, ALL)
    assert len(samples) == count
    for seeds in (None, [1, 2]):
        batch = samples.batch([0, count - 1], seeds)
        assert batch.image.shape == (2, 2, *task.size)
        assert batch.label.shape == (2, 1, *task.size)
        assert (batch.image.dtype, batch.label.dtype) == (torch.float32, torch.int64)
        assert type(batch.image) is type(batch.label) is torch.Tensor
        assert set(batch.label.unique().tolist()) <= {0, 1, 2}


def test_views_that_pytorch_refuses_are_taken():
    scan = scan_of((16, 16))
    image, label = scan.image[:, ::-1].astype(">f4"), scan.label[::-1]
    image.flags.writeable = label.flags.writeable = False
    task = Task(size=(16, 16), classes=CLASSES)
    assert torch.equal(prepare_image(Scan("a", image, label, (1, 1)), task), prepare_image(scan, task).flip(-2))
    assert torch.equal(prepare_label(Scan("a", image, label, (1, 1)), task), prepare_label(scan, task).flip(-2))


@pytest.mark.parametrize("intensity", ["zscore", "minmax", "symmetric", "percentile", "none"])
def test_intensities_are_scaled_per_channel_and_flat_images_stay_finite(intensity):
    task = Task(size=(8, 8), classes=CLASSES, intensity=intensity)
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.normal(3, 2, (2, 40, 40)).astype(np.float32))
    image[1] *= 100
    done = normalise(image.clone(), task)
    assert type(done) is torch.Tensor
    if intensity == "zscore":
        assert torch.allclose(done.mean((1, 2)), torch.zeros(2), atol=1e-5)
        assert torch.allclose(done.std((1, 2), correction=0), torch.ones(2), atol=1e-5)
    elif intensity == "none":
        assert torch.equal(done, image)
    else:
        assert done.amin((1, 2)).tolist() == ([-1, -1] if intensity == "symmetric" else [0, 0])
        assert done.amax((1, 2)).tolist() == pytest.approx([1, 1])
        clipped = (done == done.amax()).float().mean()
        assert (clipped > 0.009) == (intensity == "percentile")
    with warnings.catch_warnings(action="error"):
        mostly_black = torch.zeros(1, 40, 40)
        mostly_black[0, 0, 0] = 5
        for image in (torch.full((1, 8, 8), 7.0), mostly_black):
            assert normalise(image, task).isfinite().all()


def test_shrinking_averages_and_keeps_the_border():
    flat = torch.full((1, 60, 90), 2.0)
    assert torch.allclose(resample(flat, (16, 16)), torch.full((1, 16, 16), 2.0))
    # this is why MONAI's own resize is not used
    assert Resize((16, 16), mode="bilinear", anti_aliasing=True)(flat).min() < 1.8
    stripes = torch.zeros(1, 64, 64)
    stripes[:, ::2] = 1
    assert (resample(stripes, (16, 16)) - 0.5).abs().max() < 0.1
    cube = torch.zeros(1, 64, 10, 64)
    cube[..., ::2] = 1
    assert (resample(cube, (32, 10, 16)) - 0.5).abs().max() < 0.1


def test_enlarging_a_volume_is_trilinear():
    cube = torch.rand(2, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(cube[None], (9, 11, 13), mode="trilinear", align_corners=False)[0]
    assert torch.allclose(resample(cube, (9, 11, 13)), expected, atol=1e-6)


def test_patches_come_at_the_asked_spacing():
    task = Task(size=(16, 16), classes=CLASSES, fit="patch", spacing=(2.0, 1.0))
    assert samples_of(scan_of((40, 30), spacing=(1.0, 1.5)), task)[0].image.shape == (1, 20, 45)
    assert samples_of(scan_of((40, 30, 3), spacing=(1.0, 1.5, 9.0)), task)[2].image.shape == (1, 20, 45)


# --- windows ------------------------------------------------------------------------------------------------------


def test_half_of_the_windows_seek_foreground_and_the_centre_one_needs_no_seed():
    label = np.zeros((200, 200), dtype=np.uint8)
    label[3, 196] = 1
    position = np.arange(200 * 200, dtype=np.float32).reshape(1, 200, 200)
    task = Task(size=(10, 10), classes=CLASSES, fit="patch", intensity="none")
    samples = SiteSamples(samples_of(Scan("a", position, label, (1, 1)), task), task)
    batch = samples.batch([0] * 400, range(400))
    assert 160 <= int(batch.label.amax((1, 2, 3)).sum()) <= 250
    assert len(batch.image.flatten(1).unique(dim=0)) > 150
    assert torch.equal(samples.batch([0]).image[0, 0], torch.from_numpy(position[0, 95:105, 95:105]))


def test_windows_reach_every_voxel():
    position = np.arange(36, dtype=np.float32).reshape(1, 6, 6)
    task = Task(size=(4, 5), classes=CLASSES, fit="patch", intensity="none")
    samples = SiteSamples(samples_of(Scan("a", position, np.zeros((6, 6), np.uint8), (1, 1)), task), task)
    batch = samples.batch([0] * 100, range(100))
    assert len(batch.image.unique()) == 36
    assert len(batch.image.flatten(1).unique(dim=0)) == 3 * 2


# --- augmentation -------------------------------------------------------------------------------------------------


@given(seeds=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5), data=st.data())
@settings(max_examples=25)
def test_a_seed_gives_the_same_bits_whatever_came_before_or_stands_beside(seeds, data):
    # an odd number of pixels, so that vectorised and remaining elements would show
    task = Task(size=(13, 11), classes=CLASSES, fit=data.draw(st.sampled_from(["resize", "patch"])))
    samples = SiteSamples([s for i in range(3) for s in samples_of(scan_of((17, 15), seed=i), task)], task, ALL)
    indices = [data.draw(st.integers(0, 2)) for _ in seeds]
    state = np.random.get_state()[1].copy(), torch.random.get_rng_state()
    together = samples.batch(indices, seeds)
    for row in data.draw(st.permutations(range(len(seeds)))):
        alone = samples.batch([indices[row]], [seeds[row]])
        assert torch.equal(alone.image[0], together.image[row])
        assert torch.equal(alone.label[0], together.label[row])
    assert np.array_equal(np.random.get_state()[1], state[0])
    assert torch.equal(torch.random.get_rng_state(), state[1])


def test_samples_in_memory_are_never_changed():
    task = Task(size=(16, 16), classes=CLASSES)
    samples = SiteSamples(samples_of(scan_of((16, 16)), task), task, ALL)
    before = samples.batch([0])
    batch = samples.batch([0], [3])
    batch.image.zero_()
    samples.batch([0]).image.zero_()
    assert torch.equal(samples.batch([0]).image, before.image)


@pytest.mark.parametrize("name", ALL)
def test_each_augmentation_changes_what_it_should_and_differs_by_seed(name):
    task = Task(size=(32, 32), classes=CLASSES)
    scan = scan_of((32, 32))
    scan.label[:5, :9] = 2  # a corner, so that flips show
    samples = SiteSamples(samples_of(scan, task), task, [name])
    plain = samples.batch([0])
    batch = samples.batch([0] * 8, range(8))
    assert len(batch.image.flatten(1).unique(dim=0)) > 2
    label_changes = not torch.equal(batch.label, plain.label.expand_as(batch.label))
    assert label_changes == (name in {"flip", "rotate", "scale"})
    assert (batch.image - plain.image).abs().mean() < 1.0


@pytest.mark.parametrize("space", [(40, 56), (24, 30, 20)])
def test_geometry_acts_on_image_and_label_alike(space):
    label = torch.zeros(space, dtype=torch.uint8)
    label[5:20, 8:22] = 1
    label[0:6, 20:30] = 1
    for seed in range(20):
        rng = np.random.default_rng(seed)
        image, moved = augment(label[None].float(), label, ("flip", "rotate", "scale"), rng)
        assert ((image[0] > 0.5) != (moved == 1)).float().mean() < 0.01
        # nearest and linear may differ on edges only: where the image is pure they agree
        pure = (image[0] < 1e-3) | (image[0] > 1 - 1e-3)
        assert torch.equal(moved[pure].float(), image[0][pure].round())
        assert moved.any()


@pytest.mark.parametrize("space", [(33, 48), (20, 25, 12)])
def test_turning_is_monais_affine(space):
    image = torch.rand(1, *space, generator=torch.Generator().manual_seed(0))
    angle, zoom = 0.2, 1.1
    ours, _ = turn(image, torch.zeros(space, dtype=torch.uint8), angle, zoom)
    rotate = angle if len(space) == 2 else (0, 0, angle)
    scale = (1 / zoom,) * len(space)
    theirs, _ = Affine(rotate_params=rotate, scale_params=scale, padding_mode="border", mode="bilinear")(image)
    assert torch.allclose(ours, theirs.as_subclass(torch.Tensor), atol=1e-3)


def test_zoom_enlarges():
    label = torch.zeros(64, 64, dtype=torch.uint8)
    label[16:48, 16:48] = 1
    _, larger = turn(label[None].float(), label, 0.0, 1.15)
    assert int(larger.sum()) == pytest.approx(32 * 32 * 1.15**2, rel=0.05)


def test_gamma_is_monais_contrast(monkeypatch):
    image = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr("node.data.transforms.GAMMA", (1.4, 1.4))
    monkeypatch.setattr("node.data.transforms.CONTRAST", (1.0, 1.0))
    monkeypatch.setattr("node.data.transforms.SHIFT", 0.0)
    label = torch.zeros(16, 16, dtype=torch.uint8)
    ours, kept = augment(image, label, ["intensity"], np.random.default_rng(0))
    assert torch.allclose(ours, AdjustContrast(1.4)(image).as_subclass(torch.Tensor), atol=1e-5)
    assert kept is label


# --- test cases ---------------------------------------------------------------------------------------------------


def oracle(case, scan, task):
    """Logits that are the label as the network's grid shows it: what a perfect network would say."""
    labels = iter(torch.split(prepare_label(scan, task), samples_module.SLICES))

    def logits_fn(images):
        assert images.shape[1:] == (task.channels, *task.size)
        return logits_of(next(labels))

    return logits_fn


@pytest.mark.parametrize(
    ("space", "task"),
    [
        ((45, 71), Task(size=(48, 64), classes=CLASSES)),
        ((45, 71, 19), Task(size=(48, 64), classes=CLASSES)),
        ((45, 71, 19), Task(dims=3, size=(48, 64, 16), classes=CLASSES)),
    ],
)
def test_predictions_come_back_to_the_native_grid(space, task):
    scan = scan_of(space)
    if len(space) == 3:
        scan.label[..., 4:6] = 0  # slices differ, so that their order shows
    [case] = site(MemorySource([scan]), task, unseen=True).scored_cases()
    prediction = case.predict(oracle(case, scan, task))
    assert prediction.shape == space
    assert prediction.dtype == np.uint8
    assert (prediction == scan.label).mean() > 0.97
    assert case.picture().shape == (1, *space)


@pytest.mark.parametrize(
    ("space", "task"),
    [
        ((45, 71), Task(size=(16, 16), classes=CLASSES, fit="patch", intensity="none")),
        ((9, 71), Task(size=(16, 16), classes=CLASSES, fit="patch", intensity="none")),
        ((25, 31, 18), Task(size=(16, 16), classes=CLASSES, fit="patch", intensity="none")),
        ((25, 31, 7), Task(dims=3, size=(16, 16, 8), classes=CLASSES, fit="patch", intensity="none")),
    ],
)
def test_windows_cover_the_whole_image(space, task):
    label = np.random.default_rng(0).integers(0, 3, space).astype(np.uint8)
    scan = Scan("a", label[None].astype(np.float32), label, (1.0,) * len(space))
    [case] = site(MemorySource([scan]), task, unseen=True).scored_cases()

    def read_the_image(images):
        assert images.shape[1:] == (1, *task.size)
        return logits_of(images[:, 0].round())

    assert np.array_equal(case.predict(read_the_image), label)
    assert np.array_equal(case.picture()[0], label)


def test_prediction_is_the_largest_interpolated_logit():
    task = Task(size=(8, 8), classes=CLASSES)
    scan = scan_of((19, 13))
    [case] = site(MemorySource([scan]), task, unseen=True).scored_cases()
    logits = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(logits, (19, 13), mode="bilinear").argmax(1)[0]
    assert np.array_equal(case.predict(lambda _: logits), expected.numpy())
    assert not case.predict(lambda images: torch.ones(len(images), 3, 8, 8)).any()


def test_windows_are_where_training_draws_them_and_not_augmented():
    task = Task(dims=2, size=(16, 16), classes=CLASSES, fit="patch")
    prepared = [sample for seed in range(3) for sample in samples_of(scan_of((40, 48), seed=seed), task)]
    plain, augmented = SiteSamples(prepared, task), SiteSamples(prepared, task, ALL)
    drawn = augmented.batch([0, 1, 2], [5, 6, 7], only=())
    trained = plain.batch([0, 1, 2], [5, 6, 7])
    assert torch.equal(drawn.image, trained.image)
    assert torch.equal(drawn.label, trained.label)
    assert not torch.equal(drawn.image, augmented.batch([0, 1, 2], [5, 6, 7]).image)
    assert not torch.equal(drawn.image, augmented.batch([0, 1, 2], [8, 9, 10], only=()).image)


def test_geometry_alone_is_that_of_the_whole_augmentation():
    task = Task(dims=2, size=(16, 16), classes=CLASSES)
    prepared = samples_of(scan_of((20, 20)), task)
    whole, shapes = SiteSamples(prepared, task, ALL), SiteSamples(prepared, task, tuple(GEOMETRY))
    found = whole.batch([0, 0], [3, 4], only=GEOMETRY)
    assert torch.equal(found.image, shapes.batch([0, 0], [3, 4]).image)
    assert torch.equal(found.label, whole.batch([0, 0], [3, 4]).label)
    assert not torch.equal(found.image, whole.batch([0, 0], [3, 4]).image)


@pytest.mark.parametrize("soft", [False, True])
def test_images_that_are_no_samples_are_augmented_as_samples_are(soft):
    task = Task(dims=2, size=(16, 16), classes=CLASSES)
    prepared = [sample for seed in range(3) for sample in samples_of(scan_of((20, 20), seed=seed), task)]
    if soft:
        task = task.model_copy(update={"soft": True})
        shares = [torch.stack([(one.label == n).float() * 0.7 for n in range(1, len(CLASSES))]) for one in prepared]
        prepared = [replace(one, label=share) for one, share in zip(prepared, shares, strict=True)]
    plain, whole = SiteSamples(prepared, task), SiteSamples(prepared, task, ALL)
    found, wanted = augmented(plain.batch([0, 1, 2]), [3, 4, 5], ALL), whole.batch([0, 1, 2], [3, 4, 5])
    assert torch.equal(found.image, wanted.image)
    assert torch.equal(found.label, wanted.label)
    assert not torch.equal(found.image, plain.batch([0, 1, 2]).image)


def test_windows_of_whole_images_are_the_images():
    task = Task(dims=2, size=(16, 16), classes=CLASSES)
    samples = SiteSamples(
        [sample for seed in range(2) for sample in samples_of(scan_of((20, 20), seed=seed), task)], task
    )
    assert torch.equal(samples.batch([0, 1], [3, 4], only=()).image, samples.batch([0, 1]).image)

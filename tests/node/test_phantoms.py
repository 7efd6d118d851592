import hashlib
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from node.data.source import Scan, Source, Unreadable
from node.phantoms import APPEARANCES, TASKS, PhantomSource, check_phantom, write_phantoms
from node.phantoms.anatomy import Array, Grid
from protos.plan import PhantomSite, Task

SITES = [(task, appearance) for task in TASKS for appearance in range(len(APPEARANCES))]


def plan_task(name: str, **changes: object) -> Task:
    anatomy = TASKS[name]
    dims = changes.pop("dims", anatomy.axes)
    fields = {"dims": dims, "size": (32,) * int(str(dims)), "classes": ("background", *anatomy.classes)}
    return Task.model_validate(fields | changes)


def site(name: str, appearance: int = 0, channels: int = 1, **changes: object) -> PhantomSource:
    spec = PhantomSite.model_validate({"task": name, "appearance": appearance, "size": 32} | changes)
    return PhantomSource(spec, plan_task(name, channels=channels))


def scans(source: Source) -> list[Scan]:
    return [source.load(name) for name in source.names]


def digest(scan: Scan) -> str:
    return hashlib.sha256(scan.image.tobytes() + scan.label.tobytes() + repr(scan.spacing).encode()).hexdigest()


def digests_of_every_site() -> list[str]:
    return [digest(site(task, appearance, channels=3).load("case-002")) for task, appearance in SITES]


def contrast(scan: Scan) -> float:
    """Mean of the organ minus mean of what lies around it, as a share of the image's deviation."""
    wanted = scan.label == 1
    around = ndimage.binary_dilation(wanted, iterations=4) & ~ndimage.binary_dilation(wanted)
    return float((scan.image[0][wanted].mean() - scan.image[0][around].mean()) / scan.image[0].std())


def test_two_instances_and_any_order_of_loading_give_the_same_bits() -> None:
    first, second = site("heart", 1, cases=6), site("heart", 1, cases=6)
    forwards = {name: digest(first.load(name)) for name in first.names}
    backwards = {name: digest(second.load(name)) for name in reversed(second.names)}
    assert forwards == backwards
    assert len(set(forwards.values())) == 6


def test_another_process_without_vector_instructions_gives_the_same_bits() -> None:
    unused = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    root = Path(__file__).parents[2]
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('other', {__file__!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "print(*module.digests_of_every_site())\n"
    )
    environment = os.environ | {"NPY_DISABLE_CPU_FEATURES": " ".join(unused), "PYTHONHASHSEED": "1"}
    other = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert other.returncode == 0, other.stderr
    assert other.stdout.split() == digests_of_every_site()


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    before = digest(site("lesions", 6).load("case-000"))
    np.random.seed(7)
    state = np.random.get_state(legacy=False)
    assert digest(site("lesions", 6).load("case-000")) == before
    assert repr(np.random.get_state(legacy=False)) == repr(state)


def test_adding_cases_leaves_earlier_ones_as_they_are() -> None:
    few, many = site("organ", 3, cases=3), site("organ", 3, cases=1100)
    assert set(few.names) < set(many.names)
    assert [digest(scan) for scan in scans(few)] == [digest(many.load(name)) for name in few.names]
    assert list(many.names) == sorted(many.names)
    assert {many.patient(name) for name in many.names} == set(many.names)


def test_every_hospital_has_patients_of_its_own() -> None:
    hospitals = [site("organ"), site("organ", seed=1), site("organ", 5), site("organ", 5, seed=1), site("heart")]
    shapes = {(scan.label > 0).tobytes() for hospital in hospitals for scan in scans(hospital)[:3]}
    assert len(shapes) == 15


@pytest.mark.parametrize("name", TASKS)
def test_anatomy_is_common_and_intensity_is_not(name: str) -> None:
    sizes, levels = [], []
    for appearance in range(len(APPEARANCES)):
        found = scans(site(name, appearance, cases=40, size=24))
        sizes.append([float((scan.label > 0).mean()) for scan in found])
        levels.append([float(scan.image.mean()) for scan in found])
    for other in range(1, len(APPEARANCES)):
        error = np.hypot(np.std(sizes[0]), np.std(sizes[other])) / np.sqrt(40)
        assert abs(np.mean(sizes[0]) - np.mean(sizes[other])) < 4 * error
        assert np.mean(sizes[other]) == pytest.approx(np.mean(sizes[0]), rel=0.35)
    level_of_site = [float(np.mean(level)) for level in levels]
    spread_within = float(np.mean([np.std(level) for level in levels]))
    assert np.std(level_of_site) > spread_within


@pytest.mark.parametrize("name", TASKS)
def test_a_patient_is_the_same_on_a_finer_grid(name: str) -> None:
    for coarse, fine in zip(scans(site(name, size=48, cases=4)), scans(site(name, size=72, cases=4)), strict=True):
        assert (coarse.label > 0).mean() == pytest.approx((fine.label > 0).mean(), rel=0.15)


@pytest.mark.parametrize(("name", "appearance"), SITES)
def test_every_class_is_there_and_no_other(name: str, appearance: int) -> None:
    classes = range(1 + len(TASKS[name].classes))
    for scan in scans(site(name, appearance, cases=25)):
        assert scan.image.dtype == np.float32
        assert scan.label.dtype == np.uint8
        assert scan.image.shape == (1, *scan.label.shape)
        assert set(np.unique(scan.label)) == set(classes)
        assert np.isfinite(scan.image).all()
        assert (scan.image == np.rint(scan.image)).all()
        assert scan.image.min() >= 0
        assert scan.image.std() > 50


def test_lesions_are_small_and_their_number_varies() -> None:
    found = scans(site("lesions", cases=50, size=40))
    numbers = [ndimage.label(scan.label)[1] for scan in found]
    assert min(numbers) == 1
    assert sum(number <= 2 for number in numbers) >= 10
    assert max(numbers) >= 8
    for scan in found:
        litres = np.bincount(ndimage.label(scan.label)[0].ravel())[1:] * np.prod(scan.spacing) / 1e6
        assert litres.min() > 0
        assert litres.sum() < 0.15  # of a head of about three litres
    assert np.median([(scan.label > 0).mean() for scan in found]) < 0.01


@pytest.mark.parametrize("seed", range(20))
def test_no_lesion_slips_between_the_voxels_of_a_coarse_grid(seed: int) -> None:
    layers = TASKS["lesions"].draw(Grid.of((16, 16, 5)), np.random.default_rng(seed))
    lesions = [layer for layer in layers if layer.label == 1]
    assert lesions
    assert all((layer.cover >= 0.5).any() for layer in lesions)


def test_the_heart_is_put_together_as_hearts_are() -> None:
    for scan in scans(site("heart", size=64, cases=20)):
        blood, muscle, right = (scan.label == value for value in (1, 2, 3))
        shell = ndimage.binary_dilation(blood) & ~blood
        assert (muscle[shell]).all()
        assert (ndimage.binary_dilation(muscle) & right).any()
        assert np.argwhere(right)[:, 1].mean() < np.argwhere(blood)[:, 1].mean()


def test_inverted_hospitals_turn_the_contrast_round() -> None:
    signs = {
        appearance: {np.sign(contrast(scan)) for scan in scans(site("organ", appearance, size=64, cases=20))}
        for appearance in (0, 1, 2, 4, 5, 6)
    }
    assert signs == {0: {1}, 1: {1}, 6: {1}, 2: {-1}, 4: {-1}, 5: {-1}}


def test_every_knob_of_a_scanner_does_what_it_says() -> None:
    grid = Grid.of((64, 64))
    layers = TASKS["organ"].draw(grid, np.random.default_rng(3))
    plain = replace(APPEARANCES[0], bias=0.0, noise=0.0)
    body = layers[1].cover == 1
    air = layers[0].cover == 0

    def picture(**changes: Any) -> Array:
        image = replace(plain, **changes).acquire(layers, 1, np.random.default_rng(0))
        return np.asarray(image[0], np.float64)

    def edges(image: Array) -> float:
        return float(np.abs(ndimage.laplace(image)).mean())

    still = picture()
    assert (still[air] == 0).all()
    assert edges(picture(blur=1.0)) < 0.6 * edges(still)
    assert edges(picture(coarse=2.0)) < 0.8 * edges(still)
    assert picture(noise=0.05)[body].std() > still[body].std()
    noise = picture(noise=0.05) - still
    assert noise[body].std() == pytest.approx(50, rel=0.1)
    assert picture(noise=0.05, rician=True)[air].mean() == pytest.approx(50 * np.sqrt(np.pi / 2), rel=0.05)
    field = picture(bias=0.2)[body] / still[body]
    assert 0.2 < np.ptp(field) < 1
    assert edges(picture(bias=0.2)) == pytest.approx(edges(still), rel=0.2)
    assert picture(gamma=1.5)[body] == pytest.approx(1000 * (still[body] / 1000) ** 1.5, abs=2)
    assert (picture(air=1.0)[air] > 900).any()
    negative = picture(tones=(1.0, 0.75, 0.5, 0.25, 0.0))
    assert np.corrcoef(negative[body], still[body])[0, 1] < -0.9


def test_spacings_are_those_of_scanners() -> None:
    for appearance in range(len(APPEARANCES)):
        assert site("organ", appearance).load("case-000").spacing == (1.0, 1.0)
        scan = site("lesions", appearance, size=64).load("case-000")
        extent = np.array(scan.spacing) * scan.label.shape
        assert extent == pytest.approx([192, 192, 144])
        assert scan.spacing[:2] == (3.0, 3.0)
    thick = {site("lesions", appearance, size=64).load("case-000").spacing[2] for appearance in range(8)}
    assert len(thick) >= 5
    assert min(thick) >= 2.9
    assert max(thick) <= 8


def test_colour_adds_what_no_rescaling_of_grey_gives() -> None:
    grey, colour = site("organ", 4).load("case-001"), site("organ", 4, channels=3).load("case-001")
    assert colour.image.shape == (3, 32, 32)
    assert (colour.label == grey.label).all()
    assert (colour.image[1] == grey.image[0]).all()
    for channel in (0, 2):
        straight = np.polynomial.Polynomial.fit(grey.image[0].ravel(), colour.image[channel].ravel(), 1)
        assert np.abs(straight(grey.image[0]) - colour.image[channel]).max() > 30


@settings(max_examples=25)
@given(st.sampled_from(SITES), st.integers(16, 40), st.integers(-(2**63), 2**63), st.sampled_from([1, 3]))
def test_any_site_of_any_size_gives_usable_cases(where: tuple[str, int], size: int, seed: int, channels: int) -> None:
    scan = site(*where, size=size, seed=seed, channels=channels).load("case-003")
    assert scan.image.shape == (channels, *scan.label.shape)
    assert scan.label.shape[:2] == (size, size)
    assert len(scan.spacing) == scan.label.ndim
    assert np.isfinite(scan.image).all()
    assert set(np.unique(scan.label)) <= set(range(1 + len(TASKS[where[0]].classes)))
    assert (scan.label > 0).any()


@pytest.mark.parametrize(
    ("phantom", "task", "names"),
    [
        ({"task": "orgn"}, {}, r"^phantom\.task: 'orgn' is none of organ, heart, lesions\.$"),
        ({"task": "organ", "appearance": 8}, {}, r"^phantom\.appearance: 8 .*0 to 7"),
        ({"task": "organ"}, {"classes": ("background", "a", "b")}, r"^task\.classes: .*3.*has 2.*background, organ"),
        ({"task": "organ"}, {"dims": 3}, r"^task\.dims: 3 .*needs 2"),
        ({"task": "organ"}, {"channels": 2}, r"^task\.channels: 2 .*1.*3"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(
    phantom: dict[str, object], task: dict[str, object], names: str
) -> None:
    site, plan = PhantomSite.model_validate(phantom), plan_task("organ", **task)
    with pytest.raises(ValueError, match=names) as caught:
        check_phantom(site, plan)
    assert str(caught.value).count(".") == 2  # in the key and at the end
    with pytest.raises(ValueError, match=f"^{re.escape(str(caught.value))}$"):
        PhantomSource(site, plan)


def test_volumes_can_be_learnt_slice_by_slice() -> None:
    spec = PhantomSite(task="lesions", size=32)
    assert PhantomSource(spec, plan_task("lesions", dims=2)).load("case-000").label.ndim == 3


@pytest.mark.parametrize("name", ["case-003", "case-0", "case--01", "../case-000", "case-0000"])
def test_a_case_that_is_not_there_is_unreadable(name: str) -> None:
    with pytest.raises(Unreadable, match="no case"):
        site("organ", cases=3).load(name)


@pytest.mark.parametrize(("name", "channels"), [("heart", 1), ("organ", 3), ("lesions", 1), ("lesions", 3)])
def test_files_hold_the_same_cases(tmp_path: Path, name: str, channels: int) -> None:
    spec, task = PhantomSite(task=name, appearance=5, cases=3, size=24), plan_task(name, channels=channels)
    calls: list[tuple[int, int]] = []
    write_phantoms(spec, task, tmp_path / "site", lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    images, labels = (sorted((tmp_path / "site" / kind).iterdir()) for kind in ("images", "labels"))
    assert [path.name for path in images] == [path.name for path in labels]
    for scan, image, label in zip(scans(PhantomSource(spec, task)), images, labels, strict=True):
        assert image.name.split(".")[0] == scan.name
        if scan.label.ndim == 2:
            assert (np.asarray(Image.open(label)) == scan.label).all()
            written = np.asarray(Image.open(image)).reshape(*scan.label.shape, channels)
            exact = np.clip(np.moveaxis(scan.image, 0, -1) * 255 / 1200, 0, 255)
            assert np.abs(written - exact).max() <= 0.5
        else:
            volume, truth = nibabel.load(image), nibabel.load(label)
            assert (np.asarray(truth.dataobj) == scan.label).all()
            written = np.asarray(volume.dataobj).reshape(*scan.label.shape, channels)
            assert (written == np.moveaxis(scan.image, 0, -1)).all()
            assert volume.header.get_zooms()[:3] == pytest.approx(scan.spacing)
            assert nibabel.aff2axcodes(volume.affine) == ("R", "A", "S")


def test_cases_are_never_written_among_others(tmp_path: Path) -> None:
    write_phantoms(PhantomSite(task="organ", cases=1), plan_task("organ"), tmp_path)
    with pytest.raises(FileExistsError, match="images is there already"):
        write_phantoms(PhantomSite(task="organ", cases=1, seed=1), plan_task("organ"), tmp_path)

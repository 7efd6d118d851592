"""The public prostate and M&Ms folders as published: found, told apart by vendor, read by frame, trained on."""

import io
import os
import re

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from nibabel.eulerangles import euler2mat
from rich.console import Console

from coordinator.scenario import load_scenario
from coordinator.simulate import begin_all
from node.data.check import run_scenario_check
from node.data.cine import PHASES
from node.data.excerpt import read_excerpt
from node.data.source import Unreadable
from node.data.splits import split_cases
from protos.plan import GroupByPattern, Split
from tests.documentation import ROOT
from tests.node.folders import sentences, source_of

HEART = ("background", "left ventricle", "myocardium", "right ventricle")
HEADER = ",External code,VendorName,Vendor,Centre,ED,ES,Age,Pathology,Sex,Height,Weight"
TABLE = "211230_M&Ms_Dataset_information_diagnosis_opendataset.csv"
SHAPE = (7, 6, 4, 5)  # x, y, z, time
# code, vendor's name, vendor, ED, ES, and where the patient lies in the download
PATIENTS = [
    ("A0S9V9", "Siemens", "A", 0, 2, "Training/Labeled"),
    ("A1D0Q7", "Siemens", "A", 4, 1, "Testing"),
    ("B3F0V9", "Philips", "B", 0, 3, "Training/Labeled"),
    ("C0S7W0", "GE", "C", 0, 2, "Training/Unlabeled"),
    ("C4S8W9", "GE", "C", 1, 3, "Validation"),
    ("D1J5P6", "Canon", "D", 0, 2, "Testing"),
]


def save(path, data, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(data, np.eye(4) if affine is None else affine), path)


def film(folder, code, frames, affine=None):
    """One patient as published: every frame differs, and only `frames` are drawn on."""
    rng = np.random.default_rng(sum(code.encode()))
    image = rng.integers(1, 1000, SHAPE, dtype=np.int16)
    drawn = np.zeros(SHAPE, np.uint8)
    for frame in frames:
        drawn[..., frame] = rng.integers(0, len(HEART), SHAPE[:3])
    save(folder / code / f"{code}_sa.nii.gz", image, affine)
    save(folder / code / f"{code}_sa_gt.nii.gz", drawn, affine)
    return image, drawn


def write_table(folder, rows=PATIENTS, header=HEADER, delimiter=","):
    lines = [f"{n},{c},{name},{v},1,{ed},{es},54,HCM,F,170.0,60.0" for n, (c, name, v, ed, es, *_) in enumerate(rows)]
    (folder / TABLE).write_text("\n".join([header, *lines]).replace(",", delimiter) + "\n")


@pytest.fixture
def download(tmp_path):
    """The public download: one folder for all vendors."""
    folder = tmp_path / "OpenDataset"
    for code, _, _, ed, es, place in PATIENTS:
        film(folder / place, code, () if "Unlabeled" in place else (ed, es))  # an empty label is none
    write_table(folder)
    return folder


def linked(download, name):
    """The download once more under a vendor's name, as `cp -rl` makes it."""
    for path in [path for path in download.rglob("*") if path.is_file()]:
        target = download.parent / name / path.relative_to(download)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target)
    return download.parent / name


def published(folder, dims=3, group="case", classes=HEART, channels=1, labels=None):
    return source_of(folder, classes, dims=dims, labels=labels, channels=channels, group=group)


def spoiling(source):
    return [problem.sentence for problem in source.problems if problem.spoils]


# Films


@pytest.mark.parametrize(
    ("name", "patients"),
    [
        ("siemens", ["A0S9V9", "A1D0Q7"]),
        ("Philips", ["B3F0V9"]),
        ("C", ["C4S8W9"]),
        ("canon", ["D1J5P6"]),
    ],
)
def test_a_folder_named_after_a_vendor_takes_this_vendor_out_of_the_download(download, name, patients):
    source = published(linked(download, name))
    assert source.names == tuple(f"{code}_{phase}" for code in patients for phase in PHASES)
    assert spoiling(source) == []
    assert ("C0S7W0 first): there is no label" in sentences(source)) == (name == "C")


def test_the_download_itself_is_no_site(download):
    source = published(download)
    assert source.names == ()
    assert "OpenDataset has patients of the vendors A, B, C, D; name it after the one" in sentences(source)


def test_a_folder_of_one_vendor_may_have_any_name(download):
    """In a real consortium each hospital holds its own patients, beside the table of all or of its own."""
    for place in ("Training/Unlabeled/C0S7W0", "Training/Labeled/B3F0V9", "Validation/C4S8W9", "Testing/D1J5P6"):
        for path in (download / place).iterdir():
            path.unlink()
    assert published(download).names == ("A0S9V9_ED", "A0S9V9_ES", "A1D0Q7_ED", "A1D0Q7_ES")


def test_a_link_named_after_a_vendor_is_enough(download):
    (download.parent / "GE").symlink_to(download)
    assert published(download.parent / "GE").names == ("C4S8W9_ED", "C4S8W9_ES")


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_an_older_table_with_the_letter_alone(tmp_path, delimiter):
    folder = tmp_path / "b"
    film(folder / "Training" / "Labeled", "B3F0V9", (0, 3))
    film(folder / "Training" / "Labeled", "A0S9V9", (0, 3))
    lines = ["External code,Vendor,Centre,ED,ES", "B3F0V9,B,2,0,3", "A0S9V9,A,1,0,3"]
    (folder / "M&Ms.csv").write_text("\n".join(lines).replace(",", delimiter), encoding="utf-8-sig")
    assert published(folder).names == ("B3F0V9_ED", "B3F0V9_ES")


def test_the_frames_are_those_of_the_table(download):
    image, drawn = film(download / "Testing", "A1D0Q7", (4, 1))
    source = published(linked(download, "siemens"))
    for phase, frame in (("ED", 4), ("ES", 1)):
        scan = source.load(f"A1D0Q7_{phase}")
        assert np.array_equal(scan.image[0], image[..., frame])
        assert np.array_equal(scan.label, drawn[..., frame])
        assert (scan.image.dtype, scan.label.dtype) == (np.float32, np.uint8)


@given(
    angles=arrays(np.float64, 3, elements=st.floats(-np.pi, np.pi)),
    flips=arrays(np.int8, 3, elements=st.sampled_from([-1, 1])),
    sizes=arrays(np.float64, 3, elements=st.floats(0.8, 12)),
)
@settings(max_examples=60)
def test_slices_are_the_stored_ones_however_the_heart_lies(tmp_path_factory, angles, flips, sizes):
    """The short axis is oblique: read along the body's nearest axes, the third would often be another one."""
    folder = tmp_path_factory.mktemp("film") / "siemens"
    affine = np.eye(4)
    affine[:3, :3] = euler2mat(*angles) @ np.diag(flips * sizes)
    affine[:3, 3] = [-90, 12, 40]
    image, drawn = film(folder / "Testing", "A1D0Q7", (4, 1), affine)
    write_table(folder)
    scan = published(folder).load("A1D0Q7_ED")
    assert np.array_equal(scan.image[0], image[..., 4])
    assert np.array_equal(scan.label, drawn[..., 4])
    assert np.allclose(scan.spacing, sizes, rtol=1e-4)


@pytest.mark.parametrize("group", ["case", GroupByPattern(pattern=r"^(.+)_E[DS]$")])
def test_both_frames_of_a_patient_fall_into_one_part(tmp_path, group):
    folder = tmp_path / "siemens"
    codes = [f"A{number}B{number}C{number}" for number in range(8)]
    rows = [(code, "Siemens", "A", 0, 2) for code in codes]
    for code in codes:
        film(folder, code, (0, 2))
    write_table(folder, rows)
    source = published(folder, group=group)
    for seed in range(20):
        parts = split_cases(source.names, source.patient, Split(train=0.5, val=0.25, test=0.25, seed=seed))
        patients = [{name.rsplit("_", 1)[0] for name in names} for names in parts.values()]
        assert sum(map(len, patients)) == len(set.union(*patients)) == len(codes)


def test_a_corrected_frame_is_another_fingerprint(download):
    """Prepared samples on the disk must not outlive the table that they were cut by."""
    folder = linked(download, "siemens")
    before = published(folder)
    (folder / TABLE).unlink()  # the download keeps its own
    write_table(folder, [(*row[:3], 1, *row[4:]) for row in PATIENTS])
    after = published(folder)
    assert before.names == after.names
    assert before.fingerprint(["A0S9V9_ED"]) != after.fingerprint(["A0S9V9_ED"])
    assert before.fingerprint(["A0S9V9_ES"]) == after.fingerprint(["A0S9V9_ES"])


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("A0S9V9", "Siemens", "A", "", 2)], "gives no number for the frame"),
        ([("A0S9V9", "Siemens", "A", "0.5", 2)], "gives no number for the frame"),
        ([("A0S9V9", "Siemens", "A", -1, 2)], "gives no number for the frame"),
        ([("A0S9V9", "Siemens", "A", 0, 2), ("A0S9V9", "Siemens", "A", 1, 2)], "has two rows for A0S9V9"),
        ([("A1D0Q7", "Siemens", "A", 0, 2)], "leaves out 1 patient (A0S9V9 first)"),
    ],
)
def test_a_doubtful_table_leaves_out_rather_than_guesses(tmp_path, rows, said):
    folder = tmp_path / "siemens"
    film(folder, "A0S9V9", (0, 2))
    write_table(folder, rows)
    source = published(folder)
    assert "A0S9V9_ED" not in source.names
    assert said in sentences(source)
    assert spoiling(source)


@pytest.mark.parametrize(
    ("frames", "said"),
    [((5, 2), "has 5 frames, but A0S9V9_ED is said to be frame 5"), ((1, 2), "has nothing drawn in frame 1")],
)
def test_a_frame_that_is_not_there_or_empty_is_unreadable(tmp_path, frames, said):
    folder = tmp_path / "siemens"
    film(folder, "A0S9V9", (0, 2))
    write_table(folder, [("A0S9V9", "Siemens", "A", *frames)])
    source = published(folder)
    with pytest.raises(Unreadable, match=re.escape(said)):
        source.load("A0S9V9_ED")
    source.load("A0S9V9_ES")


def test_films_that_do_not_fit_are_said(tmp_path):
    folder = tmp_path / "siemens"
    image, drawn = film(folder, "A0S9V9", (0, 2))
    write_table(folder, PATIENTS[:1])
    image_path, label_path = (folder / "A0S9V9" / f"A0S9V9_{kind}.nii.gz" for kind in ("sa", "sa_gt"))
    with pytest.raises(Unreadable, match=r"set task\.channels to 1"):
        published(folder, channels=2).load("A0S9V9_ED")
    for label in (drawn[..., :4], drawn[:6]):
        save(label_path, label)
        with pytest.raises(Unreadable, match="has not the grid and frames"):
            published(folder).load("A0S9V9_ED")
    save(label_path, drawn, np.diag([2.0, 1, 1, 1]))
    with pytest.raises(Unreadable, match="has not the grid and frames"):
        published(folder).load("A0S9V9_ED")
    save(image_path, image[..., 0])
    with pytest.raises(Unreadable, match="not a film"):
        published(folder).load("A0S9V9_ED")
    label_path.rename(folder / "A0S9V9_sa_gt.nii.gz")
    image_path.unlink()
    assert "A0S9V9_sa_gt.nii.gz has no image" in sentences(published(folder))


def test_films_twice_foreign_and_outside_are_left_out(tmp_path):
    folder = tmp_path / "siemens"
    film(folder / "Training", "A0S9V9", (0, 2))
    film(folder / "Testing", "A0S9V9", (0, 2))
    film(tmp_path, "A1D0Q7", (0, 2))
    for kind in ("sa", "sa_gt"):
        (folder / f"A1D0Q7_{kind}.nii.gz").symlink_to(tmp_path / "A1D0Q7" / f"A1D0Q7_{kind}.nii.gz")
        (folder / f"._B3F0V9_{kind}.nii.gz").write_bytes(b"x")
    write_table(folder)
    source = published(folder)
    assert source.names == ()
    assert "A0S9V9 is there more than once" in sentences(source)
    assert "A1D0Q7_sa.nii.gz leads out of the site's folder" in sentences(source)
    write_table(folder.parent)
    (folder.parent / TABLE).rename(folder / "older.csv")
    assert f"siemens has the tables {TABLE} and older.csv; keep one." in sentences(published(folder))


# Volumes beside their labels


@pytest.fixture
def prostate(tmp_path):
    """Two sites of the public six: the second with zones, and with the other spelling."""
    rng = np.random.default_rng(0)
    for site, ending, zones in (("RUNMC", "segmentation", 1), ("BMC", "Segmentation", 2)):
        for number in range(3):
            label = np.zeros((9, 8, 4), np.uint8)
            label[2:6, 2:6, 1:3] = rng.integers(1, zones + 1, (4, 4, 2))
            affine = np.diag([-0.6, -0.6, 3.6, 1])
            save(
                tmp_path / site / f"Case{number:02d}.nii.gz", rng.integers(0, 900, label.shape, dtype=np.int16), affine
            )
            save(tmp_path / site / f"Case{number:02d}_{ending}.nii.gz", label, affine)
    return tmp_path


@pytest.mark.parametrize("site", ["RUNMC", "BMC"])
def test_labels_beside_volumes_are_found_and_zones_become_one_gland(prostate, site):
    source = published(prostate / site, classes=("background", "prostate"), labels={1: "prostate", 2: "prostate"})
    assert (source.names, source.problems) == (("Case00", "Case01", "Case02"), ())
    scan = source.load("Case01")
    assert set(np.unique(scan.label)) == {0, 1}
    assert np.count_nonzero(scan.label) == 4 * 4 * 2
    assert scan.spacing == (0.6, 0.6, 3.6)


def test_zones_that_nobody_explained_are_no_gland(prostate):
    source = published(prostate / "BMC", classes=("background", "prostate"))
    with pytest.raises(Unreadable, match=r"labels: \{2: prostate\}"):
        source.load("Case00")


def test_what_lies_alone_or_twice_beside_volumes_is_left_out(prostate):
    folder = prostate / "RUNMC"
    save(folder / "Case03.nii.gz", np.ones((2, 2, 2), np.uint8))
    save(folder / "Case04_segmentation.nii.gz", np.ones((2, 2, 2), np.uint8))
    save(folder / "Case00_Segmentation.nii.gz", np.ones((9, 8, 4), np.uint8))
    (folder / "readme.txt").write_text("x")
    source = published(folder, classes=("background", "prostate"))
    assert source.names == ("Case01", "Case02")
    said = spoiling(source)
    assert len(said) == 3
    assert "RUNMC/Case03.nii.gz has no label; add Case03_segmentation beside it." in said
    assert "RUNMC/Case04_segmentation.nii.gz has no image; add Case04 beside it or take the label away." in said
    assert any("second label of Case00" in sentence for sentence in said)


# The papers' scenarios over both

SMALL = {
    "task.size": "[16, 16]",
    "network.channels": "[2, 4]",
    "training.epochs": "1",
    "study.seeds": "[0]",
    "study.orders": "[]",
    "study.strategies": "[{name: smg, generator: {channels: [8]}, generator_steps: 1, generator_batch: 2, replays: 1, "
    "evaluations: 2, sampler: ddim}]",
}


@pytest.fixture
def six(prostate):
    """All sites of the public set, with cases enough for training and test."""
    rng = np.random.default_rng(1)
    for place, site in enumerate(("RUNMC", "BMC", "I2CVB", "UCL", "BIDMC", "HK")):
        for number in range(8):
            label = np.zeros((9, 8, 3), np.uint8)
            label[2:6, 2:6, 1:] = 1 + place % 2
            ending = "Segmentation" if site == "BMC" else "segmentation"
            save(prostate / site / f"Case{number:02d}.nii.gz", rng.integers(0, 900, label.shape, dtype=np.int16))
            save(prostate / site / f"Case{number:02d}_{ending}.nii.gz", label)
    return prostate


@pytest.fixture
def vendors(tmp_path):
    """The public download under the four vendors' names."""
    download = tmp_path / "OpenDataset"
    rows = []
    for letter, name in (("A", "Siemens"), ("B", "Philips"), ("C", "GE"), ("D", "Canon")):
        for number in range(10):
            rows.append((f"{letter}{number}S9V9", name, letter, 0, 2))
            film(download / ("Training/Labeled" if number % 2 else "Testing"), rows[-1][0], (0, 2))
    write_table(download, rows)
    for name in ("siemens", "philips", "ge", "canon"):
        linked(download, name)
    return tmp_path


def check_and_visit(data, scenario, desk):
    """Every site passes its check under the scenario, and a run over the first two comes to its end."""
    path = ROOT / "scenarios" / "papers" / scenario
    whole = load_scenario(path)
    for site in (*whole.sites, *whole.unseen):
        console = Console(file=io.StringIO(), width=200)
        excerpt = read_excerpt(path, site.name)
        assert run_scenario_check(data / site.name, excerpt, console=console) == 0, console.file.getvalue()
    sites = [site.model_dump(mode="json", exclude_none=True) for site in whole.sites[:2]]
    (short,) = load_scenario(path, [*(f"{key}={value}" for key, value in SMALL.items()), f"sites={sites}"]).runs()
    (run,) = begin_all([short], desk.home, data, "locum", source=scenario, device="cpu")
    desk.carry_out(run)
    summary = desk.summary(run)
    assert summary.status == "done"
    assert summary.dsc.shape[:2] == (2, 3)
    assert np.isfinite(summary.dsc).all()


def test_the_prostate_scenario_learns_from_the_public_folders(six, desk):
    check_and_visit(six, "smg-prostate.yaml", desk)


def test_the_cardiac_scenario_learns_from_the_public_download(vendors, desk):
    check_and_visit(vendors, "smg-cardiac.yaml", desk)

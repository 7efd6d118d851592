"""Layouts: cases are found and paired without decoding; what is left out is said in one sentence; patients are kept."""

import json
import os
import shutil

import nibabel
import numpy as np
import pytest
from PIL import Image

from node.data.layouts import FolderSource
from node.data.source import Unreadable
from node.settings import SiteSettings
from protos.plan import GroupByPattern, GroupByTable, Split, Task
from tests.node.folders import sentences, source_of

RNG = np.random.default_rng(1)
NAMES = ("background", "a")


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 2, (6, 8), dtype=np.uint8)).save(path)


def volume(path, shape=(3, 4, 5)):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(RNG.integers(0, 2, shape, dtype=np.uint8), np.eye(4)), path)


def site(folder, dims=2, labels=None, channels=1, group="case"):
    return source_of(folder, NAMES, dims=dims, labels=labels, channels=channels, group=group)


@pytest.fixture
def pairs(tmp_path):
    folder = tmp_path / "site"
    for name in ("b", "a", "c.with.dots"):
        picture(folder / "images" / f"{name}.png")
        picture(folder / "labels" / f"{name}.png")
    return folder


def test_pairs_are_found_sorted_and_loaded(pairs):
    source = site(pairs)
    assert source.names == ("a", "b", "c.with.dots")
    assert source.problems == ()
    assert not source.synthetic
    scan = source.load("c.with.dots")
    assert (scan.name, scan.image.shape, scan.label.shape, scan.spacing) == ("c.with.dots", (1, 6, 8), (6, 8), (1, 1))


def test_suffixes_may_differ_and_nii_gz_is_one(tmp_path):
    picture(tmp_path / "images" / "p.JPG")
    picture(tmp_path / "labels" / "p.png")
    volume(tmp_path / "images" / "v.nii.gz")
    volume(tmp_path / "labels" / "v.nii")
    source = site(tmp_path)
    assert source.names == ("p", "v")
    assert source.problems == ()
    assert source.load("v").image.shape == (1, 3, 4, 5)


def test_construction_decodes_nothing(pairs):
    for path in pairs.rglob("*.png"):
        path.write_bytes(b"not a picture")
    source = site(pairs)
    assert source.names == ("a", "b", "c.with.dots")
    with pytest.raises(Unreadable, match=r"images/a\.png"):
        source.load("a")


def test_unpaired_ambiguous_and_foreign_files_are_named_and_the_rest_stays(pairs):
    picture(pairs / "images" / "no_label.png")
    picture(pairs / "labels" / "no_image.png")
    picture(pairs / "images" / "twice.png")
    picture(pairs / "images" / "twice.tif")
    picture(pairs / "labels" / "twice.png")
    (pairs / "images" / "scan.dcm").write_bytes(bytes(128) + b"DICM")
    (pairs / "images" / "IM0001").write_bytes(bytes(128) + b"DICM")
    (pairs / "images" / "series").mkdir()
    (pairs / "images" / "brain.nrrd").write_bytes(b"NRRD0004")
    (pairs / "images" / "notes.txt").write_text("hello")
    os.mkfifo(pairs / "images" / "pipe.png")
    picture(pairs / "images" / "mixed.png")
    volume(pairs / "labels" / "mixed.nii.gz")
    source = site(pairs)
    assert source.names == ("a", "b", "c.with.dots")
    spoiling = {problem.file for problem in source.problems if problem.spoils}
    names = ["no_label.png", "twice", "scan.dcm", "IM0001", "series", "brain.nrrd", "pipe.png"]
    assert spoiling >= {f"images/{name}" for name in names} | {"labels/no_image.png", "labels/mixed.nii.gz"}
    assert "images/notes.txt" not in spoiling
    assert sentences(source).count("dcm2niix") == 3


def test_litter_is_ignored(pairs):
    for name in (".DS_Store", "._a.png", "Thumbs.db", "desktop.ini", ".hidden.png"):
        (pairs / "images" / name).write_bytes(b"x")
    (pairs / "images" / "__MACOSX").mkdir()
    assert site(pairs).problems == ()


def test_links_stay_inside_or_are_refused(pairs, tmp_path):
    picture(tmp_path / "elsewhere.png")
    for name in ("out", "circle", "nowhere"):
        picture(pairs / "labels" / f"{name}.png")
    (pairs / "images" / "out.png").symlink_to(tmp_path / "elsewhere.png")
    (pairs / "images" / "circle.png").symlink_to("circle.png")
    (pairs / "images" / "nowhere.png").symlink_to("missing.png")
    (pairs / "images" / "inside.png").symlink_to("../labels/a.png")
    picture(pairs / "labels" / "inside.png")
    source = site(pairs)
    assert source.names == ("a", "b", "c.with.dots", "inside")
    assert "images/out.png leads out of the site's folder" in sentences(source)


def test_a_site_whose_folder_is_itself_a_link_is_fine(pairs, tmp_path):
    (tmp_path / "link").symlink_to(pairs)
    assert site(tmp_path / "link").names == ("a", "b", "c.with.dots")


@pytest.mark.parametrize("name", ["new\nline.png", "escape\x1b[31m.png", os.fsdecode(b"latin\xe9.png")])
def test_unprintable_names_are_refused(pairs, name):
    picture(pairs / "images" / "x.png")
    (pairs / "images" / "x.png").rename(pairs / "images" / name)
    source = site(pairs)
    assert source.names == ("a", "b", "c.with.dots")
    sentences(source).encode()
    assert "unprintable" in sentences(source)


def test_missing_empty_and_dicom_folders(tmp_path):
    assert "is no folder" in sentences(site(tmp_path / "missing"))
    assert "neither images/ and labels/" in sentences(site(tmp_path))
    (tmp_path / "IM1.dcm").write_bytes(b"x")
    assert "dcm2niix" in sentences(site(tmp_path))
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    assert site(tmp_path).names == ()


def test_three_dimensions_need_volumes(pairs):
    for kind in ("images", "labels"):
        volume(pairs / kind / "v.nii.gz")
    source = site(pairs, dims=3)
    assert source.names == ("v",)
    assert "has pictures for 3 cases (a first), but the task is 3-dimensional" in sentences(source)
    assert site(pairs, dims=2).names == ("a", "b", "c.with.dots", "v")


def test_labels_follow_the_settings(pairs):
    mask = RNG.integers(0, 2, (6, 8), dtype=np.uint8)
    Image.fromarray(mask * 255).save(pairs / "labels" / "a.png")
    with pytest.raises(Unreadable, match=r"labels: \{255: a\}"):
        site(pairs).load("a")
    assert np.array_equal(site(pairs, labels={255: "a"}).load("a").label, mask)
    source = site(pairs, labels={255: "b"})
    assert source.names == ()
    assert "which is no class of the task" in sentences(source)


def test_unknown_cases_are_refused(pairs):
    for method in (site(pairs).load, site(pairs).patient):
        with pytest.raises(Unreadable, match="is no case"):
            method("../../etc/passwd")


# nnU-Net and Decathlon


@pytest.mark.parametrize("described", [True, False])
def test_nnunet_channels(tmp_path, described):
    for case in ("p_001", "p_002"):
        for channel in range(2):
            volume(tmp_path / "imagesTr" / f"{case}_{channel:04d}.nii.gz")
        volume(tmp_path / "labelsTr" / f"{case}.nii.gz")
    volume(tmp_path / "imagesTr" / "p_003_0000.nii.gz")
    volume(tmp_path / "labelsTr" / "p_003.nii.gz")
    volume(tmp_path / "labelsTr" / "p_004.nii.gz")
    volume(tmp_path / "imagesTr" / "p_005_0000.nii.gz")
    volume(tmp_path / "imagesTs" / "p_006_0000.nii.gz")
    volume(tmp_path / "imagesTr" / "p_007.nii.gz")
    if described:
        described = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "a": 1}, "numTraining": 2}
        (tmp_path / "dataset.json").write_text(json.dumps(described))
    source = site(tmp_path, dims=3, channels=2)
    assert source.names == ("p_001", "p_002")
    first, second = (nibabel.load(tmp_path / "imagesTr" / f"p_001_000{n}.nii.gz").get_fdata() for n in (0, 1))
    assert np.array_equal(source.load("p_001").image, [first, second])
    text = sentences(source)
    assert "imagesTr/p_003 has the channels 0000; the data set has 0000 to 0001." in text
    assert "labelsTr/p_004.nii.gz has no image" in text
    assert "imagesTr/p_005 has no label" in text
    assert "imagesTr/p_007.nii.gz has no channel number" in text
    assert "p_006" not in text


def test_nnunet_pictures(tmp_path):
    picture(tmp_path / "imagesTr" / "x_0000.png")
    picture(tmp_path / "labelsTr" / "x.png")
    assert site(tmp_path).load("x").image.shape == (1, 6, 8)


def decathlon(folder, entries, **more):
    (folder / "dataset.json").write_text(json.dumps({"training": entries, **more}))


def test_decathlon_with_modalities_on_the_fourth_axis(tmp_path):
    volume(tmp_path / "imagesTr" / "la_007.nii.gz", (3, 4, 5, 2))
    volume(tmp_path / "labelsTr" / "la_007.nii.gz")
    entry = {"image": "./imagesTr/la_007.nii.gz", "label": "./labelsTr/la_007.nii.gz"}
    decathlon(tmp_path, [entry], modality={"0": "T2", "1": "ADC"})
    source = site(tmp_path, dims=3, channels=2)
    assert (source.names, source.problems) == (("la_007",), ())
    stored = nibabel.load(tmp_path / "imagesTr" / "la_007.nii.gz").get_fdata()
    assert np.array_equal(source.load("la_007").image, np.moveaxis(stored, -1, 0))
    decathlon(tmp_path, [entry], modality={"0": "T2"})
    with pytest.raises(Unreadable, match="4-dimensional"):
        site(tmp_path, dims=3).load("la_007")


def test_decathlon_entries_cannot_leave_the_folder_or_end_the_site(tmp_path):
    volume(tmp_path / "outside.nii.gz")
    folder = tmp_path / "site"
    volume(folder / "i" / "good.nii.gz")
    volume(folder / "l" / "good.nii.gz")
    good = {"image": "i/good.nii.gz", "label": "l/good.nii.gz"}
    bad = [
        {"image": "../outside.nii.gz", "label": "l/good.nii.gz"},
        {"image": str(tmp_path / "outside.nii.gz"), "label": "l/good.nii.gz"},
        {"image": "i/gone.nii.gz", "label": "l/good.nii.gz"},
        {"image": "i\u0000/x.nii.gz", "label": "l/good.nii.gz"},
        {"image": "\ud800/x.nii.gz", "label": "l/good.nii.gz"},
        {"image": "x" * 9000 + ".nii.gz", "label": "l/good.nii.gz"},
        {"image": "i", "label": "l/good.nii.gz"},
        {"image": "", "label": ""},
        {"image": 7},
        "i/good.nii.gz",
        None,
        good,
    ]
    decathlon(folder, [good, *bad])
    source = site(folder, dims=3)
    assert source.names == ("good",)
    assert {problem.file for problem in source.problems} == {
        f"dataset.json training[{number}]" for number in range(1, len(bad) + 1)
    }
    sentences(source).encode()


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"training": 3}'])
def test_a_broken_dataset_json_is_said_and_pairs_are_still_found(pairs, content):
    (pairs / "dataset.json").write_bytes(content)
    source = site(pairs)
    assert source.names == ("a", "b", "c.with.dots")
    assert ("dataset.json" in sentences(source)) == (content != b'{"training": 3}')


# Patients


def test_cases_are_their_own_patients_by_default(pairs):
    assert [site(pairs).patient(name) for name in ("a", "b")] == ["a", "b"]


@pytest.mark.parametrize("pattern", [r"^(TCGA_\w\w_\w{4})", r"^(X)?(?P<patient>TCGA_\w\w_\w{4})"])
def test_patients_by_pattern(tmp_path, pattern):
    for name in ("TCGA_CS_4941_19960909_14", "TCGA_CS_4941_19960909_16", "TCGA_CS_6290_2", "stray"):
        picture(tmp_path / "images" / f"{name}.png")
        picture(tmp_path / "labels" / f"{name}.png")
    source = site(tmp_path, group=GroupByPattern(pattern=pattern))
    assert source.names == ("TCGA_CS_4941_19960909_14", "TCGA_CS_4941_19960909_16", "TCGA_CS_6290_2")
    assert [source.patient(name) for name in source.names] == ["TCGA_CS_4941", "TCGA_CS_4941", "TCGA_CS_6290"]
    assert "stray is left out" in sentences(source)


@pytest.mark.parametrize("delimiter", [",", ";"])
def test_patients_by_table(pairs, delimiter):
    rows = [("age", "case", "who"), ("1", "a", "Ä1"), ("2", "b.png", "Ä1"), ("3", "other", "X")]
    text = "".join(delimiter.join(row) + "\r\n" for row in rows)
    (pairs / "patients.csv").write_text(text, encoding="utf-8-sig")
    source = site(pairs, group=GroupByTable(csv="patients.csv", column="who"))
    assert source.names == ("a", "b")
    assert source.patient("a") == source.patient("b") == "Ä1"
    assert "c.with.dots is left out: patients.csv gives no patient for it" in sentences(source)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be opened"),
        (b"", "has no column 'case'"),
        (b"case,age\na,1\n", "has no column 'who'"),
        (b"case,who\na,1\na,2\nb,1\nc.with.dots,1\n", "gives a two patients"),
        (b"case,who\na,\nb,1\nc.with.dots\n", "a is left out"),
        (b"case,who\n\xe9,1\n", "is no CSV"),
        (b'case,who\n"' + b"x" * 200_000, "is no CSV"),
    ],
)
def test_broken_tables_leave_cases_out_rather_than_guess(pairs, content, said):
    if content is not None:
        (pairs / "patients.csv").write_bytes(content)
    source = site(pairs, group=GroupByTable(csv="patients.csv", column="who"))
    assert "a" not in source.names
    assert said in sentences(source)


def test_a_table_outside_the_folder_is_refused(pairs, tmp_path):
    (tmp_path / "patients.csv").write_text("case,who\na,1\n")
    (pairs / "patients.csv").symlink_to(tmp_path / "patients.csv")
    source = site(pairs, group=GroupByTable(csv="patients.csv", column="who"))
    assert source.names == ()
    assert "leads out" in sentences(source)


# Real data


def test_every_real_site_loads(shared_data):
    folders = sorted(path.parent for path in shared_data.glob("*/*/images"))
    assert folders
    for folder in folders:
        dims = 3 if any(folder.glob("images/*.nii.gz")) else 2
        settings = SiteSettings(name="s", home=folder, data=folder)
        task = Task(dims=dims, size=(8,) * dims, classes=("background", "1", "2", "3"))
        source = FolderSource(settings, task, Split())
        assert source.problems == ()
        assert len(source.names) == len(list((folder / "images").iterdir()))
        for name in source.names[::6]:
            scan = source.load(name)
            assert scan.image.shape == (1, *scan.label.shape)
            assert scan.image.std() > 0


def test_a_site_of_awkward_files_stays_usable(shared_data, tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    awkward = shared_data / "awkward"
    for path in awkward.rglob("*"):
        if path.is_file():
            shutil.copy(path, tmp_path / "images")
            shutil.copy(awkward / "sct_t2_PSR_label.nii.gz", tmp_path / "labels" / f"{path.name.split('.')[0]}.nii.gz")
    source = site(tmp_path, dims=3)
    usable, refused = [], []
    for name in source.names:
        try:
            source.load(name)
            usable.append(name)
        except Unreadable as error:
            refused.append(str(error))
    assert usable == ["sct_t2_PSR", "sct_t2_PSR_label"]
    assert all(text.endswith(".") for text in refused)
    assert "dcm2niix" in sentences(source)

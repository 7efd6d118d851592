"""The check before a run: what it counts, what it calls spoilt, and its exit status."""

import io
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from node.data.check import run_check
from node.data.examination import examine
from node.data.layouts import FolderSource
from node.data.splits import split_cases
from node.settings import SiteSettings
from protos.plan import GroupByPattern, Split, Task

RNG = np.random.default_rng(2)


def case(folder, name, mask=None, image=None, suffix=".png"):
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    mask = RNG.integers(0, 2, (6, 8), dtype=np.uint8) if mask is None else mask
    image = RNG.integers(0, 256, mask.shape, dtype=np.uint8) if image is None else image
    if suffix == ".png":
        Image.fromarray(image).save(folder / "images" / f"{name}.png")
        Image.fromarray(mask).save(folder / "labels" / f"{name}.png")
    else:
        for kind, data in (("images", image), ("labels", mask)):
            nibabel.save(nibabel.Nifti1Image(data, np.diag([1, 2, 3, 1])), folder / kind / f"{name}{suffix}")


@pytest.fixture
def folder(tmp_path):
    for number in range(20):
        case(tmp_path, f"p{number // 2}_{number}")
    return tmp_path


def check(folder, **options):
    console = Console(file=io.StringIO(), width=100)
    status = run_check(folder, console=console, **options)
    text = console.file.getvalue()
    assert "Traceback" not in text
    return status, text


def source(folder, split=None):
    task = Task(classes=("background", "nucleus"), size=(8, 8))
    return FolderSource(SiteSettings(name="s", home=folder, data=folder), task, split or Split())


def test_counts_grids_fractions_and_patients(tmp_path):
    for number in range(20):
        mask = np.zeros((4, 10), np.uint8)
        mask[0, : number % 5] = 1
        case(tmp_path, f"p{number // 2}_{number}", mask)
    examination = examine(source(tmp_path, Split(group=GroupByPattern(pattern=r"^(p\d+)_"))))
    assert examination.ok
    assert examination.problems == ()
    assert examination.cases == sum(examination.parts.values()) == 20
    assert all(examination.parts[part] == 2 * examination.patients[part] for part in examination.parts)
    assert dict(examination.grids) == {((4, 10), (1.0, 1.0)): 20}
    background, nucleus = examination.classes
    assert (nucleus.name, nucleus.values, nucleus.cases, nucleus.pixels) == ("nucleus", (1,), 16, 40)
    assert (background.cases, background.pixels) == (20, 760)


def test_a_good_site_passes_and_is_told_about(folder):
    status, text = check(folder)
    assert status == 0
    assert "20 usable cases; ready for a run." in text
    assert "6 x 8" in text
    assert not any(ord(character) > 127 for character in text)  # no frames where there is no terminal
    assert check(folder, classes="background,nucleus", dims=2, channels=3)[0] == 0


def test_volumes_show_their_spacing(tmp_path):
    for number in range(12):
        case(tmp_path, f"v{number}", RNG.integers(0, 2, (4, 5, 6), dtype=np.uint8), suffix=".nii.gz")
    status, text = check(tmp_path)
    assert status == 0
    assert "4 x 5 x 6" in text
    assert "1 x 2 x 3" in text


@pytest.mark.parametrize("spoil", ["unpaired", "unreadable", "value", "dicom", "shape"])
def test_one_bad_case_spoils_and_the_others_still_count(folder, spoil):
    if spoil == "unpaired":
        (folder / "labels" / "p0_0.png").unlink()
    elif spoil == "unreadable":
        (folder / "images" / "p0_0.png").write_bytes(b"text")
    elif spoil == "value":
        case(folder, "p0_0", np.full((6, 8), 7, np.uint8))
    elif spoil == "dicom":
        (folder / "images" / "p0_0.png").rename(folder / "images" / "p0_0.dcm")
    else:
        Image.fromarray(np.zeros((3, 3), np.uint8)).save(folder / "labels" / "p0_0.png")
    status, text = check(folder, classes="background,nucleus")
    assert status == 1
    assert "19 usable cases" in text
    assert "/p0_0." in text


def test_the_same_image_in_two_parts_spoils(folder):
    split = Split(train=0.5, val=0, test=0.5)
    parts = split_cases(source(folder).names, source(folder).patient, split)
    first, second = sorted((parts["train"][0], parts["test"][0]))
    image = RNG.integers(0, 256, (6, 8), dtype=np.uint8)
    for name in (first, second):
        case(folder, name, image=image)
    status, text = check(folder, split=split)
    assert status == 1
    assert (
        f"spoils training: {first}, {second} are the same image under different patients and in different parts "
        "(train, test), so scores would be false; keep one of them." in text
    )
    assert check(folder, split=split, unseen=True)[0] == 0  # all are tests there


def test_the_same_image_in_one_part_is_doubtful(folder):
    image = RNG.integers(0, 256, (6, 8), dtype=np.uint8)
    mask = RNG.integers(0, 2, (6, 8), dtype=np.uint8)
    case(folder, "p0_0", mask, image)
    case(folder, "p0_1", mask, image)
    examination = examine(source(folder, Split(train=0, val=0, test=1)))
    assert [problem.spoils for problem in examination.duplicates] == [False]
    assert "under different patients, which only chance put into one part (test)" in examination.duplicates[0].sentence
    examination = examine(source(folder, Split(group=GroupByPattern(pattern=r"^(p\d+)_"))))
    assert [problem.spoils for problem in examination.duplicates] == [False]
    assert examination.duplicates[0].sentence == "p0_0, p0_1 are the same image; keep one of them."


def test_coded_masks_need_a_mapping(tmp_path):
    for number in range(12):
        case(tmp_path, f"c{number}", RNG.integers(0, 2, (6, 8), dtype=np.uint8) * 255)
    status, text = check(tmp_path)
    assert status == 1
    assert text.splitlines()[-2].endswith("here with --labels '255=structure'.")
    assert re.findall(r"^ (\d+) +(\d+) +12 ", text, re.M) == [
        ("0", "0"),
        ("255", "255"),
    ]  # no row for what is not there
    assert check(tmp_path, classes="background,nucleus")[0] == 1
    status, text = check(tmp_path, labels="255=nucleus")
    assert status == 0
    assert re.search(r"nucleus +255 +12 +0\.[45]", text)


def test_a_class_that_never_occurs_is_doubtful(folder):
    status, text = check(folder, classes="background,nucleus,lesion")
    assert status == 0
    assert "No label holds lesion" in text
    assert re.search(r"^ lesion +2 +0 ", text, re.M)  # the row of a declared class stays


def test_empty_sites_and_empty_parts(tmp_path, folder):
    assert check(tmp_path / "nothing")[0] == 1
    for name in ("images", "labels"):
        for path in (folder / name).iterdir():
            if path.stem != "p0_0":
                path.unlink()
    status, text = check(folder)
    assert status == 1
    assert "No case falls to" in text
    assert check(folder, unseen=True)[0] == 0
    assert check(folder, split=Split(train=0.5, val=0.5, test=0))[0] == 1


@pytest.mark.parametrize("spoil", ["empty", "gone", "unreadable"])
def test_a_site_without_labels_is_not_told_what_they_hold(folder, spoil):
    for path in (folder / "labels").iterdir():
        if spoil == "unreadable":
            path.write_bytes(b"text")
        else:
            path.unlink()
    if spoil == "gone":
        (folder / "labels").rmdir()
    status, text = check(folder)
    assert status == 1
    assert "The labels hold" not in text
    assert "No label holds" not in text
    assert "0 usable cases" in text


def test_the_folder_where_one_stands_has_a_name(tmp_path, monkeypatch):
    (tmp_path / "north").mkdir()
    monkeypatch.chdir(tmp_path / "north")
    assert "spoils training: north has neither images/ and labels/" in check(Path())[1]
    (tmp_path / "loop").symlink_to("loop")
    assert "loop is no folder" in check(tmp_path / "loop")[1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labels": "nucleus"}, "'nucleus' in labels is not like 255=nucleus"),
        ({"labels": "x=nucleus"}, "'x=nucleus' in labels"),
        ({"classes": "nucleus"}, "at least one structure"),
        ({"classes": "a,b,a"}, "one class twice"),
        ({"dims": 4}, "2 or 3"),
        ({"channels": 0}, "greater than 0"),
    ],
)
def test_wrong_options_are_one_sentence_and_status_2(folder, options, said):
    status, text = check(folder, **options)
    assert status == 2
    assert said in text
    assert text.count("\n") == 1


def test_names_that_look_like_markup_are_printed_as_they_are(folder):
    case(folder, "[red]odd[")
    (folder / "labels" / "[red]odd[.png").unlink()
    assert "images/[red]odd[.png has no label" in check(folder)[1]


def test_a_terminal_gets_frames_and_the_same_verdict(folder):
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    assert run_check(folder, console=console) == 0
    assert "╭" in console.file.getvalue()


def test_progress_is_told_case_by_case(folder):
    told = []
    examine(source(folder), on_case=lambda done, total: told.append((done, total)))
    assert told == [(number, 20) for number in range(1, 21)]


def test_the_real_sites_are_ready(shared_data):
    for site in ("nuclei/histology", "chest_xray/italy", "hippocampus/msd_vanderbilt", "brain_lgg_3d/tcga_ht"):
        status, text = check(shared_data / site)
        assert status == 0, text


def test_a_folder_of_dicom_says_what_to_do(shared_data):
    status, text = check(shared_data / "awkward" / "dicom_ct_series")
    assert status == 1
    assert "dcm2niix" in text

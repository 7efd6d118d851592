"""Which files make a case, in the layouts that Locum reads; names, dataset.json and tables only, no image is opened.

images/ and labels/ with equal base names; nnU-Net raw (imagesTr/case_0000.nii.gz, labelsTr/case.nii.gz); the Medical
Segmentation Decathlon's dataset.json with its list of training pairs; case.nii.gz beside case_segmentation.nii.gz;
films of the heart with their table (cine.py).
"""

import json
import re
from pathlib import Path
from typing import Any

from node.data.cine import find_frames, information_tables
from node.data.decoding import READ, base_and_suffix, is_dicom, shown
from node.data.finding import DICOM_REMEDY, Finding, listed, not_hidden, printable
from node.data.readers import CaseFiles

CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")
SEGMENTATION = re.compile(r"(?P<case>.+)_segmentation", re.IGNORECASE)


def find_cases(folder: Path) -> Finding:
    """List and pair the files of a site's folder. Raises nothing: what is wrong stands in `problems`."""
    finding = Finding(folder)
    try:
        _find(finding)
    except OSError as error:
        finding.problem(folder.name, f"cannot be listed ({error.strerror}); check that this user may read it.")
    return finding


def _find(finding: Finding) -> None:
    folder = finding.folder
    if not folder.is_dir():
        finding.problem(str(folder), "is no folder; correct the site's path.")
        return
    dataset = _dataset(finding)
    trained = folder / "imagesTr"
    if trained.is_dir() and any(CHANNEL.fullmatch(base_and_suffix(path.name)[0]) for path in trained.iterdir()):
        _nnunet(finding, dataset)
    elif isinstance(dataset.get("training"), list):
        _decathlon(finding, dataset)
    elif (folder / "images").is_dir() and (folder / "labels").is_dir():
        _pairs(finding)
    elif any(_is_segmentation(path) for path in folder.iterdir()):
        _beside(finding)
    elif tables := information_tables(finding):
        find_frames(finding, tables)
    elif not finding.problems:
        dicom = any(path.is_file() and is_dicom(path) for path in folder.iterdir())
        remedy = f"{DICOM_REMEDY}, and put it there" if dicom else "put the files there"
        finding.problem(
            folder.name,
            "has neither images/ and labels/, nor imagesTr/, nor a dataset.json with pairs, nor files that end in "
            f"_segmentation, nor a table of films; {remedy}.",
        )


def _pairs(finding: Finding) -> None:
    images, labels = _listing(finding, "images"), _listing(finding, "labels")
    for name in sorted(images.keys() & labels.keys()):
        finding.add(CaseFiles(name, (images[name],), labels[name]))
    for name in sorted(images.keys() - labels.keys()):
        finding.problem(shown(images[name]), f"has no label; add labels/{name} with a suffix of {listed(READ)}.")
    for name in sorted(labels.keys() - images.keys()):
        finding.problem(shown(labels[name]), f"has no image; add images/{name} or take the label away.")


def _is_segmentation(path: Path) -> bool:
    base, suffix = base_and_suffix(path.name)
    return suffix in READ and bool(SEGMENTATION.fullmatch(base))


def _beside(finding: Finding) -> None:
    files = _listing(finding, "")
    labels: dict[str, Path] = {}
    for path in [path for path in files.values() if _is_segmentation(path)]:
        base = base_and_suffix(path.name)[0]
        del files[base]
        name = base[: base.rindex("_")]
        if name in labels:
            finding.problem(
                shown(path), f"is a second label of {name}, beside {labels[name].name}; keep the right one."
            )
            del labels[name]
            files.pop(name, None)
        else:
            labels[name] = path
    for name in sorted(files.keys() & labels.keys()):
        finding.add(CaseFiles(name, (files[name],), labels[name]))
    for name in sorted(files.keys() - labels.keys()):
        finding.problem(shown(files[name]), f"has no label; add {name}_segmentation beside it.")
    for name in sorted(labels.keys() - files.keys()):
        finding.problem(shown(labels[name]), f"has no image; add {name} beside it or take the label away.")


def _nnunet(finding: Finding, dataset: dict[str, Any]) -> None:
    labels = _listing(finding, "labelsTr")
    channels: dict[str, dict[int, Path]] = {}
    for stem, path in _listing(finding, "imagesTr").items():
        if match := CHANNEL.fullmatch(stem):
            channels.setdefault(match["case"], {})[int(match["channel"])] = path
        else:
            finding.problem(shown(path), "has no channel number; name it like case_0000.nii.gz.")
    declared = dataset.get("channel_names", dataset.get("modality"))
    count = (
        len(declared) if isinstance(declared, dict) else max((max(found) + 1 for found in channels.values()), default=1)
    )
    for name in sorted(channels.keys() | labels.keys()):
        found = channels.get(name, {})
        if name not in labels:
            finding.problem(f"imagesTr/{name}", "has no label; add it to labelsTr/.")
        elif not found:
            finding.problem(shown(labels[name]), f"has no image; add imagesTr/{name}_0000 or take the label away.")
        elif sorted(found) != list(range(count)):
            numbers = ", ".join(f"{channel:04d}" for channel in sorted(found))
            finding.problem(
                f"imagesTr/{name}", f"has the channels {numbers}; the data set has 0000 to {count - 1:04d}."
            )
        else:
            finding.add(CaseFiles(name, tuple(found[channel] for channel in range(count)), labels[name]))


def _decathlon(finding: Finding, dataset: dict[str, Any]) -> None:
    modality = dataset.get("modality")
    modalities = max(1, len(modality)) if isinstance(modality, dict) else 1
    for number, entry in enumerate(dataset["training"]):
        where = f"dataset.json training[{number}]"
        if not (
            isinstance(entry, dict) and isinstance(entry.get("image"), str) and isinstance(entry.get("label"), str)
        ):
            finding.problem(where, 'is no pair; write {"image": "...", "label": "..."}.')
            continue
        image, label = finding.folder / entry["image"], finding.folder / entry["label"]
        name = base_and_suffix(image.name)[0]
        objections = [(path, found) for path in (image, label) if (found := finding.objection(path))]
        for path, (sentence, spoils) in objections:
            finding.problem(where, f"names {printable(path.name)[:80]}, which {sentence}", spoils)
        if name in finding.cases:
            finding.problem(where, f"names the case {name} a second time; give every case a name of its own.")
        elif not objections:
            finding.add(CaseFiles(name, (image,), label, modalities))


def _listing(finding: Finding, name: str) -> dict[str, Path]:
    """Base name -> file, for the usable files of one folder in the site's, or with no name of the site's own."""
    folder = finding.folder / name
    name = name or folder.name
    if not folder.is_dir():
        finding.problem(f"{name}/", "is missing; each image needs a label.")
        return {}
    by_base: dict[str, list[Path]] = {}
    for path in not_hidden(folder):
        if objection := finding.objection(path):
            finding.problem(f"{name}/{printable(path.name)}", *objection)
        else:
            by_base.setdefault(base_and_suffix(path.name)[0], []).append(path)
    for base, paths in by_base.items():
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            finding.problem(f"{name}/{base}", f"is there more than once ({names}); keep one.")
    return {base: paths[0] for base, paths in by_base.items() if len(paths) == 1}


def _dataset(finding: Finding) -> dict[str, Any]:
    """dataset.json, or nothing."""
    path = finding.folder / "dataset.json"
    if not path.exists():
        return {}
    if not finding.inside(path):
        finding.problem(path.name, "leads out of the site's folder; copy the file into it.")
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        finding.problem(path.name, f"is no JSON ({type(error).__name__}); correct it or take it away.")
        return {}
    if not isinstance(found, dict):
        finding.problem(path.name, "is no JSON object; correct it or take it away.")
        return {}
    return found

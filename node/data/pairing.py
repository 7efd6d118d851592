"""Which files make a case, in the three layouts that Locum reads; file names and dataset.json only, no image is opened.

images/ and labels/ with equal base names; nnU-Net raw (imagesTr/case_0000.nii.gz, labelsTr/case.nii.gz); the Medical
Segmentation Decathlon's dataset.json with its list of training pairs.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.data.decoding import READ, VOLUMES, base_and_suffix, is_dicom, shown
from node.data.readers import CaseFiles
from node.data.source import Problem

LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
HARMLESS = frozenset({".txt", ".md", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".pdf"})
DICOM_REMEDY = "convert each DICOM series to one NIfTI file, for example with dcm2niix"
CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")


@dataclass
class Finding:
    """The cases found in `folder`, by name, and what was left out."""

    folder: Path
    cases: dict[str, CaseFiles] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def problem(self, file: str, sentence: str, spoils: bool = True) -> None:
        """Note one problem; `sentence` goes on from the file's name."""
        self.problems.append(Problem(file, f"{file} {sentence}", spoils))

    def add(self, case: CaseFiles) -> None:
        """Add a case, unless its image and label are not of one sort."""
        if (base_and_suffix(case.label.name)[1] in VOLUMES) != case.volume:
            self.problem(
                shown(case.label), f"is not of the sort of {shown(case.images[0])}; give both as NIfTI or not."
            )
        else:
            self.cases[case.name] = case

    def inside(self, path: Path) -> bool:
        """Whether a path, symbolic links followed, stays in the folder."""
        try:
            return path.resolve().is_relative_to(self.folder.resolve())
        except (OSError, RuntimeError, ValueError):  # too long, links in a circle, characters that no path can have
            return False


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
    elif not finding.problems:
        dicom = any(path.is_file() and is_dicom(path) for path in folder.iterdir())
        remedy = f"{DICOM_REMEDY}, and put it there" if dicom else "put the files there"
        finding.problem(
            folder.name, f"has neither images/ and labels/, nor imagesTr/, nor a dataset.json with pairs; {remedy}."
        )


def _pairs(finding: Finding) -> None:
    images, labels = _listing(finding, "images"), _listing(finding, "labels")
    for name in sorted(images.keys() & labels.keys()):
        finding.add(CaseFiles(name, (images[name],), labels[name]))
    for name in sorted(images.keys() - labels.keys()):
        finding.problem(shown(images[name]), f"has no label; add labels/{name} with a suffix of {_list(READ)}.")
    for name in sorted(labels.keys() - images.keys()):
        finding.problem(shown(labels[name]), f"has no image; add images/{name} or take the label away.")


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
        objections = [(path, found) for path in (image, label) if (found := _objection(finding, path))]
        for path, (sentence, spoils) in objections:
            finding.problem(where, f"names {_printable(path.name)[:80]}, which {sentence}", spoils)
        if name in finding.cases:
            finding.problem(where, f"names the case {name} a second time; give every case a name of its own.")
        elif not objections:
            finding.add(CaseFiles(name, (image,), label, modalities))


def _listing(finding: Finding, name: str) -> dict[str, Path]:
    """Base name -> file, for the usable files of one folder."""
    folder = finding.folder / name
    if not folder.is_dir():
        finding.problem(f"{name}/", "is missing; each image needs a label.")
        return {}
    by_base: dict[str, list[Path]] = {}
    for path in _not_hidden(folder):
        if objection := _objection(finding, path):
            finding.problem(f"{name}/{_printable(path.name)}", *objection)
        else:
            by_base.setdefault(base_and_suffix(path.name)[0], []).append(path)
    for base, paths in by_base.items():
        if len(paths) > 1:
            names = " and ".join(path.name for path in paths)
            finding.problem(f"{name}/{base}", f"is there more than once ({names}); keep one.")
    return {base: paths[0] for base, paths in by_base.items() if len(paths) == 1}


def _not_hidden(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and path.name.lower() not in LITTER:
            yield path


def _objection(finding: Finding, path: Path) -> tuple[str, bool] | None:
    """Why no reader should try a path, as the rest of a sentence, and whether that spoils training; None: try it."""
    suffix = base_and_suffix(path.name)[1]
    try:
        if not path.name.isprintable():
            return "has a name with unprintable characters; rename it.", True
        if not finding.inside(path):
            return "leads out of the site's folder, or nowhere; copy the file into it.", True
        if not path.exists():
            return "is not there; copy it or take its name away.", True
        if path.is_dir():
            return f"is a folder; give one file per case ({DICOM_REMEDY}).", True
        if not path.is_file():
            return "is no regular file; take it away.", True
    except OSError as error:
        return f"cannot be looked at ({error.strerror}); check its name and that this user may read it.", True
    if suffix in READ:
        return None
    if is_dicom(path):
        return f"is a DICOM file, which Locum does not read; {DICOM_REMEDY}.", True
    return f"is none of {_list(READ)}; convert it or take it away.", suffix not in HARMLESS


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


def _printable(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def _list(suffixes: frozenset[str]) -> str:
    return ", ".join(sorted(suffixes))

"""Films of the beating heart as the M&Ms challenge publishes them: two frames of each are labelled, and cases.

A CSV file names each patient's vendor and the frames ED and ES (counted from 0); anywhere below the folder lie
CODE_sa.nii.gz and CODE_sa_gt.nii.gz, both of four dimensions, the label drawn in those two frames alone.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from nibabel.orientations import apply_orientation, io_orientation, ornt_transform

from node.data.decoding import VOLUMES, base_and_suffix, decoding, shown
from node.data.finding import Finding, delimiter, printable
from node.data.readers import CaseFiles, LabelValues
from node.data.source import Scan, Unreadable
from node.data.volumes import read_volume, same_grid

PHASES = ("ED", "ES")  # end of diastole, end of systole
CODE = "External code"
COLUMNS = (CODE, "Vendor", *PHASES)
IMAGE, LABEL = "_sa", "_sa_gt"  # short axis, and its ground truth
LONGEST_HEADER = 10_000  # characters
UNLABELLED = "unlabeled"  # the published folder of patients whose label, if there is one, is empty


@dataclass(frozen=True, kw_only=True)
class Frame(CaseFiles):
    """A case that is one frame of a film: `frame` counts from 0; all frames of a `patient` belong together."""

    patient: str
    frame: int


def information_tables(finding: Finding) -> list[str]:
    """The CSV files in the folder that have the columns of the challenge's table."""
    found = []
    for path in sorted(finding.folder.glob("*.csv")):
        if finding.inside(path) and path.is_file():
            with path.open(encoding="utf-8-sig", errors="replace") as file:
                header = file.readline(LONGEST_HEADER)
            if set(COLUMNS) <= set(next(csv.reader([header], delimiter=delimiter(header)), ())):
                found.append(path.name)
    return found


def find_frames(finding: Finding, tables: list[str]) -> None:
    """List the frames ED and ES of this site's patients: of the vendor that the folder is named after, if of one.

    A folder that holds patients of several vendors and is named after none is refused, since a site is one of them.
    """
    if len(tables) > 1:
        finding.problem(finding.folder.name, f"has the tables {' and '.join(tables)}; keep one.")
        return
    table = tables[0]
    rows = _rows(finding, table)
    images, labels = _films(finding, rows)
    here = images.keys() | labels.keys()
    own = {code for code, row in rows.items() if finding.folder.name.casefold() in _vendors(row)}
    if not own:
        vendors = sorted({row["Vendor"] for code, row in rows.items() if code in here})
        if len(vendors) > 1:
            finding.problem(
                finding.folder.name,
                f"has patients of the vendors {', '.join(vendors)}; name it after the one that this site is, as "
                f"{table} writes it.",
            )
            return
        own = here & rows.keys()
    _told_once(finding, here - rows.keys(), f"{table} has no row", "add a row", spoils=True)
    _told_once(finding, own - here, "there is no film", "copy it here if it is this site's")
    _told_once(finding, own & here - labels.keys(), "there is no label", "add it")
    for code in sorted(own & labels.keys()):
        if code not in images:
            finding.problem(shown(labels[code]), f"has no image; add {code}{IMAGE} beside it or take the label away.")
            continue
        for phase in PHASES:
            said = rows[code][phase]
            if said.isdecimal():
                name = f"{code}_{phase}"
                finding.add(Frame(name, (images[code],), labels[code], patient=code, frame=int(said)))
            else:
                finding.problem(f"{code}_{phase}", f"is left out: {table} gives no number for the frame; correct it.")


def _rows(finding: Finding, table: str) -> dict[str, dict[str, str]]:
    """Patient -> the table's row; a patient with two that differ is left out."""
    rows: dict[str, dict[str, str]] = {}
    contradicted = set()
    for row in finding.rows(table, COLUMNS, "its header"):
        told = {column: value for column, value in row.items() if column in COLUMNS or _names_a_vendor(column)}
        if rows.setdefault(row[CODE], told) != told:
            contradicted.add(row[CODE])
    for code in sorted(contradicted):
        finding.problem(table, f"has two rows for {printable(code)}; keep the right one.")
        rows[code] = rows[code] | dict.fromkeys(PHASES, "")  # left out rather than guessed
    return rows


def _names_a_vendor(column: str) -> bool:
    return column.casefold().startswith("vendor")  # one column holds A to D, another the vendor's name


def _vendors(row: Mapping[str, str]) -> set[str]:
    return {value.casefold() for column, value in row.items() if _names_a_vendor(column)}


def _films(finding: Finding, known: Iterable[str]) -> tuple[dict[str, Path], dict[str, Path]]:
    """Patient -> image, and patient -> label, wherever they lie below the folder."""
    found: tuple[dict[str, list[Path]], dict[str, list[Path]]] = ({}, {})
    for path in sorted(finding.folder.rglob(f"*{IMAGE}*")):
        base, suffix = base_and_suffix(path.name)
        if suffix not in VOLUMES or path.name.startswith("."):
            continue
        label = base.endswith(LABEL)
        if not label and not base.endswith(IMAGE):
            continue
        if objection := finding.objection(path):
            finding.problem(printable(path.name), *objection)
        elif not label or UNLABELLED not in (
            folder.name.casefold() for folder in path.relative_to(finding.folder).parents
        ):
            found[label].setdefault(base.removesuffix(LABEL).removesuffix(IMAGE), []).append(path)
    for films in found:
        for code in [code for code, paths in films.items() if len(paths) > 1]:
            finding.problem(
                printable(code), f"is there more than once ({' and '.join(map(shown, films[code]))}); keep one."
            )
            del films[code]
    images, labels = ({code: paths[0] for code, paths in films.items()} for films in found)
    return images, labels


def _told_once(finding: Finding, codes: Iterable[str], what: str, remedy: str, spoils: bool = False) -> None:
    """One problem for all patients that lack one thing: of a table for a whole consortium most may be elsewhere."""
    if codes := sorted(codes):
        count = f"{len(codes)} patient{'s' * (len(codes) != 1)}"
        finding.problem(
            finding.folder.name, f"leaves out {count} ({printable(codes[0])} first): {what}; {remedy}.", spoils
        )


def read_frame(case: Frame, channels: int | None, values: LabelValues) -> Scan:
    """Decode one frame as `read_case` decodes a case, but with the axes as they are stored. Raises Unreadable.

    Slices of a film are the stored ones, along its third axis: the heart's long axis lies aslant in the body, so that
    turning it to the body's nearest axes would slice one patient across the heart and the next one along it.
    """
    path = case.images[0]
    with decoding(path):
        frames = _frames(path)
        image, label = read_volume(path, frames), read_volume(case.label, _frames(case.label))
        if image.data.shape != label.data.shape or not same_grid(image, label):
            raise Unreadable(f"{shown(case.label)} has not the grid and frames of {shown(path)}; give its own label.")
        if case.frame >= frames:
            raise Unreadable(
                f"{shown(path)} has {frames} frames, but {case.name} is said to be frame {case.frame} counted from 0; "
                "correct the table."
            )
        if channels not in (None, 1):
            raise Unreadable(f"{shown(path)} has one channel, but the task takes {channels}; set task.channels to 1.")
        turned = io_orientation(nibabel.load(path, mmap=False).affine)
        back = ornt_transform(io_orientation(np.eye(4)), turned)
        pixels = np.array(apply_orientation(image.data[case.frame], back)[None], order="C")  # lets the film go
        drawn = np.array(apply_orientation(label.data[case.frame], back), order="C")
        if not drawn.any():  # a heart is in every labelled frame
            raise Unreadable(
                f"{shown(case.label)} has nothing drawn in frame {case.frame}, counted from 0, which is said to be "
                f"{case.name}; correct the table or take the label away."
            )
        spacing = tuple(image.spacing[int(axis)] for axis, _ in turned)
        return Scan(case.name, pixels, values.apply(drawn, case.label), spacing)


def _frames(path: Path) -> int:
    """How many volumes follow each other along a film's fourth axis; raises Unreadable if there is no such axis."""
    shape: tuple[int, ...] = nibabel.load(path, mmap=False).shape
    if len(shape) != 4:
        raise Unreadable(f"{shown(path)} is {len(shape)}-dimensional, not a film; give it as x, y, z and time.")
    return shape[3]

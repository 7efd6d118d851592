"""What is found in a site's folder: cases, and what was left out; which files to try; the tables beside them."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from node.data.decoding import READ, VOLUMES, base_and_suffix, is_dicom, shown
from node.data.readers import CaseFiles
from node.data.source import Problem

LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
HARMLESS = frozenset({".txt", ".md", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".pdf"})
DICOM_REMEDY = "convert each DICOM series to one NIfTI file, for example with dcm2niix"


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

    def objection(self, path: Path) -> tuple[str, bool] | None:
        """Why no reader should try a path, as the rest of a sentence, and whether it spoils training; None: try it."""
        suffix = base_and_suffix(path.name)[1]
        try:
            if not path.name.isprintable():
                return "has a name with unprintable characters; rename it.", True
            if not self.inside(path):
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
        return f"is none of {listed(READ)}; convert it or take it away.", suffix not in HARMLESS

    def rows(self, table: str, columns: Iterable[str], key: str) -> Iterator[dict[str, str]]:
        """The rows of a CSV file, which must have `columns`; commas or, as spreadsheets write in much of Europe,
        semicolons. What is wrong with the file becomes a problem, in which `key` names where its columns are said.
        """
        path = self.folder / table
        if not self.inside(path):
            self.problem(table, "leads out of the site's folder; copy the file into it.")
            return
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                header = file.readline()
                file.seek(0)
                rows = csv.DictReader(file, delimiter=delimiter(header))
                for column in columns:
                    if column not in (rows.fieldnames or ()):
                        self.problem(table, f"has no column {column!r}; add it or correct {key}.")
                        return
                for row in rows:
                    yield {name: (row[name] or "").strip() for name in rows.fieldnames or ()}
        except OSError as error:
            self.problem(table, f"cannot be opened ({error.strerror}); put it into the site's folder.")
        except (UnicodeDecodeError, csv.Error) as error:
            self.problem(table, f"is no CSV in UTF-8 ({type(error).__name__}); save it again as CSV UTF-8.")


def not_hidden(folder: Path) -> Iterator[Path]:
    """What lies in a folder, sorted, without what systems leave behind."""
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and path.name.lower() not in LITTER:
            yield path


def delimiter(header: str) -> str:
    """What parts the columns of a CSV file with this first line."""
    return ";" if header.count(";") > header.count(",") else ","


def printable(name: str) -> str:
    """A file's name as sentences and terminals can bear it."""
    return name if name.isprintable() else ascii(name)


def listed(suffixes: frozenset[str]) -> str:
    """Suffixes in words."""
    return ", ".join(sorted(suffixes))

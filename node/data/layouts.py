"""A site's folder as a Source: its cases are listed and paired at once, decoded one by one when asked for."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from node.data.cine import Frame, read_frame
from node.data.decoding import READ, base_and_suffix
from node.data.finding import Finding
from node.data.pairing import find_cases
from node.data.readers import CaseFiles, LabelValues, read_case
from node.data.source import Problem, Scan, Unreadable
from node.data.splits import PARTS, Part
from node.settings import SiteSettings
from protos.plan import CaseTable, GroupByPattern, GroupByTable, PartsByTable, Split, Task


class FolderSource:
    """The cases in `settings.data`, as `task` wants them; `split.group` says the patients, `split.table` the parts.

    Construction opens no image and raises nothing about the data: what is left out stands in `problems`. A listed
    case may still turn out unreadable when it is loaded.
    """

    synthetic = False

    def __init__(self, settings: SiteSettings, task: Task, split: Split) -> None:
        if settings.data is None:
            raise ValueError(f"site {settings.name} has no data folder")
        self.task = task
        self.split = split
        finding = find_cases(settings.data)
        cases = _of_dims(finding, task.dims)
        self.values = LabelValues(task.classes, soft=task.soft)
        try:
            self.values = LabelValues(task.classes, settings.labels, task.soft)
        except ValueError as error:
            finding.problems.append(Problem(settings.data.name, str(error)))
            cases = {}
        self._patients = _patients(finding, cases, split)
        self._parts = None if split.table is None else _parts(finding, self._patients, split.table)
        known = self._patients if self._parts is None else self._parts
        self._cases = {name: case for name, case in cases.items() if name in known}
        self._problems = tuple(finding.problems)

    @property
    def names(self) -> tuple[str, ...]:
        """Base names of all paired cases, sorted."""
        return tuple(sorted(self._cases))

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What was left out, or is doubtful, and why."""
        return self._problems

    def patient(self, name: str) -> str:
        """The patient a case belongs to; raises Unreadable when there is no such case."""
        self._case(name)
        return self._patients[name]

    def part(self, name: str) -> Part:
        """The part that split.table gives a case; raises ValueError where there is no table, Unreadable for no case."""
        if self._parts is None:
            raise ValueError("There is no split.table; the part follows from the patient.")
        self._case(name)
        return self._parts[name]

    def load(self, name: str) -> Scan:
        """Decode one case; raises Unreadable."""
        case = self._case(name)
        if isinstance(case, Frame):
            return read_frame(case, self.task.channels, self.values)
        return read_case(case, self.task.channels, self.values)

    def fingerprint(self, names: Iterable[str]) -> str:
        """SHA-256 of what these cases are read from: paths, lengths and times of change of their files, and frames."""
        digest = hashlib.sha256(repr(sorted(self.values.numbers.items())).encode())
        for name in names:
            case = self._case(name)
            for path in (*case.images, case.label):
                digest.update(repr((case, _state(path))).encode())
        return digest.hexdigest()

    def _case(self, name: str) -> CaseFiles:
        if name not in self._cases:
            raise Unreadable(f"{name!r} is no case of this site; `locum-node check` lists what was left out.")
        return self._cases[name]


def _state(path: Path) -> tuple[int, int] | None:
    """A file's length and time of change; None if it cannot be looked at."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _of_dims(finding: Finding, dims: int) -> Mapping[str, CaseFiles]:
    """The cases that fit: 3 dimensions need volumes, 2 take both, since volumes are sliced."""
    pictures = [name for name, case in finding.cases.items() if not case.volume]
    if dims == 2 or not pictures:
        return finding.cases
    finding.problem(
        finding.folder.name,
        f"has pictures for {len(pictures)} cases ({pictures[0]} first), but the task is 3-dimensional; "
        "set task.dims to 2 or give NIfTI volumes.",
    )
    return {name: case for name, case in finding.cases.items() if case.volume}


def _patients(finding: Finding, cases: Mapping[str, CaseFiles], split: Split) -> dict[str, str]:
    """Case -> patient, for the cases whose patient is known; the others become problems."""
    match split.group:
        case GroupByPattern(pattern=pattern):
            found = {name: _matched(pattern, name) for name in cases}
            source = f"split.group's pattern {pattern!r} finds no patient in the name; correct the pattern or rename it"
        case GroupByTable() as table:
            found = dict.fromkeys(cases) | _tabled(finding, table, "patient", "split.group")
            source = f"{table.csv} gives no patient for it; add a row"
        case _:
            return {name: case.patient if isinstance(case, Frame) else name for name, case in cases.items()}
    for name in sorted(cases):
        if not found[name]:
            finding.problem(name, f"is left out: {source}.")
    return {name: patient for name, patient in found.items() if patient and name in cases}


def _parts(finding: Finding, patients: Mapping[str, str], table: PartsByTable) -> dict[str, Part]:
    """Case -> part, for the cases that have one and whose patient has no other; the others become problems."""
    words: Mapping[str, Part] = {part: part for part in PARTS}
    said = _tabled(finding, table, "part", "split.table")
    parts: dict[str, Part] = {}
    for name in sorted(patients):
        if not (word := said.get(name)):
            finding.problem(name, f"is left out: {table.csv} gives no part for it; add a row.")
        elif word not in words:
            finding.problem(name, f"is left out: {table.csv} gives it the part {word!r}; write train, val or test.")
        else:
            parts[name] = words[word]
    held: dict[str, set[Part]] = {}
    for name, part in parts.items():
        held.setdefault(patients[name], set()).add(part)
    for patient, found in held.items():
        if len(found) > 1:
            finding.problem(
                table.csv,
                f"puts patient {patient} into {' and '.join(sorted(found))}, so all cases of this patient are left "
                "out; give them one part.",
            )
    return {name: part for name, part in parts.items() if len(held[patients[name]]) == 1}


def _matched(pattern: str, name: str) -> str | None:
    match = re.search(pattern, name)
    if match is None:
        return None
    found: str | None = match["patient"] if "patient" in match.re.groupindex else match[1]
    return found


def _tabled(finding: Finding, table: CaseTable, what: str, key: str) -> dict[str, str]:
    """Case -> what stands in the CSV file.

    `what` and the plan's `key` name it in problems.
    """
    found: dict[str, str] = {}
    for row in finding.rows(table.csv, (table.case, table.column), key):
        case, value = row[table.case], row[table.column]
        base, suffix = base_and_suffix(case)
        case = base if suffix in READ else case  # file names are as good as base names
        if found.setdefault(case, value) != value:
            finding.problem(table.csv, f"gives {case} two {what}s; keep the right row.")
            found[case] = ""  # left out rather than guessed
    return found

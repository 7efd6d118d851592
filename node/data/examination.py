"""One look at every case of a site before any run: what is there, and what would spoil training."""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from node.data.readers import LabelValues
from node.data.source import Problem, Scan, Source, Unreadable
from node.data.splits import Part, split_cases
from protos.plan import CaseTable, Scored, Split, Task


@dataclass(frozen=True)
class ClassFound:
    """One class: the stored values that mean it, the cases that hold it, its pixels or voxels in all cases."""

    name: str
    values: tuple[int, ...]
    cases: int
    pixels: float  # of soft labels the sum of their shares


@dataclass(frozen=True)
class SiteExamination:
    """What one look at every case found.

    `parts` and `patients`: readable cases and their patients per part of the split; `grids`: how many cases have a
    given (shape, spacing in mm); the problems are sorted by where they showed.
    """

    parts: Mapping[Part, int]
    patients: Mapping[Part, int]
    grids: Mapping[tuple[tuple[int, ...], tuple[float, ...]], int]
    classes: tuple[ClassFound, ...]
    left_out: tuple[Problem, ...]  # unpaired, ambiguous or foreign files
    unreadable: tuple[Problem, ...]
    duplicates: tuple[Problem, ...]
    empty_parts: tuple[Problem, ...]
    absent_classes: tuple[Problem, ...]

    @property
    def cases(self) -> int:
        """How many cases can be used."""
        return sum(self.parts.values())

    @property
    def problems(self) -> tuple[Problem, ...]:
        """All problems."""
        return (*self.left_out, *self.unreadable, *self.duplicates, *self.empty_parts, *self.absent_classes)

    @property
    def ok(self) -> bool:
        """Whether nothing would spoil training."""
        return not any(problem.spoils for problem in self.problems)


class Examinable(Source, Protocol):
    """A source that says how it is read."""

    @property
    def task(self) -> Task:
        """What the cases are for."""
        ...

    @property
    def split(self) -> Split:
        """Who trains and who tests."""
        ...

    @property
    def values(self) -> LabelValues:
        """What the label files' values mean."""
        ...


def examine(
    source: Examinable,
    *,
    unseen: bool = False,
    scored: Scored = "test",
    on_case: Callable[[int, int], None] = lambda done, total: None,
) -> SiteExamination:
    """Decode every case once; `on_case` is told how many of how many are done. Raises nothing about the data.

    `unseen`: the site is never trained on; `scored`: the part that scores are over, so that it must not be empty.
    """
    names = source.names
    readable: list[str] = []
    unreadable: list[Problem] = []
    grids: Counter[tuple[tuple[int, ...], tuple[float, ...]]] = Counter()
    twins: dict[bytes, list[str]] = {}
    pixels = np.zeros(len(source.task.classes))
    holding = np.zeros(len(pixels), np.int64)
    for done, name in enumerate(names, start=1):
        try:
            scan = source.load(name)
        except Unreadable as error:
            unreadable.append(Problem(name, str(error)))
        else:
            readable.append(name)
            grids[scan.space, scan.spacing] += 1
            counts = _counted(scan, source.task)
            pixels += counts
            holding += counts > 0
            # decoded values, so that one picture saved twice in two ways is found too
            content = hashlib.sha256(repr(scan.image.shape).encode() + scan.image.tobytes()).digest()
            twins.setdefault(content, []).append(name)
        on_case(done, len(names))
    split = source.split.at(unseen)
    published = None if split.table is None else source.part
    parts = split_cases(readable, source.patient, split, unseen=unseen, published=published)
    numbers = sorted(source.values.numbers.items())
    classes = tuple(
        ClassFound(name, tuple(value for value, n in numbers if n == number), int(cases), float(filled))
        for number, (name, cases, filled) in enumerate(zip(source.task.classes, holding, pixels, strict=True))
    )
    return SiteExamination(
        parts={part: len(cases) for part, cases in parts.items()},
        patients={part: len({source.patient(name) for name in cases}) for part, cases in parts.items()},
        grids=grids,
        classes=classes,
        left_out=source.problems,
        unreadable=tuple(unreadable),
        duplicates=tuple(_duplicates(twins.values(), source.patient, parts, split.table)),
        empty_parts=tuple(_empty_parts(parts, split, (scored,) if unseen else ("train", scored))),
        absent_classes=tuple(absent_classes(classes)),
    )


def _counted(scan: Scan, task: Task) -> NDArray[np.float64]:
    """Pixels per class, the background first; a soft label's are the sums of its shares."""
    if not task.soft:
        return np.bincount(scan.label.reshape(-1), minlength=len(task.classes)).astype(np.float64)
    structures = scan.label.reshape(len(scan.label), -1).sum(axis=1, dtype=np.float64)
    return np.array([math.prod(scan.space) - structures.sum(), *structures])


def _duplicates(
    groups: Iterable[list[str]],
    patient: Callable[[str], str],
    parts: Mapping[Part, tuple[str, ...]],
    table: CaseTable | None,
) -> Iterable[Problem]:
    for names in groups:
        if len(names) < 2:
            continue
        apart = [part for part, cases in parts.items() if not set(cases).isdisjoint(names)]
        danger = ""
        if len(apart) > 1:  # never of one patient, whose cases are all in one part
            danger = f" under different patients and in different parts ({', '.join(apart)}), so scores would be false"
        elif len({patient(name) for name in names}) > 1:
            which = "which only chance put into one part" if table is None else f"which {table.csv} puts into one part"
            danger = f" under different patients, {which} ({apart[0]})"
        sentence = f"{', '.join(names)} are the same image{danger}; keep one of them."
        yield Problem(names[0], sentence, spoils=len(apart) > 1)


def _empty_parts(parts: Mapping[Part, tuple[str, ...]], split: Split, needed: Iterable[Part]) -> Iterable[Problem]:
    if not any(parts.values()):
        yield Problem("site", "No case can be used; repair or add what is listed above.")
        return
    for part in needed:
        if not parts[part]:
            why = f"(split.{part} is {getattr(split, part):g}); add cases or raise the share"
            if split.table is not None:
                why = f"by {split.table.csv}; name some {part} in its column {split.table.column!r}"
            yield Problem("site", f"No case falls to {part} {why}.")


def absent_classes(classes: tuple[ClassFound, ...]) -> Iterable[Problem]:
    """Structures that no label holds, if there are labels at all."""
    absent = [found.name for found in classes[1:] if not found.cases]
    if absent and any(found.cases for found in classes):
        sentence = f"No label holds {', '.join(absent)}; check that the values mean what the task says."
        yield Problem("labels", sentence, spoils=False)

"""Looks at a site's data, or draws how its worst cases were segmented: a process of its own that decodes images.

Its order comes on standard input as JSON; it prints how far it is, and last what it found. No image leaves it but as
PNG below `shown/` in the node's home, which its owner alone can read.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.data.examination import SiteExamination, examine
from node.data.layouts import FolderSource
from node.data.readers import LabelValues
from node.data.source import Problem, Scan, Source, Unreadable
from node.data.splits import Part, split_cases
from node.drawing import as_colours, enlarged, fullest, png, tinted
from node.files import replace_file
from node.phantoms import PhantomSource
from node.settings import SiteSettings
from node.shown import Predictions, drawn_file, examination_file, keep_examination, private, thumbnail_file
from protos.plan import Plan, Split, Task

THUMBNAILS = 500  # at most
WIDTH = 160  # pixels of a small picture
GAP = 4  # between pictures side by side


@dataclass
class Watched:
    """A source that draws what is loaded from it, and remembers its grid."""

    source: Source
    task: Task
    split: Split
    values: LabelValues
    home: Path
    digest: str
    synthetic: bool
    grids: dict[str, tuple[tuple[int, ...], tuple[float, ...]]] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """As the source says."""
        return self.source.names

    @property
    def problems(self) -> tuple[Problem, ...]:
        """As the source says."""
        return self.source.problems

    def patient(self, name: str) -> str:
        """As the source says."""
        return self.source.patient(name)

    def part(self, name: str) -> Part:
        """As the source says."""
        return self.source.part(name)

    def fingerprint(self, names: Iterable[str]) -> str:
        """As the source says."""
        return self.source.fingerprint(names)

    def load(self, name: str) -> Scan:
        """A case, of which a small picture is kept; raises Unreadable."""
        scan = self.source.load(name)
        if len(self.grids) < THUMBNAILS:
            replace_file(thumbnail_file(self.home, self.digest, name), _thumbnail(scan, self.task))
        self.grids[name] = (scan.space, scan.spacing)
        return scan


def look(order: Mapping[str, Any]) -> dict[str, Any]:
    """Examine all cases as a run would use them; what was found before, of the same files, is taken from the disk."""
    home, settings = Path(order["home"]), SiteSettings.model_validate(order["settings"])
    task, split = Task.model_validate(order["task"]), Split.model_validate(order["split"])
    unseen, scored = bool(order["unseen"]), order["scored"]
    split = split.at(unseen)
    source = _source(settings, task, split)
    whole = repr((source.fingerprint(source.names), source.problems, task, split, unseen, scored))
    fingerprint = hashlib.sha256(whole.encode("utf-8", "backslashreplace")).hexdigest()
    kept = examination_file(home, fingerprint)
    if kept.exists() and not order.get("anew"):
        found: dict[str, Any] = json.loads(kept.read_text("utf-8"))
        return found
    private(thumbnail_file(home, fingerprint, "").parent)
    values = source.values if isinstance(source, FolderSource) else LabelValues(task.classes, soft=task.soft)
    watched = Watched(source, task, split, values, home, fingerprint, source.synthetic)
    examination = examine(watched, unseen=unseen, scored=scored, on_case=_tell_place)
    found = _document(watched, examination, unseen)
    keep_examination(home, fingerprint, json.dumps(found).encode())
    return found


def draw_predictions(order: Mapping[str, Any]) -> dict[str, Any]:
    """Draw image, truth and segmentation side by side for the cases that are kept of a run; returns those drawn."""
    home, plan = Path(order["home"]), Plan.model_validate(order["plan"])
    settings = SiteSettings.model_validate(order["settings"])
    kept = Predictions.of(home, order["run"])
    if kept is None:
        return {"stop": None, "cases": []}
    source = _source(settings, plan.task, plan.split.at(bool(order["unseen"])))
    drawn = []
    for number, case in enumerate(kept.cases):
        _tell_place(number, len(kept.cases))
        segmentation = kept.segmentation(case)
        try:
            scan = source.load(case)
        except (Unreadable, KeyError):
            continue
        if segmentation is None or segmentation.shape != scan.space:
            continue
        path = drawn_file(home, order["run"], kept.stop, case)
        private(path.parent)
        replace_file(path, _side_by_side(scan, segmentation, plan.task))
        drawn.append(case)
    return {"run": order["run"], "stop": kept.stop, "cases": drawn}


def _source(settings: SiteSettings, task: Task, split: Split) -> FolderSource | PhantomSource:
    if settings.phantom is not None:
        return PhantomSource(settings.phantom, task)
    return FolderSource(settings, task, split)


def _document(watched: Watched, examination: SiteExamination, unseen: bool) -> dict[str, Any]:
    """What pages and programs are told."""
    published = None if watched.split.table is None else watched.part
    parts = split_cases(watched.grids, watched.patient, watched.split, unseen=unseen, published=published)
    total = sum(found.pixels for found in examination.classes) or 1.0
    return {
        "fingerprint": watched.digest,
        "cases": [
            {"case": name, "part": part, "patient": watched.patient(name),
             "shape": list(watched.grids[name][0]), "spacing": list(watched.grids[name][1])}
            for part, names in parts.items() for name in names
        ],
        "parts": [
            {"part": part, "cases": cases, "patients": examination.patients[part]}
            for part, cases in examination.parts.items()
        ],
        "grids": [
            {"shape": list(shape), "spacing": list(spacing), "cases": cases}
            for (shape, spacing), cases in sorted(examination.grids.items(), key=lambda item: (-item[1], item[0]))
        ],
        "classes": [
            {"name": found.name, "values": list(found.values), "cases": found.cases, "fraction": found.pixels / total}
            for found in examination.classes
        ],
        "problems": _problems(examination.problems),
        "synthetic": watched.synthetic,
    }  # fmt: skip


def _problems(problems: Iterable[Problem]) -> list[dict[str, Any]]:
    return [{"sentence": problem.sentence, "spoils": problem.spoils} for problem in problems]


def _thumbnail(scan: Scan, task: Task) -> bytes:
    image, label = _slice(scan, _hard(scan, task), task)
    return png(enlarged(tinted(_canvas(image), label, len(task.classes), filled=False), WIDTH))


def _side_by_side(scan: Scan, segmentation: NDArray[np.uint8], task: Task) -> bytes:
    """Image, truth and segmentation, on the slice that holds most of the truth."""
    truth = _hard(scan, task)
    image, shown = _slice(scan, truth, task)
    guess = segmentation
    if truth.ndim == 3:
        axis, place = fullest(truth, task.plane)
        guess = np.take(segmentation, place, axis=axis)
    canvas, classes = _canvas(image), len(task.classes)
    drawn = (canvas, tinted(canvas, shown, classes, filled=True), tinted(canvas, guess, classes, filled=True))
    pictures = [enlarged(picture, WIDTH) for picture in drawn]
    gap = np.full((len(pictures[0]), GAP, 3), 255.0)
    return png(np.concatenate([pictures[0], gap, pictures[1], gap, pictures[2]], axis=1))


def _hard(scan: Scan, task: Task) -> NDArray[np.uint8]:
    """Class numbers, of shares the largest where it is above one half."""
    if not task.soft:
        return np.asarray(scan.label, np.uint8)
    shares = np.asarray(scan.label)
    return np.where(shares.max(axis=0) > 0.5, shares.argmax(axis=0) + 1, 0).astype(np.uint8)


def _slice(scan: Scan, label: NDArray[np.uint8], task: Task) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """The picture itself, or of a volume the fullest slice."""
    if label.ndim == 2:
        return scan.image, label
    axis, place = fullest(label, task.plane)
    return np.take(scan.image, place, axis=axis + 1), np.take(label, place, axis=axis)


def _canvas(image: NDArray[np.float32]) -> NDArray[np.floating]:
    low, high = np.percentile(image, (1, 99))
    return as_colours(image, float(low), float(high))


def _tell(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _tell_place(done: int, total: int) -> None:
    _tell(done=done, total=total)


def main() -> None:
    """Do what standard input says."""
    order = json.load(sys.stdin)
    found = {"look": look, "draw": draw_predictions}[order["what"]](order)
    _tell(**found)


if __name__ == "__main__":
    main()

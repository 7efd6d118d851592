"""What a node keeps to show its own people: how it segmented the worst cases, and replays beside real images.

It lies in `shown/` in the node's home, for its owner only, and is read by the site's own dashboard and nobody else; all
of it can be removed at any time. Of images that are not synthetic nothing else is ever drawn.
"""

import heapq
import json
import shutil
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from node.files import replace_file

if TYPE_CHECKING:  # they bring PyTorch and Flower, which showing does not need
    from node.data.samples import TestCase
    from node.scoring import CaseScore
    from protos.messages import Request

WORST = 12  # cases per run
RUNS = 20  # of which something is kept; the newest


@dataclass(order=True)
class _Bad:
    """Ordered so that the best of the kept cases is the first to go."""

    badness: float
    case: str
    shape: tuple[int, ...] = field(compare=False)
    packed: bytes = field(compare=False)


class WorstCases:
    """The segmentations of the worst cases of one scoring, compressed, for at most WORST cases."""

    def __init__(self) -> None:
        self._kept: list[_Bad] = []

    def consider(self, case: "TestCase", prediction: NDArray[np.uint8], score: "CaseScore") -> None:
        """Keep a case if it is among the worst so far; see node.scoring.Keep."""
        name, badness = case.name, -score.mean_dsc
        if len(self._kept) == WORST and (badness, name) <= (self._kept[0].badness, self._kept[0].case):
            return
        packed = zlib.compress(np.ascontiguousarray(prediction).tobytes(), 1)
        heapq.heappush(self._kept, _Bad(badness, name, prediction.shape, packed))
        if len(self._kept) > WORST:
            heapq.heappop(self._kept)

    def write(self, home: Path, request: "Request") -> None:
        """Replace what is kept of the run by this scoring."""
        worst_first = sorted(self._kept, reverse=True)
        listed = [{"case": bad.case, "shape": bad.shape} for bad in worst_first]
        tensors = {str(number): np.frombuffer(bad.packed, np.uint8) for number, bad in enumerate(worst_first)}
        folder = private(home / "shown" / "predictions")
        notes = {"stop": str(request.stop), "cases": json.dumps(listed)}
        replace_file(folder / f"{request.run}.safetensors", save(tensors, notes))
        _keep_newest(folder)
        _clear_drawn(home, request.run, request.stop)


@dataclass(frozen=True)
class Predictions:
    """What is kept of a run: segmentations of its worst cases, worst first, after the stop that was scored last."""

    path: Path
    stop: int
    cases: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, home: Path, run: str) -> "Predictions | None":
        """None if nothing, or nothing whole, is kept."""
        path = home / "shown" / "predictions" / f"{run}.safetensors"
        try:
            with safe_open(path, framework="numpy") as file:
                notes = file.metadata()
            listed = json.loads(notes["cases"])
            shapes = tuple(tuple(map(int, one["shape"])) for one in listed)
            return cls(path, int(notes["stop"]), tuple(one["case"] for one in listed), shapes)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError):
            return None

    def segmentation(self, case: str) -> NDArray[np.uint8] | None:
        """Class numbers, uint8 [*space]; None if the case is not among the kept ones any more."""
        if case not in self.cases:
            return None
        number = self.cases.index(case)
        try:
            with safe_open(self.path, framework="numpy") as file:
                packed = file.get_tensor(str(number))
            flat = np.frombuffer(zlib.decompress(packed.tobytes()), np.uint8)
            return flat.reshape(self.shapes[number])
        except (OSError, SafetensorError, ValueError, zlib.error):
            return None


def keep_replays(home: Path, request: "Request", png: bytes) -> None:
    """Keep a picture of replays beside real images, in place of the run's earlier one."""
    folder = private(home / "shown" / "replays" / request.run)
    replace_file(folder / f"{request.stop:04d}.png", png)
    for other in folder.glob("*.png"):
        if other.stem != f"{request.stop:04d}":
            other.unlink(missing_ok=True)
    _keep_newest(folder.parent)


def replays(home: Path, run: str) -> tuple[int, Path] | None:
    """The stop and the file of the newest picture of replays; None if there is none."""
    found = sorted((home / "shown" / "replays" / run).glob("[0-9]*.png"))
    return (int(found[-1].stem), found[-1]) if found else None


def thumbnail_file(home: Path, fingerprint: str, case: str) -> Path:
    """Where a case's thumbnail lies: named by digests, so that no case's name is part of a path."""
    return home / "shown" / "data" / fingerprint / f"{_named(case)}.png"


def drawn_file(home: Path, run: str, stop: int, case: str) -> Path:
    """Where the picture of a case's segmentation lies; see thumbnail_file."""
    return home / "shown" / "drawn" / run / str(stop) / f"{_named(case)}.png"


def examination_file(home: Path, fingerprint: str) -> Path:
    """Where what was found of the site's data lies, as JSON."""
    return home / "shown" / "data" / f"{fingerprint}.json"


def keep_examination(home: Path, fingerprint: str, document: bytes) -> None:
    """Keep what was found of the site's data, which has its thumbnails; the RUNS newest findings stay."""
    kept = examination_file(home, fingerprint)
    replace_file(kept, document)
    for thumbnails in _newest_first(path for path in kept.parent.iterdir() if path.is_dir())[RUNS:]:
        _remove(thumbnails)
        _remove(thumbnails.with_suffix(".json"))


def _named(case: str) -> str:
    return sha256(case.encode("utf-8", "surrogatepass")).hexdigest()


def private(folder: Path) -> Path:
    """A folder that is made if need be, for its owner only."""
    for made in (*reversed(folder.parents), folder):
        if not made.exists():
            made.mkdir(mode=0o700, exist_ok=True)
    return folder


def _clear_drawn(home: Path, run: str, stop: int) -> None:
    """Remove what was drawn of segmentations that are no longer kept: of earlier stops, and of earlier runs."""
    predictions, drawn = home / "shown" / "predictions", home / "shown" / "drawn"
    for path in drawn.glob("*"):
        if not (predictions / f"{path.name}.safetensors").exists():
            _remove(path)
    for path in (drawn / run).glob("*"):
        if path.name != str(stop):
            _remove(path)


def _keep_newest(folder: Path) -> None:
    for path in _newest_first(folder.iterdir())[RUNS:]:
        _remove(path)


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.stat().st_mtime, reverse=True)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)

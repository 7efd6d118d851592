"""Where cases come from: a folder of files or a phantom. Everything behind this seam is the same for both."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from node.data.splits import Part

Label = NDArray[np.uint8] | NDArray[np.float32]


class Unreadable(Exception):
    """A file or case that cannot be used; the text is one sentence that names the file and the reason.

    The sentence stays at the node (console, `locum-node check`, node database): it may name a patient's file.
    """


@dataclass(frozen=True)
class Problem:
    """Something `locum-node check` reports: `spoils` says whether training would suffer from it."""

    file: str
    sentence: str
    spoils: bool = True


@dataclass(frozen=True)
class Scan:
    """One case on its own (native) grid, in canonical orientation.

    image: float32 [channels, *space]; label: uint8 [*space] with class numbers 0..classes-1, for soft tasks float32
    [classes - 1, *space] with each structure's share in [0, 1]; spacing: mm per axis of `space` (1.0 for pictures,
    which have none: their distances are in pixels). `space` is (rows, columns) for a picture and (right, anterior,
    superior) for a volume, which is also what a volume sliced for dims 2 looks like: its slices lie along the axis
    that task.plane says.
    """

    name: str
    image: NDArray[np.float32]
    label: Label
    spacing: tuple[float, ...]

    @property
    def space(self) -> tuple[int, ...]:
        """The native grid."""
        return self.image.shape[1:]


class Source(Protocol):
    """The cases of one site."""

    synthetic: bool  # only synthetic cases may be shown outside the node

    @property
    def names(self) -> tuple[str, ...]:
        """Base names of all usable cases, sorted."""
        ...

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What was left out, or is doubtful, and why."""
        ...

    def patient(self, name: str) -> str:
        """The patient a case belongs to: a patient is never split."""
        ...

    def part(self, name: str) -> Part:
        """The part that split.table gives a case; raises ValueError where there is no table."""
        ...

    def load(self, name: str) -> Scan:
        """Decode one case; raises Unreadable."""
        ...

    def fingerprint(self, names: Iterable[str]) -> str:
        """SHA-256 of what these cases are read from: names and the state of their files, not their contents."""
        ...

"""Prepared samples on the disk, for sites that are too large for memory.

One safetensors file per case, below the node's home and for its owner only. Windows are read through a map of the file
that is closed at once, so that memory does not grow with the site. It is a cache: it can be removed between runs, and
what was prepared from other files than today's is replaced.
"""

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from node.data.samples import Sample, drawn
from node.files import replace_file, sync_folder
from protos.plan import Record


@dataclass(frozen=True)
class StoredSample:
    """One of a case's samples; see node.data.samples.Prepared.

    It is the `row` of the file's tensors image [samples, channels, *grid] and label; its labelled voxels are those from
    `start` on, `labelled` in number, of the file's.
    """

    path: Path
    row: int
    grid: tuple[int, ...]
    start: int
    labelled: int

    nbytes: ClassVar[int] = 0

    def window(self, where: tuple[slice, ...]) -> tuple[Tensor, Tensor]:
        """Image and label within `where`, one slice per axis of the grid."""
        with safe_open(self.path, "pt") as file:
            image, label = file.get_slice("image"), file.get_slice("label")
            channels = (slice(None),) * (len(label.get_shape()) - 1 - len(where))  # of soft labels
            return image[(self.row, slice(None), *where)], label[(self.row, *channels, *where)]

    def centre(self, rng: np.random.Generator) -> int:
        """The flat index of a labelled voxel, drawn by its label."""
        mine = slice(self.start, self.start + self.labelled)
        with safe_open(self.path, "np") as file:
            weights = file.get_slice("weights")
            every = weights[mine] if weights.get_shape()[0] else np.empty(0)  # hard labels have none
            return drawn(file.get_slice("foreground")[mine], every, rng)


class _Case(Record):
    """A file, what its length must be, the grid of its samples, and of each the number of labelled voxels."""

    number: int
    file: str
    size: int
    grid: tuple[int, ...]
    labelled: tuple[int, ...]


class _Index(Record):
    cases: tuple[_Case, ...]


@dataclass(frozen=True)
class Stored:
    """All samples of one part of a site, and the numbers of the cases that they are from."""

    samples: Sequence[StoredSample]
    cases: frozenset[int]


class Shelf:
    """The place of one part of a site: `folder`/`key`, where `key` says what the samples were prepared from."""

    def __init__(self, folder: Path, key: str) -> None:
        self._folder = folder
        self._place = folder / key

    def read(self) -> Stored | None:
        """What stands there; None if nothing does, or if it is damaged."""
        samples = []
        try:
            index = _Index.model_validate_json((self._place / "index.json").read_bytes())
            for case in index.cases:
                path = self._place / case.file
                if path.stat().st_size != case.size:
                    return None
                start = 0
                for row, labelled in enumerate(case.labelled):
                    samples.append(StoredSample(path, row, case.grid, start, labelled))
                    start += labelled
        except (OSError, ValidationError):
            return None
        return Stored(samples, frozenset(case.number for case in index.cases))

    def write(self, cases: Iterable[tuple[int, Sequence[Sample]]]) -> None:
        """Write the samples of one numbered case after another; others see nothing before all are there.

        Whatever else is in the folder goes, but nothing is done if another process has been quicker. Raises OSError
        when the disk cannot be used.
        """
        with self._alone():
            if self.read() is not None:
                return
            self._clear()
            new = self._folder / "new"
            new.mkdir(mode=0o700)
            index = _Index(cases=tuple(_written(new, number, samples) for number, samples in cases))
            replace_file(new / "index.json", index.model_dump_json().encode())
            sync_folder(new)
            new.rename(self._place)
            if self.read() is None:
                raise OSError(f"{self._place} does not hold what was written to it")

    def clear(self) -> None:
        """Remove everything from the folder."""
        with self._alone():
            self._clear()

    def _clear(self) -> None:
        for old in self._folder.iterdir():
            if old.is_dir():
                shutil.rmtree(old)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder's lock, which the system gives back when the process dies."""
        for folder in (self._folder.parent, self._folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (self._folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _written(folder: Path, number: int, samples: Sequence[Sample]) -> _Case:
    """Write one case's samples, which are at least one and share a grid."""
    path = folder / f"{number:06d}.safetensors"
    tensors = {
        "image": torch.stack([sample.image for sample in samples]),
        "label": torch.stack([sample.label for sample in samples]),
        "foreground": torch.from_numpy(np.concatenate([sample.foreground for sample in samples])),
        "weights": torch.from_numpy(np.concatenate([sample.weights for sample in samples])),
    }
    save_file(tensors, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return _Case(
        number=number,
        file=path.name,
        size=path.stat().st_size,
        grid=samples[0].grid,
        labelled=tuple(sample.labelled for sample in samples),
    )

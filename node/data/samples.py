"""A site's cases as samples, which are trained and validated on, and as test cases, which are scored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.transforms import SpatialPad
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from node.data.source import Scan
from node.data.transforms import augment, prepare_image, prepare_label, resample
from protos.plan import Augmentation, Task
from strategies.data import Batch

# float32 [N, channels, *task.size] on the CPU -> logits [N, classes, *task.size] on any device
LogitsFn = Callable[[Tensor], Tensor]

SLICES = 16  # that go through the network together when a case is scored; windows of a volume: two


@dataclass(frozen=True)
class Sample:
    """One picture, slice or volume on the network's grid.

    image: float32 [channels, *grid]; label: uint8 [*grid]; foreground: int32, flat indices of the labelled voxels,
    empty for fit: resize, which needs none. For fit: patch the grid is at least task.size.
    """

    image: Tensor
    label: Tensor
    foreground: NDArray[np.int32]

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return int(self.image.nbytes + self.label.nbytes + self.foreground.nbytes)


def samples_of(scan: Scan, task: Task) -> list[Sample]:
    """All samples of one case: its slices if it is a volume and the task is 2D, else the case itself."""
    images, labels = prepare_image(scan, task), prepare_label(scan, task)
    if task.fit == "resize":
        nowhere = np.empty(0, dtype=np.int32)
        return [Sample(image, label, nowhere) for image, label in zip(images, labels, strict=True)]
    pad = SpatialPad(task.size)  # zeros on both sides, as sliding_window_inference does at test time
    samples = []
    for image, label in zip(images, labels, strict=True):
        image, label = pad(image).as_subclass(Tensor), pad(label[None])[0].as_subclass(Tensor)
        samples.append(Sample(image, label, np.flatnonzero(label.numpy()).astype(np.int32)))
    return samples


class SiteSamples:
    """Samples in memory, behind the protocol that strategies see (strategies/data.py)."""

    def __init__(self, samples: Sequence[Sample], task: Task, augmentations: Sequence[Augmentation] = ()) -> None:
        self._samples = tuple(samples)
        self._task = task
        self._augmentations = frozenset(augmentations)

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return sum(sample.nbytes for sample in self._samples)

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        """Return the samples at `indices`, augmented if there are `seeds`; see strategies.data.Samples.

        For fit: patch a seed also draws the window, half of the time about a labelled voxel if there is one;
        without seeds it is the centre one.
        """
        size = self._task.size
        images = torch.empty(len(indices), self._task.channels, *size)
        labels = torch.empty(len(indices), 1, *size, dtype=torch.int64)
        for row, index in enumerate(indices):
            sample = self._samples[index]
            if seeds is None:
                image, label = _window(sample, size, None)
            else:
                rng = np.random.default_rng(seeds[row])
                image, label = augment(*_window(sample, size, rng), self._augmentations, rng)
            images[row], labels[row, 0] = image, label
        return Batch(images, labels)


class OnDemand:
    """Samples that are decoded when they are first asked for: most strategies never look at the validation part."""

    def __init__(self, decode: Callable[[], SiteSamples]) -> None:
        self._decode = decode

    @cached_property
    def _samples(self) -> SiteSamples:
        return self._decode()

    def __len__(self) -> int:
        return len(self._samples)

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None) -> Batch:
        """Return the samples at `indices`; see strategies.data.Samples."""
        return self._samples.batch(indices, seeds)


@dataclass(frozen=True)
class TestCase:
    """One case to be scored on its own grid.

    image: float32 [slices, channels, *grid], as the network sees it; truth: uint8 [*space] on the native grid;
    spacing: mm per axis of `space`; synthetic: the case may be shown outside the node.
    """

    name: str
    image: Tensor
    truth: NDArray[np.uint8]
    spacing: tuple[float, ...]
    task: Task
    synthetic: bool

    @classmethod
    def of(cls, scan: Scan, task: Task, synthetic: bool) -> Self:
        """Prepare a scan for scoring."""
        truth = np.array(scan.label, dtype=np.uint8, order="C")
        return cls(scan.name, prepare_image(scan, task), truth, scan.spacing, task, synthetic)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return int(self.image.nbytes + self.truth.nbytes)

    @torch.inference_mode()
    def predict(self, logits_fn: LogitsFn) -> NDArray[np.uint8]:
        """Segment the case: class numbers, uint8 [*space].

        Logits are brought to the native grid by linear interpolation before the largest is chosen (the lower class on
        a tie); for fit: patch they come from half-overlapping windows with Gaussian weights.
        """
        parts = [self._to_native(self._logits(part, logits_fn)) for part in torch.split(self.image, SLICES)]
        segmentation: NDArray[np.uint8] = self._join(torch.cat(parts)).numpy()
        return segmentation

    def picture(self) -> NDArray[np.float32]:
        """The normalised image, brought back to the native grid: float32 [channels, *space]."""
        native = self.truth.shape[: self.task.dims]
        slices = resample(self.image.flatten(0, 1), native).reshape(*self.image.shape[:2], *native)
        joined: NDArray[np.float32] = self._join(slices).numpy()
        return joined

    def _join(self, slices: Tensor) -> Tensor:
        return (slices.movedim(0, -1) if self.truth.ndim > self.task.dims else slices[0]).contiguous()

    def _logits(self, image: Tensor, logits_fn: LogitsFn) -> Tensor:
        if self.task.fit == "resize":
            return logits_fn(image).float().cpu()
        logits: Tensor = sliding_window_inference(
            image,
            self.task.size,
            sw_batch_size=SLICES if self.task.dims == 2 else 2,
            predictor=lambda windows: logits_fn(windows).float().cpu(),
            overlap=0.5,
            mode="gaussian",
        )
        return logits

    def _to_native(self, logits: Tensor) -> Tensor:
        """Interpolate [N, classes, *grid] and choose: uint8 [N, *native]."""
        native = self.truth.shape[: self.task.dims]
        mode = "bilinear" if self.task.dims == 2 else "trilinear"
        # class by class, so that memory does not grow with their number
        best = winner = None
        for number in range(logits.shape[1]):
            score = logits[:, number : number + 1]
            if score.shape[2:] != native:
                score = functional.interpolate(score, native, mode=mode, align_corners=False)
            if best is None or winner is None:
                best, winner = score, torch.zeros(score.shape, dtype=torch.uint8)
            else:
                winner = winner.masked_fill(score > best, number)
                best = torch.maximum(best, score)
        assert winner is not None
        return winner[:, 0]


def _window(sample: Sample, size: tuple[int, ...], rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
    grid = tuple(sample.label.shape)
    if grid == size:
        return sample.image, sample.label
    room = np.subtract(grid, size)
    if rng is None:
        corner = room // 2
    elif len(sample.foreground) and rng.random() < 0.5:
        centre = np.unravel_index(sample.foreground[rng.integers(len(sample.foreground))], grid)
        corner = np.clip(np.subtract(centre, np.floor_divide(size, 2)), 0, room)
    else:
        corner = rng.integers(room + 1)
    where = tuple(slice(start, start + width) for start, width in zip(map(int, corner), size, strict=True))
    return sample.image[:, *where], sample.label[where]

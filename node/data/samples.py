"""A site's cases as samples, which are trained and validated on, and as test cases, which are scored."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import EllipsisType
from typing import Protocol, Self

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.transforms import SpatialPad
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from node.data.source import Scan
from node.data.transforms import augment, hardened, prepare_image, prepare_label, resample
from node.drawing import SLICED
from protos.plan import Augmentation, Task
from strategies.data import Batch
from strategies.losses import normalised_relu

# float32 [N, channels, *task.size] on the CPU -> logits [N, classes, *task.size] on any device; for soft tasks without
# the background's channel
LogitsFn = Callable[[Tensor], Tensor]

CPU = torch.device("cpu")
SLICES = 16  # that go through the network together when a case is scored; windows of a volume: two


@dataclass(frozen=True)
class Sample:
    """One picture, slice or volume on the network's grid.

    image: float32 [channels, *grid]; label: uint8 [*grid], or float32 [classes - 1, *grid] for soft tasks. foreground:
    int32, flat indices of the labelled voxels, empty for fit: resize, which needs none; weights: float64, their running
    sum of labels for soft tasks, empty where all count alike. For fit: patch the grid is at least task.size.
    """

    image: Tensor
    label: Tensor
    foreground: NDArray[np.int32]
    weights: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    @property
    def grid(self) -> tuple[int, ...]:
        """Voxels per axis."""
        return tuple(self.image.shape[1:])

    @property
    def labelled(self) -> int:
        """How many voxels a window may be drawn about."""
        return len(self.foreground)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return int(self.image.nbytes + self.label.nbytes + self.foreground.nbytes + self.weights.nbytes)

    def window(self, where: tuple[slice, ...]) -> tuple[Tensor, Tensor]:
        """Image and label within `where`, one slice per axis of the grid."""
        within: tuple[EllipsisType | slice, ...] = (..., *where)
        return self.image[within], self.label[within]

    def centre(self, rng: np.random.Generator) -> int:
        """The flat index of a labelled voxel, drawn by its label."""
        return drawn(self.foreground, self.weights, rng)

    def on(self, device: torch.device) -> Self:
        """The same with image and label on `device`; where windows lie is still decided by the processor."""
        return replace(self, image=self.image.to(device), label=self.label.to(device))


class Prepared(Protocol):
    """What SiteSamples takes windows of: a Sample, or one that lies on the disk (node/data/stored.py)."""

    @property
    def grid(self) -> tuple[int, ...]:
        """Voxels per axis."""
        ...

    @property
    def labelled(self) -> int:
        """How many voxels a window may be drawn about."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        ...

    def window(self, where: tuple[slice, ...]) -> tuple[Tensor, Tensor]:
        """Image and label within `where`, one slice per axis of the grid."""
        ...

    def centre(self, rng: np.random.Generator) -> int:
        """The flat index of a labelled voxel, drawn by its label."""
        ...


def drawn(foreground: NDArray[np.int32], weights: NDArray[np.float64], rng: np.random.Generator) -> int:
    """One of `foreground`, in proportion to its part in the running sum `weights`; all alike where that is empty."""
    if not len(weights):
        return int(foreground[rng.integers(len(foreground))])
    place = np.searchsorted(weights, rng.random() * weights[-1], side="right")
    return int(foreground[min(place, len(foreground) - 1)])


def samples_of(scan: Scan, task: Task) -> list[Sample]:
    """All samples of one case: its slices if it is a volume and the task is 2D, else the case itself."""
    images, labels = prepare_image(scan, task), prepare_label(scan, task)
    if task.fit == "resize":
        nowhere = np.empty(0, dtype=np.int32)
        return [Sample(image, label, nowhere) for image, label in zip(images, labels, strict=True)]
    pad = SpatialPad(task.size)  # on both sides, as sliding_window_inference does at test time
    samples = []
    for image, label in zip(images, labels, strict=True):
        image = pad(image, value=task.padding).as_subclass(Tensor)
        label = (pad(label) if task.soft else pad(label[None])[0]).as_subclass(Tensor)
        sought = (label.sum(dim=0) if task.soft else label).numpy().ravel()
        foreground = np.flatnonzero(sought).astype(np.int32)
        weights = np.cumsum(sought[foreground], dtype=np.float64) if task.soft else np.empty(0)
        samples.append(Sample(image, label, foreground, weights))
    return samples


class SiteSamples:
    """Samples behind the protocol that strategies see (strategies/data.py): batches are made where they are held."""

    def __init__(
        self,
        samples: Sequence[Prepared],
        task: Task,
        augmentations: Collection[Augmentation] = (),
        device: torch.device = CPU,
    ) -> None:
        """`device` is where the samples are; those on the disk are read to the CPU."""
        self._samples = tuple(samples)
        self._task = task
        self._augmentations = frozenset(augmentations)
        self._device = device
        self._resident: Self | None = None

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held, what `on` holds on another device not counted: there it is as much again."""
        return sum(sample.nbytes for sample in self._samples)

    def on(self, device: torch.device) -> Self:
        """The same samples on `device`, where batches then are made without a copy from the CPU.

        They are moved once, and stay as long as these. Samples that lie on the disk come as they are: their batches
        are made on the CPU, and whoever asks for them copies them.
        """
        if device == self._device or not all(isinstance(sample, Sample) for sample in self._samples):
            return self
        if self._resident is None or self._resident._device != device:
            held = [sample.on(device) for sample in self._samples if isinstance(sample, Sample)]
            self._resident = type(self)(held, self._task, self._augmentations, device)
        return self._resident

    def batch(
        self,
        indices: Sequence[int],
        seeds: Sequence[int] | None = None,
        only: Collection[Augmentation] | None = None,
    ) -> Batch:
        """Return the samples at `indices`, augmented if there are `seeds`; see strategies.data.Samples.

        For fit: patch a seed also draws the window, in the share task.foreground of cases about a labelled voxel if
        there is one; without seeds it is the centre one.
        """
        task = self._task
        augmentations = self._augmentations if only is None else self._augmentations & frozenset(only)
        images = torch.empty(len(indices), task.channels, *task.size, device=self._device)
        if task.soft:
            labels = torch.empty(len(indices), len(task.classes) - 1, *task.size, device=self._device)
        else:
            labels = torch.empty(len(indices), 1, *task.size, dtype=torch.int64, device=self._device)
        for row, index in enumerate(indices):
            sample = self._samples[index]
            if seeds is None:
                images[row], labels[row] = _window(sample, task, None)
            else:
                rng = np.random.default_rng(seeds[row])
                images[row], labels[row] = augment(*_window(sample, task, rng), augmentations, rng)
        return Batch(images, labels)


def augmented(batch: Batch, seeds: Sequence[int], augmentations: Collection[Augmentation]) -> Batch:
    """A batch that is no site's, augmented as one would be where it is; see strategies.visit.Augment."""
    images, labels = [], []
    for image, label, seed in zip(batch.image, batch.label, seeds, strict=True):
        rng, shares = np.random.default_rng(seed), label.is_floating_point()
        image, label = augment(image, label if shares else label[0].to(torch.uint8), augmentations, rng)
        images.append(image)
        labels.append(label if shares else label[None].long())
    return Batch(torch.stack(images), torch.stack(labels))


class OnDemand:
    """Samples that are decoded when they are first asked for: most strategies never look at the validation part."""

    def __init__(self, decode: Callable[[], SiteSamples]) -> None:
        self._decode = decode

    @cached_property
    def _samples(self) -> SiteSamples:
        return self._decode()

    def __len__(self) -> int:
        return len(self._samples)

    def batch(
        self,
        indices: Sequence[int],
        seeds: Sequence[int] | None = None,
        only: Collection[Augmentation] | None = None,
    ) -> Batch:
        """Return the samples at `indices`; see strategies.data.Samples."""
        return self._samples.batch(indices, seeds, only)


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
        label = hardened(np.asarray(scan.label, np.float32)) if task.soft else scan.label
        truth = np.array(label, dtype=np.uint8, order="C")
        return cls(scan.name, prepare_image(scan, task), truth, scan.spacing, task, synthetic)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return int(self.image.nbytes + self.truth.nbytes)

    @torch.inference_mode()
    def predict(self, logits_fn: LogitsFn) -> NDArray[np.uint8]:
        """Segment the case: class numbers, uint8 [*space].

        Logits are brought to the native grid by linear interpolation before the largest is chosen (the lower class on
        a tie); for fit: patch they come from half-overlapping windows with Gaussian weights. For soft tasks the same
        is done with shares, normalised in each window, and what is nowhere above one half is background.
        """
        parts = [self._to_native(self._logits(part, logits_fn)) for part in torch.split(self.image, SLICES)]
        segmentation: NDArray[np.uint8] = self._join(torch.cat(parts)).numpy()
        return segmentation

    def picture(self) -> NDArray[np.float32]:
        """The normalised image, brought back to the native grid: float32 [channels, *space]."""
        native = self._native
        slices = resample(self.image.flatten(0, 1), native).reshape(*self.image.shape[:2], *native)
        joined: NDArray[np.float32] = self._join(slices).numpy()
        return joined

    @property
    def _native(self) -> tuple[int, ...]:
        """The native grid of what the network sees at once: of a slice, or of the whole case."""
        space = list(self.truth.shape)
        if len(space) > self.task.dims:
            del space[SLICED[self.task.plane]]
        return tuple(space)

    def _join(self, slices: Tensor) -> Tensor:
        sliced = self.truth.ndim > self.task.dims
        return (slices.movedim(0, SLICED[self.task.plane]) if sliced else slices[0]).contiguous()

    def _logits(self, image: Tensor, logits_fn: LogitsFn) -> Tensor:
        def predict(images: Tensor) -> Tensor:
            logits = logits_fn(images).float().cpu()
            return normalised_relu(logits) if self.task.soft else logits

        if self.task.fit == "resize":
            return predict(image)
        logits: Tensor = sliding_window_inference(
            image,
            self.task.size,
            sw_batch_size=SLICES if self.task.dims == 2 else 2,
            predictor=predict,
            overlap=0.5,
            mode="gaussian",
            cval=self.task.padding,
        )
        return logits

    def _to_native(self, logits: Tensor) -> Tensor:
        """Interpolate [N, channels of the network, *grid] and choose: uint8 [N, *native]."""
        native = self._native
        mode = "bilinear" if self.task.dims == 2 else "trilinear"
        # class by class, so that memory does not grow with their number
        shape = (len(logits), 1, *native)
        # the background of a soft task has no channel: what is nowhere above one half
        best = torch.full(shape, 0.5 if self.task.soft else -torch.inf)
        winner = torch.zeros(shape, dtype=torch.uint8)
        for channel in range(logits.shape[1]):
            score = logits[:, channel : channel + 1]
            if score.shape[2:] != native:
                score = functional.interpolate(score, native, mode=mode, align_corners=False)
            winner = winner.masked_fill(score > best, channel + self.task.soft)
            best = torch.maximum(best, score)
        return winner[:, 0]


def _window(sample: Prepared, task: Task, rng: np.random.Generator | None) -> tuple[Tensor, Tensor]:
    room = np.subtract(sample.grid, task.size)
    if rng is None or not room.any():
        corner = room // 2
    elif sample.labelled and rng.random() < task.foreground:
        centre = np.unravel_index(sample.centre(rng), sample.grid)
        corner = np.clip(np.subtract(centre, np.floor_divide(task.size, 2)), 0, room)
    else:
        corner = rng.integers(room + 1)
    return sample.window(
        tuple(slice(start, start + width) for start, width in zip(map(int, corner), task.size, strict=True))
    )

"""From a scan to what a network sees: intensities, grid, and seeded augmentation, on plain tensors.

The arithmetic is that of MONAI's transforms, and tests hold it to theirs. Two things are done in PyTorch directly:
shrinking, because MONAI's anti-aliasing filter pads with zeros and darkens the border of every image, and
augmentation, because MONAI's tracking of meta data costs several times the arithmetic (18 ms instead of 5 ms for
eight images of 128 x 128 pixels).
"""

import math
from collections.abc import Collection
from dataclasses import replace

import numpy as np
import torch
from monai.transforms import NormalizeIntensity, ScaleIntensity
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from node.data.source import Scan
from node.drawing import SLICED
from protos.plan import Augmentation, Task
from strategies.randomness import generator_on

ANGLE = math.radians(15)
ZOOM = (0.85, 1.15)
GAMMA = (0.7, 1.5)
CONTRAST = (0.9, 1.1)
SHIFT = 0.1  # standard deviations of the image, either way
NOISE = 0.1  # at most so many standard deviations of the image


def is_sliced(scan: Scan, task: Task) -> bool:
    """Whether a volume is learnt slice by slice."""
    return task.dims == 2 and len(scan.space) == 3


def slices_last(scan: Scan, task: Task) -> Scan:
    """A scan that is sliced, with the axis that its slices lie along last and the others in order; else the scan."""
    if not is_sliced(scan, task):
        return scan
    axis = SLICED[task.plane]
    spacing = list(scan.spacing)
    spacing.append(spacing.pop(axis))
    image, label = np.moveaxis(scan.image, axis, -1), np.moveaxis(scan.label, axis, -1)
    return replace(scan, image=image, label=label, spacing=tuple(spacing))


def prepare_image(scan: Scan, task: Task) -> Tensor:
    """Normalise and resample: float32 [slices, channels, *grid]; one "slice" for a picture or a whole volume.

    The grid is task.size for fit: resize; for fit: patch it is the image's own, or the one of task.spacing.
    """
    scan = slices_last(scan, task)  # before sums over the image, which round by the order of its axes
    # a copy: readers may hand out views that are read-only, flipped or big-endian, none of which PyTorch takes
    image = normalise(torch.from_numpy(np.array(scan.image, dtype=np.float32, order="C")), task)
    image = image.movedim(-1, 0) if is_sliced(scan, task) else image[None]
    grid = _grid(scan, task)
    return resample(image.flatten(0, 1), grid).reshape(*image.shape[:2], *grid)


def prepare_label(scan: Scan, task: Task) -> Tensor:
    """Bring the label to the image's grid: uint8 [slices, *grid] by nearest neighbour.

    A soft label becomes float32 [slices, classes - 1, *grid] as images are resampled, so that a pixel holds its share.
    """
    scan = slices_last(scan, task)
    label = torch.from_numpy(np.array(scan.label, dtype=np.float32 if task.soft else np.uint8, order="C"))
    label = label.movedim(-1, 0) if is_sliced(scan, task) else label[None]
    grid = _grid(scan, task)
    if task.soft:
        return resample(label.flatten(0, 1), grid).reshape(*label.shape[:2], *grid).clamp(0, 1)
    return functional.interpolate(label[None], grid, mode="nearest-exact")[0].contiguous()


def hardened(label: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Class numbers [*space] from shares [classes - 1, *space]: the largest where it is above one half, else 0."""
    numbers: NDArray[np.uint8] = np.where(label.max(axis=0) > 0.5, label.argmax(axis=0) + 1, 0).astype(np.uint8)
    return numbers


def normalise(image: Tensor, task: Task) -> Tensor:
    """Scale each channel of a whole image, float32 [channels, *space], as task.intensity says.

    Flat ones become 0, or -1 (symmetric).
    """
    if task.intensity == "none":
        return image
    if task.intensity == "zscore":
        return torch.as_tensor(NormalizeIntensity(channel_wise=True)(image)).as_subclass(Tensor)
    if task.intensity == "percentile":
        limits = np.percentile(image.flatten(1).numpy(), (1, 99), axis=1).astype(np.float32)
        low, high = torch.from_numpy(limits).reshape(2, -1, *(1,) * (image.ndim - 1))
        image = image.clamp(low, high)
    scaled = torch.as_tensor(ScaleIntensity(channel_wise=True)(image)).as_subclass(Tensor)
    return 2 * scaled - 1 if task.intensity == "symmetric" else scaled


def resample(image: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Linear interpolation of float32 [N, *space] to [N, *grid], antialiased along axes that shrink."""
    if tuple(image.shape[1:]) == grid:
        return image
    if len(grid) == 2:
        return functional.interpolate(image[None], grid, mode="bilinear", antialias=True)[0]
    # PyTorch antialiases planes only; the filter is separable: first rows and columns, then depth
    plane = functional.interpolate(image.movedim(-1, 1), grid[:2], mode="bilinear", antialias=True).movedim(1, -1)
    return functional.interpolate(plane, grid[1:], mode="bilinear", antialias=True)


def augment(
    image: Tensor, label: Tensor, names: Collection[Augmentation], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Change an image [channels, *size] and its label at random; geometry acts on both, intensity on the image.

    The label is as `prepare_label` makes it: uint8 [*size], or float32 [classes - 1, *size] with shares.

    Every sample is worked on alone, so that its bits do not depend on its neighbours in the batch, and where it is:
    nothing is copied to its device or waits for it.
    """
    if "flip" in names:
        axes = [axis for axis in range(1 - image.ndim, 0) if rng.random() < 0.5]
        image, label = image.flip(axes), label.flip(axes)
    if "rotate" in names or "scale" in names:
        angle = rng.uniform(-ANGLE, ANGLE) if "rotate" in names else 0.0
        zoom = rng.uniform(*ZOOM) if "scale" in names else 1.0
        image, label = turn(image, label, angle, zoom)
    if "intensity" in names:
        low, high = image.aminmax()
        if image.device.type != "cpu" or high > low:  # to ask another device would be to wait for it
            bent = ((image - low) / (high - low)) ** rng.uniform(*GAMMA) * (high - low) + low
            image = torch.where(high > low, bent, image)
        std, mean = torch.std_mean(image, correction=0)
        image = (image - mean) * rng.uniform(*CONTRAST) + (mean + rng.uniform(-SHIFT, SHIFT) * std)
    if "noise" in names:
        image = image + _normal(image, rng) * (rng.uniform(0, NOISE) * image.std(correction=0))
    return image, label


def turn(image: Tensor, label: Tensor, angle: float, zoom: float) -> tuple[Tensor, Tensor]:
    """Rotate by `angle` (radians) in the plane of the first two axes and enlarge by `zoom`, about the centre.

    Linear for the image and a soft label, nearest for class numbers; what comes in from outside repeats the border.
    """
    space = tuple(image.shape[1:])
    size = np.array(space, dtype=np.float64)
    matrix = np.eye(len(size))
    cos, sin = math.cos(angle), math.sin(angle)
    matrix[:2, :2] = [[cos, -sin], [sin, cos]]
    # from voxels about the centre to PyTorch's coordinates: -1 to 1 along every axis, the last axis first
    theta = (matrix / zoom * size[None, :] / size[:, None])[::-1, ::-1]
    rows = np.hstack([theta, np.zeros((len(size), 1))])
    # number by number, since an array would have to be copied to the device
    numbers = [torch.full((), number, dtype=torch.float32, device=image.device) for number in rows.flat]
    affine = torch.stack(numbers).reshape(1, *rows.shape)
    grid = functional.affine_grid(affine, [1, 1, *space], align_corners=False)

    def sampled(values: Tensor, mode: str) -> Tensor:
        return functional.grid_sample(values[None], grid, mode=mode, padding_mode="border", align_corners=False)[0]

    if label.is_floating_point():
        return sampled(image, "bilinear"), sampled(label, "bilinear").clamp(0, 1)
    return sampled(image, "bilinear"), sampled(label[None].float(), "nearest")[0].to(torch.uint8)


def _normal(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Noise of N(0, 1) in the shape of `image`, float32, drawn on its device."""
    if image.device.type == "cpu":
        return torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32))
    draws = generator_on(image.device, int(rng.integers(2**63)))
    return torch.randn(image.shape, generator=draws, device=draws.device)


def _grid(scan: Scan, task: Task) -> tuple[int, ...]:
    space = scan.space[: task.dims]
    if task.fit == "resize":
        return task.size
    if task.spacing is None:
        return space
    pairs = zip(space, scan.spacing, task.spacing, strict=False)  # a sliced volume has a third spacing
    return tuple(max(1, round(count * have / want)) for count, have, want in pairs)

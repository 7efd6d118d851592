"""Masks of the incoming site, brought to the anatomy of the site that is replayed (not in the paper).

The paper replays earlier sites from the masks of the incoming one. Where structures differ between sites, in size or in
number, this asks the generator for what it has never seen, and a network that learns from it forgets what was large or
small. So four numbers of a site's masks travel beside its prompt, and masks are enlarged, cut, laid over each other and
thinned out to agree with them. Sites of like anatomy see their masks all but unchanged.
"""

from collections.abc import Callable
from math import log

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from strategies.data import Samples
from strategies.randomness import Seeds, permutation

NUMBERS = 4  # mean and deviation of log size, mean and deviation of log share
_DIGITS = 2  # that travel of each
_SAMPLES = 256  # that are measured, at most
_FURTHEST = log(8)  # what a mask is enlarged or shrunk by, at most
_OVERLAID = 16  # masks laid over one another, at most
_NEAR = log(1.25)  # a share this near to the one wanted is left as it is
_ALIKE = 0.01  # a smaller deviation is none


def measure(samples: Samples, seeds: Seeds) -> Tensor:
    """What travels of a site's masks: float32 [NUMBERS]; zeros where no mask holds a structure.

    Of at most _SAMPLES training samples, those with a structure in them: mean and standard deviation of the natural
    logarithms of the structures' size, in pixels, and of their share of the image, rounded to two digits.
    """
    chosen: list[int] = permutation(seeds("measured masks"), len(samples))[:_SAMPLES].tolist()
    drawn = [seeds("measured mask", number) for number in chosen]
    found = [described(samples.batch([i], [seed], only=()).label.cpu()) for i, seed in zip(chosen, drawn, strict=True)]
    known = torch.tensor([pair for pair in found if pair is not None], dtype=torch.float64)
    if not len(known):
        return torch.zeros(NUMBERS)
    std, mean = torch.std_mean(known, dim=0, correction=0)
    return torch.stack([mean, std], 1).flatten().round(decimals=_DIGITS).float()


def described(label: Tensor) -> tuple[float, float] | None:
    """log size and log share of the structures, of whatever class, in one mask [1, 1, *size]; None: there are none.

    The size is volume over surface times twice the dimensions: the diameter of a ball but for how a grid counts its
    surface. What the border of the image cuts off counts for neither.
    """
    inside = label[0, 0] > 0
    volume = int(inside.sum())
    if not volume:
        return None
    surface = sum(int((inside.diff(dim=axis)).sum()) for axis in range(inside.ndim))
    return log(2 * inside.ndim * volume / max(1, surface)), log(volume / inside.numel())


def fitted(draw: Callable[[int], Tensor], own: Tensor, other: Tensor, seed: int) -> Tensor:
    """A mask like those that `other` describes, made of masks like those that `own` does.

    `draw(n)` gives the n-th mask that it may be made of, an integer [1, 1, *size]; a mask without a structure stays
    one. A mask that is large for its own site becomes large for the other. Of the same shape and dtype.
    """
    label = draw(0)
    found = described(label)
    if found is None or not bool(own.any()) or not bool(other.any()):
        return label
    rng = np.random.default_rng(seed)
    size, share = (_moved(x, own[2 * n :], other[2 * n :]) for n, x in enumerate(found))
    made = _zoomed(label, size, rng)
    for number in range(1, _OVERLAID):
        if _share(made) > share - _NEAR:
            break
        made = torch.where(made > 0, made, _zoomed(draw(number), size, rng))
    made = _thinned(made, share, rng)
    return made if bool(made.any()) else label


def _moved(value: float, own: Tensor, other: Tensor) -> float:
    """The value that lies in the one distribution where `value` lies in the other, both of [mean, deviation, ...]."""
    apart = (value - float(own[0])) / float(own[1]) if float(own[1]) > _ALIKE else 0.0
    return float(other[0]) + float(other[1]) * float(np.clip(apart, -2, 2))


def _share(label: Tensor) -> float:
    return log(max(1e-9, float((label > 0).float().mean())))


def _zoomed(label: Tensor, size: float, rng: np.random.Generator) -> Tensor:
    """With structures of the log size `size`.

    Enlarged about a random point, so near to the centre that no border comes in; or shrunk, and mirrored around.
    """
    dims, found = label.ndim - 2, described(label)
    if found is None:
        return label
    zoom = float(np.exp(np.clip(size - found[0], -_FURTHEST, _FURTHEST)))
    room = abs(1 - 1 / zoom)
    where = torch.from_numpy(rng.uniform(-room, room, dims).astype(np.float32))
    matrix = torch.cat([torch.eye(dims) / zoom, where[:, None]], dim=1)[None]
    grid = functional.affine_grid(matrix, [1, 1, *label.shape[2:]], align_corners=False)
    classes = functional.one_hot(label[:, 0].long()).movedim(-1, 1).float()  # so that enlarged outlines are no stairs
    moved = functional.grid_sample(classes, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return moved.argmax(1, keepdim=True).to(label.dtype)


def _thinned(label: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Without some of its connected structures, at random, as far as that brings its share nearer to the one wanted."""
    parts, count = ndimage.label(label[0, 0].numpy() > 0)
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    left, whole = int(sizes[1:].sum()), label.numel()
    dropped = []
    for part in rng.permutation(np.arange(1, count + 1)):
        after = left - int(sizes[part])
        now = log(max(left, 1) / whole) - share
        if now <= _NEAR:
            break
        if after and abs(log(after / whole) - share) < now:
            dropped.append(part)
            left = after
    return torch.where(torch.from_numpy(np.isin(parts, dropped)), 0, label)

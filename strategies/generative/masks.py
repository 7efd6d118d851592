"""Masks of the incoming site, brought to the anatomy of the site that is replayed (not in the paper).

The paper replays earlier sites from the masks of the incoming one. Where structures differ between sites, in size or in
number, this asks the generator for what it has never seen, and a network that learns from it forgets what was large or
small. So four numbers of a site's masks travel beside its prompt, and structures are enlarged or shrunk where they are,
others are laid between them, and some left out, until masks agree with them. An organ stays one organ.
"""

from collections.abc import Callable
from math import log

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from strategies.data import Samples
from strategies.randomness import Seeds, derive, permutation

NUMBERS = 4  # mean and deviation of log size, mean and deviation of log share
LEAST = 5  # masks with a structure, of which a site tells anything
_DIGITS = 1  # that travel of each: of sizes and shares 10 percent
_SAMPLES = 256  # that are measured, at most
_FURTHEST = log(8)  # what a structure is enlarged or shrunk by, at most
_LAID = 24  # masks that structures are taken from, at most
_VAIN = 3  # of them that find no room, as about a single organ, before the search ends
_NEAR = log(1.25)  # a share this near to the one wanted is left as it is
_FULL = log(0.9)  # no larger share is sought
_LITTLE = 0.1  # smaller deviations count as this: there is no telling them apart


def measure(samples: Samples, seeds: Seeds) -> Tensor:
    """What travels of a site's masks: float32 [NUMBERS]; zeros where fewer than LEAST masks hold a structure.

    Of the masks with a structure among at most _SAMPLES training samples: mean and standard deviation of the natural
    logarithms of the structures' size, in pixels, and of their share of the image, rounded to _DIGITS.
    """
    chosen: list[int] = permutation(seeds("measured masks"), len(samples))[:_SAMPLES].tolist()
    drawn = [seeds("measured mask", number) for number in chosen]
    found = [described(samples.batch([i], [seed], only=()).label.cpu()) for i, seed in zip(chosen, drawn, strict=True)]
    known = torch.tensor([pair for pair in found if pair is not None], dtype=torch.float64)
    if len(known) < LEAST:
        return torch.zeros(NUMBERS)
    std, mean = torch.std_mean(known, dim=0, correction=0)
    return torch.stack([mean, std], 1).flatten().round(decimals=_DIGITS).float()


def described(label: Tensor) -> tuple[float, float] | None:
    """log size and log share of the structures, of whatever class, in one mask [1, 1, *size]; None: there are none.

    The size is volume over surface times twice the dimensions: the diameter of a ball but for how a grid counts its
    surface. What the border of the image cuts off counts for neither, and the image is as large as a size can be.
    """
    inside = label[0, 0] > 0
    volume = int(inside.sum())
    if not volume:
        return None
    surface = sum(int((inside.diff(dim=axis)).sum()) for axis in range(inside.ndim))
    size = min(2 * inside.ndim * volume / max(1, surface), max(inside.shape))
    return log(size), log(volume / inside.numel())


def fitted(draw: Callable[[int], Tensor], own: Tensor, other: Tensor, seed: int) -> Tensor:
    """A mask like those that `other` describes, made of masks like those that `own` does.

    `draw(n)` gives the n-th mask that it may be made of, an integer [1, 1, *size] on the CPU; a mask without a
    structure stays one. A mask that is large for its own site becomes large for the other. Of the same shape and dtype.
    """
    label = draw(0)
    found = described(label)
    if found is None or not bool(own.any()) or not bool(other.any()):
        return label
    rng = np.random.default_rng(derive("fitted", seed))
    size, share = (_moved(x, own[2 * n :], other[2 * n :]) for n, x in enumerate(found))
    share = min(share, _FULL)
    made, tried = _zoomed(label, size, rng), 0
    for number in range(1, _LAID):
        before = _share(made)
        if before > share - _NEAR or tried == _VAIN:
            break
        made = _laid_between(made, _zoomed(draw(number), size, rng))
        tried = tried + 1 if _share(made) == before else 0
    made = _thinned(made, share, rng)
    return made if bool(made.any()) else label


def _moved(value: float, own: Tensor, other: Tensor) -> float:
    """Where `value` lies in the one distribution, in the other, both of [mean, deviation, ...].

    Equal distributions move nothing. Beyond two deviations all moves as far as what lies at two.
    """
    here, there = (max(float(numbers[1]), _LITTLE) for numbers in (own, other))
    apart = float(np.clip((value - float(own[0])) / here, -2, 2))
    return value + float(other[0]) + there * apart - float(own[0]) - here * apart


def _share(label: Tensor) -> float:
    return log(max(1e-9, float((label > 0).float().mean())))


def _parts(label: Tensor) -> tuple[NDArray[np.int32], int]:
    """The connected structures of a mask, numbered from 1, and how many there are."""
    parts, count = ndimage.label(label[0, 0].numpy() > 0)
    return parts, int(count)


def _zoomed(label: Tensor, size: float, rng: np.random.Generator) -> Tensor:
    """With structures of the log size `size`: enlarged or shrunk about the middle of one of them, drawn at random.

    That one stays where it is. What the border cuts does not come in when shrunk, if there is anything else.
    """
    found = described(label)
    if found is None:
        return label
    zoom = float(np.exp(np.clip(size - found[0], -_FURTHEST, _FURTHEST)))
    parts, count = _parts(label)
    kept = set(range(1, count + 1))
    if zoom < 1:
        border = np.ones(parts.shape, dtype=bool)
        border[(slice(1, -1),) * parts.ndim] = False
        kept = (kept - set(parts[border].tolist())) or kept
    whole = torch.where(torch.from_numpy(np.isin(parts, sorted(kept))), label, 0)
    centre = np.array(ndimage.center_of_mass(parts == rng.choice(sorted(kept))))
    shape = np.array(parts.shape)
    place = ((2 * centre + 1) / shape - 1)[::-1] * (1 - 1 / zoom)  # in PyTorch's coordinates, the last axis first
    dims = len(shape)
    matrix = torch.from_numpy(np.hstack([np.eye(dims) / zoom, place[:, None]])).float()[None]
    grid = functional.affine_grid(matrix, [1, 1, *shape.tolist()], align_corners=False)
    best, made = torch.full(label.shape, 0.45), torch.zeros_like(label)  # thin structures win what is nearly a tie
    for number in range(1, int(whole.max()) + 1):
        if bool((whole == number).any()):
            there = functional.grid_sample((whole == number).float(), grid, align_corners=False)
            made = torch.where(there > best, number, made)
            best = torch.maximum(best, there)
    return made


def _laid_between(label: Tensor, further: Tensor) -> Tensor:
    """With those structures of `further` that touch none of the mask's own."""
    parts, count = _parts(further)
    taken = ndimage.binary_dilation(label[0, 0].numpy() > 0, iterations=1)
    free = np.setdiff1d(np.arange(1, count + 1), parts[taken])
    return torch.where(torch.from_numpy(np.isin(parts, free)), further, label)


def _thinned(label: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Without some of its connected structures, at random, as far as that brings its share nearer to the one wanted."""
    parts, count = _parts(label)
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

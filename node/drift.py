"""How far an arrived generator's images of a site are from the site's own: measured at home, when the site is scored.

A generator learns the earlier sites from its own images of them, so its idea of them drifts from visit to visit.
"""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from node.copies import Pairs, make_pairs
from node.data.site import SiteData
from node.drawing import as_colours, png
from protos.declaration import Bound
from strategies.randomness import Seeds
from strategies.replayer import Replayer

_FURTHEST = 100.0  # stands for anything further too, and for images that are not finite
_DIGITS = 2  # that leave: finer answers to many generators could tell of single masks
DRIFT: Mapping[str, Bound] = MappingProxyType(
    {name: Bound(0, _FURTHEST) for name in ("drift_mean", "drift_std", "drift_edge")}
)
_PAIRS = 16  # at most
_SHOWN = 6  # in a picture, at most
_GAP = 2  # pixels between images


def drift_pairs(replay: Replayer, data: SiteData, run_seed: int, site: str) -> Pairs:
    """Training images of `site` and replays from their masks: the same at every stop, so that rows can be compared.

    Raises node.data.site.EmptySite when no training case is there (any more).
    """
    return make_pairs(replay, data.samples("train"), Seeds(run_seed, 0, site), "drift", _PAIRS)


def measure_drift(pairs: Pairs) -> dict[str, float]:
    """What DRIFT declares, each 0 for replays like the real images; a mean over channels.

    drift_mean, drift_std: the difference between the means, and between the standard deviations, of all pixels of a
    class, in units of the real images' standard deviation, as a mean over the classes that are there; drift_edge:
    |log| of the ratio of the mean absolute differences between neighbouring pixels.
    """
    real, replay = pairs.real.double().movedim(1, 0), pairs.replay.double().movedim(1, 0)
    unit = real.flatten(1).std(1, correction=0).clamp_min(1e-6)
    means, spreads = [], []
    for number in range(int(pairs.label.max()) + 1):
        inside = pairs.label[:, 0] == number
        if bool(inside.any()):
            here, there = real[:, inside], replay[:, inside]
            means.append((there.mean(1) - here.mean(1)).abs() / unit)
            spreads.append((there.std(1, correction=0) - here.std(1, correction=0)).abs() / unit)
    edge = ((_roughness(replay) + 1e-6) / (_roughness(real) + 1e-6)).log().abs()
    found = {"drift_mean": torch.stack(means), "drift_std": torch.stack(spreads), "drift_edge": edge}
    return {
        name: round(float(torch.nan_to_num(value.mean(), nan=_FURTHEST).clamp(max=_FURTHEST)), _DIGITS)
        for name, value in found.items()
    }


def _roughness(image: Tensor) -> Tensor:
    """The mean absolute difference between neighbours of [channels, N, *size]: one number per channel."""
    axes = range(2, image.ndim)
    return torch.stack([image.diff(dim=axis).abs().flatten(1).mean(1) for axis in axes]).mean(0)


def pairs_png(pairs: Pairs, *, synthetic: bool) -> bytes:
    """Draw a few pairs as PNG: real images above the replays from their masks, on one scale; of volumes a slice each.

    Raises ValueError for images that are not synthetic, which must not leave the node.
    """
    if not synthetic:
        raise ValueError("Only synthetic cases may be drawn; these are patients'.")
    return draw_pairs(pairs)


def draw_pairs(pairs: Pairs) -> bytes:
    """The same of any site, for its own people alone: whoever keeps it sees to that."""
    number = min(len(pairs.real), _SHOWN)
    shown = [[_slice(image[i], pairs.label[i, 0]) for i in range(number)] for image in (pairs.real, pairs.replay)]
    low, high = np.percentile(np.stack(shown[0]), (1, 99))
    drawn = np.stack([[as_colours(image, low, high) for image in row] for row in shown])  # [2, N, rows, columns, 3]
    framed = np.pad(drawn, ((0, 0), (0, 0), (0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
    canvas = np.concatenate(np.concatenate(framed, axis=1), axis=1)[:-_GAP, :-_GAP]
    return png(canvas)


def _slice(image: Tensor, label: Tensor) -> NDArray[np.float32]:
    """A picture as it is; of a volume [channels, *size] the slice along the last axis with the most labelled voxels."""
    if label.ndim == 3:
        image = image[..., int((label > 0).sum(dim=(0, 1)).argmax())]
    found: NDArray[np.float32] = np.nan_to_num(image.numpy())
    return found

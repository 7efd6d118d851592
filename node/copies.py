"""Whether a generator that is about to leave makes copies of training images: measured by the node, on its own replays.

Replays are made with the site's own prompt, from masks of training cases, and from masks of validation cases, which the
generator has not learnt. A mask alone fixes much of an image, and so does what all images of a site share (the outline
of a body, the shading of a scanner). Before a replay is compared with the real image of its mask, both lose the mean of
every class, and then their part in the mean of what is left of all real images compared. What remains tells one case
from another; the similarity is its correlation over the pixels, which no change of brightness or contrast alters.

Why so: on 14 sites (synthetic organs, nuclei, brain), with another case's image in the mask's class means for an honest
replay, 90 % of honest replays correlate above 0.6 as they are and 74 % without class means, so a copy in noise could
not be told from them. Without the common part honest replays lie between -0.35 and 0.53 (1st and 99th percentile) and
copies in as much noise as they have structure of their own at 0.7. Above FLOOR are 0.4 % of honest replays (above 0.5
it would be 1.6 %: by chance two of 32 pairs at one site in ten), 99 % of noisy copies and of blurred ones, and 84 % of
replays that are half a copy and half another case. Subtracting the common image whole, instead of each image's part in
it, would let four of five copies of lower contrast through.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from protos.declaration import Bound, Declaration
from protos.handover import Kind
from strategies.data import Samples
from strategies.randomness import Seeds, permutation
from strategies.replayer import Replayer

COPIES: Mapping[str, Bound] = MappingProxyType(
    {"copies": Bound(0, 1), "copy_similarity": Bound(-1, 1), "held_out_similarity": Bound(-1, 1)}
)
FLOOR = 0.6  # what is less similar is no copy, however unlike each other the held-out pairs are
PAIRS = 32  # at most, of training and of held-out cases each
_TOGETHER = 16  # replays that are made in one batch


def carries_generator(declared: Declaration) -> bool:
    """Whether a reply would hold a generator."""
    return declared.handover is not None and Kind.GENERATOR in declared.handover.kinds


@dataclass(frozen=True)
class Pairs:
    """Real images and the replays from their masks, float32 [N, channels, *size]; label: int64 [N, 1, *size]."""

    real: Tensor
    replay: Tensor
    label: Tensor


@torch.no_grad()
def make_pairs(replay: Replayer, samples: Samples, seeds: Seeds, purpose: str, most: int) -> Pairs:
    """At most `most` samples, chosen by seed and not augmented, each with its replay in the style of `seeds.site`.

    There must be a sample, and the site among `replay.sites`.
    """
    chosen: list[int] = permutation(seeds(f"{purpose} order"), len(samples))[:most].tolist()
    drawn = [seeds(purpose, number) for number in range(len(chosen))]
    batch = samples.batch(chosen, drawn, only=())
    parts = [slice(start, start + _TOGETHER) for start in range(0, len(chosen), _TOGETHER)]
    made = [replay(seeds.site, batch.label[part], drawn[part]).float().cpu() for part in parts]
    return Pairs(batch.image, torch.cat(made), batch.label)


def count_copies(replay: Replayer, train: Samples, val: Samples, seeds: Seeds) -> dict[str, float]:
    """How many of the replays from training masks are near-copies, see COPIES; the site is `seeds.site`.

    copies: the share of training pairs that are more similar than FLOOR and than every held-out pair;
    copy_similarity and held_out_similarity: the mean of either, the latter left out where there is no validation
    sample, and FLOOR decides alone. Raises FloatingPointError when a replay is not finite.
    """
    own = make_pairs(replay, train, seeds, "copies", PAIRS)
    if not len(val):
        similar = _similarity(own)
        return {"copies": _share(similar > FLOOR), "copy_similarity": _mean(similar)}
    held_out = make_pairs(replay, val, seeds, "copies held out", PAIRS)
    whole = Pairs(
        torch.cat([own.real, held_out.real]),
        torch.cat([own.replay, held_out.replay]),
        torch.cat([own.label, held_out.label]),
    )
    both = _similarity(whole)
    similar, other = both[: len(own.real)], both[len(own.real) :]
    return {
        "copies": _share(similar > max(FLOOR, float(other.max()))),
        "copy_similarity": _mean(similar),
        "held_out_similarity": _mean(other),
    }


def _similarity(pairs: Pairs) -> Tensor:
    """One number in [-1, 1] per pair: float64 [N]."""
    if not bool(pairs.replay.isfinite().all()):
        raise FloatingPointError("The generator makes images that are not finite.")
    real, replay = (_without_classes(image, pairs.label).flatten(1) for image in (pairs.real, pairs.replay))
    if len(real) > 1:  # of a single image nothing would be left
        common = functional.normalize(real.mean(0), dim=0)
        real, replay = (image - (image @ common)[:, None] * common for image in (real, replay))
    return torch.cosine_similarity(real, replay, dim=1).clamp(-1, 1)


def _without_classes(image: Tensor, label: Tensor) -> Tensor:
    """The mean over the channels, less the mean of every class in each image: float64 [N, 1, *size]."""
    grey = image.double().mean(1, keepdim=True)
    for number in range(int(label.max()) + 1):
        inside = (label == number).double()
        axes = tuple(range(1, grey.ndim))
        mean = (grey * inside).sum(axes, keepdim=True) / inside.sum(axes, keepdim=True).clamp_min(1)
        grey = grey - mean * inside
    return grey


def _share(those: Tensor) -> float:
    return float(those.double().mean())


def _mean(values: Tensor) -> float:
    return float(values.mean())

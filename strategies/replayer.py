"""What a generator that travels can do at a site: make images in the style of a site that the model has visited."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


class Replayer(Protocol):
    """An arrived generator with its prompts. Nothing but these, the masks and the seeds goes into a replay."""

    sites: frozenset[str]  # those that can be replayed: the visited ones

    def __call__(self, site: str, label: Tensor, seeds: Sequence[int]) -> Tensor:
        """Images float32 [N, channels, *size] in the style of `site`, one per mask of `label` (int64 [N, 1, *size]).

        One seed per image (0 <= seed < 2**32): equal masks with equal seeds give equal images. Up to the rounding of
        batched arithmetic each depends on its own mask and seed alone, unless the sampler draws noise on the way, which
        follows from the seeds of all images that are made together.
        """
        ...

"""Updates that tell little of any single sample: each one's gradient is clipped, and noise is added to the sum.

The Gaussian mechanism of Abadi et al. 2016 (Deep learning with differential privacy), without their sampling by chance:
which samples an update is drawn from is the coordinator's choice, so nothing may be claimed from it.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from protos.handover import Handover

# From a digest of what is to be hidden and a length to float64 [length], standard normal: equal for equal digests,
# independent for others, and not to be foreseen outside the site.
Normal = Callable[[bytes, int], NDArray[np.float64]]


class Privacy:
    """What a site asks of the update that a visit releases; `released` is the last one made, None before."""

    def __init__(self, clip: float, noise: float, normal: Normal) -> None:
        """`clip` bounds the L2 norm, over all parameters, of a contribution; `noise` is in units of `clip`."""
        self._clip = clip
        self._noise = noise
        self._normal = normal
        self.released: Handover | None = None

    def release(
        self, contributions: Iterable[Mapping[str, Tensor]], like: Mapping[str, Tensor], count: int
    ) -> dict[str, Tensor]:
        """(sum_i g_i min(1, clip / |g_i|) + noise clip N(0, 1)) / count, with names, shapes and dtypes of `like`.

        A contribution g_i is all that one sample adds. `count` is what the sum is divided by, and must not depend on
        the data. Raises FloatingPointError where a contribution is not finite.
        """
        total = torch.zeros(sum(tensor.numel() for tensor in like.values()), dtype=torch.float64)
        for contribution in contributions:
            flat = torch.cat([contribution[name].detach().flatten().cpu().double() for name in like])
            norm = flat.norm().item()
            if not math.isfinite(norm):
                raise FloatingPointError("a sample's gradient is not finite; a smaller training.lr may help")
            total.add_(flat, alpha=min(1.0, self._clip / norm) if norm else 1.0)
        if self._noise:
            # Over other data, or with other settings, the noise must be another: the difference of two releases with
            # one noise would bare what it hides.
            digest = hashlib.sha256(repr((self._clip, self._noise)).encode() + total.numpy().tobytes()).digest()
            noise = torch.from_numpy(self._normal(digest, len(total)))
            total.add_(noise, alpha=self._noise * self._clip)
        parts = torch.split(total / count, [tensor.numel() for tensor in like.values()])
        update = {
            name: part.reshape(tensor.shape).to(tensor)
            for (name, tensor), part in zip(like.items(), parts, strict=True)
        }
        self.released = Handover.of(weights=update)
        return update

"""All randomness of a run comes from here: a number derived from (run seed, stop, site, purpose)."""

import hashlib
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray


def derive(*parts: int | str) -> int:
    """A number in [0, 2**32) that depends on every part, the same on every machine."""
    text = "\0".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


@dataclass(frozen=True)
class Seeds:
    """The seeds of one visit. Nothing is drawn from a running generator, so a visit can resume at any step."""

    run: int
    stop: int
    site: str

    def __call__(self, purpose: str, *numbers: int) -> int:
        """The seed for one purpose, for example `seeds("augment", position)`."""
        return derive(self.run, self.stop, self.site, purpose, *numbers)

    def at_stop(self, stop: int) -> "Seeds":
        """The seeds that the same site would have at another stop."""
        return replace(self, stop=stop)

    def sample(self, position: int, samples: int) -> int:
        """Which of `samples` samples comes at `position` of the endless shuffled stream: every epoch has its order."""
        epoch, place = divmod(position, samples)
        return int(permutation(self("order", epoch), samples)[place])


def generator_on(device: torch.device, seed: int) -> torch.Generator:
    """A generator of `device` itself: what it draws is there, and need not be copied."""
    return torch.Generator(device).manual_seed(seed)


@lru_cache(maxsize=64)
def permutation(seed: int, length: int) -> NDArray[np.int64]:
    """The numbers 0..length-1 in the order that `seed` gives."""
    return np.random.Generator(np.random.PCG64(seed)).permutation(length)

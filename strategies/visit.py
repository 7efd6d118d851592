"""One stay of the model at one site: what a strategy is given there and what it ends with."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from protos.handover import Handover
from strategies.data import Batch, Samples
from strategies.privacy import Privacy
from strategies.randomness import Seeds

# Called once per step: step, steps, scalars.
Report = Callable[[int, int, Mapping[str, float]], None]


class Augment(Protocol):
    """The plan's augmentation, for images that are none of the site's samples, such as replays."""

    def __call__(self, batch: Batch, seeds: Sequence[int]) -> Batch:
        """The batch as it would have come from Samples.batch with `seeds`, on its own device.

        Labels may also be shares of all classes: floating, [N, classes, *size].
        """
        ...


class Checkpoint(Protocol):
    """Where a long visit keeps its place; the node implements it on its own disk."""

    def load(self) -> tuple[int, dict[str, torch.Tensor]] | None:
        """The last saved (step, tensors) of this very visit, or None."""
        ...

    def save(self, step: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Replace what was saved, durably and atomically."""
        ...


class Memory(Protocol):
    """The training cases that a site keeps for rehearsal in one run, for ever; they stay in the site's own store."""

    def keep(self, cases: int, seed: int) -> None:
        """Keep at most `cases` of the site's training cases, chosen by `seed`; what is kept is never chosen anew."""
        ...

    def samples(self) -> Samples:
        """The samples of the cases kept, augmented as training samples are; raises where `keep` was never called."""
        ...


class Once(Protocol):
    """Work that an equal run need not do again: the site keeps the result, and it stays at the site."""

    def __call__(
        self, recipe: Mapping[str, Any], make: Callable[[], Mapping[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """What `make` returns, or what it returned to an equal recipe over the same training cases and device.

        `recipe` (JSON) must hold everything else that the result depends on, digests of arrived tensors included.
        """
        ...


@dataclass(frozen=True)
class Visit:
    """One stay of the model at one site; everything a strategy may see there."""

    action: str
    handover: Handover
    train: Samples
    val: Samples
    seeds: Seeds
    args: Mapping[str, int | float]
    device: torch.device
    report: Report
    checkpoint: Checkpoint
    memory: Memory
    once: Once
    augment: Augment
    first: bool = False  # no visit came before: what arrived is the first handover
    privacy: Privacy | None = None  # an update may leave only as this released it, with no metric but `samples`


@dataclass(frozen=True)
class Departure:
    """What a visit ends with: the handover that leaves and the declared scalars beside it."""

    handover: Handover
    metrics: Mapping[str, int | float]


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Run with torch's generators (the CPU's, and `device`'s) seeded, and give them back as they were."""
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield

"""The course of a visit that has several parts: curves of its steps in few points, and a checkpoint for each part."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from statistics import fmean

import torch
from torch import Tensor

from strategies.visit import Checkpoint

CURVE = 20  # points that a curve is given in


class Curves:
    """What is plotted of a visit's steps, kept on the device until the end: a step must not wait for it."""

    names = ("loss", "replay_loss", "alignment")

    def __init__(self) -> None:
        self._before = torch.empty(0, len(self.names), dtype=torch.float64)  # taken up from a checkpoint, on the CPU
        self._steps: list[Tensor] = []

    def add(self, incoming: Tensor, replay: Tensor | None = None, cosine: Tensor | None = None) -> None:
        """One step's scalars."""
        none = torch.full_like(incoming, torch.nan)
        self._steps.append(
            torch.stack([incoming, none if replay is None else replay, none if cosine is None else cosine])
        )

    def state(self) -> Tensor:
        """float64 [steps, 3]."""
        since = [torch.stack(self._steps).double().cpu()] if self._steps else []
        return torch.cat([self._before, *since])

    def restore(self, state: Tensor) -> None:
        """Go on from what `state` returned."""
        self._before, self._steps = state, []

    def values(self) -> dict[str, list[float]]:
        """The steps' values by name."""
        return dict(zip(self.names, self.state().T.tolist(), strict=True))


@dataclass(frozen=True)
class Part:
    """The checkpoint of one part of a visit: what another part saved is none of its own."""

    whole: Checkpoint
    name: str
    curves: Curves | None = None

    def load(self) -> tuple[int, dict[str, Tensor]] | None:
        """See strategies.visit.Checkpoint."""
        saved = self.whole.load()
        if saved is None or (mark := f"part/{self.name}") not in saved[1]:
            return None
        step, tensors = saved
        curve = tensors.pop(mark)
        if self.curves is not None:
            self.curves.restore(curve)
        return step, tensors

    def save(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        """See strategies.visit.Checkpoint."""
        curve = torch.zeros(0) if self.curves is None else self.curves.state()
        self.whole.save(step, {**tensors, f"part/{self.name}": curve})


def points(name: str, values: Sequence[float]) -> Iterator[tuple[str, float]]:
    """The mean over each twentieth of a visit, where there is a value."""
    for point in range(CURVE):
        part = values[len(values) * point // CURVE : len(values) * (point + 1) // CURVE]
        there = [value for value in part if isfinite(value)]
        if there:
            yield f"{name}.{point:02}", fmean(there)

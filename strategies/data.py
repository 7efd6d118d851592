"""What a strategy sees of a site's data: batches of tensors, never files, names or patients."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from protos.plan import Augmentation

GEOMETRY: frozenset[Augmentation] = frozenset({"flip", "rotate", "scale"})  # what leaves intensities alone


@dataclass(frozen=True)
class Batch:
    """`image`: float32 [N, channels, *size]; `label`: int64 [N, 1, *size] with values 0..classes-1.

    For soft tasks `label` is float32 [N, classes - 1, *size]: each structure's share of a pixel, in [0, 1].
    """

    image: Tensor
    label: Tensor


class Samples(Protocol):
    """The training or validation samples of one site: images, slices or windows of volumes."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    def batch(
        self,
        indices: Sequence[int],
        seeds: Sequence[int] | None = None,
        only: Collection[Augmentation] | None = None,
    ) -> Batch:
        """Return the samples at `indices` as one batch.

        With `seeds` (one per index, 0 <= seed < 2**32) each sample is augmented as the plan says, and the same seed
        gives the same augmentation; without, samples come as they are. Of those larger than the network's input a seed
        first draws the window. `only` leaves out all other augmentations; with none in it the windows come as they are.
        The batch may lie on the site's device already.
        """
        ...

"""What the visits tell of themselves beside the scores: courses of losses, and what a generator keeps of its images.

A course is the metrics `loss.00` to `loss.19` of a stop, each the mean over a twentieth of the visit; any may lack.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from coordinator.summary import RunSummary, Stop

PARTS = 20
_PART = re.compile(r"(.+)\.(\d\d)")


@dataclass(frozen=True)
class Course:
    """How a course is presented; one of the network's own steps is drawn over them, one of the generator is not."""

    title: str
    up: str
    text: str
    own_steps: bool = True
    limits: tuple[float, float] | None = None


COURSES: Mapping[str, Course] = MappingProxyType(
    {
        "loss": Course("Loss on the incoming site", "loss", "The loss on the batches of the site that is visited."),
        "replay_loss": Course("Loss on replay", "loss", "The loss on replay of the sites visited before."),
        "alignment": Course(
            "Alignment of the gradients",
            "cosine",
            "The cosine of the gradients of an incoming and of a replayed batch, at the weights themselves, of about "
            "twenty steps: above 0 a step for one helps the other. Noise draws it towards 0.",
            limits=(-1.05, 1.05),
        ),
        "generator_loss": Course(
            "Loss of the generator", "loss", "The denoising loss of the generator, over its own training.", False
        ),
    }
)
COPIES: Mapping[str, str] = MappingProxyType(
    {
        "copies": "Near-copies",
        "copy_similarity": "Similarity to training images",
        "held_out_similarity": "To images held out",
    }
)


def course(stop: Stop, kind: str) -> NDArray[np.float64] | None:
    """The stop's course of a kind, float64 [20], NaN where a part is absent; None where all are."""
    parts = np.array([stop.metrics.get(f"{kind}.{part:02d}", np.nan) for part in range(PARTS)], float)
    return None if np.isnan(parts).all() else parts


def courses(summary: RunSummary, kind: str) -> list[tuple[Stop, NDArray[np.float64]]]:
    """Every stop that has a course of this kind, with it."""
    return [(stop, found) for stop in summary.stops if (found := course(stop, kind)) is not None]


def scalars(stop: Stop) -> dict[str, float]:
    """The stop's metrics without courses and similarities, which are shown on their own."""
    return {
        name: value
        for name, value in stop.metrics.items()
        if name not in COPIES and not ((part := _PART.fullmatch(name)) and part[1] in COURSES)
    }


def places(steps: float | None) -> tuple[NDArray[np.float64], str]:
    """Where the twenty means of a course stand on an axis, and what it is called: steps, else percent of them."""
    middle = (np.arange(PARTS) + 0.5) / PARTS
    return (middle * steps, "step") if steps else (100 * middle, "% of the steps")

"""What is drawn of a comparison beside its tables: data alone, so that only what draws imports matplotlib."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Curves:
    """Lines with bands: method -> means and deviations, one each per place of `x`, NaN where undefined."""

    title: str
    across: str  # what the places are
    up: str  # what the values are
    x: Sequence[float]
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    limits: tuple[float, float] | None = None  # of the values; None: as they are
    marked: bool = False  # a marker at every place


@dataclass(frozen=True)
class Bars:
    """Groups of bars with error bars: method -> mean and deviation per group, NaN where undefined."""

    title: str
    up: str
    groups: Sequence[str]
    bars: Mapping[str, tuple[Sequence[float], Sequence[float]]]

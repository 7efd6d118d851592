"""Stops, and the coordinator's part in them: whom to ask for what, and how to combine what comes back."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from protos.handover import Handover


@dataclass(frozen=True)
class Stop:
    """One stop of the itinerary: which sites are asked, and from which stop's handover the model sets out."""

    index: int
    sites: tuple[str, ...]  # one for a visit; several when a stop gathers what they return
    follows: int | None  # the stop whose handover arrives here; None: the first handover
    action: str = "visit"
    rehearsing: tuple[str, ...] = ()  # sites of earlier stops that take part with the cases they keep in memory


@dataclass(frozen=True)
class Reply:
    """A departure as it reaches the coordinator."""

    site: str
    handover: Handover
    metrics: Mapping[str, int | float]


@dataclass(frozen=True)
class Ask:
    """What a round asks of one site: the handover to send and the strategy's own scalars.

    The site's guard refuses any but those that Strategy.takes names, each within its bounds.
    """

    handover: Handover
    args: Mapping[str, int | float]


class Gathering(Protocol):
    """The coordinator's part in one stop: rounds of asking sites and combining what they return."""

    rounds: int
    steps_per_round: int  # that a site takes; after how many rounds the coordinator keeps its place depends on it

    def asks(self, round: int) -> Iterator[tuple[str, Ask]]:
        """What is asked of which site in a round, in the order in which the replies are combined."""
        ...

    def receive(self, round: int, replies: Iterable[Reply]) -> None:
        """Combine a round's replies; they come one at a time, in the order of `asks`, and are not kept."""
        ...

    def state(self) -> dict[str, torch.Tensor]:
        """Everything that must survive a crash between two rounds."""
        ...

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state` returned."""
        ...

    def result(self) -> Handover:
        """The handover that the stop ends with."""
        ...


class PlainVisit:
    """The gathering of an ordinary visit: one round, one site, its departure is the result."""

    rounds = 1
    steps_per_round = 1

    def __init__(self, site: str, handover: Handover) -> None:
        self._site = site
        self._handover = handover

    def asks(self, round: int) -> Iterator[tuple[str, Ask]]:
        """Send the handover to the site."""
        yield self._site, Ask(self._handover, {})

    def receive(self, round: int, replies: Iterable[Reply]) -> None:
        """Take over what the site returns."""
        (reply,) = replies
        self._handover = reply.handover

    def state(self) -> dict[str, torch.Tensor]:
        """Nothing: a single round has no crash between rounds."""
        return {}

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Nothing to restore."""

    def result(self) -> Handover:
        """What the site returned."""
        return self._handover


# The coordinator's mean of handovers, weighted by their training samples (Flower's FedAvg).
Average = Callable[[Iterable[Reply]], Handover]

"""The two engines that carry a run's messages: in this process, or through Flower's SuperLink."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from flwr.serverapp import Grid

from coordinator.events import Listener
from coordinator.grid import InProcessGrid, SimulatedSite
from coordinator.link import Link
from coordinator.superlink import SuperLinkConfig


class Engine(Protocol):
    """Reaches the nodes of a run's sites."""

    in_flight: int  # requests that are sent ahead of the reply that is waited for
    away: bool  # whether a node may be away for a while

    def connected(self, sites: Sequence[SimulatedSite], listener: Listener) -> AbstractContextManager[Grid]:
        """A grid that reaches these sites' nodes while the block lasts; what happens at them is told to `listener`."""


class InProcess:
    """Every node in this process, called directly."""

    in_flight = 1
    away = False

    @contextmanager
    def connected(self, sites: Sequence[SimulatedSite], listener: Listener) -> Iterator[Grid]:
        """A grid over these nodes."""
        yield InProcessGrid(sites, listener)


class Deployed:
    """Nodes that are processes of their own, here or elsewhere, through the SuperLink at `config`."""

    in_flight = 8
    away = True

    def __init__(self, config: SuperLinkConfig) -> None:
        self._config = config

    @contextmanager
    def connected(self, sites: Sequence[SimulatedSite], listener: Listener) -> Iterator[Grid]:
        """A grid over whatever nodes are registered; their settings are their own business."""
        with Link(self._config) as link, link.run(listener) as grid:
            yield grid

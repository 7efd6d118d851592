"""Joint training of all sites without pooling their data: exact gradients, one optimizer step per round.

The ceiling every continual method is measured against. Each update draws `batch_size` cases from the shuffled union
of all sites' cases, as pooled training would: the coordinator knows only how many cases a site has, deals the places
of the batch out to the sites, and each returns the mean gradient over its cases. With per-sample losses and no
running statistics (strategies/networks, strategies/losses) their weighted sum is the pooled gradient.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
import torch

from protos.declaration import Bound, Declaration
from protos.handover import Handover
from strategies.gathering import Ask, Average, Gathering, Reply, Stop
from strategies.gradients import Descent, add, departure, update, update_args, update_declaration
from strategies.randomness import Seeds, permutation
from strategies.strategy import Strategy
from strategies.training import learning_rate, most_steps, visit_steps
from strategies.visit import Departure, Visit


class Joint(Strategy):
    """As many updates in all as visits to all sites would make, so that it sees as much as the sequence does."""

    name = "joint"
    summary = "all sites at once without pooling: exact gradients summed over sites, one optimizer step per round"
    source = "baseline"

    def itinerary(self) -> tuple[Stop, ...]:
        """One stop at which all sites are asked, round after round."""
        return (Stop(0, self.plan.sites, follows=None, action="gradient"),)

    def takes(self, action: str) -> Mapping[str, Bound]:
        """Which update, over how many samples."""
        return update_args(most_steps(self.plan.training) * len(self.plan.sites), self.plan.training.batch_size)

    def declares(self, action: str) -> Declaration:
        """A gradient."""
        return update_declaration(self)

    def gather(self, stop: Stop, handover: Handover, cases: Mapping[str, int], average: Average) -> Gathering:
        """Deal out every batch, sum the gradients, step."""
        return _ExactJoint(self, stop, handover, cases)

    def visit(self, visit: Visit) -> Departure:
        """The mean gradient over the asked-for samples of the site's shuffled stream, at the arrived weights."""
        position, count, step = (int(visit.args[key]) for key in ("position", "count", "update"))
        updates, loss = update(self, visit, position=position, count=count, step=step)
        return departure(updates, {"samples": count, "loss": loss})


class _ExactJoint(Descent):
    """The coordinator's part: the dealt-out batches and the optimizer."""

    def __init__(self, strategy: Joint, stop: Stop, handover: Handover, cases: Mapping[str, int]) -> None:
        super().__init__(strategy, handover)
        self._training = strategy.plan.training
        self._sites = stop.sites
        self._cases = [cases[site] for site in stop.sites]
        self._seeds = Seeds(strategy.plan.seed, stop.index, "all sites")
        self.rounds = sum(visit_steps(self._training, samples) for samples in self._cases)

    def asks(self, round: int) -> Iterator[tuple[str, Ask]]:
        """Ask every site for the gradient over its part of the batch; a site without a part is not asked."""
        size = self._training.batch_size
        before = self._dealt(round * size)
        after = self._dealt((round + 1) * size)
        handover = self.result()
        for number, site in enumerate(self._sites):
            if count := after[number] - before[number]:
                yield site, Ask(handover, {"position": before[number], "count": count, "update": round})

    def _dealt(self, position: int) -> Counter[int]:
        """How many of the first `position` places of the pooled shuffled stream fell to each site."""
        pooled = sum(self._cases)
        epochs, rest = divmod(position, pooled)
        order = permutation(self._seeds("order", epochs), pooled)
        owners = np.searchsorted(np.cumsum(self._cases), order[:rest], side="right")
        dealt = Counter({number: epochs * count for number, count in enumerate(self._cases)})
        dealt.update(int(owner) for owner in owners)
        return dealt

    def receive(self, round: int, replies: Iterable[Reply]) -> None:
        """theta <- optimizer(theta, sum_j (b_j / b) * gradient_j)."""
        total: dict[str, torch.Tensor] = {}
        for reply in replies:
            add(total, reply, reply.metrics["samples"] / self._training.batch_size)
        self.step(total, learning_rate(self._training, round, self.rounds, first=True))

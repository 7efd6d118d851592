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

from protos.declaration import Declaration
from protos.handover import Handover, HandoverSchema, Kind
from strategies.gathering import Ask, Average, Gathering, Reply, Stop
from strategies.randomness import Seeds, permutation
from strategies.strategy import COUNT, LOSS, Strategy, specs
from strategies.training import draw, finite, gradient, make_optimizer, restore, snapshot
from strategies.visit import Departure, Visit, seeded

UPDATE = "update/"  # marks a tensor of kind `weights` as a gradient


class Joint(Strategy):
    """`steps` times the number of sites updates in all, so that it sees as much as the sequence does."""

    name = "joint"
    summary = "all sites at once without pooling: exact gradients summed over sites, one optimizer step per round"
    source = "baseline"

    def itinerary(self) -> tuple[Stop, ...]:
        """One stop at which all sites are asked, round after round."""
        return (Stop(0, self.plan.sites, follows=None, action="gradient"),)

    def declares(self, action: str) -> Declaration:
        """A gradient has one tensor per trainable parameter, under `weights`, marked as an update."""
        with torch.device("meta"):
            parameters = dict(self.network().named_parameters())
        updates = {f"{UPDATE}{name}": spec for name, spec in specs(parameters).items()}
        return Declaration(HandoverSchema({Kind.WEIGHTS: updates}), {"samples": COUNT, "loss": LOSS})

    def gather(self, stop: Stop, handover: Handover, cases: Mapping[str, int], average: Average) -> Gathering:
        """Deal out every batch, sum the gradients, step."""
        return _ExactJoint(self, stop, handover, cases)

    def visit(self, visit: Visit) -> Departure:
        """The mean gradient over the asked-for samples of the site's shuffled stream, at the arrived weights."""
        model = self.loaded(visit.handover, visit.device)
        model.train()
        position, count = int(visit.args["position"]), int(visit.args["count"])
        with seeded(visit.seeds("step", int(visit.args["update"])), visit.device):
            value = self.loss(model, draw(visit, position, count), None)
            updates = gradient(model, value)
        handover = Handover.of(weights={f"{UPDATE}{name}": g for name, g in updates.items()})
        return Departure(handover, {"samples": count, "loss": finite(value)})


class _ExactJoint:
    """The coordinator's part: the dealt-out batches and the optimizer, whose state lives here."""

    steps_per_round = 1

    def __init__(self, strategy: Joint, stop: Stop, handover: Handover, cases: Mapping[str, int]) -> None:
        self._training = strategy.plan.training
        self._sites = stop.sites
        self._cases = [cases[site] for site in stop.sites]
        self._seeds = Seeds(strategy.plan.seed, stop.index, "all sites")
        self.rounds = self._training.steps * len(stop.sites)
        self._model = strategy.loaded(handover, torch.device("cpu"))
        self._optimizer = make_optimizer(self._training, self._model)

    def asks(self, round: int) -> Iterator[tuple[str, Ask]]:
        """Ask every site for the gradient over its part of the batch; a site without a part is not asked."""
        size = self._training.batch_size
        before = self._dealt(round * size)
        after = self._dealt((round + 1) * size)
        handover = Handover.of(weights=self._model.state_dict())
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
        self._optimizer.zero_grad(set_to_none=True)
        parameters = dict(self._model.named_parameters())
        for reply in replies:
            share = reply.metrics["samples"] / self._training.batch_size
            for name, tensor in reply.handover.state(Kind.WEIGHTS).items():
                parameter = parameters[name.removeprefix(UPDATE)]
                parameter.grad = tensor * share if parameter.grad is None else parameter.grad.add_(tensor, alpha=share)
        self._optimizer.step()

    def state(self) -> dict[str, torch.Tensor]:
        """Weights and optimizer state."""
        return snapshot(self._model, self._optimizer)

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a round's end."""
        restore(state, self._model, self._optimizer)

    def result(self) -> Handover:
        """The jointly trained weights."""
        return Handover.of(weights=self._model.state_dict())

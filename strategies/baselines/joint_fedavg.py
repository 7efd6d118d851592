"""Joint training in its federated form: rounds of a few local steps at every site, weights averaged by FedAvg.

An approximation of strategies/baselines/joint.py: with several local steps, or a local Adam, sites drift apart
between two averages. McMahan et al. 2017, Algorithm 1; the averaging is Flower's own.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated

import torch
from pydantic import Field

from protos.declaration import Bound
from protos.handover import Handover, Kind
from protos.plan import Record
from strategies.gathering import Ask, Average, Gathering, Reply, Stop
from strategies.strategy import Strategy
from strategies.training import backward, learning_rate, most_steps, stretch, train, visit_steps
from strategies.visit import Departure, Visit


class FedAvgParameters(Record):
    """`local_steps`: optimizer steps at each site between two averages."""

    local_steps: Annotated[int, Field(gt=0)] = 10


class JointFedAvg(Strategy):
    """Local optimizer steps at all sites, then the average of their weights, weighted by their training samples.

    As many updates in all as visits to all sites would make, `batch_size` samples per update spread over the sites in
    proportion to their size (at least one each); every round begins with a fresh local optimizer, and keeps the
    learning rate of its first update.
    """

    name = "joint-fedavg"
    summary = "all sites at once by FedAvg: a few local steps everywhere, then the weighted mean of the weights"
    source = "baseline (McMahan et al. 2017)"
    Parameters = FedAvgParameters

    parameters: FedAvgParameters

    def itinerary(self) -> tuple[Stop, ...]:
        """One stop at which all sites are asked, round after round."""
        return (Stop(0, self.plan.sites, follows=None, action="local_steps"),)

    def takes(self, action: str) -> Mapping[str, Bound]:
        """A stretch of the plan's training: its place, length, batch size and rate."""
        training = self.plan.training
        updates = max(1, most_steps(training) * len(self.plan.sites))
        return {
            "first_step": Bound(0, updates - 1, whole=True),
            "steps": Bound(1, self.parameters.local_steps, whole=True),
            "batch_size": Bound(1, training.batch_size, whole=True),
            "lr": Bound(0, training.lr),
        }

    def gather(self, stop: Stop, handover: Handover, cases: Mapping[str, int], average: Average) -> Gathering:
        """Send the average round, average what comes back."""
        return _FedAvgRounds(self, stop, handover, cases, average)

    def visit(self, visit: Visit) -> Departure:
        """A few ordinary steps from the arrived average."""
        model = self.loaded(visit.handover, visit.device)
        training = stretch(self.plan.training, int(visit.args["steps"]), visit.args["lr"])
        metrics = train(
            model,
            training.model_copy(update={"batch_size": int(visit.args["batch_size"])}),
            visit,
            gradients=backward(lambda batch: self.loss(model, batch, None)),
            first_step=int(visit.args["first_step"]),
        )
        return Departure(Handover.of(weights=model.state_dict()), metrics)


class _FedAvgRounds:
    """The coordinator's part: how many steps of which batch size each round, and the current average."""

    def __init__(
        self, strategy: JointFedAvg, stop: Stop, handover: Handover, cases: Mapping[str, int], average: Average
    ) -> None:
        self._training = training = strategy.plan.training
        self._updates = sum(visit_steps(training, cases[site]) for site in stop.sites)
        self._local_steps = self.steps_per_round = strategy.parameters.local_steps
        self.rounds = -(-self._updates // self._local_steps)
        self._batch_sizes = apportion(training.batch_size, {site: cases[site] for site in stop.sites})
        self._handover = handover
        self._average = average

    def asks(self, round: int) -> Iterator[tuple[str, Ask]]:
        """The same number of local steps everywhere; the last round may be shorter."""
        first = round * self._local_steps
        steps = min(self._local_steps, self._updates - first)
        args = {"first_step": first, "steps": steps, "lr": learning_rate(self._training, first, self._updates, True)}
        for site, batch_size in self._batch_sizes.items():
            yield site, Ask(self._handover, args | {"batch_size": batch_size})

    def receive(self, round: int, replies: Iterable[Reply]) -> None:
        """theta <- sum_j (n_j / n) theta_j."""
        self._handover = self._average(replies)

    def state(self) -> dict[str, torch.Tensor]:
        """The current average."""
        return self._handover.state(Kind.WEIGHTS)

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a round's end."""
        self._handover = Handover.of(weights=state)

    def result(self) -> Handover:
        """The last average."""
        return self._handover


def apportion(total: int, sizes: Mapping[str, int]) -> dict[str, int]:
    """Split `total` over the sites in proportion to `sizes`, by largest remainder, at least one each.

    Ones that small sites get beyond their share are taken from the largest parts; only where there are more sites than
    `total` do the parts sum to more, namely to one for each site.
    """
    whole = sum(sizes.values())
    exact = {site: total * size / whole for site, size in sizes.items()}
    parts = {site: int(share) for site, share in exact.items()}
    by_remainder = sorted(exact, key=lambda site: parts[site] - exact[site])
    for site in by_remainder[: total - sum(parts.values())]:
        parts[site] += 1
    parts = {site: max(1, part) for site, part in parts.items()}
    while sum(parts.values()) > max(total, len(parts)):
        parts[max(parts, key=lambda site: (parts[site], -sizes[site]))] -= 1
    return parts

"""Gradients that travel: a site's update, and the optimizer at the coordinator that steps with what it is given."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from protos.declaration import Bound, Declaration
from protos.handover import UPDATE, Handover, HandoverSchema, Kind
from strategies.data import Batch
from strategies.gathering import Reply
from strategies.strategy import COUNT, LOSS, Strategy, specs
from strategies.training import draw, finite, gradient, make_optimizer, restore, set_learning_rate, snapshot
from strategies.visit import Departure, Visit, seeded


def update_declaration(strategy: Strategy) -> Declaration:
    """A gradient has one tensor per trainable parameter, under `weights`, marked as an update."""
    with torch.device("meta"):
        parameters = dict(strategy.network().named_parameters())
    updates = {f"{UPDATE}{name}": spec for name, spec in specs(parameters).items()}
    return Declaration(HandoverSchema({Kind.WEIGHTS: updates}), {"samples": COUNT, "loss": LOSS})


def update_args(updates: int, count: int) -> dict[str, Bound]:
    """What a request for an update says: which of `updates`, over how many samples, at most `count`, from where on."""
    updates = max(1, updates)
    return {
        "position": Bound(0, updates * count, whole=True),
        "count": Bound(1, count, whole=True),
        "update": Bound(0, updates - 1, whole=True),
    }


def update(
    strategy: Strategy, visit: Visit, *, position: int, count: int, step: int
) -> tuple[dict[str, Tensor], float | None]:
    """The mean gradient by parameter name, and the loss, at the arrived weights.

    Over `count` >= 1 samples from `position` on of the shuffled stream of `visit.train`; `step` numbers the seed of
    what the model draws. Every update that leaves a site is computed here. With `visit.privacy` it is clipped and
    noised, and there is no loss, which would tell of the samples unprotected. Raises FloatingPointError when training
    has diverged.
    """
    model = strategy.loaded(visit.handover, visit.device)
    model.train()
    with seeded(visit.seeds("step", step), visit.device):
        if visit.privacy is not None:
            parts = contributions(strategy, model, visit, position, count)
            return visit.privacy.release(parts, dict(model.named_parameters()), count), None
        value = strategy.loss(model, draw(visit, position, count, strategy.plan.training.patches), None)
        return gradient(model, value), finite(value)


def contributions(
    strategy: Strategy, model: nn.Module, visit: Visit, position: int, count: int
) -> Iterator[dict[str, Tensor]]:
    """What each drawn sample adds to `count` times the mean gradient, one backward pass each, by parameter name.

    All windows of a sample, and all its draws, are one contribution, so that a bound holds for the sample.
    """
    patches = strategy.plan.training.patches
    batch = draw(visit, position, count, patches)
    rows: dict[int, list[int]] = {}
    for place in range(count):
        index = visit.seeds.sample(position + place, len(visit.train))
        rows.setdefault(index, []).extend(range(place * patches, (place + 1) * patches))
    for own in rows.values():
        value = strategy.loss(model, Batch(batch.image[own], batch.label[own]), None)
        finite(value)
        yield gradient(model, value * (len(own) / patches))


def no_update(strategy: Strategy, visit: Visit) -> dict[str, Tensor]:
    """The update of a site that has no sample to draw: zeros, and with `visit.privacy` the noise alone."""
    model = strategy.loaded(visit.handover, visit.device)
    if visit.privacy is not None:
        return visit.privacy.release((), dict(model.named_parameters()), 1)
    return {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}


def departure(updates: Mapping[str, Tensor], metrics: Mapping[str, int | float | None]) -> Departure:
    """Pack an update, each tensor marked as one, with the metrics that there are."""
    weights = {f"{UPDATE}{name}": tensor for name, tensor in updates.items()}
    there = {name: value for name, value in metrics.items() if value is not None}
    return Departure(Handover.of(weights=weights), there)


def add(total: dict[str, Tensor], reply: Reply, share: float) -> None:
    """total <- total + share * the reply's update, by parameter name, in place; an empty total counts as zeros."""
    for key, tensor in reply.handover.state(Kind.WEIGHTS).items():
        name = key.removeprefix(UPDATE)
        total[name] = total[name].add_(tensor, alpha=share) if name in total else tensor * share


class Descent:
    """The coordinator's part in a stop of one optimizer step per round: model and optimizer, whose state lives here.

    The base of such gatherings, which say whom to ask and how to combine what comes back.
    """

    steps_per_round = 1

    def __init__(self, strategy: Strategy, handover: Handover) -> None:
        self._model = strategy.loaded(handover, torch.device("cpu"))
        self._optimizer = make_optimizer(strategy.plan.training, self._model)

    def result(self) -> Handover:
        """The weights as they are now."""
        return Handover.of(weights=self._model.state_dict())

    def step(self, total: Mapping[str, Tensor], rate: float) -> None:
        """theta <- optimizer(theta, total) at that learning rate, `total` by parameter name."""
        for name, parameter in self._model.named_parameters():
            parameter.grad = total[name]
        set_learning_rate(self._optimizer, rate)
        self._optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """Weights and optimizer state."""
        return snapshot(self._model, self._optimizer)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Bring both to what `state` returned."""
        restore(state, self._model, self._optimizer)

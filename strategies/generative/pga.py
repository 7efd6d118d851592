"""What Dual-Meta is held against: the paper's objectives (Xu et al. 2024, SMG-Learning) to the letter, as gradients.

`pga` is Eq. 3; `second_order` the dual meta-objective of Eq. 5 differentiated through; `first_order` the same with the
look-aheads taken as they are, which is what `dual_meta` computes for less. Second-order is Eq. 3 up to O(gamma^2).
First-order misses gamma H_D G_P, so it is Eq. 3 up to O(gamma) only; averaged over both roles of the two losses, such
as those of tr and te, which are drawn at random, it is Eq. 3 with half of gamma up to O(gamma^2).
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from strategies.data import Batch
from strategies.generative.dual_meta import (
    Alignment,
    Gradient,
    Loss,
    Pair,
    add,
    dot,
    joined,
    look_ahead,
)


def pga(model: nn.Module, loss: Loss, pair: Pair, alignment: Alignment) -> tuple[Gradient, Tensor]:
    """Eq. 3, L_D + L_P - gamma G_D.G_P + L_tr + L_te - beta G_tr.G_te: its gradient, and its value."""
    objective = _of_parameters(model, loss)
    theta = {name: parameter.detach().requires_grad_() for name, parameter in model.named_parameters()}
    value = torch.zeros((), device=pair.incoming.image.device)
    for first, second, rate in _aligned(pair, alignment):
        one, other = objective(theta, first), objective(theta, second)
        g, h = (_gradient(side, theta, create_graph=True) for side in (one, other))
        value = value + one + other - rate * dot(g.values(), h.values())
    return _gradient(value, theta), value.detach()


def second_order(model: nn.Module, loss: Loss, pair: Pair, alignment: Alignment) -> tuple[Gradient, Tensor]:
    """Eq. 5, L_D(theta) + L_P(theta - gamma G_D(theta)) + L_tr(theta) + L_te(theta - beta G_tr(theta)), differentiated
    through the look-aheads: its gradient, and its value.
    """
    objective = _of_parameters(model, loss)
    pairs = _aligned(pair, alignment)

    def meta_objective(theta: dict[str, Tensor]) -> Tensor:
        value = torch.zeros((), device=pair.incoming.image.device)
        for first, second, rate in pairs:
            inner, here = grad_and_value(objective)(theta, first)
            value = value + here + objective(look_ahead(theta, inner, rate), second)
        return value

    found: tuple[Gradient, Tensor] = grad_and_value(meta_objective)(
        {name: parameter.detach() for name, parameter in model.named_parameters()}
    )
    return found


def first_order(model: nn.Module, loss: Loss, pair: Pair, alignment: Alignment) -> Gradient:
    """g1 + g2 of g1 = G_D + grad L_P(theta - gamma G_D) and g2 = G_tr + grad L_te(theta - beta G_tr) (Eq. 5 with "only
    first-order derivative calculations"), by four gradients.
    """
    objective = _of_parameters(model, loss)
    theta = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def gradient_at(weights: Mapping[str, Tensor], cells: Sequence[Batch]) -> Gradient:
        leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
        return _gradient(objective(leaves, cells), leaves)

    total: Gradient = {}
    for first, second, rate in _aligned(pair, alignment):
        inner = gradient_at(theta, first)
        add(total, inner)
        add(total, gradient_at(look_ahead(theta, inner, rate), second))
    return total


def _aligned(pair: Pair, alignment: Alignment) -> list[tuple[list[Batch], list[Batch], float]]:
    """What is aligned with what at which rate: D with P, tr with te; each side as its cells."""
    pairs = []
    if alignment.orientation or not alignment.arbitrary:
        pairs.append(([pair.incoming], [pair.replay], alignment.gamma if alignment.orientation else 0.0))
    if alignment.arbitrary:
        (in_tr, in_te), (re_tr, re_te) = pair.cut()
        pairs.append((joined([in_tr, re_tr]), joined([in_te, re_te]), alignment.beta))
    return pairs


def _of_parameters(model: nn.Module, loss: Loss) -> Callable[[Mapping[str, Tensor], Sequence[Batch]], Tensor]:
    """The mean loss over the samples of several cells as a function of the parameters; zero over none."""

    class Objective(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, batch: Batch) -> Tensor:
            return loss(batch)

    objective = Objective()

    def mean(theta: Mapping[str, Tensor], cells: Sequence[Batch]) -> Tensor:
        held = {f"model.{name}": weight for name, weight in theta.items()}
        count = sum(len(cell.image) for cell in cells)
        value = 0 * next(iter(theta.values())).sum()  # depends on theta even where there is no cell
        for cell in cells:
            if len(cell.image):
                part: Tensor = functional_call(objective, held, (cell,))
                value = value + part * (len(cell.image) / count)
        return value

    return mean


def _gradient(value: Tensor, theta: Mapping[str, Tensor], create_graph: bool = False) -> Gradient:
    """By name; zeros where a parameter has no part in `value`."""
    found = torch.autograd.grad(value, list(theta.values()), create_graph=create_graph, materialize_grads=True)
    return dict(zip(theta, found, strict=True))

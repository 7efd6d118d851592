"""Fine-tuning with an L2 pull towards the arrived weights: EWC with every parameter equally important."""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from protos.plan import Record
from strategies.data import Batch
from strategies.strategy import Strategy
from strategies.visit import Visit


class L2Parameters(Record):
    """`strength` is the lambda of lambda/2 * sum (theta - theta_arrived)^2."""

    strength: Annotated[float, Field(ge=0)] = 0.01


class L2(Strategy):
    """loss = L_site(theta) + strength/2 * ||theta - theta_arrived||^2, from the second visit on."""

    name = "l2"
    summary = "fine-tuning with an L2 pull towards the weights that arrived"
    source = "baseline (the L2 row of Kirkpatrick et al. 2017, Fig. 2)"
    Parameters = L2Parameters
    neutral = {"strength": 0.0}

    parameters: L2Parameters

    def arrive(self, visit: Visit, model: nn.Module) -> list[torch.Tensor]:
        """Keep the arrived parameters; none at the first visit, where they are only an initialisation."""
        if visit.first:
            return []
        return [parameter.detach().clone() for parameter in model.parameters()]

    def loss(self, model: nn.Module, batch: Batch, notes: Any) -> torch.Tensor:
        """Add the pull to the segmentation loss."""
        value = super().loss(model, batch, notes)
        if not notes:
            return value
        return value + self.parameters.strength / 2 * squared_distance(list(model.parameters()), notes)


def squared_distance(parameters: list[nn.Parameter], anchor: list[torch.Tensor]) -> torch.Tensor:
    """||theta - theta*||^2 over all parameters."""
    return torch.stack([(p - a).square().sum() for p, a in zip(parameters, anchor, strict=True)]).sum()

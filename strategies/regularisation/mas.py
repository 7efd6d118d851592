"""MAS, Memory Aware Synapses (Aljundi et al. 2018), as adapted to segmentation by MAS-LR (Özgün et al. 2020, 2.1)."""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import nn

from strategies.data import Batch
from strategies.regularisation.importance import ImportanceDriven, ImportanceParameters, weighted_distance


class MASParameters(ImportanceParameters):
    """`strength` is λ of eq. 2."""

    strength: Annotated[float, Field(ge=0)] = 1e4


class MAS(ImportanceDriven):
    """loss = L_site(θ) + λ/|θ| · Σ Ω (θ - θ*)² (eq. 2, divided by the number of parameters |θ|).

    θ* are the weights that arrived.
    """

    name = "mas"
    summary = "pull important weights towards where they arrived; importance from the outputs' sensitivity"
    source = "Aljundi et al. 2018, as in MAS-LR (Özgün et al. 2020)"
    Parameters = MASParameters
    neutral = {"strength": 0.0}

    parameters: MASParameters

    def loss(self, model: nn.Module, batch: Batch, notes: Any) -> torch.Tensor:
        """Add the surrogate to the segmentation loss, once there is an importance."""
        value = super().loss(model, batch, notes)
        importance, anchor = notes
        if not importance.samples or not self.parameters.strength:
            return value
        surrogate = weighted_distance(model.parameters(), anchor, importance.for_parameters(model))
        return value + self.parameters.strength / sum(p.numel() for p in model.parameters()) * surrogate

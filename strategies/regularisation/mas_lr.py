"""MAS-LR (Özgün et al. 2020, 2.2): the more important a parameter, the smaller its learning rate."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from strategies.regularisation.importance import ImportanceDriven, ImportanceParameters, Level


class MASLRParameters(ImportanceParameters):
    """MAS-LR has no parameter of its own; the paper found importance by filter best."""

    level: Level = "filter"


class MASLR(ImportanceDriven):
    """α_ij = (1 - Ω_ij) α (eq. 3), applied to the optimizer's proposal: θ <- θ + (1 - Ω)(θ_proposed - θ).

    For updates that are linear in the learning rate (SGD, momentum, Adam, AdamW) the two are the same, and a parameter
    of importance 1 keeps its bits whatever the momentum or weight decay, as one with a gradient of zero would not. The
    released code bounds each parameter's learning rate to [1e-7, 0.99]; so does `reading: released`, at the scenario's
    training.lr whatever the schedule has made of it.
    """

    name = "mas-lr"
    summary = "scale every update by one minus the parameter's importance; no parameter of its own"
    source = "MAS-LR (Özgün et al. 2020)"
    Parameters = MASLRParameters

    parameters: MASLRParameters

    def acceptance(self, model: nn.Module, notes: Any) -> Callable[[list[torch.Tensor]], None] | None:
        """Go only part of the way to what the optimizer proposed."""
        importance, _ = notes
        if not importance.samples:
            return None
        shares = [1 - omega for omega in importance.for_parameters(model)]
        lr = self.plan.training.lr
        if self.parameters.reading == "released" and lr:
            shares = [((share * lr).clamp(1e-7, 0.99) / lr).clamp(max=1) for share in shares]
        parameters = list(model.parameters())

        @torch.no_grad()
        def accept(before: list[torch.Tensor]) -> None:
            for parameter, old, share in zip(parameters, before, shares, strict=True):
                # lerp is exact at both ends, which old + share * (new - old) is not
                parameter.copy_(torch.lerp(old, parameter, share))

        return accept

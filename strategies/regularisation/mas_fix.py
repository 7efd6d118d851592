"""MAS-Fix (Özgün et al. 2020, 2.2, "Parameter Freezing"): the most important parameters never change again."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from protos.handover import Handover, Kind, TensorSpec
from strategies.regularisation.importance import (
    ImportanceDriven,
    ImportanceParameters,
    Level,
    unit_axes,
    unit_means,
)
from strategies.visit import Visit

FROZEN = "frozen/"  # in a handover's importance: which units of a parameter are frozen


class MASFixParameters(ImportanceParameters):
    """`share` is β: the part of the network that each site may freeze.

    `among`: of which units the most important share is taken. all: of all, so that a site freezes nothing new where its
    important units are frozen already ("the network will remain as is"). remaining: of those not frozen yet.
    """

    level: Level = "kernel"
    share: Annotated[float, Field(ge=0, le=1)] = 0.25
    among: Literal["all", "remaining"] = "all"


class MASFix(ImportanceDriven):
    """After each site the units of highest importance, up to a share β of the network, are frozen in addition."""

    name = "mas-fix"
    summary = "freeze a share of the network, the most important part, after each site"
    source = "MAS-LR (Özgün et al. 2020)"
    Parameters = MASFixParameters
    neutral = {"share": 0.0}

    parameters: MASFixParameters

    def importance_specs(self) -> dict[str, TensorSpec]:
        """Beside the importance of every unit, whether it is frozen."""
        with torch.device("meta"):
            model = self.network()
        units = unit_means(dict(model.named_parameters()), unit_axes(model, self.parameters.level))
        frozen = {f"{FROZEN}{name}": TensorSpec("bool", tuple(unit.shape)) for name, unit in units.items()}
        return super().importance_specs() | frozen

    def acceptance(self, model: nn.Module, notes: Any) -> Callable[[list[Tensor]], None] | None:
        """Take back what the optimizer did to frozen units: with momentum or weight decay a gradient of zero moves."""
        _, _, frozen = notes
        masks = [frozen[name].to(p.device) for name, p in model.named_parameters()]
        parameters = list(model.parameters())
        if not any(mask.any() for mask in masks):
            return None

        @torch.no_grad()
        def accept(before: list[Tensor]) -> None:
            for parameter, old, mask in zip(parameters, before, masks, strict=True):
                parameter.copy_(torch.where(mask, old, parameter))

        return accept

    def arrive(self, visit: Visit, model: nn.Module) -> Any:
        """The importance, the weights it belongs to, and what is frozen."""
        state = visit.handover.state(Kind.IMPORTANCE)
        frozen = {name.removeprefix(FROZEN): mask for name, mask in state.items() if name.startswith(FROZEN)}
        return (*super().arrive(visit, model), frozen)

    def leave(self, visit: Visit, model: nn.Module, notes: Any) -> Handover:
        """Pack the weights, the importance, and what is frozen from now on."""
        arrived, _, frozen = notes
        importance = self.learnt(visit, model, arrived)
        sizes = {name: p.numel() // importance.omega[name].numel() for name, p in model.named_parameters()}
        chosen = most_important(
            importance.omega, sizes, self.parameters.share, frozen if self.parameters.among == "remaining" else {}
        )
        masks = {f"{FROZEN}{name}": mask.cpu() | chosen[name] for name, mask in frozen.items()}
        return Handover.of(weights=model.state_dict(), importance=self.pack(importance) | masks)


def most_important(
    omega: Mapping[str, Tensor], sizes: Mapping[str, int], share: float, without: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The units of highest importance that together hold at most `share` of all parameters, as masks.

    omega: the units' importance by parameter name; sizes: how many parameters one of its units holds; without: masks of
    units that may not be chosen. Units of no importance are never chosen, and of equal ones the first come first.
    """
    values = np.concatenate([value.detach().cpu().flatten().numpy() for value in omega.values()])
    held = np.concatenate([np.full(value.numel(), sizes[name]) for name, value in omega.items()])
    barred = values <= 0
    if without:
        barred |= np.concatenate([without[name].flatten().numpy() for name in omega])
    order = np.argsort(-values, kind="stable")
    order = order[~barred[order]]
    taken = np.zeros(len(values), dtype=bool)
    taken[order[np.cumsum(held[order]) <= share * held.sum()]] = True
    parts = np.split(taken, np.cumsum([value.numel() for value in omega.values()])[:-1])
    return {
        name: torch.from_numpy(part).reshape(value.shape)
        for (name, value), part in zip(omega.items(), parts, strict=True)
    }

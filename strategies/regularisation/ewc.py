"""EWC, Elastic Weight Consolidation (Kirkpatrick et al. 2017), with the Fisher information of single samples."""

from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from protos.handover import Handover, Kind, TensorSpec
from protos.plan import Plan
from strategies.data import Batch
from strategies.regularisation.importance import (
    Importance,
    ImportanceDriven,
    ImportanceParameters,
    comparable,
    measured,
    unit_axes,
    unit_means,
    weighted_distance,
)
from strategies.strategy import UnknownParameter, specs
from strategies.visit import Visit

ANCHOR = "anchor/"  # in a handover's importance: the weights to which earlier sites pull, with `anchors: every`


class EWCParameters(ImportanceParameters):
    """`strength` is λ. `decay` is γ, by which earlier importance fades at every site.

    `anchors`: last pulls towards the weights that arrived (online EWC, Schwarz et al. 2018); every towards where each
    earlier site left them (the original). `reading`: raw takes the Fisher information as it is.
    """

    strength: Annotated[float, Field(ge=0)] = 1e4
    decay: Annotated[float, Field(ge=0, le=1)] = 1.0
    anchors: Literal["last", "every"] = "last"
    reading: Literal["raw", "paper", "released"] = "raw"  # type: ignore[assignment]  # one reading more


class EWC(ImportanceDriven):
    """loss = L_site(θ) + λ/2 · Σ F (θ - θ*)², with F <- γF + F_site after each site.

    F_site = 1/N · Σ_n (∂ log p(y_n|x_n) / ∂θ)², squared for each sample and then averaged. Gradients averaged over a
    batch first, as many implementations have it, make F smaller the larger the batch. log p is the mean over pixels, as
    in the loss, so that λ does not depend on the image's size; F then has the order of one over the squared number of
    pixels, and λ is large.

    Every earlier site's quadratic with an anchor of its own add up to one, exactly: Σ_i F_i (θ - θ_i)² is
    (Σ_i F_i)(θ - θ̄)² and a constant, where θ̄ is the mean of the θ_i weighted by F_i. So `anchors: every` carries two
    tensors for each parameter, however many sites there were.
    """

    name = "ewc"
    summary = "pull weights towards where they arrived, by their Fisher information"
    source = "Kirkpatrick et al. 2017; Schwarz et al. 2018 (online)"
    Parameters = EWCParameters
    neutral = {"strength": 0.0}

    parameters: EWCParameters

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        if plan.task.soft:
            raise UnknownParameter(
                "strategy.name: ewc needs the likelihood of a label, which a soft task does not give; use mas instead."
            )

    def importance_specs(self) -> dict[str, TensorSpec]:
        """With `anchors: every`, one anchor per parameter beside the importance."""
        declared = super().importance_specs()
        if self.parameters.anchors == "every":
            with torch.device("meta"):
                parameters = specs(dict(self.network().named_parameters()))
            declared |= {f"{ANCHOR}{name}": spec for name, spec in parameters.items()}
        return declared

    def arrive(self, visit: Visit, model: nn.Module) -> Any:
        """The importance that arrived and the weights to which it pulls."""
        importance, arrived = super().arrive(visit, model)
        if self.parameters.anchors == "every":
            state = visit.handover.state(Kind.IMPORTANCE)
            return importance, [state[f"{ANCHOR}{name}"].to(p.device) for name, p in model.named_parameters()]
        return importance, arrived

    def loss(self, model: nn.Module, batch: Batch, notes: Any) -> Tensor:
        """Add the pull to the segmentation loss, once there is an importance."""
        value = super().loss(model, batch, notes)
        importance, anchor = notes
        if not importance.samples or not self.parameters.strength:
            return value
        pull = weighted_distance(model.parameters(), anchor, importance.for_parameters(model))
        return value + self.parameters.strength / 2 * pull

    def leave(self, visit: Visit, model: nn.Module, notes: Any) -> Handover:
        """Pack the weights, F and, with `anchors: every`, the mean anchor."""
        arrived, anchor = notes
        importance = self.learnt(visit, model, arrived)
        packed = self.pack(importance)
        if self.parameters.anchors == "every":
            packed |= {
                f"{ANCHOR}{name}": mean_anchor(
                    old.cpu(),
                    self.parameters.decay * arrived.omega[name],
                    p.detach().cpu(),
                    importance.omega[name].cpu(),
                )
                for (name, p), old in zip(model.named_parameters(), anchor, strict=True)
            }
        return Handover.of(weights=model.state_dict(), importance=packed)

    def learnt(self, visit: Visit, model: nn.Module, arrived: Importance) -> Importance:
        """F <- γF + F_site."""
        fisher = measured(model, log_likelihood, visit, torch.square)
        if self.parameters.reading != "raw":
            fisher = comparable(fisher, self.parameters.reading)
        units = unit_means(fisher, unit_axes(model, self.parameters.level))
        gamma = self.parameters.decay
        return Importance(
            {name: gamma * arrived.omega[name].to(unit) + unit for name, unit in units.items()},
            arrived.samples + len(visit.train),
        )


def log_likelihood(logits: Tensor, label: Tensor) -> Tensor:
    """log p(y|x), the mean over pixels; logits: [1, K, *size], label: int64 [1, 1, *size]."""
    return -nn.functional.cross_entropy(logits, label.squeeze(1))


def mean_anchor(anchor: Tensor, before: Tensor, learnt: Tensor, total: Tensor) -> Tensor:
    """θ̄ weighted by importance: `before` at `anchor`, the rest of `total` at `learnt`; without any, `learnt`."""
    share = torch.where(total > 0, before / torch.where(total > 0, total, 1), 0.0)
    return torch.lerp(learnt, anchor, share.expand_as(learnt))

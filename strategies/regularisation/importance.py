"""What the importance-driven methods share: importance measured at a site, made comparable, carried on.

MAS-LR is Özgün et al. 2020, *Importance Driven Continual Learning for Segmentation Across Domains*; equation numbers
are its. Importance is measured after a site's training, on the site's own training samples, unaugmented, in eval mode.
What travels is one number per unit: a parameter, a kernel (the weights between one input and one output channel) or a
filter (all weights that make one output channel). Biases and the parameters of norms and activations are units of
their own.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from protos.handover import Handover, HandoverSchema, Kind, TensorSpec
from protos.plan import Record
from strategies import networks
from strategies.losses import probabilities
from strategies.per_sample import Fold, Objective, fold_gradients
from strategies.strategy import Strategy, specs
from strategies.visit import Visit

Level = Literal["parameter", "kernel", "filter"]
Reading = Literal["paper", "released"]

OMEGA = "omega/"  # in a handover's importance: the importance of a parameter's units
SAMPLES = "samples"  # beside it: how many samples it is the mean over


class ImportanceParameters(Record):
    """`level`: what one importance stands for. `reading`: of outliers and scale, see `comparable`. `dropout`: the
    probability with which a channel's activation is dropped in training, as in the paper's best row.
    """

    level: Level = "parameter"
    reading: Reading = "paper"
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


@dataclass(frozen=True)
class Importance:
    """`omega` by parameter name, at least 0 and broadcastable to the parameter; `samples`: from how many it comes."""

    omega: Mapping[str, Tensor]
    samples: int

    def for_parameters(self, model: nn.Module) -> list[Tensor]:
        """In the order of the model's parameters and on their device."""
        return [self.omega[name].to(p.device) for name, p in model.named_parameters()]


class ImportanceDriven(Strategy):
    """The base of MAS, MAS-Fix and MAS-LR: Ω is measured when leaving and carried on as a mean over all samples so far.

    The paper's moving average over all tasks, in the released code's form: every sample counts the same, wherever it
    was. Unlike there, each site's importance is made comparable before it is averaged, not after, so that no site
    outweighs the others by the scale of its gradients alone, and so that it can travel by kernel or filter.
    """

    carries = frozenset({Kind.WEIGHTS, Kind.IMPORTANCE})
    Parameters = ImportanceParameters

    parameters: ImportanceParameters

    def network(self) -> nn.Module:
        """The plan's network, with dropout where it is asked for."""
        return networks.build(self.plan.task, self.plan.network, dropout=self.parameters.dropout)

    def schema(self) -> HandoverSchema:
        """The weights and one importance per unit."""
        weights = super().schema().tensors[Kind.WEIGHTS]
        return HandoverSchema({Kind.WEIGHTS: weights, Kind.IMPORTANCE: self.importance_specs()})

    def importance_specs(self) -> dict[str, TensorSpec]:
        """What is carried of kind `importance`."""
        with torch.device("meta"):
            model = self.network()
        units = specs(unit_means(dict(model.named_parameters()), unit_axes(model, self.parameters.level)))
        return {f"{OMEGA}{name}": spec for name, spec in units.items()} | {SAMPLES: TensorSpec("int64", ())}

    def first_handover(self) -> Handover:
        """The weights as initialised; nothing is important yet."""
        return Handover.of(
            weights=super().first_handover().state(Kind.WEIGHTS), importance=zeros(self.importance_specs())
        )

    def arrive(self, visit: Visit, model: nn.Module) -> Any:
        """The importance that arrived and the weights it belongs to."""
        return arrived_importance(visit.handover), [p.detach().clone() for p in model.parameters()]

    def leave(self, visit: Visit, model: nn.Module, notes: Any) -> Handover:
        """Pack the weights and the importance, this site's included."""
        arrived, _ = notes
        return Handover.of(weights=model.state_dict(), importance=self.pack(self.learnt(visit, model, arrived)))

    def learnt(self, visit: Visit, model: nn.Module, arrived: Importance) -> Importance:
        """The arrived importance and this site's own, each weighted by its samples."""
        own = comparable(measure(model, sensitivity(self), visit), self.parameters.reading)
        units = unit_means(own, unit_axes(model, self.parameters.level))
        whole = arrived.samples + len(visit.train)
        return Importance(
            {name: torch.lerp(arrived.omega[name].to(u), u, len(visit.train) / whole) for name, u in units.items()},
            whole,
        )

    @staticmethod
    def pack(importance: Importance) -> dict[str, Tensor]:
        """What `arrived_importance` reads again."""
        omega = {f"{OMEGA}{name}": value for name, value in importance.omega.items()}
        return omega | {SAMPLES: torch.tensor(importance.samples)}


# Measuring


def sensitivity(strategy: Strategy) -> Objective:
    """||F(x)||², the squared norm of the network's output probabilities over pixels and classes (eq. 1): no label."""
    task = strategy.plan.task
    return lambda logits, label: probabilities(logits, task).square().sum()


def measure(model: nn.Module, objective: Objective, visit: Visit) -> dict[str, Tensor]:
    """Ω = 1/N · Σ_n |∂ objective(x_n) / ∂θ| over the site's training samples, by parameter name (eq. 1)."""
    return measured(model, objective, visit, torch.abs)


def measured(model: nn.Module, objective: Objective, visit: Visit, fold: Fold) -> dict[str, Tensor]:
    """The mean of `fold` of each training sample's gradient, with the model in eval mode and left as it was.

    Of a sample larger than the network's input one window counts, drawn as in training.
    """
    training = model.training
    model.eval()
    try:
        return fold_gradients(model, objective, visit.train, fold, seed=lambda index: visit.seeds("importance", index))
    finally:
        model.train(training)


# Made comparable


def comparable(importance: Mapping[str, Tensor], reading: Reading) -> dict[str, Tensor]:
    """Outliers set to their boundaries, then scaled to [0, 1], over all parameters together; all equal gives zeros.

    paper: below q1 - 1.5 IQR or above q3 + 1.5 IQR is an outlier, q1 and q3 being the quartiles; where these are equal
    the criterion says nothing and all values stay. released: q1 and q3
    are the percentiles 5 and 95, and the logarithm is taken before scaling. There an importance of zero gives -inf,
    and then NaN everywhere; here the logarithm has a floor at the largest importance times float32's epsilon.
    """
    values = np.concatenate([t.detach().cpu().double().flatten().numpy() for t in importance.values()])
    q1, q3 = np.percentile(values, (25, 75) if reading == "paper" else (5, 95))
    margin = 1.5 * (q3 - q1) or np.inf
    least, most = max(q1 - margin, values.min()), min(q3 + margin, values.max())
    floor = most * np.finfo(np.float32).eps

    def scale(value: Tensor) -> Tensor:
        inside = value.double().clamp(least, most)
        return inside if reading == "paper" else inside.clamp(min=floor).log()

    low, high = scale(torch.tensor(least)), scale(torch.tensor(most))
    if not high > low:
        return {name: torch.zeros_like(value) for name, value in importance.items()}
    return {
        name: ((scale(value) - low) / (high - low)).clamp(0, 1).to(value.dtype) for name, value in importance.items()
    }


# Units


def unit_axes(model: nn.Module, level: Level) -> dict[str, tuple[int, ...]]:
    """The axes of each parameter over which a unit extends; none for a parameter whose entries are units."""
    axes: dict[str, tuple[int, ...]] = {name: () for name, _ in model.named_parameters()}
    if level == "parameter":
        return axes
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd):
            space = tuple(range(2, module.weight.ndim))
            # transposed convolutions keep their input channels first: the filter of an output channel is along axis 1
            inputs = 0 if isinstance(module, _ConvTransposeNd) else 1
            axes[f"{name}.weight"] = space if level == "kernel" else (inputs, *space)
    return axes


def unit_means(importance: Mapping[str, Tensor], axes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The mean importance of each unit; its axes stay, with length 1, so that it broadcasts to the parameter."""
    return {name: value.mean(axes[name], keepdim=True) if axes[name] else value for name, value in importance.items()}


# Travelling


def zeros(declared: Mapping[str, TensorSpec]) -> dict[str, Tensor]:
    """Tensors of the declared dtypes and shapes, all zero."""
    return {name: torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype)) for name, spec in declared.items()}


def arrived_importance(handover: Handover) -> Importance:
    """The importance in a handover, on the CPU."""
    state = handover.state(Kind.IMPORTANCE)
    samples = int(state.pop(SAMPLES))
    return Importance({name.removeprefix(OMEGA): v for name, v in state.items() if name.startswith(OMEGA)}, samples)


def weighted_distance(parameters: Iterable[nn.Parameter], anchor: list[Tensor], weights: list[Tensor]) -> Tensor:
    """Σ w (θ - θ*)² over all parameters; each w broadcasts to its θ."""
    parts = [(w * (p - a).square()).sum() for p, a, w in zip(parameters, anchor, weights, strict=True)]
    return torch.stack(parts).sum()

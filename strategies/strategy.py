"""The base of every continual strategy: what travels, which stops there are, what happens at one.

Most methods override one of four small hooks of the ordinary visit: `arrive`, `loss`, `acceptance`, `leave`. A method
that needs more than a tour of visits says so in `itinerary` and `gather`.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from pydantic import ValidationError
from torch import nn

from protos.declaration import Bound, Declaration
from protos.handover import Handover, HandoverSchema, Kind, TensorSpec
from protos.plan import Plan, Record
from strategies import networks
from strategies.data import Batch
from strategies.gathering import Average, Gathering, PlainVisit, Stop
from strategies.losses import segmentation_loss
from strategies.randomness import derive
from strategies.replayer import Replayer
from strategies.training import backward, train
from strategies.visit import Departure, Visit, seeded

COUNT = Bound(0, 1e9)
LOSS = Bound(-1e6, 1e6)


class UnknownParameter(ValueError):
    """A strategy's parameters are not what it takes; one sentence."""


class NoParameters(Record):
    """A strategy without parameters of its own."""


class Strategy:
    """A continual strategy for one plan. Subclasses are registered in strategies/registry.py."""

    name: ClassVar[str]
    summary: ClassVar[str]  # one line for `locum strategies`
    source: ClassVar[str]  # the paper, or "baseline"
    carries: ClassVar[frozenset[Kind]] = frozenset({Kind.WEIGHTS})
    Parameters: ClassVar[type[Record]] = NoParameters
    # Parameters under which the method is fine-tuning bit for bit; None where there are none.
    neutral: ClassVar[Mapping[str, Any] | None] = None

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        try:
            self.parameters = self.Parameters(**plan.strategy.parameters)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(["strategy", *map(str, first["loc"])])
            known = ", ".join(self.Parameters.model_fields) or "no parameters"
            raise UnknownParameter(f"{key}: {first['msg']}; {self.name} takes {known}.") from error

    @classmethod
    def of(cls, plan: Plan) -> "Strategy":
        """The strategy for a plan; another class than this where a parameter makes it another method."""
        return cls(plan)

    # What travels

    def network(self) -> nn.Module:
        """The segmentation network, freshly initialised from torch's generator."""
        return networks.build(self.plan.task, self.plan.network)

    def loaded(self, handover: Handover, device: torch.device) -> nn.Module:
        """The network with the handover's weights, on `device`; torch's generators are left as they are."""
        with seeded(0), torch.device("meta"):  # not initialised: that would be overwritten
            model = self.network()
        model.load_state_dict(handover.state(Kind.WEIGHTS), assign=True)
        return model.to(device)

    def schema(self) -> HandoverSchema:
        """Every tensor of a handover, computed from the plan alone; here the network's weights."""
        return HandoverSchema({Kind.WEIGHTS: specs(networks.outline(self.plan.task, self.plan.network))})

    def first_handover(self) -> Handover:
        """The handover before any visit: the network as initialised from the run's seed."""
        with seeded(derive(self.plan.seed, "first handover")):
            return Handover.of(weights=self.network().state_dict())

    def arrives(self, action: str) -> HandoverSchema:
        """All that a site is sent for `action`."""
        return self.schema()

    def takes(self, action: str) -> Mapping[str, Bound]:
        """Exactly the scalars that a request for `action` brings, see Ask.args; none, unless overridden."""
        return {}

    def declares(self, action: str) -> Declaration:
        """All that a site's reply to `action` may hold."""
        return Declaration(self.schema(), VISIT_METRICS)

    def scoring_kinds(self, site: str, stop: int) -> frozenset[Kind]:
        """The kinds that `site` needs to score the handover of `stop`; here the weights."""
        return frozenset({Kind.WEIGHTS})

    def scoring_schema(self, site: str, stop: int) -> HandoverSchema:
        """The part of a handover that `site` is sent to score it after `stop`."""
        whole, kinds = self.schema(), self.scoring_kinds(site, stop)
        return HandoverSchema({kind: whole.tensors[kind] for kind in kinds})

    def for_scoring(self, handover: Handover, site: str, stop: int) -> Handover:
        """Only what `scoring_schema` names."""
        return Handover(**{kind: handover.group(kind) for kind in self.scoring_kinds(site, stop)})

    # Which stops there are

    def itinerary(self) -> tuple[Stop, ...]:
        """One visit per site, in order, each setting out with the previous one's handover."""
        return tuple(Stop(i, (site,), follows=i - 1 if i else None) for i, site in enumerate(self.plan.sites))

    def model_for(self, site: str, stop: int) -> int | None:
        """The stop whose handover `site` scores after `stop`; None: there is no model for it (yet)."""
        return stop

    def gather(self, stop: Stop, handover: Handover, cases: Mapping[str, int], average: Average) -> Gathering:
        """The coordinator's part in `stop`, given each site's number of training samples.

        `average` is the coordinator's weighted mean of handovers (Flower's FedAvg).
        """
        (site,) = stop.sites
        return PlainVisit(site, handover)

    # What happens at a site

    def predictor(self, handover: Handover, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        """The model as a function from images [N, channels, *size] to logits [N, classes, *size], in eval mode."""
        model = self.loaded(handover, device).eval()
        return lambda image: model(image.to(device))

    def replayer(self, handover: Handover, device: torch.device) -> Replayer | None:
        """The generator that the handover carries, with its prompts; None, unless overridden: it carries none."""
        return None

    def visit(self, visit: Visit) -> Departure:
        """Learn at one site: the ordinary training loop with this method's hooks."""
        model = self.loaded(visit.handover, visit.device)
        notes = self.arrive(visit, model)
        metrics = train(
            model,
            self.plan.training,
            visit,
            gradients=backward(lambda batch: self.loss(model, batch, notes)),
            accept=self.acceptance(model, notes),
        )
        return Departure(self.leave(visit, model, notes), metrics)

    def arrive(self, visit: Visit, model: nn.Module) -> Any:
        """Note what the method needs during the visit; computed anew, with the same result, when a visit resumes."""
        return None

    def loss(self, model: nn.Module, batch: Batch, notes: Any) -> torch.Tensor:
        """The scalar that a step minimises; here the plan's segmentation loss."""
        return segmentation_loss(model(batch.image), batch.label, self.plan.training.loss)

    def acceptance(self, model: nn.Module, notes: Any) -> Callable[[list[torch.Tensor]], None] | None:
        """What is called after each step with the parameters before it, to change in place what the optimizer
        proposed; None (the default) takes the proposal as it is.
        """
        return None

    def leave(self, visit: Visit, model: nn.Module, notes: Any) -> Handover:
        """Pack what travels on; here the weights."""
        return Handover.of(weights=model.state_dict())


VISIT_METRICS: Mapping[str, Bound] = {
    "samples": COUNT,
    "steps": COUNT,
    "loss_first": LOSS,
    "loss_last": LOSS,
}


def specs(state: Mapping[str, torch.Tensor]) -> dict[str, TensorSpec]:
    """Name, dtype and shape of every tensor of a state dictionary (on any device, meta too)."""
    return {name: TensorSpec(str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in state.items()}

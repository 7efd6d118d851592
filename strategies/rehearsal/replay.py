"""Experience replay in which every site's memory stays at that site.

L' = L_current + L_memory (Naga Karthik et al. 2022, Eq. 2), where the memory M is the union of at most `cases` training
cases per earlier site. As published it travels along with the model; here each site keeps its part and lends what is
learnt from it.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field

from protos.declaration import Bound, Declaration
from protos.handover import Handover, HandoverSchema, Kind
from protos.plan import Record
from strategies.gathering import Ask, Average, Gathering, Reply, Stop
from strategies.gradients import Descent, add, departure, no_update, update, update_args, update_declaration
from strategies.strategy import VISIT_METRICS, Strategy, specs
from strategies.training import (
    OPTIMIZER,
    backward,
    learning_rate,
    make_optimizer,
    most_steps,
    optimizer_state,
    restore_optimizer,
    stretch,
    train,
    unstepped_state,
    visit_steps,
)
from strategies.visit import Departure, Visit, seeded

Count = Annotated[int, Field(gt=0)]


class ReplayParameters(Record):
    """`cases` is the most that a site keeps; None divides what the current site takes over the earlier sites."""

    mode: Literal["exact", "interleaved"] = "exact"
    cases: Annotated[int, Field(ge=0, le=20)] = 20
    weighting: Literal["equal", "counts"] = "equal"  # exact: Eq. 2, or the authors' pool of current and kept cases
    memory_batch: Count | None = None  # exact: samples of each earlier site per update
    local_steps: Count = 10  # interleaved: at the current site before the weights go round the earlier ones
    memory_steps: Count | None = None  # interleaved: at each earlier site, each time round
    optimizer: Literal["travels", "resets"] = "travels"  # interleaved: its state, from hop to hop


class Replay(Strategy):
    """Train on at each site while the earlier sites rehearse what they keep.

    exact: every update is one optimizer step, at the coordinator, with the current site's gradient and those of the
    earlier sites' memories, all at the same weights, as if the memories were pooled.
    interleaved: the weights hop from site to site for a few ordinary steps each. Cheap and approximate:
    block-coordinate descent on the two parts of L', in which the last hop weighs most. The optimizer's state travels
    with the weights from hop to hop, or every hop begins with a fresh one, whose first steps are poor ones if it is
    Adam. A hop keeps the learning rate that the current site is at when the weights set out.
    """

    name = "replay"
    summary = "earlier sites rehearse at most `cases` cases each, which stay at the site; gradients or weights travel"
    source = "Naga Karthik et al. 2022"
    Parameters = ReplayParameters
    neutral = {"cases": 0}

    parameters: ReplayParameters

    @property
    def _exact(self) -> bool:
        return self.parameters.mode == "exact"

    @property
    def _travels(self) -> bool:
        return not self._exact and self.parameters.optimizer == "travels"

    def itinerary(self) -> tuple[Stop, ...]:
        """One stop per site, at which the sites before it rehearse."""
        return tuple(
            replace(
                stop,
                action="gradient" if self._exact else "steps",
                rehearsing=self.plan.sites[: stop.index] if self.parameters.cases else (),
            )
            for stop in super().itinerary()
        )

    def arrives(self, action: str) -> HandoverSchema:
        """The weights and, where it travels, the optimizer's state."""
        weights = dict(super().arrives(action).tensors[Kind.WEIGHTS])
        return HandoverSchema({Kind.WEIGHTS: weights | specs(self.fresh_optimizer())})

    def takes(self, action: str) -> Mapping[str, Bound]:
        """Whether to rehearse, and which update over how many samples, or which steps at which rate."""
        training, parameters = self.plan.training, self.parameters
        most = max(1, most_steps(training))
        rehearse = {"rehearse": Bound(0, 1, whole=True)}
        if self._exact:
            return rehearse | update_args(most, max(training.batch_size, parameters.memory_batch or 0))
        memory_steps = parameters.memory_steps or parameters.local_steps
        return rehearse | {
            "position": Bound(0, most * max(1, memory_steps), whole=True),
            "steps": Bound(1, max(most, memory_steps), whole=True),
            "lr": Bound(0, training.lr),
        }

    def declares(self, action: str) -> Declaration:
        """A gradient, or the weights after a few steps, with the optimizer's state where it travels."""
        return update_declaration(self) if self._exact else Declaration(self.arrives(action), VISIT_METRICS)

    def fresh_optimizer(self) -> dict[str, torch.Tensor]:
        """The optimizer's state before the first hop, if it travels."""
        if not self._travels:
            return {}
        with seeded(0):
            return unstepped_state(self.plan.training, self.network())

    def gather(self, stop: Stop, handover: Handover, cases: Mapping[str, int], average: Average) -> Gathering:
        """Step with the gradients of all, or send the weights round."""
        (site,) = stop.sites
        steps = visit_steps(self.plan.training, cases[site])
        return _Exact(self, stop, handover, steps) if self._exact else _Interleaved(self, stop, handover, steps)

    def visit(self, visit: Visit) -> Departure:
        """Lend a gradient or a few steps, of the site's own cases or of those it keeps."""
        if visit.args["rehearse"]:
            # a hop over a memory is short, so that it has no place to keep
            visit = replace(visit, train=visit.memory.samples(), checkpoint=_NoCheckpoint())
        elif visit.args["position"] == 0 and self.parameters.cases:
            visit.memory.keep(self.parameters.cases, visit.seeds("memory"))
        return self._gradient(visit) if self._exact else self._steps(visit)

    def _gradient(self, visit: Visit) -> Departure:
        position, count, step = (int(visit.args[key]) for key in ("position", "count", "update"))
        if not (samples := len(visit.train)):
            return departure(no_update(self, visit), {"samples": 0})
        updates, loss = update(self, visit, position=position, count=count, step=step)
        return departure(updates, {"samples": samples, "loss": loss})

    def _steps(self, visit: Visit) -> Departure:
        if not len(visit.train):
            return Departure(visit.handover, {"samples": 0, "steps": 0})
        state = visit.handover.state(Kind.WEIGHTS)
        model = self.loaded(_weights(state), visit.device)
        optimizer = make_optimizer(self.plan.training, model)
        restore_optimizer(state, model, optimizer)
        training, steps = self.plan.training, int(visit.args["steps"])
        if visit.args["rehearse"] or steps < visit_steps(training, len(visit.train)):  # else it is an ordinary visit
            training = stretch(training, steps, visit.args["lr"])
        metrics = train(
            model,
            training,
            visit,
            gradients=backward(lambda batch: self.loss(model, batch, None)),
            first_step=int(visit.args["position"]),
            optimizer=optimizer,
        )
        carried = optimizer_state(model, optimizer) if self._travels else {}
        return Departure(Handover.of(weights=model.state_dict() | carried), metrics)


class _NoCheckpoint:
    """Keeps nothing."""

    def load(self) -> None:
        """Nothing was saved."""

    def save(self, step: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Save nothing."""


class _Exact(Descent):
    """One optimizer step per round, with the gradients of the current site and of every memory."""

    def __init__(self, strategy: Replay, stop: Stop, handover: Handover, steps: int) -> None:
        super().__init__(strategy, handover)
        self._training, parameters = strategy.plan.training, strategy.parameters
        (self._site,) = stop.sites
        self._rehearsing = stop.rehearsing
        self._weighting = parameters.weighting
        self._memory_batch = parameters.memory_batch or _divided(self._training.batch_size, stop)
        self._first = stop.follows is None
        self.rounds = steps

    def asks(self, round: int) -> Iterator[tuple[str, Ask]]:
        """Ask all for their gradients at the same weights."""
        handover = self.result()
        for site in (self._site, *self._rehearsing):
            rehearse = site != self._site
            count = self._memory_batch if rehearse else self._training.batch_size
            args = {"rehearse": int(rehearse), "position": round * count, "count": count, "update": round}
            yield site, Ask(handover, args)

    def receive(self, round: int, replies: Iterable[Reply]) -> None:
        """theta <- optimizer(theta, g), where g is

        equal (Eq. 2): g_k + sum_j (|M_j| / |M|) g_j; counts: (|D_k| g_k + sum_j |M_j| g_j) / (|D_k| + |M|).
        """
        total: dict[str, torch.Tensor] = {}
        remembered: dict[str, torch.Tensor] = {}
        own = kept = 0.0
        for reply in replies:
            size = reply.metrics["samples"]
            if reply.site == self._site:
                add(total, reply, 1.0)
                own = size
            elif size:
                add(remembered, reply, size)
                kept += size
        whole = kept if self._weighting == "equal" else own + kept
        for name, tensor in remembered.items():
            if self._weighting == "counts":
                total[name].mul_(own / whole)
            total[name].add_(tensor, alpha=1 / whole)
        self.step(total, learning_rate(self._training, round, self.rounds, self._first))


class _Interleaved:
    """One hop per round: the current site, then every earlier site, over and over."""

    def __init__(self, strategy: Replay, stop: Stop, handover: Handover, steps: int) -> None:
        self._training, parameters = strategy.plan.training, strategy.parameters
        self._steps = steps
        # alone there is nobody to hop to: an ordinary visit
        self._local_steps = parameters.local_steps if stop.rehearsing else max(1, steps)
        self._memory_steps = parameters.memory_steps or _divided(parameters.local_steps, stop)
        self._hops = (*stop.sites, *stop.rehearsing)
        self._first = stop.follows is None
        self.steps_per_round = max(self._local_steps, self._memory_steps)
        self.rounds = -(-steps // self._local_steps) * len(self._hops)
        self._handover = Handover.of(weights=handover.state(Kind.WEIGHTS) | strategy.fresh_optimizer())

    def asks(self, round: int) -> Iterator[tuple[str, Ask]]:
        """A few steps at one site, on its own cases or on those it keeps, at the rate that the current site is at."""
        cycle, hop = divmod(round, len(self._hops))
        first = cycle * self._local_steps
        args = {
            "rehearse": int(hop > 0),
            "position": cycle * self._memory_steps if hop else first,
            "steps": self._memory_steps if hop else min(self._local_steps, self._steps - first),
            "lr": learning_rate(self._training, first, self._steps, self._first),
        }
        yield self._hops[hop], Ask(self._handover, args)

    def receive(self, round: int, replies: Iterable[Reply]) -> None:
        """Take over what the site returns."""
        (reply,) = replies
        self._handover = reply.handover

    def state(self) -> dict[str, torch.Tensor]:
        """The weights between two hops, and what travels with them."""
        return self._handover.state(Kind.WEIGHTS)

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from a hop's end."""
        self._handover = Handover.of(weights=state)

    def result(self) -> Handover:
        """The weights after the last hop."""
        return _weights(self._handover.state(Kind.WEIGHTS))


def _weights(state: Mapping[str, torch.Tensor]) -> Handover:
    """The handover of a hop without the optimizer's state."""
    return Handover.of(weights={name: tensor for name, tensor in state.items() if not name.startswith(OPTIMIZER)})


def _divided(whole: int, stop: Stop) -> int:
    """`whole` divided over the stop's earlier sites, at least one each."""
    return max(1, whole // max(1, len(stop.rehearsing)))

"""SMG-Learning "w/o SMD": Dual-Meta on the incoming site and on the cases that the earlier sites keep, as they are.

In the paper real cases of earlier sites travel along in place of a generator. Here each stays at its site, and the
gradients of Dual-Meta are put together at the coordinator: exactly those of the pooled batches (`dual_meta.py`), since
every one of them is a mean over samples, wherever these lie.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from protos.handover import Handover
from protos.plan import Plan, StrategyChoice
from strategies.gathering import Ask, Average, Gathering, Reply, Stop
from strategies.generative.dual_meta import Alignment, Gradient, draw_split, look_ahead
from strategies.generative.dual_meta import add as plus
from strategies.gradients import Descent, add
from strategies.randomness import Seeds
from strategies.rehearsal.replay import Replay
from strategies.training import learning_rate, visit_steps

Half = Literal["all", "tr", "te"]
# The four gradients that are summed: of D, of tr, of te at the look-ahead from tr's, of P at the look-ahead from D's.
Term = Literal["d", "tr", "te", "p"]
_TERMS: tuple[Term, ...] = get_args(Term)


class AlignedReplay(Replay):
    """Replay in its mode `exact`, whose sites do here what they do there; the coordinator steps with Dual-Meta."""

    def __init__(self, plan: Plan, cases: int, alignment: Alignment) -> None:
        """`cases` is the most that a site keeps, at most 20."""
        choice = StrategyChoice.model_validate({"name": Replay.name, "mode": "exact", "cases": cases})
        super().__init__(plan.model_copy(update={"strategy": choice}))
        self._alignment = alignment

    def gather(self, stop: Stop, handover: Handover, cases: Mapping[str, int], average: Average) -> Gathering:
        """A few rounds per step."""
        (site,) = stop.sites
        return _AtHome(self, stop, handover, visit_steps(self.plan.training, cases[site]), self._alignment)


@dataclass(frozen=True)
class _Cell:
    """What one round of a step asks of D, or of every site's part of P: the gradient over some of the samples.

    It is taken at the weights, or at the look-ahead from the gradient `after`, and is part of `terms`.
    """

    remembered: bool  # of P
    half: Half
    terms: tuple[Term, ...]
    after: Term | None = None


_NAIVE = ((_Cell(False, "all", ("d",)), _Cell(True, "all", ("p",))),)
_ORIENTATION = ((_Cell(False, "all", ("d",)),), (_Cell(True, "all", ("p",), "d"),))
_ARBITRARY = (
    (_Cell(False, "tr", ("tr",)), _Cell(True, "tr", ("tr",))),
    (_Cell(False, "te", ("te",), "tr"), _Cell(True, "te", ("te",), "tr")),
)
# In this order a site is asked once a round, for one update over one cell, which its policy can clip and noise alone.
_WHOLE = (
    (_Cell(False, "tr", ("d", "tr")), _Cell(True, "tr", ("tr",))),
    (_Cell(False, "te", ("d",)), _Cell(True, "te", ("te",), "tr")),
    (_Cell(False, "te", ("te",), "tr"), _Cell(True, "all", ("p",), "d")),
)


def _rounds(alignment: Alignment) -> tuple[tuple[_Cell, ...], ...]:
    match alignment.orientation, alignment.arbitrary:
        case True, True:
            return _WHOLE
        case True, False:
            return _ORIENTATION
        case False, True:
            return _ARBITRARY
        case _:
            return _NAIVE


@dataclass
class _Mean:
    """The mean gradient over the samples of several cells, as they come in."""

    gradient: Gradient
    samples: int = 0

    def take(self, reply: Reply, count: int) -> None:
        """Let one more cell of `count` >= 1 samples in; the first is taken over bit for bit."""
        self.samples += count
        share = count / self.samples
        for tensor in self.gradient.values():
            tensor.mul_(1 - share)
        add(self.gradient, reply, share)


class _AtHome(Descent):
    """One optimizer step per three rounds, two without one of the alignments, one without both or without a memory.

    D is the incoming site's batch. P has as many samples, dealt to the earlier sites in turn. Which of V = D u P are in
    tr is drawn here, and a site is only told how many: its samples come shuffled, so that the first ones are as random
    a choice as any, and it learns nothing of the others'.
    """

    def __init__(
        self, strategy: AlignedReplay, stop: Stop, handover: Handover, steps: int, alignment: Alignment
    ) -> None:
        super().__init__(strategy, handover)
        self._training = strategy.plan.training
        (self._site,) = stop.sites
        self._earlier = stop.rehearsing
        self._steps, self._first = steps, stop.follows is None
        self._seeds = Seeds(strategy.plan.seed, stop.index, "all sites")
        self._rates = {"d": alignment.gamma, "tr": alignment.beta}
        self._cells = _rounds(alignment) if self._earlier else _NAIVE
        self._means: dict[Term, _Mean] = {}  # of the step under way
        self.rounds = steps * len(self._cells)

    def asks(self, round: int) -> Iterator[tuple[str, Ask]]:
        """Ask for the cells of a round; a site that has no sample in them is not asked."""
        step = round // len(self._cells)
        handovers: dict[Term | None, Handover] = {}
        for cell, site, position, count in self._asked(round):
            if cell.after not in handovers:
                handovers[cell.after] = self._ahead(cell.after)
            args = {"rehearse": int(cell.remembered), "position": position, "count": count, "update": step}
            yield site, Ask(handovers[cell.after], args)

    def receive(self, round: int, replies: Iterable[Reply]) -> None:
        """Let every cell into its terms by its count; at a step's end theta <- optimizer(theta, their sum).

        A site that keeps no sample says so, and V is smaller by its part.
        """
        for (cell, _, _, count), reply in zip(self._asked(round), replies, strict=True):
            if reply.metrics["samples"]:
                for term in cell.terms:
                    self._means.setdefault(term, _Mean({})).take(reply, count)
        step, place = divmod(round, len(self._cells))
        if place + 1 < len(self._cells):
            return
        total: Gradient = {}
        for term in _TERMS:  # not as they came in, which is forgotten in a crash
            if term in self._means:
                plus(total, self._means[term].gradient)
        self._means.clear()
        if total:
            self.step(total, learning_rate(self._training, step, self._steps, self._first))

    def state(self) -> dict[str, Tensor]:
        """Weights, optimizer state, and the gradients of a step that is under way."""
        state = super().state()
        for term, mean in self._means.items():
            state[f"samples/{term}"] = torch.tensor(mean.samples)
            state |= {f"mean/{term}/{name}": tensor for name, tensor in mean.gradient.items()}
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Bring all of it to what `state` returned."""
        super().restore(state)
        names = [name for name, _ in self._model.named_parameters()]
        self._means = {
            term: _Mean({name: state[f"mean/{term}/{name}"].clone() for name in names}, int(state[f"samples/{term}"]))
            for term in _TERMS
            if f"samples/{term}" in state
        }

    def _asked(self, round: int) -> Iterator[tuple[_Cell, str, int, int]]:
        """The cells of a round that hold samples, and where in a site's shuffled stream they begin and how many."""
        step, place = divmod(round, len(self._cells))
        size = self._training.batch_size
        dealt = [self._dealt(number, (step + 1) * size) for number in range(len(self._earlier))]
        begun = [self._dealt(number, step * size) for number in range(len(self._earlier))]
        parts = [(self._site, step * size, size)]
        parts += [(site, b, d - b) for site, b, d in zip(self._earlier, begun, dealt, strict=True)]
        counts = [count for _, _, count in parts[1:]]
        split = draw_split(size, sum(counts), self._seeds("split", step))
        in_train = [int(split.incoming.sum()), *(int(part.sum()) for part in torch.split(split.replay, counts))]
        for cell in self._cells[place]:
            for number, ((site, position, count), train) in enumerate(zip(parts, in_train, strict=True)):
                if cell.remembered != (number > 0):
                    continue
                first, samples = {"all": (0, count), "tr": (0, train), "te": (train, count - train)}[cell.half]
                if samples:
                    yield cell, site, position + first, samples

    def _dealt(self, number: int, places: int) -> int:
        """How many of the first `places` of P, over all steps, fell to the earlier site of that number."""
        return -(-(places - number) // len(self._earlier))

    def _ahead(self, after: Term | None) -> Handover:
        """The weights, or the look-ahead from a gradient, if there was a sample for it."""
        weights = self._model.state_dict()
        if after in self._means:
            gradient = self._means[after].gradient
            weights |= look_ahead({name: weights[name] for name in gradient}, gradient, self._rates[after])
        return Handover.of(weights=weights)

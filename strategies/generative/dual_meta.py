"""Parallel Gradient Alignment and Dual-Meta (Xu et al. 2024, SMG-Learning, Eq. 1-5): the gradients, and nothing else.

D is a batch of the incoming site, P one of the replay, V = D u P. Two losses are aligned with one another: D's with P's
("orientational", at the rate gamma), and those of two random halves of V, tr and te ("arbitrary", beta).

Each alignment takes one gradient at the weights theta and one at a look-ahead from there, itself not differentiated
through (Eq. 5, "only first-order derivative calculations"): g1 = G_D + grad L_P(theta - gamma G_D) and
g2 = G_tr + grad L_te(theta - beta G_tr). What this approximates, and how well, is in `pga.py`.

All losses must be means over samples that do not couple them, so that cells combine by their counts. The model must
draw nothing at random (dropout): a sample is evaluated up to three times, and would be another network each time.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from strategies.data import Batch

# The mean loss over a batch's samples, a scalar, with the parameters that the module holds at the moment.
Loss = Callable[[Batch], Tensor]
# By parameter name; an empty one is zero, the gradient of no samples.
Gradient = dict[str, Tensor]


@dataclass(frozen=True)
class Alignment:
    """The rates of the look-aheads, and which of the two alignments there are.

    Without `arbitrary` only D's and P's losses are left, without `orientation` only tr's and te's; without both it is
    the naive sum L_D + L_P.
    """

    gamma: float
    beta: float
    orientation: bool = True
    arbitrary: bool = True


@dataclass(frozen=True)
class Split:
    """Which samples of D and of P are in tr: bool [len(D)] and bool [len(P)], on the CPU; the others are in te."""

    incoming: Tensor
    replay: Tensor


@dataclass(frozen=True)
class Pair:
    """D and P, and the split of their samples. Either may be a batch of no samples."""

    incoming: Batch
    replay: Batch
    split: Split

    def cut(self) -> tuple[tuple[Batch, Batch], tuple[Batch, Batch]]:
        """D&tr and D&te, P&tr and P&te; any may be empty."""
        return _cut(self.incoming, self.split.incoming), _cut(self.replay, self.split.replay)


@dataclass(frozen=True)
class Step:
    """What to step with, and two scalars as tensors on the model's device, NaN where there was no sample for them.

    `incoming` and `replay` are the mean losses over D and P, each sample's where it was first computed: at the weights
    themselves or at a look-ahead.
    """

    gradient: Gradient
    incoming: Tensor
    replay: Tensor


def draw_split(incoming: int, replay: int, seed: int) -> Split:
    """A random permutation of V cut in half: tr takes the first (len(V) + 1) // 2 of `incoming` + `replay` samples.

    Any of the four cells may come out empty, tr never, and te only if V is a single sample.
    """
    count = incoming + replay
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    in_train = order < (count + 1) // 2
    return Split(in_train[:incoming], in_train[incoming:])


def look_ahead(weights: Mapping[str, Tensor], gradient: Mapping[str, Tensor], rate: float) -> dict[str, Tensor]:
    """theta - rate * gradient, by parameter name (the Theta_D and Theta_tr of Eq. 5)."""
    return {name: weight - rate * gradient[name] for name, weight in weights.items()}


def dual_meta(model: nn.Module, loss: Loss, pair: Pair, alignment: Alignment) -> Step:
    """The gradient of `first_order` at the cost of 3.5 plain steps instead of 4, and what it tells on the way.

    At theta only the cells D&tr, D&te and P&tr are needed, from which both G_D and G_tr combine by counts: 1.5 times
    the samples of a plain step, and the two look-aheads take 1 each. Works on `model` in place and leaves its
    parameters as they were, bit for bit, also when `loss` raises.

    D and P may differ in the size of their images and in the kind of their labels. Either may have no samples, as may
    any cell. Nothing here waits for the device. Raises ValueError when neither D nor P has a sample.
    """
    n_d, n_p = _count(pair.incoming), _count(pair.replay)
    if not n_d + n_p:
        raise ValueError("dual_meta: neither the incoming batch nor the replay has a sample; give it one of either.")
    at = _Weights(model, loss)
    if not alignment.arbitrary:
        d = at.evaluate(pair.incoming)
        with at.moved(d.gradient, alignment.gamma if alignment.orientation else 0.0):
            p = at.evaluate(pair.replay)
        return at.step(_plus(p.gradient, d.gradient), [d], [p])

    (in_tr, in_te), (re_tr, re_te) = pair.cut()
    n_tr, n_te = _count(in_tr) + _count(re_tr), _count(in_te) + _count(re_te)
    if not alignment.orientation:
        d_tr, p_tr = at.evaluate(in_tr, n_tr), at.evaluate(re_tr, n_tr)
        tr = _plus(d_tr.gradient, p_tr.gradient)
        with at.moved(tr, alignment.beta):
            d_te, p_te = at.evaluate(in_te, n_te), at.evaluate(re_te, n_te)
        return at.step(_plus(_plus(d_te.gradient, p_te.gradient), tr), [d_tr, d_te], [p_tr, p_te])

    d_tr, d_te, p_tr = at.evaluate(in_tr, n_d), at.evaluate(in_te, n_d), at.evaluate(re_tr, n_tr)
    d = _Cell(_plus(d_te.gradient, d_tr.gradient), d_te.loss, n_d)
    tr = _plus(p_tr.gradient, d_tr.gradient, n_d / n_tr if n_tr else 0.0)
    with at.moved(d.gradient, alignment.gamma):
        p = at.evaluate(pair.replay)
    with at.moved(tr, alignment.beta):
        te = [at.evaluate(batch, n_te).gradient for batch in joined((in_te, re_te))]
    total = reduce(_plus, [p.gradient, *te, d.gradient, tr])
    return at.step(total, [d_tr, d_te], [p])


def aligned(model: nn.Module, loss: Loss, pair: Pair) -> Tensor:
    """The normalised inner product of G_D and G_P (Fig. 7), both of whole batches at the weights themselves; a scalar.

    It costs two plain steps and says the same for every alignment, which what a step computes anyway would not: of
    halves, or at a look-ahead, noise draws it towards 0 by another amount. NaN where either has no samples, or a
    gradient of zero.
    """
    at = _Weights(model, loss)
    one, other = at.evaluate(pair.incoming), at.evaluate(pair.replay)
    if not (one.count and other.count):
        return one.loss.new_full((), torch.nan)
    norms = [torch.stack(torch._foreach_norm(cell.gradient)).norm() for cell in (one, other)]
    cosine: Tensor = dot(one.gradient, other.gradient) / (norms[0] * norms[1])
    return cosine


@dataclass(frozen=True)
class _Cell:
    """What some samples say at some weights: the gradient of count / whole times their mean loss, and that loss."""

    gradient: list[Tensor]  # empty where there are no samples
    loss: Tensor
    count: int


class _Weights:
    """The weights of a model, at which cells are evaluated."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self._named = dict(model.named_parameters())
        self._parameters: list[Tensor] = list(self._named.values())
        self._loss = loss

    def evaluate(self, batch: Batch, whole: int | None = None) -> _Cell:
        """`batch` as a cell of a set of `whole` samples; without, of itself."""
        count = _count(batch)
        if not count:
            return _Cell([], torch.full((), torch.nan, device=batch.image.device), 0)
        value = self._loss(batch)
        scaled = value if whole in (None, count) else value * (count / whole)
        gradient = torch.autograd.grad(scaled, self._parameters, materialize_grads=True)
        return _Cell(list(gradient), value.detach(), count)

    @contextmanager
    def moved(self, gradient: list[Tensor], rate: float) -> Iterator[None]:
        """At theta - rate * gradient, in storage of its own, so that theta itself is never written to."""
        if not gradient or not rate:
            yield
            return
        with torch.no_grad():
            ahead = torch._foreach_add(self._parameters, gradient, alpha=-rate)
        theta = [parameter.data for parameter in self._parameters]
        try:
            self._hold(ahead)
            yield
        finally:
            self._hold(theta)

    def _hold(self, values: Sequence[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.data = value

    def step(self, total: list[Tensor], incoming: Sequence[_Cell], replay: Sequence[_Cell]) -> Step:
        """The total gradient, with the mean losses over the cells of D and of P."""
        return Step(dict(zip(self._named, total, strict=True)), _mean_loss(incoming), _mean_loss(replay))


def _mean_loss(cells: Sequence[_Cell]) -> Tensor:
    """Over all samples; NaN where there are none."""
    there = [cell for cell in cells if cell.count] or cells[:1]
    count = sum(cell.count for cell in there)
    return there[0].loss if len(there) == 1 else torch.stack([c.loss * (c.count / count) for c in there]).sum()


def _plus(one: list[Tensor], other: list[Tensor], share: float = 1.0) -> list[Tensor]:
    """one + share * other, where an empty one is zero.

    Never in place: what autograd returns may be one tensor for two parameters.
    """
    if one and other:
        return list(torch._foreach_add(one, other, alpha=share))
    return list(torch._foreach_mul(other, share)) if other else one


def _count(batch: Batch) -> int:
    return len(batch.image)


def _cut(batch: Batch, in_train: Tensor) -> tuple[Batch, Batch]:
    """The samples of `batch` in tr, and those in te.

    The mask is on the CPU, so that no count waits for the device, and is not copied there to choose rows.
    """
    train, test = (_rows(batch, part.nonzero().flatten().tolist()) for part in (in_train, ~in_train))
    return train, test


def _rows(batch: Batch, rows: Sequence[int]) -> Batch:
    if not rows:
        return Batch(batch.image[:0], batch.label[:0])
    image, label = (torch.cat([of[row : row + 1] for row in rows]) for of in (batch.image, batch.label))
    return Batch(image, label)


def joined(cells: Sequence[Batch]) -> list[Batch]:
    """The cells that hold samples, or one that is empty; one batch where images and labels allow, which is quicker."""
    there = [cell for cell in cells if _count(cell)]
    kinds = {(cell.image.shape[1:], cell.label.shape[1:], cell.label.dtype) for cell in there}
    if len(there) < 2 or len(kinds) > 1:
        return there or list(cells[:1])
    return [Batch(torch.cat([cell.image for cell in there]), torch.cat([cell.label for cell in there]))]


def add(total: Gradient, gradient: Mapping[str, Tensor], share: float = 1.0) -> None:
    """total <- total + share * gradient, in place; an empty gradient is zero."""
    if not gradient:
        return
    if total:
        torch._foreach_add_([total[name] for name in gradient], list(gradient.values()), alpha=share)
    else:
        total.update(zip(gradient, torch._foreach_mul(list(gradient.values()), share), strict=True))


def dot(one: Iterable[Tensor], other: Iterable[Tensor]) -> Tensor:
    """The inner product over all parameters, a scalar; both in the same order."""
    return torch.stack([(g * h).sum() for g, h in zip(one, other, strict=True)]).sum()

"""Dual-Meta: the fast gradient against the one by the book, and that against the paper's objectives, in float64."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
import torch
from torch import nn

from strategies.data import Batch
from strategies.generative.dual_meta import Alignment, Gradient, Pair, Split, aligned, draw_split, dual_meta, look_ahead
from strategies.generative.pga import first_order, pga, second_order

WHOLE = Alignment(0.05, 0.08)
ALIGNMENTS = [replace(WHOLE, orientation=o, arbitrary=a) for o, a in product((True, False), repeat=2)]
every_alignment = pytest.mark.parametrize(
    "alignment", ALIGNMENTS, ids=["whole", "without arbitrary", "without orientation", "naive"]
)


class Net(nn.Module):
    """Smooth everywhere, so that there are second derivatives.

    One parameter takes no part, and two have one gradient between them, which PyTorch returns as one tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 4, 3, padding=1, stride=2),
            nn.GroupNorm(2, 4), nn.SiLU(), nn.ConvTranspose2d(4, 3, 2, stride=2),
        )  # fmt: skip
        self.idle = nn.Parameter(torch.ones(2))
        self.one, self.other = (nn.Parameter(torch.zeros(3, 1, 1)) for _ in range(2))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.layers(image) + (self.one + self.other)


@pytest.fixture
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().double()


def loss_of(model: nn.Module) -> Callable[[Batch], torch.Tensor]:
    """Cross-entropy and a Dice that couples the pixels of a sample, never two samples; hard and soft labels."""

    def loss(batch: Batch) -> torch.Tensor:
        logits, label = model(batch.image), batch.label
        target = label if label.is_floating_point() else nn.functional.one_hot(label[:, 0], 3).movedim(-1, 1).double()
        p = logits.softmax(1)
        dice = 1 - (2 * (p * target).sum((2, 3)) + 1) / (p.square().sum((2, 3)) + target.square().sum((2, 3)) + 1)
        return (nn.functional.cross_entropy(logits, target, reduction="none").mean((1, 2)) + dice.mean(1)).mean()

    return loss


def batch(count: int, seed: int, size: tuple[int, int] = (8, 8), soft: bool = False) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    image = torch.randn(count, 1, *size, generator=rng, dtype=torch.float64) * (1 + seed % 3)
    if soft:
        return Batch(image, torch.randn(count, 3, *size, generator=rng, dtype=torch.float64).softmax(1))
    return Batch(image, torch.randint(3, (count, 1, *size), generator=rng))


def pair(n_d: int = 4, n_p: int = 4, seed: int = 3) -> Pair:
    return Pair(batch(n_d, 1), batch(n_p, 2), draw_split(n_d, n_p, seed))


def masks(incoming: str, replay: str) -> Split:
    """From a letter per sample, r for tr and e for te."""
    return Split(*(torch.tensor([letter == "r" for letter in side], dtype=torch.bool) for side in (incoming, replay)))


def flat(gradient: Mapping[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([gradient[name].flatten() for name in sorted(gradient)])


def close(found: Gradient, expected: Gradient, tolerance: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    assert (flat(found) - flat(expected)).abs().max() <= tolerance * max(1, float(flat(expected).abs().max()))


def gradient(model: nn.Module, *batches: Batch) -> Gradient:
    """Of the mean loss over all samples, by one ordinary backward pass of their weighted sum."""
    count = sum(len(one.image) for one in batches)
    model.zero_grad()
    value = sum(loss_of(model)(one) * (len(one.image) / count) for one in batches if len(one.image))
    assert isinstance(value, torch.Tensor)
    value.backward()
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def slope(error: Callable[[float], float]) -> float:
    """Of the error's logarithm over that of the rate."""
    rates = [3e-2, 1e-2, 3e-3, 1e-3]
    return float(np.polyfit(np.log(rates), np.log([error(rate) for rate in rates]), 1)[0])


def distance(found: Gradient, expected: Gradient) -> float:
    return float((flat(found) - flat(expected)).norm())


# ---- the references


@pytest.mark.parametrize("arbitrary", [False, True])
@pytest.mark.parametrize("orientation", [False, True])
@pytest.mark.parametrize("reference", [pga, second_order])
def test_a_references_gradient_is_that_of_its_value(
    model: nn.Module, reference: Callable[..., tuple[Gradient, torch.Tensor]], orientation: bool, arbitrary: bool
) -> None:
    alignment = replace(WHOLE, orientation=orientation, arbitrary=arbitrary)
    found, _ = reference(model, loss_of(model), pair(), alignment)
    rng = torch.Generator().manual_seed(1)
    way = {name: torch.randn(p.shape, generator=rng, dtype=p.dtype) for name, p in model.named_parameters()}
    theta = {name: p.detach().clone() for name, p in model.named_parameters()}
    values = []
    for distance in (1e-5, -1e-5):
        model.load_state_dict(look_ahead(theta, way, distance))
        values.append(float(reference(model, loss_of(model), pair(), alignment)[1]))
    expected = (values[1] - values[0]) / 2e-5
    assert float(flat(found) @ flat(way)) == pytest.approx(expected, rel=1e-6)


def test_the_objective_is_equation_3(model: nn.Module) -> None:
    given = pair(3, 5)
    (d_tr, d_te), (p_tr, p_te) = given.cut()
    loss = loss_of(model)
    g = {"d": gradient(model, given.incoming), "p": gradient(model, given.replay)}
    g |= {"tr": gradient(model, d_tr, p_tr), "te": gradient(model, d_te, p_te)}
    halves = [
        (len(d.image) * loss(d) + len(p.image) * loss(p)) / (len(d.image) + len(p.image))
        for d, p in ((d_tr, p_tr), (d_te, p_te))
    ]
    expected = loss(given.incoming) + loss(given.replay) - WHOLE.gamma * flat(g["d"]) @ flat(g["p"])
    expected = expected + sum(halves) - WHOLE.beta * flat(g["tr"]) @ flat(g["te"])
    torch.testing.assert_close(pga(model, loss, given, WHOLE)[1], expected.detach(), rtol=1e-12, atol=0)


def test_second_order_is_pga_up_to_the_square_of_the_rates(model: nn.Module) -> None:
    def error(rate: float) -> float:
        alignment = Alignment(rate, rate)
        exact, _ = pga(model, loss_of(model), pair(), alignment)
        return distance(second_order(model, loss_of(model), pair(), alignment)[0], exact)

    assert slope(error) == pytest.approx(2, abs=0.1)


def test_first_order_is_pga_up_to_the_rates(model: nn.Module) -> None:
    def error(rate: float) -> float:
        alignment = Alignment(rate, rate)
        return distance(
            dual_meta(model, loss_of(model), pair(), alignment).gradient,
            pga(model, loss_of(model), pair(), alignment)[0],
        )

    assert slope(error) == pytest.approx(1, abs=0.1)


def test_first_order_in_both_roles_is_pga_with_half_the_rates_up_to_their_square(model: nn.Module) -> None:
    given = pair()
    swapped = Pair(given.replay, given.incoming, Split(~given.split.replay, ~given.split.incoming))

    def error(rate: float, share: float = 0.5) -> float:
        both = [dual_meta(model, loss_of(model), one, Alignment(rate, rate)).gradient for one in (given, swapped)]
        mean = {name: (both[0][name] + both[1][name]) / 2 for name in both[0]}
        return distance(mean, pga(model, loss_of(model), given, Alignment(share * rate, share * rate))[0])

    assert slope(error) == pytest.approx(2, abs=0.1)
    assert error(1e-3, share=1) > 10 * error(1e-3)


# ---- without rates, and without one alignment


def test_without_rates_all_are_the_naive_dual_loss(model: nn.Module) -> None:
    given, still, loss = pair(), Alignment(0, 0), loss_of(model)
    (d_tr, d_te), (p_tr, p_te) = given.cut()
    joined = [
        Batch(torch.cat([d.image, p.image]), torch.cat([d.label, p.label])) for d, p in ((d_tr, p_tr), (d_te, p_te))
    ]
    parts = [gradient(model, one) for one in (given.incoming, given.replay, *joined)]
    naive = {name: parts[0][name] + parts[1][name] + parts[2][name] + parts[3][name] for name in parts[0]}
    book = first_order(model, loss, given, still)
    assert all(torch.equal(book[name], naive[name]) for name in naive)
    close(pga(model, loss, given, still)[0], naive)
    close(second_order(model, loss, given, still)[0], naive)
    close(dual_meta(model, loss, given, still).gradient, naive)


@pytest.mark.parametrize(
    "alignment", [Alignment(0, 7, arbitrary=False), Alignment(7, 7, orientation=False, arbitrary=False)]
)
def test_without_its_rate_and_without_the_other_it_is_the_naive_sum_bit_for_bit(
    model: nn.Module, alignment: Alignment
) -> None:
    given = pair(3, 5)
    one, other = gradient(model, given.incoming), gradient(model, given.replay)
    found = dual_meta(model, loss_of(model), given, alignment).gradient
    assert all(torch.equal(found[name], one[name] + other[name]) for name in one)


@pytest.mark.parametrize("way", [dual_meta, first_order])
def test_the_two_ablations_add_up_to_the_whole(model: nn.Module, way: Callable[..., object]) -> None:
    def found(alignment: Alignment) -> Gradient:
        step = way(model, loss_of(model), pair(5, 3), alignment)
        return getattr(step, "gradient", step)

    parts = [found(replace(WHOLE, orientation=False)), found(replace(WHOLE, arbitrary=False))]
    close({name: parts[0][name] + parts[1][name] for name in parts[0]}, found(WHOLE))


# ---- fast against by the book

SPLITS = {
    "balanced": ("rree", "rree"),
    "mixed": ("reer", "erre"),
    "unbalanced": ("reeee", "rr"),
    "all of D in tr": ("rrrr", "eeee"),
    "all of D in te": ("eee", "rrr"),
    "no D&te": ("rrr", "re"),
    "no D&tr": ("ee", "rre"),
    "no P&tr": ("rre", "ee"),
    "no P&te": ("re", "rrrr"),
    "no te": ("rr", "rr"),
    "no tr": ("ee", "ee"),
    "no replay": ("rere", ""),
    "no incoming": ("", "ree"),
    "one sample": ("r", ""),
    "one each": ("r", "e"),
}


@every_alignment
@pytest.mark.parametrize("letters", SPLITS.values(), ids=SPLITS)
def test_fast_equals_by_the_book(model: nn.Module, letters: tuple[str, str], alignment: Alignment) -> None:
    given = Pair(batch(len(letters[0]), 1), batch(len(letters[1]), 2), masks(*letters))
    found = dual_meta(model, loss_of(model), given, alignment).gradient
    close(found, first_order(model, loss_of(model), given, alignment))


@pytest.mark.parametrize("seed", range(12))
def test_fast_equals_by_the_book_for_drawn_splits(model: nn.Module, seed: int) -> None:
    given = pair(2 + seed % 5, 1 + seed % 7, seed)
    found = dual_meta(model, loss_of(model), given, WHOLE).gradient
    close(found, first_order(model, loss_of(model), given, WHOLE))


@every_alignment
@pytest.mark.parametrize(("size", "soft"), [((16, 12), False), ((8, 8), True), ((4, 8), True)])
def test_sizes_and_kinds_of_labels_may_differ(
    model: nn.Module, size: tuple[int, int], soft: bool, alignment: Alignment
) -> None:
    given = Pair(batch(4, 1), batch(5, 2, size, soft), draw_split(4, 5, 0))
    found = dual_meta(model, loss_of(model), given, alignment)
    close(found.gradient, first_order(model, loss_of(model), given, alignment))


def test_neither_side_with_a_sample_is_refused(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="neither the incoming batch nor the replay has a sample"):
        dual_meta(model, loss_of(model), Pair(batch(0, 1), batch(0, 2), masks("", "")), WHOLE)


# ---- what it does to the model, and what it tells


@every_alignment
def test_the_model_is_given_back_bit_for_bit(model: nn.Module, alignment: Alignment) -> None:
    parameters = list(model.parameters())
    before = [(p.detach().clone(), p.data_ptr(), p.requires_grad) for p in parameters]
    dual_meta(model, loss_of(model), pair(), alignment)
    for parameter, now, (value, pointer, trained) in zip(parameters, model.parameters(), before, strict=True):
        assert parameter is now
        assert torch.equal(parameter, value)
        assert (parameter.data_ptr(), parameter.requires_grad) == (pointer, trained)
        assert parameter.grad is None


@pytest.mark.parametrize("good", range(5))
def test_the_model_is_given_back_where_the_loss_raises(model: nn.Module, good: int) -> None:
    calls = []

    def loss(batch: Batch) -> torch.Tensor:
        calls.append(batch)
        if len(calls) > good:
            raise FloatingPointError
        return loss_of(model)(batch)

    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(FloatingPointError):
        dual_meta(model, loss, pair(), WHOLE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_samples_seen_are_three_and_a_half_batches_in_five_passes(model: nn.Module) -> None:
    seen = []

    def loss(batch: Batch) -> torch.Tensor:
        seen.append(len(batch.image))
        return loss_of(model)(batch)

    dual_meta(model, loss, Pair(batch(8, 1), batch(8, 2), masks("rererere", "rererere")), WHOLE)
    assert (sum(seen), len(seen)) == (28, 5)


def test_the_inputs_are_left_alone(model: nn.Module) -> None:
    given = pair()
    images = given.incoming.image.clone(), given.replay.image.clone()
    dual_meta(model, loss_of(model), given, WHOLE)
    assert torch.equal(given.incoming.image, images[0])
    assert torch.equal(given.replay.image, images[1])


def at(model: nn.Module, gradient: Gradient, rate: float) -> nn.Module:
    moved = Net().double()
    moved.load_state_dict(look_ahead({n: p.detach() for n, p in model.named_parameters()}, gradient, rate))
    return moved


@every_alignment
def test_what_is_told_of_a_step(model: nn.Module, alignment: Alignment) -> None:
    given = pair(5, 4)
    (d_tr, d_te), (p_tr, p_te) = given.cut()
    d = gradient(model, given.incoming)
    if alignment.orientation:
        ahead = at(model, d, WHOLE.gamma)
        losses = loss_of(model)(given.incoming), loss_of(ahead)(given.replay)
    elif alignment.arbitrary:
        ahead = at(model, gradient(model, d_tr, p_tr), WHOLE.beta)
        here, there = loss_of(model), loss_of(ahead)
        losses = (
            (len(d_tr.image) * here(d_tr) + len(d_te.image) * there(d_te)) / 5,
            (len(p_tr.image) * here(p_tr) + len(p_te.image) * there(p_te)) / 4,
        )
    else:
        losses = loss_of(model)(given.incoming), loss_of(model)(given.replay)
    step = dual_meta(model, loss_of(model), given, alignment)
    assert float(step.incoming) == pytest.approx(losses[0].item(), rel=1e-12)
    assert float(step.replay) == pytest.approx(losses[1].item(), rel=1e-12)
    assert not any(scalar.requires_grad for scalar in (step.incoming, step.replay))


def test_the_alignment_is_the_cosine_of_both_gradients_at_the_weights(model: nn.Module) -> None:
    given = pair(5, 4)
    one, other = flat(gradient(model, given.incoming)), flat(gradient(model, given.replay))
    found = aligned(model, loss_of(model), given)
    assert float(found) == pytest.approx(float(nn.functional.cosine_similarity(one, other, dim=0)), abs=1e-12)
    itself = Pair(given.incoming, given.incoming, given.split)
    assert float(aligned(model, loss_of(model), itself)) == pytest.approx(1, abs=1e-12)
    assert aligned(model, loss_of(model), Pair(batch(4, 1), batch(0, 2), masks("rere", ""))).isnan()


@every_alignment
def test_of_what_is_not_there_nothing_is_told(model: nn.Module, alignment: Alignment) -> None:
    step = dual_meta(model, loss_of(model), Pair(batch(4, 1), batch(0, 2), masks("rere", "")), alignment)
    assert step.incoming.isfinite()
    assert step.replay.isnan()


# ---- the split


def test_halves_of_an_even_batch_weigh_the_same_however_they_fall(model: nn.Module) -> None:
    still = Alignment(0, 0, orientation=False)
    found = [dual_meta(model, loss_of(model), pair(3, 5, seed), still).gradient for seed in range(6)]
    for other in found[1:]:
        close(other, found[0])


def test_halves_of_an_odd_batch_weigh_the_same_in_the_mean(model: nn.Module) -> None:
    """L_tr + L_te over all splits of V is 2 L_V in the mean, whatever the order of V."""
    given, still = pair(2, 3), Alignment(0, 0, orientation=False)
    mean: Gradient = {}
    splits = list(combinations(range(5), 3))
    for chosen in splits:
        letters = "".join("r" if place in chosen else "e" for place in range(5))
        cut = replace(given, split=masks(letters[:2], letters[2:]))
        for name, value in dual_meta(model, loss_of(model), cut, still).gradient.items():
            mean[name] = mean.get(name, torch.zeros_like(value)) + value / len(splits)
    close(mean, {name: 2 * value for name, value in gradient(model, given.incoming, given.replay).items()})


@pytest.mark.parametrize(("incoming", "replay"), [(4, 4), (3, 4), (1, 0), (0, 5), (1, 1), (8, 2)])
def test_a_split_halves_the_union(incoming: int, replay: int) -> None:
    for seed in range(20):
        split = draw_split(incoming, replay, seed)
        assert (len(split.incoming), len(split.replay)) == (incoming, replay)
        assert int(split.incoming.sum() + split.replay.sum()) == (incoming + replay + 1) // 2


def test_every_sample_is_in_either_half_equally_often() -> None:
    drawn = [draw_split(3, 5, seed) for seed in range(2000)]
    share = torch.stack([torch.cat([s.incoming, s.replay]) for s in drawn]).double().mean(0)
    assert (share - 0.5).abs().max() < 5 * 0.5 / 2000**0.5
    assert len({int(s.incoming.sum()) for s in drawn}) == 4  # the split is of the union, not of each side


def test_a_split_is_its_seeds_alone() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        one, state = draw_split(8, 8, 5), torch.get_rng_state()
        torch.manual_seed(2)
        other = draw_split(8, 8, 5)
        torch.manual_seed(1)
        assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one.incoming, other.incoming)
    assert torch.equal(one.replay, other.replay)


# ---- across sites


def test_two_phases_over_sites_are_the_pooled_step(model: nn.Module) -> None:
    """Every site answers with gradients of its own samples alone: first at theta, then at the two look-aheads."""
    incoming, sites = batch(4, 1), [batch(3, 2), batch(2, 3)]
    pooled = Batch(torch.cat([s.image for s in sites]), torch.cat([s.label for s in sites]))
    split = masks("rere", "rerre")
    given = Pair(incoming, pooled, split)
    (d_tr, d_te), _ = given.cut()
    own = [
        Pair(incoming, sites[0], masks("rere", "rer")).cut()[1],
        Pair(incoming, sites[1], masks("rere", "re")).cut()[1],
    ]

    def answers(model: nn.Module, *cells: Batch) -> Gradient:
        parts, count = [(gradient(model, cell), len(cell.image)) for cell in cells], sum(len(c.image) for c in cells)
        return {name: sum(part[name] * n / count for part, n in parts) for name in parts[0][0]}

    g_d = answers(model, d_tr, d_te)
    g_tr = answers(model, d_tr, *(train for train, _ in own))
    g_p = answers(at(model, g_d, WHOLE.gamma), *sites)
    g_te = answers(at(model, g_tr, WHOLE.beta), d_te, *(test for _, test in own))
    total = {name: g_d[name] + g_p[name] + g_tr[name] + g_te[name] for name in g_d}
    close(total, dual_meta(model, loss_of(model), given, WHOLE).gradient)

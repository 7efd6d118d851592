"""Soft tasks: the normalised ReLU, Dice on shares, and every strategy's ordinary run on them."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, vmap

from node.data.site import SiteData
from node.settings import SiteSettings
from protos.handover import HandoverSchema
from protos.plan import NetworkChoice, PhantomSite, Plan, Split, StrategyChoice, Task
from strategies.data import Batch
from strategies.losses import normalised_relu, probabilities, segmentation_loss
from strategies.registry import STRATEGIES, UnknownStrategy, strategy_for
from strategies.strategy import UnknownParameter
from strategies.training import make_optimizer
from tests.strategies.harness import Blobs, Shelf, conduct, digests, make_plan

SOFT = Task(size=(16, 16), classes=("background", "one", "two"), soft=True)


def logits_of(seed: int, samples: int, channels: int, size: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(samples, channels, *size, generator=generator, dtype=torch.float64)


# The activation


@given(
    seed=st.integers(0, 2**31),
    shift=st.floats(-12, 12),
    size=st.sampled_from([(3, 5), (2, 3, 4), (1, 1)]),
    channels=st.integers(1, 3),
)
@settings(max_examples=50)
def test_the_largest_is_exactly_one_wherever_anything_is_positive(
    seed: int, shift: float, size: tuple[int, ...], channels: int
) -> None:
    logits = logits_of(seed, 3, channels, size) + shift
    shares = normalised_relu(logits)
    assert shares.shape == logits.shape
    assert shares.min() >= 0
    alive = logits.flatten(2).amax(2) > 0
    assert torch.equal(shares.flatten(2).amax(2), alive.to(shares.dtype))
    assert torch.equal(shares > 0, logits > 0)
    # no sample and no channel looks at another
    for number in range(3):
        assert torch.equal(normalised_relu(logits[number : number + 1])[0], shares[number])
    assert torch.equal(normalised_relu(logits[:, :1]), shares[:, :1])
    # and no scale matters
    torch.testing.assert_close(normalised_relu(7 * logits), shares)


def test_its_gradient_is_that_of_the_formula() -> None:
    logits = logits_of(0, 2, 2, (3, 4)).requires_grad_()
    assert torch.autograd.gradcheck(normalised_relu, logits)


def test_a_dead_sample_is_lifted_where_its_label_is_and_nowhere_else() -> None:
    logits = (-1 - logits_of(1, 2, 1, (4, 4)).abs()).requires_grad_()
    label = torch.zeros(2, 1, 4, 4, dtype=torch.float64)
    label[0, 0, 1, 2] = 0.7  # the other sample's label is empty
    assert not normalised_relu(logits).any()
    (gradient,) = torch.autograd.grad(segmentation_loss(logits, label, "dice"), logits)
    assert gradient[0, 0, 1, 2] < 0
    assert gradient.count_nonzero() == 1


def test_probabilities_are_the_tasks() -> None:
    logits = logits_of(2, 2, 3, (4, 4))
    assert torch.equal(probabilities(logits, SOFT), normalised_relu(logits))
    hard = SOFT.model_copy(update={"soft": False})
    torch.testing.assert_close(probabilities(logits, hard).sum(1), torch.ones(2, 4, 4, dtype=torch.float64))


def test_gradients_per_sample_can_be_vectorised() -> None:
    """Some samples alive, some dead: nothing may branch on a value."""
    logits = logits_of(3, 4, 2, (3, 3))
    logits[1] = -logits[1].abs()
    logits[2, 0] = -logits[2, 0].abs()

    def energy(one: torch.Tensor) -> torch.Tensor:
        return probabilities(one[None], SOFT).square().sum()

    expected = torch.stack([grad(energy)(one) for one in logits])
    torch.testing.assert_close(vmap(grad(energy))(logits), expected)
    assert not expected[1].any()


# The loss


@given(seed=st.integers(0, 2**31), channels=st.integers(1, 3), size=st.sampled_from([(4, 4), (2, 3, 4)]))
@settings(max_examples=25)
def test_the_loss_is_a_mean_over_samples_of_the_formula(seed: int, channels: int, size: tuple[int, ...]) -> None:
    logits = logits_of(seed, 3, channels, size)
    label = torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    label[0] = 0
    each = []
    for z, y in zip(logits, label, strict=True):
        of_sample = []
        for channel in range(channels):
            p = z[channel].clamp(min=0) / z[channel].max().clamp(min=1e-300)
            p, t = p.clamp(min=0), y[channel]
            of_sample.append(1 - (2 * (p * t).sum() + 1) / ((p**2).sum() + (t**2).sum() + 1))
        each.append(torch.stack(of_sample).mean())
    torch.testing.assert_close(segmentation_loss(logits, label, "dice"), torch.stack(each).mean(), rtol=1e-6, atol=1e-9)


@given(seed=st.integers(0, 2**31), towards=st.floats(-1, 1))
@settings(max_examples=50)
def test_nothing_is_better_than_the_truth_itself(seed: int, towards: float) -> None:
    """With plain sums in the denominator rounding the shares up would be better."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.rand(1, 1, 5, 5, generator=generator, dtype=torch.float64)
    label = label / label.max()  # what a normalised ReLU can show
    best = segmentation_loss(label, label, "dice").item()
    assert best == pytest.approx(0, abs=1e-9)
    rounded = segmentation_loss(label.round(), label, "dice").item()
    other = (label + towards * torch.randn(label.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    assert best <= segmentation_loss(other, label, "dice").item() + 1e-12
    assert rounded > 0


@pytest.mark.parametrize("loss", ["ce", "dice_ce"])
def test_another_loss_is_refused_in_one_sentence(loss: str) -> None:
    with pytest.raises(ValueError, match=rf"Dice, not {loss}; set training\.loss to dice"):
        Plan.model_validate(
            {"task": SOFT.model_dump(), "strategy": {"name": "finetune"}, "training": {"loss": loss}, "sites": ["A"]}
        )


# Learning


def phantom(task: str, size: int, cases: int) -> SiteData:
    structures = {"organ": 1, "heart": 3}[task]
    plan = Plan.model_validate(
        {
            "task": {"size": [size, size], "classes": [str(n) for n in range(structures + 1)], "soft": True},
            "strategy": {"name": "finetune"},
            "training": {"loss": "dice"},
            "split": Split(train=1, val=0, test=0).model_dump(),
            "sites": ["A"],
        }
    )
    return SiteData(SiteSettings(name="A", home=".", phantom=PhantomSite(task=task, cases=cases, size=size)), plan)


@pytest.mark.parametrize("dead", [False, True])
def test_training_from_scratch_learns_even_where_nothing_was_positive(dead: bool) -> None:
    samples = phantom("organ", 32, 8).samples("train")
    plan = make_plan(network=NetworkChoice(channels=(8, 16, 32)), lr=0.01, loss="dice")
    plan = plan.model_copy(update={"task": Task(size=(32, 32), classes=("0", "1"), soft=True)})
    model = strategy_for(plan).loaded(strategy_for(plan).first_handover(), torch.device("cpu"))
    with torch.no_grad():
        final = list(model.parameters())[-1]
        assert final.shape == (1,)
        batch = samples.batch(range(8))
        highest = model(batch.image).amax()
        assert highest > 0
        if dead:
            final -= 1.01 * highest
            assert model(batch.image).amax() < 0
    optimizer = make_optimizer(plan.training, model)
    losses = []
    for _ in range(80):
        optimizer.zero_grad()
        loss = segmentation_loss(model(batch.image), batch.label, "dice")
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.5
    assert losses[-1] < 0.15


class SoftBlobs(Blobs):
    """The harness's samples with shares for labels, the last samples without any structure."""

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None, only: Any = None) -> Batch:
        """As strategies.data.Samples says for soft tasks."""
        hard = super().batch(indices, seeds, only)
        shares = torch.cat([(hard.label == number).float() * 0.8 for number in (1, 2)], dim=1)
        return Batch(hard.image, torch.nn.functional.avg_pool2d(shares, 3, stride=1, padding=1))


def soft_plan(name: str, **training: Any) -> Plan:
    plan = make_plan(name, ("A", "B"), loss="dice", **training)
    return plan.model_copy(update={"task": SOFT})


TAKES_SOFT = []
for _name in STRATEGIES:
    try:
        strategy_for(soft_plan(_name))
        TAKES_SOFT.append(_name)
    except (UnknownStrategy, UnknownParameter):
        pass


@pytest.mark.parametrize("name", TAKES_SOFT)
def test_strategies_learn_soft_tasks_and_resume(name: str) -> None:
    plan = soft_plan(name, checkpoint_every=1)
    sites = {"A": SoftBlobs("A", 5), "B": SoftBlobs("B", 3)}
    strategy = strategy_for(plan)
    handovers = conduct(plan, sites)
    first = strategy.first_handover()
    for handover in handovers:
        assert HandoverSchema.of(handover) == strategy.schema() == HandoverSchema.of(first)
        assert handover.weights != first.weights

    class Crash(Exception):
        pass

    beats = 0

    def pulse() -> None:
        nonlocal beats
        beats += 1
        if beats == 3:
            raise Crash

    shelf = Shelf()
    with pytest.raises(Crash):
        conduct(plan, sites, shelf=shelf, pulse=pulse)
    assert digests(conduct(plan, sites, shelf=shelf)) == digests(handovers)


def test_most_strategies_take_soft_tasks() -> None:
    assert {"finetune", "individual", "joint", "joint-fedavg", "l2", "dropout"} <= set(TAKES_SOFT)


def test_the_network_has_no_channel_for_the_background() -> None:
    for choice in (NetworkChoice(channels=(4, 8)), NetworkChoice(channels=(4, 8), residual_units=2, norm="group")):
        strategy = strategy_for(
            Plan(
                task=SOFT,
                strategy=StrategyChoice(name="finetune"),
                network=choice,
                training=soft_plan("finetune").training,
                sites=("A",),
            )
        )
        predict = strategy.predictor(strategy.first_handover(), torch.device("cpu"))
        assert predict(torch.zeros(2, 1, 16, 16)).shape == (2, 2, 16, 16)

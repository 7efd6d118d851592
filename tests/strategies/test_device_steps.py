"""On a GPU no training step copies anything to it or waits for it; see tests/devices.py for what stands for one."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from node.data.samples import Sample, SiteSamples, augmented
from protos.plan import Plan
from strategies import training
from strategies.data import Batch
from strategies.generative.dual_meta import Pair, draw_split
from strategies.generative.smd_learning import Replay
from strategies.generative.smg import SMG
from strategies.registry import strategy_for
from strategies.training import LOSSES_TOGETHER, Losses, backward, train
from strategies.visit import Visit
from tests.devices import ABSENT, Copied, absent_generators, two_steps, watched
from tests.strategies.harness import CPU, make_plan
from tests.strategies.stays import visit_at

__all__ = ["absent_generators"]

ALL = ("flip", "rotate", "scale", "intensity", "noise")
STEPS = 20  # of which fewer are taken than losses are read together

pytestmark = pytest.mark.usefixtures("absent_generators")


def site_samples(plan: Plan, device: torch.device = ABSENT) -> SiteSamples:
    """Five samples of a site, every one augmented in all ways."""
    rng = np.random.default_rng(0)
    size, nowhere = plan.task.size, np.empty(0, np.int32)
    images = [torch.from_numpy(rng.normal(size=(1, *size)).astype(np.float32)) for _ in range(5)]
    samples = [Sample(image, (image[0] > 0).to(torch.uint8), nowhere) for image in images]
    return SiteSamples(samples, plan.task, ALL).on(device)


def stay(plan: Plan, samples: Any = None, device: torch.device = ABSENT) -> Visit:
    """A visit to a site whose device holds no data."""
    samples = site_samples(plan, device) if samples is None else samples
    return replace(visit_at(plan, samples=samples), device=device, augment=partial(augmented, augmentations=ALL))


def replayed(plan: Plan) -> Replay:
    image, label = torch.randn(4, 1, *plan.task.size), torch.randint(3, (4, 1, *plan.task.size))
    return {site: Batch(image.to(ABSENT), label.to(ABSENT)) for site in ("B", "C")}


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", ["finetune", "individual", "l2", "dropout", "ewc", "mas", "mas-lr"])
def test_a_step_of_the_ordinary_loop(name: str, dims: Any) -> None:
    plan = make_plan(name, dims=dims, steps=STEPS, checkpoint_every=STEPS, patches=2)
    visit = stay(plan)
    two_steps(lambda report: strategy_for(plan).visit(replace(visit, report=report)))


@pytest.mark.parametrize("kind", ["arrived_soft", "arrived", "mask", "blended"])
@pytest.mark.parametrize("left_out", [{}, {"arbitrary": False}, {"orientation": False}])
def test_a_step_by_dual_meta_on_replay(kind: str, left_out: dict[str, Any]) -> None:
    parameters = {"replay_labels": kind, "replay_noise": 0.2, **left_out}
    plan = make_plan("smg", steps=STEPS, checkpoint_every=STEPS, batch_size=3, parameters=parameters)
    strategy, visit = SMG(plan), stay(plan)  # so few steps that each one's alignment is plotted too
    two_steps(lambda report: strategy._segment(replace(visit, report=report), replayed(plan)))


@pytest.mark.parametrize("replay", [True, False])
@pytest.mark.parametrize(
    "changes", [{}, {"crop": 8}, {"replay_targets": "arrived"}, {"prediction": "eps"}, {"generator": {"unshuffle": 1}}]
)
def test_a_step_of_the_generator(changes: dict[str, Any], replay: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # neither knows a device without data; the fused optimizer computes the same, in one kernel
    monkeypatch.setattr("strategies.generative.smd_learning.autocast", lambda *_: torch.autocast("cpu", enabled=False))
    monkeypatch.setattr(torch.optim, "Adam", partial(unfused, torch.optim.Adam))
    choice = {"channels": [8, 8], **changes.pop("generator", {})}
    parameters = {"generator": choice, "generator_steps": STEPS, "generator_batch": 4, **changes}
    plan = make_plan("smg", parameters=parameters, checkpoint_every=STEPS)
    strategy, visit = SMG(plan), stay(plan)
    given = replayed(plan) if replay else {}
    two_steps(lambda report: strategy._diffusion.learn(replace(visit, report=report), given, visit.checkpoint))


def unfused(adam: Any, *args: Any, fused: bool = False, **kwargs: Any) -> torch.optim.Optimizer:
    made: torch.optim.Optimizer = adam(*args, **kwargs)
    return made


def test_samples_that_are_not_on_the_device_are_copied_and_that_is_seen() -> None:
    plan = make_plan(steps=STEPS, checkpoint_every=STEPS)
    visit = stay(plan, site_samples(plan, CPU))
    with pytest.raises(Copied):
        two_steps(lambda report: strategy_for(plan).visit(replace(visit, report=report)))


@pytest.mark.parametrize(
    "offence",
    [
        lambda x: torch.randn(3).to(ABSENT),
        lambda x: x.copy_(torch.randn(4, 3)),
        lambda x: x + torch.tensor(1.0),
        lambda x: torch.tensor([1, 2], device=ABSENT),
        lambda x: x.new_tensor([1.0]),
        lambda x: x[[0, 1]],
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x[:, np.array([0])],
        lambda x: x.__setitem__([0], 1.0),
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).any()),
        lambda x: x.sum(0).tolist(),
        lambda x: x[x > 0],
        lambda x: x.cpu(),
    ],
)
def test_the_watch_sees_copies_and_what_waits(offence: Any) -> None:
    there = torch.empty(4, 3, device=ABSENT)
    with watched(), pytest.raises((Copied, NotImplementedError, RuntimeError)):
        offence(there)


# --- losses ---------------------------------------------------------------------------------------------------------


def test_elsewhere_than_on_a_cpu_losses_are_read_together() -> None:
    losses = Losses(ABSENT)
    for _ in range(LOSSES_TOGETHER - 1):
        losses.add(torch.zeros((), device=ABSENT), read=False)
    assert losses.newest() == {}
    with pytest.raises(NotImplementedError, match="no data"):
        losses.add(torch.zeros((), device=ABSENT), read=False)
    with pytest.raises(NotImplementedError, match="no data"):
        Losses(ABSENT).add(torch.zeros((), device=ABSENT), read=True)


@pytest.mark.parametrize("together", [2, 4, 100])
@pytest.mark.parametrize("every", [3, 100])
def test_read_together_they_are_the_same_numbers(together: int, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(steps=10, checkpoint_every=every)
    visit = stay(plan, device=CPU)
    shown: list[dict[str, float]] = []
    visit = replace(visit, report=lambda step, steps, scalars: shown.append(dict(scalars)))
    alone = strategy_for(plan).visit(visit)
    read, shown = shown, []
    reading_together(monkeypatch, together)
    assert strategy_for(plan).visit(replace(visit, checkpoint=visit_at(plan).checkpoint)).metrics == alone.metrics
    assert len(shown) == len(read)
    assert shown[-1] == read[-1]
    assert all(seen == {} or seen in read[: place + 1] for place, seen in enumerate(shown))


@pytest.mark.parametrize("wrong", [0, 4, 9])
def test_read_together_not_one_may_be_infinite(wrong: int, monkeypatch: pytest.MonkeyPatch) -> None:
    reading_together(monkeypatch, 4)
    plan = make_plan(steps=10, checkpoint_every=100)
    model = torch.nn.Linear(1, 1)

    def loss(batch: Batch) -> torch.Tensor:
        value = model.weight.sum()
        step = len(taken)
        taken.append(step)
        return value + torch.inf if step == wrong else value

    taken: list[int] = []
    with pytest.raises(FloatingPointError, match=r"the loss is inf; a smaller training\.lr may help"):
        train(model, plan.training, stay(plan, device=CPU), gradients=backward(loss))
    assert wrong < len(taken) <= wrong + 4


def reading_together(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Read losses on the CPU as on another device."""

    class Elsewhere(Losses):
        def __init__(self, device: torch.device, known: Any = ()) -> None:
            super().__init__(ABSENT, known)

    monkeypatch.setattr(training, "LOSSES_TOGETHER", number)
    monkeypatch.setattr(training, "Losses", Elsewhere)


# --- rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("incoming", "replay"), [(1, 0), (3, 3), (5, 2), (8, 8), (1, 9)])
def test_the_halves_of_a_pair_are_those_of_its_masks(incoming: int, replay: int) -> None:
    batches = [Batch(torch.randn(n, 1, 4, 4), torch.randint(3, (n, 1, 4, 4))) for n in (incoming, replay)]
    split = draw_split(incoming, replay, 5)
    cells = Pair(*batches, split).cut()
    for batch, mask, halves in zip(batches, (split.incoming, split.replay), cells, strict=True):
        for half, chosen in zip(halves, (mask, ~mask), strict=True):
            assert torch.equal(half.image, batch.image[chosen])
            assert torch.equal(half.label, batch.label[chosen])

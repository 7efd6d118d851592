"""SMG-Learning: the visit, its ablations, and what it tells of its steps. Its gradients: test_dual_meta.py."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from strategies.data import Batch
from strategies.generative.course import CURVE
from strategies.generative.smg import SMG, replay_loss
from strategies.losses import segmentation_loss
from strategies.registry import strategy_for
from strategies.strategy import UnknownParameter
from tests.strategies.harness import CPU, VIVID, conduct, make_plan, make_sites, turned
from tests.strategies.stays import visit_at


def weights(**changes: Any) -> list[Any]:
    plan = make_plan("smg", parameters={**VIVID["smg"], **changes})
    return [handover.weights for handover in conduct(plan, make_sites(plan))]


def test_the_first_visit_is_plain_training() -> None:
    """There is nothing to replay yet, and the paper does not say what else it could be."""
    plain = make_plan("finetune")
    assert weights()[0] == conduct(plain, make_sites(plain))[0].weights


def test_every_ablation_is_another_method() -> None:
    found = [
        weights(**changes)
        for changes in (
            {},
            {"arbitrary": False},
            {"orientation": False},
            {"arbitrary": False, "orientation": False},
            {"replay_labels": "mask"},
            {"replay_labels": "arrived"},
            {"replay_labels": "arrived_soft"},
            {"gamma": 0.0, "beta": 0.0},
            {"replay_noise": 0.5},
            {"replay_masks": "incoming"},
        )
    ]
    lasts = [visits[-1] for visits in found]
    assert all(one != other for place, one in enumerate(lasts) for other in lasts[:place])


def test_blended_labels_are_the_mean_of_mask_and_prediction() -> None:
    plan = make_plan("smg")
    strategy = smg_of(plan)
    batch = make_sites(plan)["A"].batch(range(3))
    model = strategy.loaded(strategy.first_handover(), CPU).eval()
    labels = {}
    for kind in ("mask", "arrived_soft", "blended"):
        other = smg_of(make_plan("smg", parameters={**VIVID["smg"], "replay_labels": kind}))
        labels[kind] = other._labelled(model, {"B": batch})["B"].label
    mask = torch.nn.functional.one_hot(labels["mask"][:, 0]).movedim(-1, 1)
    torch.testing.assert_close(labels["blended"], (mask + labels["arrived_soft"]) / 2)
    torch.testing.assert_close(labels["blended"].sum(1), torch.ones(3, 16, 16))


def smg_of(plan: Any) -> SMG:
    strategy = strategy_for(plan)
    assert isinstance(strategy, SMG)
    return strategy


def test_replays_are_augmented_each_by_a_seed_of_its_own() -> None:
    plan = make_plan("smg", sites=("B", "A"))
    arrived = conduct(plan, make_sites(plan))[0]
    visit = visit_at(plan, arrived)
    seen: list[int] = []

    def noted(batch: Batch, seeds: Sequence[int]) -> Batch:
        assert len(seeds) == len(batch.image)
        seen.extend(seeds)
        return turned(batch, seeds)

    changed = strategy_for(plan).visit(replace(visit, augment=noted)).handover
    assert len(set(seen)) == len(seen) == plan.training.steps * plan.training.batch_size
    plain = strategy_for(plan).visit(replace(visit, augment=lambda batch, seeds: batch)).handover
    assert changed.weights != plain.weights
    assert changed.generator == plain.generator


def test_without_look_ahead_orientation_is_the_naive_sum() -> None:
    naive = weights(arbitrary=False, orientation=False)
    aligned = weights(arbitrary=False, gamma=0.0)
    for one, other in zip(naive, aligned, strict=True):
        for name in one:
            torch.testing.assert_close(one[name].torch(), other[name].torch(), rtol=1e-3, atol=1e-4)


def test_the_network_has_no_part_in_the_generator() -> None:
    generators = []
    for changes in ({}, {"replay_labels": "mask", "gamma": 0.3}):
        plan = make_plan("smg", parameters={**VIVID["smg"], **changes})
        last = conduct(plan, make_sites(plan))[-1]
        generators.append((last.generator, last.prompts))
    assert generators[0] == generators[1]


@pytest.mark.parametrize("name", ["dice_ce", "dice", "ce"])
def test_a_replay_s_labels_are_learnt_as_the_site_s_own(name: Any) -> None:
    plan = make_plan("smg", loss=name)
    logits, label = torch.randn(2, 3, 16, 16), torch.randint(0, 3, (2, 1, 16, 16))
    assert torch.equal(replay_loss(plan, logits, label), segmentation_loss(logits, label, name))


@pytest.mark.parametrize("name", ["dice_ce", "dice", "ce"])
def test_probabilities_are_learnt_best_by_themselves(name: Any) -> None:
    """The loss of soft labels is least where the network says the same, not where it says it more surely."""
    plan = make_plan("smg", loss=name)
    logits = torch.randn(2, 3, 16, 16)
    label = logits.softmax(dim=1)
    given = logits.clone().requires_grad_()
    replay_loss(plan, given, label).backward()
    assert given.grad is not None
    if name == "ce":
        assert given.grad.abs().max() < 1e-6
    best = replay_loss(plan, logits, label)
    for factor in (0.5, 2.0):
        assert replay_loss(plan, logits * factor, label) > best
    assert replay_loss(plan, logits + torch.randn_like(logits), label) > best


def test_the_course_of_a_visit_is_told_in_twenty_points() -> None:
    plan = make_plan("smg", steps=40)
    strategy = strategy_for(plan)
    assert isinstance(strategy, SMG)
    first = strategy.visit(visit_at(plan, stop=0))
    names = {name.partition(".")[0] for name in first.metrics if "." in name}
    assert names == {"loss", "generator_loss"}  # nothing was replayed
    assert sum(name.startswith("loss.") for name in first.metrics) == CURVE

    arrived = conduct(make_plan("smg", sites=("B", "A")), make_sites(make_plan("smg")))[0]
    later = make_plan("smg", sites=("B", "A"), steps=40)
    second = strategy_for(later).visit(visit_at(later, arrived, stop=1))
    for name in ("loss", "replay_loss", "alignment"):  # a step whose cells came out empty has no alignment
        assert CURVE - 3 <= sum(key.startswith(f"{name}.") for key in second.metrics) <= CURVE
    assert all(-1 <= value <= 1 for key, value in second.metrics.items() if key.startswith("alignment."))


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"prompts": "fixed"}, "vectors"),
        ({"vectors": {"A": [0.0] * 512}}, "vectors"),
        ({"prompts": "fixed", "vectors": {"A": [0.0] * 512}}, "every site"),
        ({"prompts": "fixed", "vectors": {site: [0.0] * 3 for site in "ABC"}}, "512 numbers"),
        ({"generator": {"channels": [12]}}, "multiples of 8"),
        ({"generator": {"channels": [8, 8], "attention": [True]}}, "per level"),
    ],
)
def test_parameters_that_do_not_fit_are_one_sentence(parameters: dict[str, Any], said: str) -> None:
    with pytest.raises(UnknownParameter, match=rf"^strategy[^\n]*{said}[^\n]*\.$"):
        strategy_for(make_plan("smg", parameters=parameters))


def test_soft_tasks_are_refused() -> None:
    plan = make_plan("smg", loss="dice")
    soft = plan.model_copy(update={"task": plan.task.model_copy(update={"soft": True})})
    with pytest.raises(UnknownParameter, match=r"task\.soft"):
        strategy_for(soft)

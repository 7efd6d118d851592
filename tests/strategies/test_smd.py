"""Site-Modulated Diffusion: what the denoiser is told, what of it travels, what it remembers."""

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from protos.handover import Handover, Kind
from protos.plan import Plan, Task
from strategies.data import Batch
from strategies.generative.denoiser import Denoiser, Prompts, Touch, fresh_denoiser, precision_on
from strategies.generative.masks import NUMBERS, measure
from strategies.generative.parameters import PROMPT, GeneratorChoice
from strategies.generative.smd import MASKS, REPLAYED, SiteModulatedDiffusion
from strategies.generative.smd_learning import Lesson
from strategies.generative.smg import SMG
from strategies.randomness import Seeds
from strategies.registry import strategy_for
from strategies.strategy import UnknownParameter
from tests.strategies.harness import CPU, VIVID, Shelf, ShelvedWork, conduct, make_plan, make_sites
from tests.strategies.stays import visit_at

TASK = Task(size=(16, 16), channels=2, classes=("background", "one", "two"))
SMALL = GeneratorChoice(channels=(8, 16))


def smg(plan: Plan) -> SMG:
    strategy = strategy_for(plan)
    assert isinstance(strategy, SMG)
    return strategy


def given(**changes: Any) -> Mapping[str, Any]:
    return {**VIVID["smg"], **changes}


# The denoiser


@pytest.mark.parametrize("unshuffle", [1, 2, 4])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_prediction_has_the_image_s_shape(dims: Any, unshuffle: Any) -> None:
    task = Task(dims=dims, size=(16,) * dims, channels=2, classes=TASK.classes)
    denoiser = Denoiser(task, GeneratorChoice(channels=(8, 8), unshuffle=unshuffle), 3)
    image = torch.randn(2, 2, *task.size)
    label = torch.zeros(2, 1, *task.size, dtype=torch.int64)
    assert denoiser(image, label, torch.tensor([0, 999]), torch.tensor([0, 2])).shape == image.shape


def test_the_mask_is_never_noised() -> None:
    denoiser = fresh_denoiser(TASK, GeneratorChoice(channels=(8, 16), unshuffle=1), "AB", 0)
    seen: list[torch.Tensor] = []
    denoiser.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    noisy, label = torch.randn(2, 2, 16, 16), torch.randint(0, 3, (2, 1, 16, 16))
    denoiser(noisy, label, torch.tensor([5, 900]), torch.tensor([0, 1]))
    (whole,) = seen
    assert torch.equal(whole[:, :2], noisy)
    for number in (1, 2):
        assert torch.equal(whole[:, 1 + number], (label[:, 0] == number).float() * 2 - 1)


def test_a_prompt_learns_nothing_from_other_sites() -> None:
    denoiser = fresh_denoiser(TASK, SMALL, "ABC", 0)
    with torch.no_grad():
        for parameter in denoiser.parameters():  # MONAI's output begins at zero, which lets no gradient through
            parameter.add_(0.1)
    noisy, label = torch.randn(4, 2, 16, 16), torch.randint(0, 3, (4, 1, 16, 16))
    denoiser(noisy, label, torch.full((4,), 500), torch.tensor([0, 2, 2, 0])).square().sum().backward()
    slopes = denoiser.prompts.table.grad
    assert slopes is not None
    assert slopes[1].count_nonzero() == 0
    assert slopes[0].count_nonzero() > 0
    assert slopes[2].count_nonzero() > 0


def test_prompts_are_512_floats_added_to_the_time_embedding() -> None:
    wide = Prompts(3, PROMPT)  # the paper's width needs no projection
    assert torch.equal(wide(torch.tensor([2, 0])), wide.table[[2, 0]])
    narrow = Prompts(3, 64)
    assert narrow(torch.tensor([1])).shape == (1, 64)
    assert narrow(torch.arange(3)).std().item() == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_touch_changes_nothing_at_first_and_then_near_a_pixel_alone(dims: Any) -> None:
    torch.manual_seed(0)
    touch = Touch(dims, 2, 1, 8)
    said, given_, embedding = torch.randn(1, 2, *[16] * dims), torch.randn(1, 3, *[16] * dims), torch.randn(1, 8)
    assert torch.equal(touch(said, given_, embedding), said)
    torch.nn.init.normal_(touch.last.weight)
    before = touch(said, given_, embedding)
    changed = given_.clone()
    changed[(0, 2, *[8] * dims)] += 1  # a pixel of the mask
    moved = (touch(said, changed, embedding) - before).abs().amax((0, 1)) > 1e-6
    near = moved[tuple([slice(6, 11)] * dims)]
    assert near.sum() > 0.9 * near.numel()
    assert moved.sum() == near.sum()
    assert not torch.allclose(touch(said, given_, -embedding), before)  # another site, or another level of noise


def test_a_prompt_follows_from_the_site_s_name_and_not_from_the_order() -> None:
    one, other = (fresh_denoiser(TASK, SMALL, sites, 7) for sites in ("ABC", "CAB"))
    assert torch.equal(one.prompts.table[[0, 1, 2]], other.prompts.table[[1, 2, 0]])


def test_a_size_that_does_not_fit_is_one_sentence() -> None:
    with pytest.raises(ValueError, match=r"^strategy\.generator: [^\n]*\.$"):
        Denoiser(Task(size=(20, 16), classes=TASK.classes), GeneratorChoice(channels=(8, 8, 8)), 1)


# What travels


def test_a_visit_changes_its_own_prompt_and_those_of_earlier_sites() -> None:
    plan = make_plan("smg")
    first = smg(plan).first_handover()
    handovers = [first, *conduct(plan, make_sites(plan))]
    for number, (before, after) in enumerate(pairwise(handovers)):
        for place, site in enumerate("ABC"):
            changed = before.prompts[f"site/{site}"] != after.prompts[f"site/{site}"]
            assert changed == (place <= number)
        assert after.prompts[REPLAYED].torch().tolist() == [place <= number for place in range(3)]
        assert before.generator != after.generator


def test_the_generator_of_the_last_visit_is_trained_too() -> None:
    plan = make_plan("smg")
    *_, before, last = conduct(plan, make_sites(plan))
    assert before.generator != last.generator


def test_a_site_whose_visit_was_skipped_is_not_replayed() -> None:
    """C comes after A alone: B's prompt is what the seed gave, and there is nothing to replay B from."""
    plan = make_plan("smg")
    after_a = conduct(plan, make_sites(plan))[0]
    diffusion = SiteModulatedDiffusion(plan, smg(plan).parameters)
    visit = visit_at(plan, after_a, stop=2)
    assert set(diffusion.replay(visit)) == set()  # at A itself
    shelf = Shelf()
    other = replace_site(visit, "C", shelf)
    assert set(diffusion.replay(other)) == {"A"}
    with pytest.raises(ValueError, match=r"^No replay of B: [^\n]*\.$"):
        diffusion.replayer(after_a, CPU)("B", torch.zeros(1, 1, 16, 16, dtype=torch.int64), [0])


def replace_site(visit: Any, site: str, shelf: Shelf) -> Any:
    """The visit at another site."""
    return replace(visit, seeds=replace(visit.seeds, site=site), once=ShelvedWork(shelf, site))


def test_fixed_prompts_stay_as_they_were_given() -> None:
    rng = np.random.default_rng(0)
    vectors = {site: rng.normal(size=PROMPT).tolist() for site in "ABC"}
    plan = make_plan("smg", parameters=given(prompts="fixed", vectors=vectors))
    for handover in conduct(plan, make_sites(plan)):
        for site, vector in vectors.items():
            assert torch.equal(handover.prompts[f"site/{site}"].torch(), torch.tensor(vector))


def test_four_numbers_of_a_site_s_masks_travel_where_masks_are_fitted_and_none_elsewhere() -> None:
    plan = make_plan("smg", parameters=given(replay_masks="fitted"))
    sites = make_sites(plan)
    for number, handover in enumerate(conduct(plan, sites)):
        told = handover.prompts[MASKS].torch()
        assert told.shape == (3, NUMBERS)
        for place, site in enumerate("ABC"):
            own = measure(sites[site], Seeds(plan.seed, place, site))
            assert torch.equal(told[place], own if place <= number else torch.zeros(NUMBERS))
    plain = make_plan("smg", parameters=given(replay_masks="incoming"))
    assert MASKS not in smg(plain).schema().tensors[Kind.PROMPTS]


def test_fitted_masks_are_like_the_replayed_site_s() -> None:
    """A draws one small square, B a few large ones: what B replays A from has A's share, not B's."""
    plan = make_plan("smg", sites=("A", "B"), parameters=given(replay_masks="fitted", replays=12))
    sites: Any = {"A": Squares(3, 1), "B": Squares(6, 2)}
    arrived = conduct(plan, sites)[0]
    shares = {}
    for masks in ("fitted", "incoming"):
        other = make_plan("smg", sites=("A", "B"), parameters=given(replay_masks=masks, replays=12))
        after = arrived if masks == "fitted" else conduct(other, sites)[0]
        visit = replace_site(visit_at(other, after, samples=sites["B"]), "B", Shelf())
        replay = SiteModulatedDiffusion(other, smg(other).parameters).replay(visit)["A"]
        shares[masks] = float((replay.label > 0).float().mean())
    own, others = (float((sites[site].batch(range(8)).label > 0).float().mean()) for site in "AB")
    assert shares["fitted"] == pytest.approx(own, rel=0.5)
    assert shares["incoming"] == pytest.approx(others, rel=0.5)


def test_each_site_is_replayed_from_masks_like_its_own() -> None:
    """C replays A, whose squares are small, and B, whose are large: each from its own row, by seeds of its own."""
    plan = make_plan("smg", parameters=given(replay_masks="fitted", replays=12))
    sites: Any = {"A": Squares(3, 1), "B": Squares(7, 1), "C": Squares(5, 1)}
    arrived = conduct(plan, sites)[1]
    visit = replace_site(visit_at(plan, arrived, samples=sites["C"], stop=2), "C", Shelf())
    replay = SiteModulatedDiffusion(plan, smg(plan).parameters).replay(visit)
    wide = {name: float((batch.label > 0).double().mean()) * 256 for name, batch in replay.items()}
    assert wide["A"] == pytest.approx(9, rel=0.5)
    assert wide["B"] == pytest.approx(49, rel=0.4)


def test_what_is_kept_at_a_site_is_found_again_only_for_equal_work() -> None:
    """Of all that a replay follows from, the numbers of masks and the augmentation among it."""
    plan = make_plan("smg", parameters=given(replay_masks="fitted"))
    arrived = conduct(plan, make_sites(plan))[1]
    asked: list[str] = []

    def once(recipe: Any, make: Any) -> Any:
        asked.append(json.dumps(recipe, sort_keys=True))
        return dict(make())

    def ask(of: Plan, handover: Handover) -> None:
        visit = replace_site(visit_at(of, handover, make_sites(of)["C"], stop=2), "C", Shelf())
        SiteModulatedDiffusion(of, smg(of).parameters).replay(replace(visit, once=once))

    ask(plan, arrived)
    ask(plan, arrived)
    assert asked[0] == asked[1]
    flipped = plan.model_copy(update={"training": plan.training.model_copy(update={"augment": ("flip",)})})
    ask(flipped, arrived)
    state = arrived.state(Kind.PROMPTS)
    other = Handover.of(
        weights=arrived.state(Kind.WEIGHTS),
        generator=arrived.state(Kind.GENERATOR),
        prompts=state | {MASKS: state[MASKS] + 1},
    )
    ask(plan, other)
    assert len(set(asked[1:])) == 3


class Squares:
    """Images of so many squares of one width."""

    def __init__(self, width: int, number: int, count: int = 8) -> None:
        rng = np.random.default_rng(width)
        self._label = torch.zeros(count, 1, 16, 16, dtype=torch.int64)
        for row in range(count):
            for _ in range(number):
                top, left = rng.integers(0, 16 - width, 2)
                self._label[row, :, top : top + width, left : left + width] = 1

    def __len__(self) -> int:
        return len(self._label)

    def batch(self, indices: Any, seeds: Any = None, only: Any = None) -> Batch:
        """As strategies.data.Samples says."""
        label = self._label[list(indices)]
        return Batch(label.float(), label)


# Replay


def test_there_is_a_replay_for_every_training_sample_of_this_site_with_its_mask() -> None:
    plan = make_plan("smg", parameters=given(replays=None, replay_masks="incoming"))
    sites = make_sites(plan)
    after_b = conduct(plan, sites)[1]
    visit = replace_site(visit_at(plan, after_b, sites["C"], stop=2), "C", Shelf())
    replay = SiteModulatedDiffusion(plan, smg(plan).parameters).replay(visit)
    assert set(replay) == {"A", "B"}
    masks = {turned.numpy().tobytes() for label in sites["C"].batch(range(7)).label for turned in turns(label)}
    for batch in replay.values():
        assert batch.image.shape == (7, 1, 16, 16)
        assert batch.image.dtype == torch.float32
        assert all(label.contiguous().numpy().tobytes() in masks for label in batch.label)


def turns(label: torch.Tensor) -> list[torch.Tensor]:
    """What the augmentation of Blobs makes of a label."""
    return [torch.rot90(label, quarter, (-2, -1)).contiguous() for quarter in range(4)]


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "ancestral"])
def test_equal_seeds_give_equal_replays(sampler: str) -> None:
    plan = make_plan("smg", parameters=given(sampler=sampler, evaluations=3))
    handover = conduct(plan, make_sites(plan))[0]
    label = torch.randint(0, 3, (4, 1, 16, 16))
    replayer = smg(plan).replayer(handover, CPU)
    assert replayer is not None
    one, again = replayer("A", label, [1, 2, 3, 4]), replayer("A", label, [1, 2, 3, 4])
    assert torch.equal(one, again)
    assert not torch.equal(one[0], replayer("A", label[:1], [9])[0])
    if sampler != "ancestral":
        torch.testing.assert_close(replayer("A", label[2:3], [3]), one[2:3], atol=1e-4, rtol=1e-4)


class Contrast:
    """Discs that are brighter or darker than what is round them."""

    def __init__(self, sign: float, count: int = 12) -> None:
        rng = np.random.default_rng(int(10 + sign))
        rows, columns = np.mgrid[:16, :16]
        centres = rng.uniform(5, 11, (count, 2, 1, 1))
        mask = (rows - centres[:, 0]) ** 2 + (columns - centres[:, 1]) ** 2 < 16
        image = np.where(mask, sign, -sign) + rng.normal(0, 0.1, mask.shape)
        self._image = torch.from_numpy(image[:, None]).float()
        self._label = torch.from_numpy(mask[:, None]).long()

    def __len__(self) -> int:
        return len(self._image)

    def batch(self, indices: Any, seeds: Any = None, only: Any = None) -> Batch:
        """As strategies.data.Samples says."""
        return Batch(self._image[list(indices)], self._label[list(indices)])


def test_sites_of_opposite_contrast_stay_apart_over_three_visits() -> None:
    parameters = {
        "generator": {"channels": [16, 16], "unshuffle": 2},
        "generator_steps": 100,
        "evaluations": 8,
        "replays": 16,
        "average": 0.98,
    }
    plan = make_plan("smg", parameters=parameters, steps=0).model_copy(
        update={"task": Task(size=(16, 16), classes=("background", "disc"))}
    )
    sites: Any = {"A": Contrast(1.0), "B": Contrast(-1.0), "C": Contrast(0.4)}
    last = conduct(plan, sites)[-1]
    replayer = smg(plan).replayer(last, CPU)
    assert replayer is not None
    label = Contrast(1.0).batch(range(8)).label
    contrasts = {}
    for site in "ABC":
        image = replayer(site, label, range(8))
        contrasts[site] = float(image[label == 1].mean() - image[label == 0].mean())
    assert contrasts["A"] > 1
    assert contrasts["B"] < -1
    assert 0 < contrasts["C"] < contrasts["A"]


def test_strategies_with_equal_generators_share_the_work() -> None:
    """What differs between the paper's ablations has no part in the generator, so that a study makes it once."""
    shelf = Shelf()
    generators = []
    for changes in ({}, {"gamma": 0.5}, {"orientation": False}, {"replay_labels": "mask"}):
        plan = make_plan("smg", parameters=given(**changes))
        again = Shelf(made=shelf.made)
        generators.append([handover.generator for handover in conduct(plan, make_sites(plan), shelf=again)])
        assert len(shelf.made) == 3 + 2  # a generator per visit, and a replay at all but the first
    assert all(found == generators[0] for found in generators)
    plan = make_plan("smg", parameters=given(generator_lr=1e-4))
    conduct(plan, make_sites(plan), shelf=Shelf(made=shelf.made))
    assert len(shelf.made) == 10


def test_work_is_found_again_by_the_precision_that_auto_came_to() -> None:
    """Else a home that another processor takes up would mix both."""
    plan = make_plan("smg")
    shelf = Shelf()
    conduct(plan, make_sites(plan), shelf=shelf)
    here = precision_on("auto", CPU, dims=2)
    for precision in ("float32", "bfloat16"):
        found = Shelf(made=dict(shelf.made))
        conduct(make_plan("smg", parameters=given(precision=precision)), make_sites(plan), shelf=found)
        assert (found.made.keys() == shelf.made.keys()) == (precision == here)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_all_earlier_sites_are_learnt_as_often_whatever_the_batch(size: int) -> None:
    plan = make_plan("smg", parameters=given(generator_batch=size))
    image, label = torch.zeros(2, 1, 16, 16), torch.zeros(2, 1, 16, 16, dtype=torch.int64)
    replay = {site: Batch(image, label) for site in "BC"}
    lesson = Lesson(visit_at(plan), replay, plan.sites, smg(plan).parameters, plan.task.dims)
    steps = [lesson.batch(step) for step in range(6)]
    assert all(torch.equal(numbers[:own], torch.zeros(own)) for _, _, numbers, own in steps)
    counts = torch.cat([numbers for _, _, numbers, _ in steps]).bincount(minlength=3).tolist()
    assert counts[0] >= 6
    assert counts[1] == counts[2] > 0


def test_a_batch_has_room_for_the_site_and_for_a_replay() -> None:
    with pytest.raises(UnknownParameter, match=r"^strategy\.generator_batch: "):
        smg(make_plan("smg", parameters=given(generator_batch=1)))


def test_nothing_is_learnt_in_float64() -> None:
    plan = make_plan("smg")
    for _, name, tensor in conduct(plan, make_sites(plan))[-1].items():
        assert tensor.dtype in ("float32", "bool"), name


def kinds(handover: Handover) -> set[Kind]:
    return {kind for kind, _, _ in handover.items()}


def test_only_a_visited_site_is_sent_the_generator_to_score_it() -> None:
    strategy = smg(make_plan("smg"))
    first = strategy.first_handover()
    whole = {Kind.WEIGHTS, Kind.GENERATOR, Kind.PROMPTS}
    assert kinds(strategy.for_scoring(first, "A", 0)) == whole
    assert kinds(strategy.for_scoring(first, "B", 0)) == {Kind.WEIGHTS}
    assert kinds(strategy.for_scoring(first, "B", 1)) == whole
    assert kinds(strategy.for_scoring(first, "a site never visited", 2)) == {Kind.WEIGHTS}

"""What a generator learns from in a batch, and what the replayed part of it is to become."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from strategies.data import Batch
from strategies.generative.denoiser import fresh_denoiser
from strategies.generative.diffusion import Schedule
from strategies.generative.parameters import DiffusionParameters
from strategies.generative.smd_learning import Lesson, learn
from tests.strategies.harness import VIVID, Blobs, Shelf, Slot, make_plan
from tests.strategies.stays import visit_at

PLAN = make_plan("smg")
SCHEDULE = Schedule.of("cosine")


def marked(site: int) -> Batch:
    """Three images whose pixels say where they are, with labels that say the same."""
    place = torch.arange(256).reshape(1, 1, 16, 16).repeat(3, 1, 1, 1)
    return Batch(place.float() + 1000 * site, place)


class Marked:
    """The site's own samples, of the same kind."""

    def __len__(self) -> int:
        return 3

    def batch(self, indices: Any, seeds: Any = None, only: Any = None) -> Batch:
        """As strategies.data.Samples says."""
        whole = marked(0)
        return Batch(whole.image[list(indices)], whole.label[list(indices)])


def parameters(**changes: Any) -> DiffusionParameters:
    own = {name: value for name, value in VIVID["smg"].items() if name in DiffusionParameters.model_fields}
    return DiffusionParameters(**{**own, "precision": "float32", **changes})


def lesson(replay: Mapping[str, Batch], **changes: Any) -> Lesson:
    return Lesson(visit_at(PLAN, samples=Marked()), replay, PLAN.sites, parameters(**changes), PLAN.task.dims)


def taught(given: Lesson, steps: int, slot: Slot | None = None) -> tuple[dict[str, torch.Tensor], list[float]]:
    """What `learn` makes of a fresh generator, with a checkpoint after every second step."""
    denoiser, arrived = (fresh_denoiser(PLAN.task, parameters().generator, PLAN.sites, 0) for _ in range(2))
    teacher = arrived if given.parameters.replay_targets == "arrived" else None
    return learn(denoiser, teacher, given, SCHEDULE, steps, slot or Slot(Shelf(), (0, 0, "A")), 2)


def test_a_window_is_the_same_of_image_and_mask() -> None:
    found = lesson({"B": marked(1), "C": marked(2)}, crop=8, generator_batch=6)
    corners = set()
    for step in range(5):
        image, label, numbers, _ = found.batch(step)
        assert image.shape == label.shape == (6, 1, 8, 8)
        assert torch.equal(image - 1000 * numbers[:, None, None, None], label.float())
        corners |= {int(mask.min()) for mask in label}
    assert len(corners) > 5
    assert lesson({}, crop=99).batch(0)[0].shape == (3, 1, 16, 16)


@pytest.mark.parametrize(("share", "own"), [(None, 2), (0.5, 3), (0.01, 1), (0.99, 5)])
def test_a_batch_is_shared_as_asked(share: float | None, own: int) -> None:
    found = lesson({"B": marked(1), "C": marked(2)}, incoming_share=share, generator_batch=6)
    for step in range(4):
        _, _, numbers, mine = found.batch(step)
        assert mine == own
        assert (numbers[:own] == 0).all()
        assert (numbers[own:] > 0).all()


def test_the_generator_learns_intensities_as_they_are() -> None:
    """What Blobs' "noise" does never comes; what its "rotate" does, does."""
    samples = Blobs("A", 3)
    found = Lesson(visit_at(PLAN, samples=samples), {}, PLAN.sites, parameters(), PLAN.task.dims)
    real = samples.batch(range(3)).image
    turned = {
        torch.rot90(image, quarter, (-2, -1)).contiguous().numpy().tobytes() for image in real for quarter in range(4)
    }
    seen = {image.numpy().tobytes() for step in range(6) for image in found.batch(step)[0]}
    assert seen <= turned
    assert len(seen) > 3


def test_without_replay_a_batch_is_the_sites_own() -> None:
    _, _, numbers, own = lesson({}, incoming_share=0.2).batch(0)
    assert own == len(numbers) == 3


@pytest.mark.parametrize("prediction", ["x0", "eps"])
def test_targets_of_the_arrived_generator_hold_the_new_one_to_it(prediction: Any) -> None:
    """Before a step both say the same of a replay, so that nothing but the site's own samples is left to learn."""
    far = {"B": Batch(1e3 * torch.ones(3, 1, 16, 16), torch.zeros(3, 1, 16, 16, dtype=torch.int64))}
    near = {"B": Batch(torch.zeros(3, 1, 16, 16), far["B"].label)}
    losses = {}
    for targets in ("image", "arrived"):
        for name, replay in (("far", far), ("near", near)):
            found = lesson(replay, replay_targets=targets, prediction=prediction, generator_batch=2)
            (losses[targets, name],) = taught(replace(found, visit=visit_at(PLAN)), 1)[1]
    assert losses["arrived", "far"] == pytest.approx(losses["arrived", "near"], rel=1e-5)
    if prediction == "x0":
        assert losses["image", "far"] > 1e3 * losses["image", "near"]
    else:  # every noise is as far from what a generator says that has learnt nothing
        assert losses["arrived", "near"] < 0.8 * losses["image", "near"]


@pytest.mark.parametrize("changes", [{}, {"crop": 8, "replay_targets": "arrived"}, {"prediction": "eps"}], ids=str)
def test_learning_goes_on_from_its_checkpoint_bit_for_bit(changes: dict[str, Any]) -> None:
    """Stopped after two steps of five, as by a crash."""

    class Crash(Exception):
        pass

    def crash(step: int, steps: int, scalars: Mapping[str, float]) -> None:
        if step == 3:
            raise Crash

    given = lesson({"B": Blobs("B", 4).batch(range(4))}, **changes)
    given, slot = replace(given, visit=visit_at(PLAN)), Slot(Shelf(), (0, 0, "A"))
    with pytest.raises(Crash):
        taught(replace(given, visit=replace(given.visit, report=crash)), 5, slot)
    state, losses = taught(given, 5, slot)
    whole, expected = taught(given, 5)
    assert losses == expected
    assert all(torch.equal(state[name], whole[name]) for name in whole)

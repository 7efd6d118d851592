"""The course of a visit in several parts, taken up again where it was left."""

import pytest
import torch

from strategies.generative.course import Curves, Part
from tests.strategies.harness import Shelf, Slot

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]


@pytest.mark.parametrize("device", DEVICES)
def test_curves_go_on_from_a_checkpoint(device: str) -> None:
    """A checkpoint is on the CPU and in float64, what a step tells is neither."""
    steps = [torch.tensor([0.1, 0.2, 0.3], device=device) * number for number in range(1, 6)]
    whole, slot = Curves(), Slot(Shelf(), (0, 0, "A"))
    assert whole.state().shape == (0, 3)
    for step in steps[:3]:
        whole.add(*step)
    Part(slot, "network", whole).save(3, {"weight": torch.ones(2)})

    again = Curves()
    saved = Part(slot, "network", again).load()
    assert saved is not None
    assert (saved[0], list(saved[1])) == (3, ["weight"])
    assert torch.equal(again.state(), whole.state())
    for curves in (whole, again):
        for step in steps[3:]:
            curves.add(*step)
    assert again.values() == whole.values()
    assert whole.values()["alignment"] == [float(step[2]) for step in steps]


def test_a_part_does_not_take_up_what_another_left() -> None:
    slot = Slot(Shelf(), (0, 0, "A"))
    assert Part(slot, "generator").load() is None
    Part(slot, "generator").save(2, {"weight": torch.ones(2)})
    assert Part(slot, "network", Curves()).load() is None
    assert Part(slot, "generator").load() is not None

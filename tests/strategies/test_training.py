"""The loop's budget: steps and epochs, the learning rate as a function of the place, several windows per sample."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from protos.plan import Training
from strategies.data import Batch
from strategies.training import learning_rate, stretch, visit_steps
from tests.strategies.harness import Blobs, conduct, digests, make_plan, make_sites


class Recorder(Blobs):
    """Samples that note which were asked for."""

    def __init__(self, site: str, count: int) -> None:
        super().__init__(site, count)
        self.asked: list[tuple[int, int]] = []

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None, only: Any = None) -> Batch:
        """As strategies.data.Samples says."""
        self.asked += list(zip(indices, seeds or (), strict=True))
        return super().batch(indices, seeds, only)


# Epochs


@given(samples=st.integers(1, 200), epochs=st.integers(1, 20), batch=st.integers(1, 16))
def test_epochs_are_as_many_steps_as_draw_every_sample_so_often(samples: int, epochs: int, batch: int) -> None:
    steps = visit_steps(Training(epochs=epochs, batch_size=batch), samples)
    assert (steps - 1) * batch < samples * epochs <= steps * batch
    assert visit_steps(Training(steps=7, batch_size=batch), samples) == 7


def test_a_visit_of_two_epochs_sees_every_sample_twice() -> None:
    plan = make_plan(sites=("A",), epochs=2, batch_size=3, steps=1)
    samples = Recorder("A", 9)
    conduct(plan, {"A": samples})
    assert Counter(index for index, _ in samples.asked) == dict.fromkeys(range(9), 2)
    assert len({seed for _, seed in samples.asked}) == 18


@pytest.mark.parametrize("name", ["finetune", "joint-fedavg"])
def test_epochs_are_the_steps_that_they_come_to(name: str) -> None:
    """Sites of 4 samples, batches of 2, so that 3 epochs are 6 steps everywhere."""
    one, other = make_plan(name, epochs=3), make_plan(name, steps=6)
    sites = make_sites(one, counts=(4,))
    assert digests(conduct(one, sites)) == digests(conduct(other, sites))


# The learning rate


def rates(training: Training, steps: int, first: bool = True) -> list[float]:
    return [learning_rate(training, step, steps, first) for step in range(steps)]


def test_the_rate_is_that_of_steplr() -> None:
    training = Training(steps=25, lr=0.1, lr_step=4, lr_factor=0.5)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=4, gamma=0.5)
    expected = []
    for _ in range(25):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(training, 25) == pytest.approx(expected)
    assert rates(training, 25, first=False) == rates(training, 25)


def test_mas_lr_halves_in_the_first_visit_and_stays_there() -> None:
    """12 epochs, halved every 4: 0.1, 0.05, 0.025, and 0.025 from then on, whatever the size of the site."""
    training = Training(epochs=12, batch_size=4, lr=0.1, lr_step=4, lr_decay_visits="first")
    for samples in (5, 8, 31):
        steps = visit_steps(training, samples)
        assert sorted(set(rates(training, steps)), reverse=True) == pytest.approx([0.1, 0.05, 0.025])
        assert set(rates(training, steps, first=False)) == {rates(training, steps)[-1]}
    whole = rates(training, 24)
    assert [whole.count(rate) for rate in sorted(set(whole))] == [8, 8, 8]


@given(
    steps=st.integers(1, 60), longer=st.integers(1, 5), lr_step=st.integers(1, 20), epochs=st.none() | st.integers(1, 9)
)
def test_training_of_another_length_falls_alike(steps: int, longer: int, lr_step: int, epochs: int | None) -> None:
    training = Training(steps=steps, epochs=epochs, lr_step=lr_step)
    stretched = rates(training, steps * longer)
    assert stretched[::longer] == rates(training, steps)
    assert stretched == sorted(stretched, reverse=True)


def test_without_lr_step_nothing_falls() -> None:
    assert set(rates(Training(lr=0.3, lr_decay_visits="first"), 5, first=False)) == {0.3}


def test_a_stretch_knows_neither_epochs_nor_a_schedule() -> None:
    training = stretch(Training(epochs=3, lr_step=2, lr_decay_visits="first", momentum=0.5), 4, 0.01)
    assert visit_steps(training, 999) == 4
    assert rates(training, 4, first=False) == [0.01] * 4
    assert training.momentum == 0.5


@pytest.mark.parametrize("decay", ["all", "first"])
def test_training_takes_the_rates(decay: str) -> None:
    """With a factor of 0 the steps after the fall change nothing."""
    plan = make_plan(
        sites=("A", "B"),
        optimizer="sgd",
        momentum=0.0,
        steps=4,
        lr=0.1,
        lr_step=2,
        lr_factor=0.0,
        lr_decay_visits=decay,
    )
    first, second = conduct(plan, make_sites(plan))
    still = make_plan(sites=("A", "B"), optimizer="sgd", momentum=0.0, steps=2, lr=0.1)
    assert first == conduct(still, make_sites(still))[0]
    assert (first == second) == (decay == "first")


# Windows


def test_the_first_window_of_each_sample_is_the_one_without_patches() -> None:
    single, several = Recorder("A", 5), Recorder("A", 5)
    visited: list[list[tuple[int, int]]] = []
    for samples, patches in ((single, 1), (several, 3)):
        plan = make_plan(sites=("A",), patches=patches, batch_size=2, steps=4)
        conduct(plan, {"A": samples})
        visited.append(samples.asked)
    assert visited[1][::3] == visited[0]
    assert [index for index, _ in visited[1]] == [index for index, _ in visited[0] for _ in range(3)]
    assert len({seed for _, seed in visited[1]}) == len(visited[1]) == 24


def test_patches_change_what_is_learnt() -> None:
    one, other = make_plan(patches=1), make_plan(patches=2)
    assert digests(conduct(one, make_sites(one)))[-1] != digests(conduct(other, make_sites(other)))[-1]

"""Samples that stay on the site's device: the same batches, made there; tests/devices.py has what stands for one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from node.data.samples import OnDemand, SiteSamples, augmented, samples_of
from node.data.source import Scan
from node.data.stored import Shelf
from protos.handover import Handover, Tensor
from protos.messages import VISIT, read_handover
from protos.plan import StrategyChoice, Task
from strategies.baselines.finetune import FineTune
from strategies.data import GEOMETRY, Batch, Samples
from strategies.generative.smd import REPLAYED
from strategies.generative.smg import SMG
from strategies.randomness import Seeds
from strategies.registry import strategy_for
from strategies.replayer import Replayer
from strategies.visit import Departure, Visit
from tests.devices import ABSENT, absent_generators, watched
from tests.node.test_app import PLAN, Node

__all__ = ["absent_generators"]

ALL = ("flip", "rotate", "scale", "intensity", "noise")
# For PyTorch the same place as "cpu", under a name that is not equal: samples are held there as on a GPU.
ELSEWHERE = torch.device("cpu", 0)
CLASSES = ("background", "one", "two")
TASKS = [
    Task(size=(16, 16), classes=CLASSES),
    Task(size=(16, 16), classes=CLASSES, channels=2, soft=True),
    Task(size=(12, 12), classes=CLASSES, fit="patch"),
    Task(size=(12, 12), classes=CLASSES, fit="patch", soft=True),
    Task(dims=3, size=(12, 12, 8), classes=CLASSES, fit="patch", channels=2),
    Task(dims=3, size=(8, 8, 8), classes=CLASSES),
]
SMALL: dict[str, Any] = {
    "generator": {"channels": (8, 8)},
    "generator_steps": 3,
    "generator_batch": 3,
    "evaluations": 2,
    "replays": 3,
}

pytestmark = pytest.mark.usefixtures("absent_generators")


def samples(task: Task) -> SiteSamples:
    return SiteSamples([sample for number in range(4) for sample in samples_of(scan(task, number), task)], task, ALL)


def scan(task: Task, number: int) -> Scan:
    rng = np.random.default_rng(number)
    space = (20, 18, 9)[: task.dims]
    label = rng.integers(0, 3, space).astype(np.uint8)
    if task.soft:
        label = (rng.random((2, *space)) * (rng.random((2, *space)) < 0.2) / 2).astype(np.float32)
    image = rng.normal(size=(task.channels, *space)).astype(np.float32)
    if not number:
        image[:] = 0  # flat
    return Scan(f"case{number}", image, label, (1.0,) * len(space))


@pytest.mark.parametrize("task", TASKS)
def test_batches_are_the_same_wherever_samples_are_held(task: Task) -> None:
    here = samples(task)
    there = here.on(ELSEWHERE)
    assert there is not here
    assert len(there) == len(here)
    for asked in (([0, 2], None), ([3, 0, 3], [5, 6, 7]), ([1, 1], [8, 9], GEOMETRY), ([2], [1], ())):
        one, other = here.batch(*asked), there.batch(*asked)
        assert torch.equal(one.image, other.image)
        assert torch.equal(one.label, other.label)


@pytest.mark.parametrize("task", TASKS)
def test_on_the_device_no_batch_is_copied_there_or_waited_for(task: Task) -> None:
    here = samples(task)
    there = here.on(ABSENT)
    with watched():
        for seeds in (None, [7, 8]):
            batch = there.batch([0, 3], seeds)
            like = here.batch([0, 3], seeds)
            for found, wanted in ((batch.image, like.image), (batch.label, like.label)):
                assert found.device == ABSENT
                assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)


@pytest.mark.parametrize("kind", ["classes", "shares"])
def test_other_batches_are_augmented_where_they_are(kind: str) -> None:
    label = torch.rand(2, 3, 16, 16).softmax(1) if kind == "shares" else torch.randint(3, (2, 1, 16, 16))
    batch = Batch(torch.randn(2, 1, 16, 16), label)
    there = Batch(batch.image.to(ABSENT), batch.label.to(ABSENT))
    with watched():
        found = augmented(there, [1, 2], ALL)
    wanted = augmented(batch, [1, 2], ALL)
    for one, other in ((found.image, wanted.image), (found.label, wanted.label)):
        assert one.device == ABSENT
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


def test_samples_are_moved_once_and_not_at_all_where_they_are() -> None:
    here = samples(TASKS[0])
    assert here.on(torch.device("cpu")) is here
    assert here.on(ELSEWHERE) is here.on(ELSEWHERE)
    assert here.on(ABSENT) is not here.on(ELSEWHERE)


def test_samples_on_the_disk_go_on_being_read_to_the_cpu(tmp_path: Path) -> None:
    task = TASKS[2]
    shelf = Shelf(tmp_path, "key")
    shelf.write((number, samples_of(scan(task, number), task)) for number in range(2))
    stored = shelf.read()
    assert stored is not None
    there = SiteSamples(stored.samples, task, ALL).on(ABSENT)
    assert there.batch([0], [1]).image.device.type == "cpu"


def node_on(device: torch.device, home: Path) -> Node:
    node = Node(home)
    node.settings = node.settings.model_copy(update={"device": str(device)})
    return node


def test_a_node_holds_its_training_samples_on_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.device] = []

    def visit(strategy: FineTune, stay: Visit) -> Departure:
        assert isinstance(stay.train, OnDemand)
        seen.extend((stay.device, stay.train.batch([0], [1]).image.device))
        return Departure(stay.handover, {"samples": 1, "steps": 0})

    monkeypatch.setattr(FineTune, "visit", visit)
    reply = node_on(ABSENT, tmp_path).ask(VISIT, strategy_for(PLAN).first_handover())
    assert not reply.has_error()
    assert seen == [ABSENT, ABSENT]


def test_copies_are_counted_among_samples_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = PLAN.model_copy(update={"strategy": StrategyChoice(name="smg", **SMALL)})
    first, other = (strategy_for(plan.model_copy(update={"seed": seed})).first_handover() for seed in (0, 1))
    prompts = {**other.prompts, REPLAYED: Tensor("bool", (1,), b"\x01")}
    learnt = replace(other, prompts=prompts)
    monkeypatch.setattr(SMG, "visit", lambda strategy, stay: Departure(learnt, {"samples": 1, "steps": 0}))
    seen: list[torch.device] = []

    def count(replay: Replayer, train: Samples, val: Samples, seeds: Seeds) -> dict[str, float]:
        seen.extend(part.batch([0]).image.device for part in (train, val))
        return {"copies": 0.0}

    monkeypatch.setattr("node.app.count_copies", count)
    reply = node_on(ABSENT, tmp_path).ask(VISIT, first, plan=plan)
    assert not reply.has_error(), reply.error
    assert seen == [torch.device("cpu")] * 2


@pytest.mark.parametrize("strategy", [StrategyChoice(name="finetune"), StrategyChoice(name="smg", **SMALL)])
def test_a_visit_of_a_node_on_another_device_comes_to_the_same(strategy: StrategyChoice, tmp_path: Path) -> None:
    training = PLAN.training.model_copy(update={"augment": ALL})
    plan = PLAN.model_copy(update={"strategy": strategy, "training": training, "sites": ("south", "north")})

    def left(device: torch.device) -> tuple[Handover, dict[str, Any]]:
        node = node_on(device, tmp_path / device.type / str(device.index))
        reply = node.ask(VISIT, strategy_for(plan).first_handover(), plan=plan)
        assert not reply.has_error(), reply.error
        handover = read_handover(reply.content)
        assert handover is not None
        return handover, dict(reply.content["metrics"])

    assert left(torch.device("cpu")) == left(ELSEWHERE)

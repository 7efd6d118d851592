"""A conductor in miniature: the same walk as coordinator/conductor.py, on samples in memory and a shelf for a store.

Whatever crosses between sites goes through bytes, every request and answer is held against what the strategy declares,
and every answer is given by a strategy object of its own, as at a node.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load, save

from protos.handover import Handover, HandoverSchema, Kind
from protos.plan import NetworkChoice, Plan, StrategyChoice, Task, Training
from strategies.data import Batch, Samples
from strategies.gathering import Ask, Reply, Stop
from strategies.randomness import Seeds
from strategies.registry import strategy_for
from strategies.visit import Visit

CPU = torch.device("cpu")

# Parameters under which a strategy does what it is for, where its defaults would hide it in a few steps.
VIVID: Mapping[str, Mapping[str, Any]] = {
    "l2": {"strength": 5.0},
    "dropout": {"p": 0.3},
    "joint-fedavg": {"local_steps": 3},
    "replay": {"cases": 2},
    "ewc": {"strength": 1e3},
    "mas-fix": {"share": 0.4},
    "smg": {
        "generator": {"channels": [8, 8]},
        "generator_steps": 3,
        "generator_batch": 3,
        "evaluations": 2,
        "replays": 3,
    },
}


def make_plan(
    strategy: str = "finetune",
    sites: Sequence[str] = ("A", "B", "C"),
    *,
    dims: Literal[2, 3] = 2,
    parameters: Mapping[str, Any] | None = None,
    network: NetworkChoice | None = None,
    seed: int = 3,
    **training: Any,
) -> Plan:
    """A plan of 16-pixel squares or 8-voxel cubes; `parameters` default to the strategy's vivid ones."""
    own = VIVID.get(strategy, {}) if parameters is None else parameters
    return Plan(
        task=Task(dims=dims, size=(16, 16) if dims == 2 else (8, 8, 8), classes=("background", "one", "two")),
        strategy=StrategyChoice(name=strategy, **own),
        network=network or NetworkChoice(channels=(4, 8)),
        training=Training(**({"steps": 3, "batch_size": 2, "lr": 0.01, "checkpoint_every": 2} | training)),
        seed=seed,
        sites=tuple(sites),
    )


class Blobs:
    """Samples made of smooth noise, whose classes are its levels; `augment` turns and roughens, by seed."""

    def __init__(self, site: str, count: int, size: tuple[int, ...] = (16, 16)) -> None:
        rng = np.random.default_rng([count, *site.encode()])
        coarse = torch.from_numpy(rng.normal(size=(count, 1, *(n // 4 for n in size)))).to(torch.get_default_dtype())
        field = torch.nn.functional.interpolate(
            coarse, size, mode="bilinear" if len(size) == 2 else "trilinear", align_corners=False
        )
        self._label = (field > 0).long() + (field > 0.5).long()
        self._image = field * rng.choice([-1.0, 1.0]) + torch.from_numpy(rng.normal(0, 0.2, field.shape)).to(field)

    def __len__(self) -> int:
        return len(self._image)

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None, only: Any = None) -> Batch:
        """As strategies.data.Samples says; it is the plan's "rotate" that turns, and its "noise" that roughens."""
        batch = Batch(self._image[list(indices)], self._label[list(indices)])
        return batch if seeds is None else turned(batch, seeds, only)


def turned(batch: Batch, seeds: Sequence[int], only: Any = None) -> Batch:
    """The batch with every sample turned and roughened by its seed; see strategies.visit.Augment."""
    image, label = batch.image.clone(), batch.label.clone()
    for row, seed in enumerate(seeds):
        rng = np.random.default_rng(seed)
        turns = int(rng.integers(4)) if only is None or "rotate" in only else 0
        noise = torch.from_numpy(rng.normal(0, 0.1, image[row].shape)).to(image)
        image[row] = torch.rot90(image[row], turns, (-2, -1))
        if only is None or "noise" in only:
            image[row] += noise
        label[row] = torch.rot90(label[row], turns, (-2, -1))
    return Batch(image, label)


def make_sites(plan: Plan, counts: Sequence[int] = (5, 7, 3)) -> dict[str, Blobs]:
    """Each site's training samples; a site has the same ones wherever it stands in the order."""
    return {site: Blobs(site, counts[ord(site[-1]) % len(counts)], plan.task.size) for site in plan.sites}


@dataclass
class Shelf:
    """All that outlives an interruption: committed handovers, rounds within a stop, and the sites' own checkpoints."""

    stops: dict[int, bytes] = field(default_factory=dict)
    rounds: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    visits: dict[tuple[int, int, str], tuple[int, bytes]] = field(default_factory=dict)
    memories: dict[str, tuple[int, ...]] = field(default_factory=dict)
    made: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Slot:
    """The checkpoint of one visit, kept on the shelf as bytes."""

    shelf: Shelf
    key: tuple[int, int, str]

    def load(self) -> tuple[int, dict[str, torch.Tensor]] | None:
        """See strategies.visit.Checkpoint."""
        saved = self.shelf.visits.get(self.key)
        return saved and (saved[0], load(saved[1]))

    def save(self, step: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """See strategies.visit.Checkpoint."""
        self.shelf.visits[self.key] = (step, save(dict(tensors)))


@dataclass(frozen=True)
class Some:
    """A few of a site's samples."""

    whole: Samples
    chosen: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.chosen)

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None, only: Any = None) -> Batch:
        """As strategies.data.Samples says."""
        return self.whole.batch([self.chosen[index] for index in indices], seeds, only)


@dataclass(frozen=True)
class ShelvedMemory:
    """The memory of one site, kept on the shelf as indices: every sample is a case."""

    shelf: Shelf
    site: str
    train: Samples

    def keep(self, cases: int, seed: int) -> None:
        """See strategies.visit.Memory."""
        order = np.random.default_rng(seed).permutation(len(self.train))
        self.shelf.memories.setdefault(self.site, tuple(map(int, order[:cases])))

    def samples(self) -> Some:
        """See strategies.visit.Memory."""
        return Some(self.train, self.shelf.memories[self.site])


@dataclass(frozen=True)
class ShelvedWork:
    """What one site made once, kept on the shelf as bytes."""

    shelf: Shelf
    site: str

    def __call__(
        self, recipe: Mapping[str, Any], make: Callable[[], Mapping[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """See strategies.visit.Once."""
        key = f"{self.site} {json.dumps(recipe, sort_keys=True)}"
        if key not in self.shelf.made:
            self.shelf.made[key] = save({name: tensor.contiguous() for name, tensor in make().items()})
        return load(self.shelf.made[key])


def conduct(
    plan: Plan,
    sites: Mapping[str, Blobs],
    *,
    shelf: Shelf | None = None,
    pulse: Callable[[], None] = lambda: None,
) -> list[Handover]:
    """Walk the itinerary from where `shelf` stands and return every stop's handover.

    `pulse` is called after every reported step and after every round: an exception from there is a crash.
    """
    shelf = Shelf() if shelf is None else shelf
    strategy = strategy_for(plan)
    stops = strategy.itinerary()
    cases = {site: len(samples) for site, samples in sites.items()}
    for stop in stops:
        if stop.index in shelf.stops:
            continue
        arriving = strategy.first_handover()
        if stop.follows is not None:
            arriving = Handover.from_bytes(shelf.stops[stop.follows])
        gathering = strategy.gather(stop, arriving, cases, average)
        rounds_kept = max(1, plan.training.checkpoint_every // gathering.steps_per_round)
        done, state = shelf.rounds.get(stop.index, (0, None))
        if state is not None:
            gathering.restore(load(state))
        for number in range(done, gathering.rounds):

            def replies(number: int = number, stop: Stop = stop) -> Iterator[Reply]:
                for site, ask in list(gathering.asks(number)):  # noqa: B023 (used up within its round)
                    slot = Slot(shelf, (stop.index, number, site))
                    yield answer(plan, stop, site, ask, sites[site], slot, pulse)

            gathering.receive(number, replies())
            if (number + 1) % rounds_kept == 0 and number + 1 < gathering.rounds:
                shelf.rounds[stop.index] = (number + 1, save(gathering.state()))
            pulse()
        shelf.stops[stop.index] = gathering.result().to_bytes()
    return [Handover.from_bytes(shelf.stops[stop.index]) for stop in stops]


def answer(plan: Plan, stop: Stop, site: str, ask: Ask, samples: Blobs, slot: Slot, pulse: Callable[[], None]) -> Reply:
    """What the site returns, held against what the strategy declares."""
    strategy = strategy_for(plan)
    args = strategy.takes(stop.action)
    assert ask.args.keys() == args.keys()
    assert all(args[name].holds(value) for name, value in ask.args.items()), ask.args
    departure = strategy.visit(
        Visit(
            action=stop.action,
            handover=Handover.from_bytes(ask.handover.to_bytes()),
            train=samples,
            val=samples,
            seeds=Seeds(plan.seed, stop.index, site),
            args=ask.args,
            device=CPU,
            report=lambda step, steps, scalars: pulse(),
            checkpoint=slot,
            memory=ShelvedMemory(slot.shelf, site, samples),
            once=ShelvedWork(slot.shelf, site),
            augment=turned,
            first=stop.follows is None,
        )
    )
    declared = strategy.declares(stop.action)
    assert HandoverSchema.of(departure.handover) == declared.handover
    assert departure.metrics.keys() <= declared.metrics.keys()
    for name, value in departure.metrics.items():
        assert math.isfinite(value)
        assert declared.metrics[name].low <= value <= declared.metrics[name].high, name
    assert all(tensor.finite() for _, _, tensor in departure.handover.items())
    return Reply(site, Handover.from_bytes(departure.handover.to_bytes()), departure.metrics)


def average(replies: Iterable[Reply]) -> Handover:
    """The mean of the replies' weights, weighted by their samples; coordinator/averaging.py has Flower compute it."""
    several = list(replies)
    whole = sum(reply.metrics["samples"] for reply in several)
    mean: dict[str, torch.Tensor] = {}
    for reply in several:
        for name, tensor in reply.handover.state(Kind.WEIGHTS).items():
            mean[name] = mean.get(name, torch.zeros_like(tensor)) + tensor * (reply.metrics["samples"] / whole)
    return Handover.of(weights=mean)


def digests(handovers: Sequence[Handover]) -> list[str]:
    """The handovers' digests, for comparison bit for bit."""
    return [handover.digest().hex() for handover in handovers]

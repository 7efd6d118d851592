"""Clipped and noised updates: the bound holds for every sample, and every strategy that sends updates honours it."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protos.handover import UPDATE, Handover, Kind
from protos.plan import Plan
from strategies.data import Batch
from strategies.gathering import Reply
from strategies.gradients import contributions, no_update, update
from strategies.per_sample import per_sample_gradients
from strategies.privacy import Privacy
from strategies.randomness import Seeds
from strategies.registry import STRATEGIES, strategy_for
from strategies.visit import Visit
from tests.strategies import harness
from tests.strategies.harness import (
    CPU,
    Blobs,
    Shelf,
    ShelvedMemory,
    ShelvedWork,
    Slot,
    Some,
    conduct,
    make_plan,
    make_sites,
    turned,
)

LIKE = {"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.float64)}
WIDE = {name: tensor.double() for name, tensor in LIKE.items()}
SIZE = 10


def never(digest: bytes, length: int) -> NDArray[np.float64]:
    raise AssertionError("no noise was asked for")


def by_digest(digest: bytes, length: int) -> NDArray[np.float64]:
    return np.random.default_rng(list(digest)).standard_normal(length)


def split(values: Any) -> dict[str, torch.Tensor]:
    flat = torch.as_tensor(np.asarray(values))
    return {"a": flat[:6].reshape(2, 3).float(), "b": flat[6:].double()}


def norm(update: Any) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in update.values()))


# The mechanism

gradients = st.lists(st.lists(st.floats(-1e3, 1e3), min_size=SIZE, max_size=SIZE), max_size=6)
clips = st.floats(1e-6, 1e6)


@settings(max_examples=60)
@given(gradients, clips, st.integers(1, 9))
def test_no_sample_adds_more_than_the_bound(rows: Any, clip: float, count: int) -> None:
    """Without one of them, the sum is nowhere further away than `clip`: this is all that epsilon rests on."""
    whole = Privacy(clip, 0, never).release(map(split, rows), WIDE, count)
    assert norm(whole) <= clip * len(rows) / count * (1 + 1e-9)
    for left_out in range(len(rows)):
        rest = Privacy(clip, 0, never).release(map(split, rows[:left_out] + rows[left_out + 1 :]), WIDE, count)
        assert norm({name: whole[name] - rest[name] for name in WIDE}) * count <= clip * (1 + 1e-9)


@settings(max_examples=60)
@given(gradients, st.integers(1, 9))
def test_a_bound_that_nobody_reaches_changes_nothing(rows: Any, count: int) -> None:
    released = Privacy(1e6, 0, never).release(map(split, rows), LIKE, count)
    total = split(np.sum(rows, axis=0) / count if rows else np.zeros(SIZE))
    for name in LIKE:
        torch.testing.assert_close(released[name], total[name], rtol=1e-5, atol=1e-3)


def test_a_long_gradient_keeps_its_direction() -> None:
    released = Privacy(0.5, 0, never).release([split(np.arange(SIZE) * 10.0)], LIKE, 1)
    assert norm(released) == pytest.approx(0.5)
    flat = torch.cat([tensor.double().flatten() for tensor in released.values()]).numpy()
    np.testing.assert_allclose(flat / flat[1], np.arange(SIZE), rtol=1e-6)


def test_noise_has_the_promised_size_and_none_of_it_is_shared() -> None:
    clip, noise, count, times = 0.5, 3.0, 4, 4000
    released = []
    for number in range(times):
        update = Privacy(clip, noise, by_digest).release([split(np.full(SIZE, number * 1e-9))], LIKE, count)
        released.append(torch.cat([tensor.double().flatten() for tensor in update.values()]))
    drawn = torch.stack(released)
    std = noise * clip / count
    assert drawn.mean(0).abs().max() < 5 * std / math.sqrt(times)
    torch.testing.assert_close(drawn.std(0), torch.full((SIZE,), std).double(), rtol=0.06, atol=0)
    correlation = torch.corrcoef(drawn.T) - torch.eye(SIZE)
    assert correlation.abs().max() < 5 / math.sqrt(times)


@pytest.mark.parametrize("changed", [{"clip": 1.1}, {"noise": 1.1}, {"rows": [[2.0] * SIZE]}])
def test_other_data_or_settings_take_other_noise(changed: dict[str, Any]) -> None:
    """The difference of two releases with one noise would be the difference of what they hide."""
    digests: list[bytes] = []

    def noted(digest: bytes, length: int) -> NDArray[np.float64]:
        digests.append(digest)
        return by_digest(digest, length)

    def release(clip: float = 1.0, noise: float = 1.0, rows: Any = ((0.1,) * SIZE,)) -> dict[str, torch.Tensor]:
        return Privacy(clip, noise, noted).release(map(split, rows), LIKE, 1)

    once, again, other = release(), release(), release(**changed)
    assert all(torch.equal(once[name], again[name]) for name in LIKE)
    assert digests[0] == digests[1] != digests[2]
    assert not torch.equal(once["a"], other["a"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_not_released(value: float) -> None:
    privacy = Privacy(1, 1, by_digest)
    with pytest.raises(FloatingPointError):
        privacy.release([split([value] * SIZE)], LIKE, 1)
    assert privacy.released is None


def test_what_was_released_cannot_be_changed_afterwards() -> None:
    privacy = Privacy(1, 0, never)
    update = privacy.release([split(np.ones(SIZE))], LIKE, 1)
    assert privacy.released == Handover.of(weights=update)
    update["a"].add_(1)
    assert privacy.released != Handover.of(weights=update)


# The updates of the strategies


@pytest.fixture
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def visit_of(plan: Plan, train: Any, privacy: Privacy | None) -> Visit:
    return Visit(
        action="gradient",
        handover=strategy_for(plan).first_handover(),
        train=train,
        val=train,
        seeds=Seeds(plan.seed, 0, "A"),
        args={},
        device=CPU,
        report=lambda step, steps, scalars: None,
        checkpoint=Slot(Shelf(), (0, 0, "A")),
        memory=ShelvedMemory(Shelf(), "A", train),
        once=ShelvedWork(Shelf(), "A"),
        augment=turned,
        first=True,
        privacy=privacy,
    )


@pytest.mark.parametrize("loss", ["dice_ce", "dice", "ce"])
@pytest.mark.parametrize(("count", "patches"), [(1, 1), (4, 1), (9, 1), (3, 2)])
def test_unbounded_and_without_noise_it_is_the_plain_gradient(
    double: None, loss: str, count: int, patches: int
) -> None:
    """Nine of four samples, so that each is drawn twice or more; two windows of each, too."""
    plan = make_plan("joint", ("A",), loss=loss, patches=patches)
    strategy, samples = strategy_for(plan), Blobs("A", 4)
    plain, value = update(strategy, visit_of(plan, samples, None), position=3, count=count, step=2)
    private, nothing = update(
        strategy, visit_of(plan, samples, Privacy(1e6, 0, never)), position=3, count=count, step=2
    )
    assert value is not None
    assert nothing is None
    for name, tensor in plain.items():
        torch.testing.assert_close(private[name], tensor, rtol=1e-9, atol=1e-12)


def test_contributions_are_the_gradients_of_single_samples(double: None) -> None:
    """Against those of torch.func.vmap, summed by hand where a sample is drawn twice."""
    plan = make_plan("joint", ("A",), loss="ce", patches=2)
    strategy, samples, count = strategy_for(plan), Blobs("A", 3), 5
    visit = visit_of(plan, samples, None)
    model = strategy.loaded(visit.handover, CPU).train()
    found = list(contributions(strategy, model, visit, 1, count))
    drawn = [visit.seeds.sample(place, 3) for place in range(1, 1 + count)]
    assert len(found) == len(set(drawn)) < count

    seeds = [visit.seeds("augment", place, patch) if patch else visit.seeds("augment", place)
             for place in range(1, 1 + count) for patch in range(2)]  # fmt: skip
    batch = samples.batch([index for index in drawn for _ in range(2)], seeds)
    single = per_sample_gradients(
        model,
        lambda logits, label: torch.nn.functional.cross_entropy(logits, label.squeeze(1)) / 2,
        Batch(batch.image, batch.label),
    )
    owner = torch.tensor([index for index in drawn for _ in range(2)])
    for index, contribution in zip(dict.fromkeys(drawn), found, strict=True):
        for name, tensor in contribution.items():
            torch.testing.assert_close(tensor, single[name][owner == index].sum(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("count", [2, 8, 40])
def test_a_sample_drawn_often_is_bounded_once(count: int) -> None:
    plan = make_plan("joint", ("A",))
    privacy = Privacy(1e-3, 0, never)
    found, _ = update(strategy_for(plan), visit_of(plan, Blobs("A", 2), privacy), position=0, count=count, step=0)
    assert 0 < norm(found) <= 1e-3 * 2 / count * (1 + 1e-5)


def test_a_site_without_samples_releases_noise_alone() -> None:
    plan = make_plan("replay", ("A",))
    nobody = Some(Blobs("A", 2))
    found = no_update(strategy_for(plan), visit_of(plan, nobody, Privacy(1, 0, never)))
    assert norm(found) == 0
    privacy = Privacy(2, 3, by_digest)
    found = no_update(strategy_for(plan), visit_of(plan, nobody, privacy))
    numbers = torch.cat([tensor.flatten() for tensor in found.values()])
    assert float(numbers.std()) == pytest.approx(6, rel=0.1)


def sends_updates(name: str) -> bool:
    strategy = strategy_for(make_plan(name))
    declared = [strategy.declares(stop.action).handover for stop in strategy.itinerary()]
    return any(key.startswith(UPDATE) for schema in declared if schema for key in schema.tensors[Kind.WEIGHTS])


SENDERS = [name for name in STRATEGIES if sends_updates(name)]


def test_there_are_strategies_that_send_updates() -> None:
    assert {"joint", "replay"} <= set(SENDERS)


@pytest.mark.parametrize("name", SENDERS)
@pytest.mark.parametrize("clip", [1e-4, 0.1])
def test_every_update_of_a_run_is_as_its_site_asked(name: str, clip: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the bound, exactly as released, and with no metric but the number of samples."""
    asked: list[Privacy] = []

    def private(**given: Any) -> Visit:
        asked.append(Privacy(clip, 0, never))
        return Visit(**given, privacy=asked[-1])

    norms: list[float] = []
    answer = harness.answer

    def watched(*given: Any) -> Reply:
        reply = answer(*given)
        released = asked[-1].released
        assert released is not None
        assert reply.handover == Handover(weights={f"{UPDATE}{key}": t for key, t in released.weights.items()})
        assert reply.metrics.keys() <= {"samples"}
        norms.append(norm(reply.handover.state(Kind.WEIGHTS)))
        return reply

    monkeypatch.setattr(harness, "Visit", private)
    monkeypatch.setattr(harness, "answer", watched)
    plan = make_plan(name)
    conduct(plan, make_sites(plan))
    assert len(norms) == len(asked) >= plan.training.steps * len(plan.sites)
    assert max(norms) <= clip * (1 + 1e-5)
    assert min(norms) > 0


@pytest.mark.parametrize("name", SENDERS)
def test_a_run_with_a_bound_that_nobody_reaches_is_the_plain_run(
    double: None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(name)
    plain = conduct(plan, make_sites(plan))
    monkeypatch.setattr(harness, "Visit", lambda **given: Visit(**given, privacy=Privacy(1e6, 0, never)))
    for one, other in zip(plain, conduct(plan, make_sites(plan)), strict=True):
        weights = other.state(Kind.WEIGHTS)
        for key, tensor in one.state(Kind.WEIGHTS).items():
            torch.testing.assert_close(weights[key], tensor, rtol=1e-7, atol=1e-9)

"""Replay with memories at home: the exact mode is the pooled computation, the interleaved one hops as it says."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from protos.handover import Handover, Kind
from protos.plan import Plan
from strategies import networks
from strategies.data import Batch
from strategies.gathering import Stop
from strategies.losses import segmentation_loss
from strategies.randomness import Seeds
from strategies.registry import strategy_for
from strategies.strategy import UnknownParameter
from strategies.training import make_optimizer
from tests.strategies import harness
from tests.strategies import test_contract as contract
from tests.strategies.harness import (
    Blobs,
    Shelf,
    ShelvedMemory,
    Slot,
    Some,
    answer,
    average,
    conduct,
    digests,
    make_plan,
    make_sites,
)

MODES = ["exact", "interleaved"]


@pytest.fixture
def double_precision() -> Iterator[None]:
    """Networks and samples in float64 for the length of a test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The augmentation's seeds of every batch that is drawn, in order."""
    seen: list[tuple[int, ...]] = []
    batch = Blobs.batch

    def noted(self: Blobs, indices: Any, seeds: Any = None, only: Any = None) -> Batch:
        seen.append(tuple(seeds or ()))
        return batch(self, indices, seeds, only)

    monkeypatch.setattr(Blobs, "batch", noted)
    return seen


def mean_loss(model: torch.nn.Module, plan: Plan, samples: Blobs | Some, seeds: Seeds, first: int, count: int) -> Any:
    """Over the samples at places first..first+count of the shuffled stream."""
    batch = samples.batch(
        [seeds.sample(place, len(samples)) for place in range(first, first + count)],
        [seeds("augment", place) for place in range(first, first + count)],
    )
    return segmentation_loss(model(batch.image), batch.label, plan.training.loss)


# Exact


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("weighting", ["equal", "counts"])
def test_five_steps_of_adam_are_those_of_pooled_memories(weighting: str) -> None:
    """The last of three stops: 7 samples at C; A has kept all its 3 samples, B 4 of its 5; 3 and 1 from a memory."""
    plan = make_plan("replay", parameters={"cases": 4, "weighting": weighting}, batch_size=3, steps=5, lr=1e-3)
    sites = make_sites(plan)
    shelf = Shelf()
    handovers = conduct(plan, sites, shelf=shelf)
    memories = {site: Some(sites[site], shelf.memories[site]) for site in ("A", "B")}
    assert [len(sites["C"]), len(memories["A"]), len(memories["B"])] == [7, 3, 4]

    model = networks.build(plan.task, plan.network)
    model.load_state_dict(handovers[1].state(Kind.WEIGHTS))
    optimizer = torch.optim.Adam(model.parameters(), plan.training.lr)
    for step in range(5):
        current = mean_loss(model, plan, sites["C"], Seeds(plan.seed, 2, "C"), 3 * step, 3)
        kept = {site: mean_loss(model, plan, m, Seeds(plan.seed, 2, site), step, 1) for site, m in memories.items()}
        if weighting == "equal":
            loss = current + 3 / 7 * kept["A"] + 4 / 7 * kept["B"]
        else:
            loss = (7 * current + 3 * kept["A"] + 4 * kept["B"]) / 14
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    for name, value in model.state_dict().items():
        assert (handovers[2].state(Kind.WEIGHTS)[name] - value).abs().max() < 1e-10, name
        if name.endswith("weight"):  # a bias before InstanceNorm has no effect, and its gradient is rounding error
            assert (handovers[1].state(Kind.WEIGHTS)[name] - value).abs().max() > 1e-4, name


def test_the_weightings_differ() -> None:
    ends = {
        digests(conduct(plan, make_sites(plan)))[-1]
        for plan in (make_plan("replay", parameters={"cases": 2, "weighting": w}) for w in ("equal", "counts"))
    }
    assert len(ends) == 2


def test_batches_of_the_memories_share_a_batch_or_are_as_told() -> None:
    for told, earlier, count in [(None, "A", 8), (None, "ABC", 2), (None, "ABCDEFGHI", 1), (5, "AB", 5)]:
        plan = make_plan("replay", (*earlier, "Z"), batch_size=8, parameters={"memory_batch": told})
        strategy = strategy_for(plan)
        stop = strategy.itinerary()[-1]
        gathering = strategy.gather(stop, strategy.first_handover(), {"Z": 9}, average)
        for number in (0, 2):
            (own, current), *rest = gathering.asks(number)
            assert (own, current.args) == ("Z", {"rehearse": 0, "position": 8 * number, "count": 8, "update": number})
            assert [site for site, _ in rest] == list(earlier)
            for _, ask in rest:
                assert ask.args == {"rehearse": 1, "position": count * number, "count": count, "update": number}
                assert ask.handover == current.handover


# Both modes


SCHEDULED = {"epochs": 2, "lr_step": 1, "lr_decay_visits": "first", "patches": 2, "checkpoint_every": 1}


@pytest.mark.parametrize("training", [{"steps": 5}, SCHEDULED], ids=["steps", "epochs"])
@pytest.mark.parametrize("mode", MODES)
def test_without_memories_it_is_finetuning_bit_for_bit(mode: str, training: dict[str, Any]) -> None:
    neutral = make_plan("replay", parameters={"mode": mode, "cases": 0, "local_steps": 2}, **training)
    finetune = make_plan("finetune", **training)
    sites = make_sites(finetune)
    shelf = Shelf()
    assert digests(conduct(neutral, sites, shelf=shelf)) == digests(conduct(finetune, sites))
    assert not shelf.memories


@pytest.mark.parametrize("mode", MODES)
def test_the_first_stop_is_finetuning_and_the_second_is_not(mode: str) -> None:
    plans = [make_plan("replay", parameters={"mode": mode}), make_plan("finetune")]
    ((first, second, _), (plain, other, _)) = (digests(conduct(plan, make_sites(plan))) for plan in plans)
    assert first == plain
    assert second != other


@pytest.mark.parametrize("mode", MODES)
def test_sites_that_keep_nothing_have_no_weight(mode: str) -> None:
    """As where not one case could be kept: asked, they answer without a sample, and nothing changes."""
    plan = make_plan("replay", parameters={"mode": mode, "local_steps": 2}, steps=4, optimizer="sgd", momentum=0.0)
    strategy = strategy_for(plan)
    first, samples = strategy.first_handover(), Blobs("C", 5)

    def end(rehearsing: tuple[str, ...]) -> Handover:
        stop = Stop(2, ("C",), None, strategy.itinerary()[0].action, rehearsing)
        gathering = strategy.gather(stop, first, {"C": 5}, average)
        shelf = Shelf(memories={"A": (), "B": ()})
        for number in range(gathering.rounds):
            gathering.receive(
                number,
                [
                    answer(plan, stop, site, ask, samples, Slot(shelf, (2, number, site)), lambda: None)
                    for site, ask in gathering.asks(number)
                ],
            )
        return gathering.result()

    assert end(("A", "B")) == end(())
    assert end(()) != first


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cases", [1, 4, 20])
def test_a_site_keeps_at_most_so_many_and_the_same_again(mode: str, cases: int) -> None:
    plan = make_plan("replay", parameters={"mode": mode, "cases": cases})
    sites = make_sites(plan)
    shelves = [Shelf(), Shelf()]
    for shelf in shelves:
        conduct(plan, sites, shelf=shelf)
    assert shelves[0].memories == shelves[1].memories
    assert {site: len(set(kept)) for site, kept in shelves[0].memories.items()} == {
        site: min(cases, len(samples)) for site, samples in sites.items()
    }


@pytest.mark.parametrize("mode", MODES)
def test_more_than_twenty_cases_are_one_sentence(mode: str) -> None:
    with pytest.raises(UnknownParameter, match=r"^strategy\.cases: [^\n]*20[^\n]*\.$"):
        strategy_for(make_plan("replay", parameters={"mode": mode, "cases": 21}))


@pytest.mark.parametrize("mode", MODES)
def test_a_site_that_never_kept_a_case_is_not_taken_for_one_with_none(mode: str) -> None:
    """Its memory raises, and a rehearsal must not make little of that."""
    plan = make_plan("replay", ("A", "B"), parameters={"mode": mode})
    shelf = Shelf()
    conduct(plan, make_sites(plan), shelf=shelf)
    del shelf.stops[1]
    shelf.memories.clear()
    with pytest.raises(KeyError):
        conduct(plan, make_sites(plan), shelf=shelf)


def test_what_is_kept_depends_on_the_seed_and_the_site() -> None:
    samples = Blobs("A", 40)
    kept = []
    for seeds in (Seeds(3, 0, "A"), Seeds(4, 0, "A"), Seeds(3, 0, "B")):
        memory = ShelvedMemory(Shelf(), "A", samples)
        memory.keep(5, seeds("memory"))
        kept.append(memory.samples().chosen)
    assert len(set(kept)) == 3


@pytest.mark.parametrize("mode", MODES)
def test_a_memory_is_drawn_from_by_seeds_of_its_own_at_every_stop(mode: str, drawn: list[tuple[int, ...]]) -> None:
    """No augmentation is seen twice: not by two sites, not at two stops, not in two rounds."""
    plan = make_plan("replay", parameters={"mode": mode, "local_steps": 2, "cases": 3}, steps=4)
    conduct(plan, make_sites(plan))
    seeds = [seed for batch in drawn for seed in batch]
    assert len(seeds) > 24
    assert len(set(seeds)) == len(seeds)


def test_a_bad_mode_or_weighting_is_one_sentence() -> None:
    for key in ("mode", "weighting"):
        contract.test_impossible_parameter_is_one_sentence_that_names_the_key("replay", key)


# Interleaved


def hops(plan: Plan) -> list[tuple[str, int, int, int]]:
    """Site, rehearsal, place and steps of every hop of the last stop."""
    strategy = strategy_for(plan)
    stop = strategy.itinerary()[-1]
    gathering = strategy.gather(stop, strategy.first_handover(), dict.fromkeys(plan.sites, 7), average)
    found = []
    for number in range(gathering.rounds):
        ((site, ask),) = gathering.asks(number)
        rehearse, position, steps = (int(ask.args[key]) for key in ("rehearse", "position", "steps"))
        found.append((site, rehearse, position, steps))
    return found


def test_the_weights_hop_from_the_current_site_round_the_earlier_ones() -> None:
    parameters = {"mode": "interleaved", "local_steps": 4}
    assert hops(make_plan("replay", parameters=parameters, steps=10)) == [
        ("C", 0, 0, 4), ("A", 1, 0, 2), ("B", 1, 0, 2),
        ("C", 0, 4, 4), ("A", 1, 2, 2), ("B", 1, 2, 2),
        ("C", 0, 8, 2), ("A", 1, 4, 2), ("B", 1, 4, 2),
    ]  # fmt: skip
    assert hops(make_plan("replay", parameters=parameters | {"memory_steps": 9}, steps=3)) == [
        ("C", 0, 0, 3), ("A", 1, 0, 9), ("B", 1, 0, 9),
    ]  # fmt: skip
    assert hops(make_plan("replay", ("A",), parameters=parameters, steps=10)) == [("A", 0, 0, 10)]


@pytest.mark.parametrize("state", ["travels", "resets"])
@pytest.mark.parametrize("training", contract.OPTIMIZERS.values(), ids=contract.OPTIMIZERS)
def test_a_hop_is_ordinary_steps_on_the_kept_cases(training: dict[str, Any], state: str) -> None:
    """The second stop, written down once more: two steps at B, two on what A keeps, twice."""
    parameters = {"mode": "interleaved", "local_steps": 2, "cases": 2, "optimizer": state}
    plan = make_plan("replay", ("A", "B"), parameters=parameters, **{"steps": 4} | training)
    sites = make_sites(plan)
    shelf = Shelf()
    first, second = conduct(plan, sites, shelf=shelf)
    model = networks.build(plan.task, plan.network)
    model.load_state_dict(first.state(Kind.WEIGHTS))
    streams: dict[str, Blobs | Some] = {"B": sites["B"], "A": Some(sites["A"], shelf.memories["A"])}
    optimizer = make_optimizer(plan.training, model)
    for cycle in range(2):
        for site, samples in streams.items():
            if state == "resets":
                optimizer = make_optimizer(plan.training, model)
            for step in (2 * cycle, 2 * cycle + 1):
                optimizer.zero_grad()
                mean_loss(model, plan, samples, Seeds(plan.seed, 1, site), 2 * step, 2).backward()
                optimizer.step()
    assert Handover.of(weights=model.state_dict()) == second  # and nothing of the optimizer besides


def test_the_interleaved_mode_keeps_the_contract_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(harness.VIVID, "replay", {"mode": "interleaved", "cases": 2, "local_steps": 2})
    contract.test_itinerary_is_a_tour_that_can_be_walked("replay")
    for dims in (2, 3):
        contract.test_only_declared_artifacts_leave("replay", dims)
    contract.test_same_bits_whatever_the_global_generators("replay")
    contract.test_the_seed_matters("replay")
    for optimizer, every in (("adam", 1), ("adamw", 2), ("sgd", 3)):
        contract.test_resume_equals_uninterrupted("replay", optimizer, every)
    contract.test_resume_after_many_crashes("replay")
    contract.test_a_resumed_departure_has_the_same_metrics("replay")
    contract.test_no_learning_rate_changes_no_weight("replay", {})
    contract.test_no_step_changes_no_weight("replay")
    contract.test_diverged_training_is_no_departure("replay")

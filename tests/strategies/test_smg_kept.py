"""SMG-Learning without SMD: Dual-Meta with memories at home is that of the pooled batches, over steps of Adam."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from protos.handover import Handover, Kind
from protos.plan import Plan
from strategies import networks
from strategies.data import Batch, Samples
from strategies.generative.dual_meta import Alignment, Pair, Split, draw_split
from strategies.generative.pga import first_order
from strategies.losses import segmentation_loss
from strategies.randomness import Seeds
from strategies.registry import strategy_for
from strategies.strategy import UnknownParameter
from tests.strategies import harness
from tests.strategies import test_contract as contract
from tests.strategies import test_privacy as privacy
from tests.strategies.harness import Shelf, Slot, Some, answer, average, conduct, digests, make_plan, make_sites

RATES = {"gamma": 0.05, "beta": 0.08}  # at which a look-ahead is no rounding error
VIVID = {"smd": False, "cases": 2, **RATES}
ABLATIONS: dict[str, dict[str, Any]] = {
    "whole": {},
    "without arbitrary": {"arbitrary": False},
    "without orientation": {"orientation": False},
    "naive": {"arbitrary": False, "orientation": False},
}
every_ablation = pytest.mark.parametrize("ablation", ABLATIONS.values(), ids=ABLATIONS)
ROUNDS = {"whole": 3, "without arbitrary": 2, "without orientation": 2, "naive": 1}


def kept(sites: str = "ABC", *, cases: int = 4, parameters: dict[str, Any] | None = None, **training: Any) -> Plan:
    own = {"smd": False, "cases": cases, **RATES, **(parameters or {})}
    return make_plan("smg", tuple(sites), parameters=own, **training)


@pytest.fixture
def double_precision() -> Iterator[None]:
    """Networks and samples in float64 for the length of a test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# The pooled computation


def drawn(samples: Samples, seeds: Seeds, first: int, count: int, patches: int) -> Batch:
    """The samples at places first..first+count of a site's shuffled stream, each with all its windows."""
    places = [(place, patch) for place in range(first, first + count) for patch in range(patches)]
    return samples.batch(
        [seeds.sample(place, len(samples)) for place, _ in places],
        [seeds("augment", place, patch) if patch else seeds("augment", place) for place, patch in places],
    )


def pooled(plan: Plan, stop: int, arriving: Handover, own: Samples, memories: dict[str, Samples]) -> dict[str, Any]:
    """The weights after a visit at which D and P lie side by side, by the book: `first_order` and plain Adam.

    The first samples of every site are in tr, so many as the split of V has there; empty memories have no sample.
    """
    model = networks.build(plan.task, plan.network)
    model.load_state_dict(arriving.state(Kind.WEIGHTS))
    optimizer = torch.optim.Adam(model.parameters(), plan.training.lr)
    given, size, patches, site = plan.strategy.parameters, plan.training.batch_size, plan.training.patches, plan.sites
    alignment = Alignment(**{k: given[k] for k in ("gamma", "beta", "orientation", "arbitrary") if k in given})

    def loss(batch: Batch) -> torch.Tensor:
        return segmentation_loss(model(batch.image), batch.label, plan.training.loss)

    for step in range(plan.training.steps):
        places = [divmod(place, len(memories)) for place in range(step * size, (step + 1) * size)]
        split = draw_split(size, size, Seeds(plan.seed, stop, "all sites")("split", step))
        rest, batches, masks = split.replay.tolist(), [], []
        for number, (name, samples) in enumerate(memories.items()):
            mine = [turn for turn, whose in places if whose == number]
            in_train, rest = sum(rest[: len(mine)]), rest[len(mine) :]
            if mine and len(samples):
                batches.append(drawn(samples, Seeds(plan.seed, stop, name), mine[0], len(mine), patches))
                masks += [place < in_train for place in range(len(mine))]
        incoming = drawn(own, Seeds(plan.seed, stop, site[stop]), step * size, size, patches)
        replay = Batch(incoming.image[:0], incoming.label[:0])
        if batches:
            replay = Batch(torch.cat([b.image for b in batches]), torch.cat([b.label for b in batches]))
        first = torch.arange(size) < split.incoming.sum()
        sides = (part.repeat_interleave(patches) for part in (first, torch.tensor(masks, dtype=torch.bool)))
        for name, found in first_order(model, loss, Pair(incoming, replay, Split(*sides)), alignment).items():
            model.get_parameter(name).grad = found
        optimizer.step()
    return model.state_dict()


def difference(found: Handover, expected: dict[str, torch.Tensor]) -> float:
    """The largest over all weights but biases: one before InstanceNorm has no effect, its gradient is rounding."""
    state = found.state(Kind.WEIGHTS)
    return max(float((state[n] - value).abs().max()) for n, value in expected.items() if n.endswith("weight"))


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize(("sites", "training"), [("AB", {}), ("ABC", {"patches": 2}), ("ABCD", {})])
@every_ablation
def test_steps_of_adam_are_those_of_pooled_dual_meta(ablation: Any, sites: str, training: dict[str, Any]) -> None:
    """The last stop, with 5 samples each of D and of P: an odd number over one, two and three memories."""
    plan = kept(sites, parameters=ablation, steps=4, batch_size=5, lr=1e-3, **training)
    data, shelf = make_sites(plan), Shelf()
    handovers = conduct(plan, data, shelf=shelf)
    last = len(sites) - 1
    memories: dict[str, Samples] = {site: Some(data[site], shelf.memories[site]) for site in sites[:last]}
    expected = pooled(plan, last, handovers[last - 1], data[sites[last]], memories)
    assert difference(handovers[last], expected) < 1e-10
    assert difference(handovers[last - 1], expected) > 1e-4


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("empty", ["A", "B", "AB"])
@every_ablation
def test_a_site_that_keeps_nothing_has_no_part_in_the_batches(ablation: Any, empty: str) -> None:
    plan = kept(parameters=ablation, steps=3, batch_size=4, lr=1e-3)
    data = make_sites(plan)
    strategy = strategy_for(plan)
    shelf = Shelf(memories={site: () if site in empty else (0, 1, 2) for site in "AB"})
    first, stop = strategy.first_handover(), strategy.itinerary()[2]
    gathering = strategy.gather(stop, first, {"C": len(data["C"])}, average)
    for number in range(gathering.rounds):
        replies = [
            answer(plan, stop, site, ask, data[site], Slot(shelf, (2, number, site)), lambda: None)
            for site, ask in gathering.asks(number)
        ]
        gathering.receive(number, iter(replies))
    memories: dict[str, Samples] = {site: Some(data[site], shelf.memories[site]) for site in "AB"}
    expected = pooled(plan, 2, first, data["C"], memories)
    assert difference(gathering.result(), expected) < 1e-10
    assert difference(first, expected) > 1e-4


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("orientation", [True, False])
def test_without_rates_and_arbitrary_it_is_exact_replay_of_equal_memories(orientation: bool) -> None:
    naive = {"gamma": 0.0, "arbitrary": False, "orientation": orientation}
    plans = [
        kept(cases=2, parameters=naive, steps=5, batch_size=4),
        make_plan("replay", parameters={"cases": 2}, steps=5, batch_size=4),
    ]
    data = make_sites(plans[0])
    (found, *_), (expected, *_) = (reversed(conduct(plan, data)) for plan in plans)
    assert difference(found, expected.state(Kind.WEIGHTS)) < 1e-10


def test_the_rates_and_what_is_aligned_matter() -> None:
    data = make_sites(kept())
    settings: list[dict[str, Any]] = [*ABLATIONS.values(), {"gamma": 0.0}, {"beta": 0.0}]
    first, second = zip(*(digests(conduct(kept("AB", parameters=own), data)) for own in settings), strict=True)
    assert len(set(first)) == 1
    assert len(set(second)) == len(settings)


# Cells


def rounds_of(plan: Plan) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """What every round of the last stop asks of whom."""
    strategy = strategy_for(plan)
    stop = strategy.itinerary()[-1]
    gathering = strategy.gather(stop, strategy.first_handover(), {stop.sites[0]: 9}, average)
    for number in range(gathering.rounds):
        yield [(site, dict(ask.args)) for site, ask in gathering.asks(number)]


@pytest.mark.parametrize("name", ABLATIONS)
def test_a_step_asks_every_site_once_a_round_at_most(name: str) -> None:
    rounds = list(rounds_of(kept("ABCD", parameters=ABLATIONS[name], steps=7, batch_size=4)))
    assert len(rounds) == 7 * ROUNDS[name]
    for asked in rounds:
        sites = [site for site, _ in asked]
        assert len(set(sites)) == len(sites)
        assert all(args["rehearse"] == (site != "D") for site, args in asked)
    alone = list(rounds_of(kept("A", parameters=ABLATIONS[name], steps=7)))
    assert [args for ((_, args),) in alone] == [
        {"rehearse": 0, "position": 2 * step, "count": 2, "update": step} for step in range(7)
    ]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8])
@every_ablation
def test_every_sample_of_a_memory_comes_once_and_a_batch_has_as_many_as_the_incoming(
    ablation: Any, batch_size: int
) -> None:
    plan = kept("ABCD", parameters=ablation, steps=9, batch_size=batch_size)
    seen: dict[str, list[int]] = {site: [] for site in "ABCD"}
    for asked in rounds_of(plan):
        for site, args in asked:
            seen[site] += range(args["position"], args["position"] + args["count"])
    for site, places in seen.items():
        # each sample in its term of D or P, and once more where it is in tr or te
        assert set(places) == set(range(9 * batch_size if site == "D" else len(set(places))))
    memory = [len(set(seen[site])) for site in "ABC"]
    assert sum(memory) == 9 * batch_size
    assert max(memory) - min(memory) <= 1


def test_the_split_is_by_chance_and_in_halves() -> None:
    """Over the steps each of a step's samples is in tr in half of all cases, site by site."""
    in_train: dict[str, int] = dict.fromkeys("ABC", 0)
    counts = set()
    for number, asked in enumerate(rounds_of(kept(parameters={"orientation": False}, steps=200, batch_size=4))):
        if number % 2 == 0:
            for site, args in asked:
                in_train[site] += args["count"]
            assert sum(args["count"] for _, args in asked) == 4
            counts.add(tuple((site, args["count"]) for site, args in asked))
    assert len(counts) == 9  # none, one or two of A's, and of B's
    for site, whole in {"C": 800, "A": 400, "B": 400}.items():
        assert abs(in_train[site] / whole - 0.5) < 0.08


# What leaves


def test_only_weights_go_out_and_only_gradients_come_back() -> None:
    strategy = strategy_for(kept())
    actions = {stop.action for stop in strategy.itinerary()}
    assert actions == {"gradient"}
    assert strategy.arrives("gradient") == strategy.schema() == strategy_for(make_plan("finetune")).schema()
    declared = strategy.declares("gradient")
    assert declared.handover is not None
    assert declared.handover.kinds == {Kind.WEIGHTS}
    assert all(name.startswith("update/") for name in declared.handover.tensors[Kind.WEIGHTS])
    assert declared.metrics.keys() == {"samples", "loss"}
    for site in ("A", "C"):
        assert strategy.scoring_kinds(site, 2) == {Kind.WEIGHTS}


def test_sites_rehearse_from_the_stop_after_their_own_on() -> None:
    assert [stop.rehearsing for stop in strategy_for(kept()).itinerary()] == [(), ("A",), ("A", "B")]
    assert not any(stop.rehearsing for stop in strategy_for(kept(cases=0)).itinerary())
    assert not any(stop.rehearsing for stop in strategy_for(make_plan("smg")).itinerary())


def test_every_update_leaves_as_the_site_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(harness.VIVID, "smg", VIVID)
    privacy.test_every_update_of_a_run_is_as_its_site_asked("smg", 1e-4, monkeypatch)


@pytest.mark.usefixtures("double_precision")
def test_single_samples_add_up_to_the_update(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(harness.VIVID, "smg", VIVID)
    privacy.test_a_run_with_a_bound_that_nobody_reaches_is_the_plain_run(None, "smg", monkeypatch)


# The contract


def test_without_memories_and_at_the_first_stop_it_is_finetuning_bit_for_bit() -> None:
    training: dict[str, Any] = {"epochs": 2, "lr_step": 1, "lr_decay_visits": "first", "patches": 2, "batch_size": 3}
    finetune = make_plan("finetune", **training)
    data = make_sites(finetune)
    expected = digests(conduct(finetune, data))
    assert digests(conduct(kept(cases=0, **training), data)) == expected
    first, second, _ = digests(conduct(kept(**training), data))
    assert first == expected[0]
    assert second != expected[1]


@every_ablation
def test_it_goes_on_from_every_round_bit_for_bit(ablation: Any) -> None:
    plan = kept("AB", parameters=ablation, steps=2, batch_size=3, checkpoint_every=1)
    data = make_sites(plan)
    pulse = contract.Pulse()
    expected = digests(conduct(plan, data, pulse=pulse))
    for crash_at in range(1, pulse.count + 1):
        shelf = Shelf()
        with pytest.raises(contract.Crash):
            conduct(plan, data, shelf=shelf, pulse=contract.Pulse(crash_at))
        assert digests(conduct(plan, data, shelf=shelf)) == expected, crash_at


def test_it_keeps_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(harness.VIVID, "smg", VIVID)
    for dims in (2, 3):
        contract.test_schema_is_that_of_the_first_handover("smg", dims)
        contract.test_only_declared_artifacts_leave("smg", dims)
        contract.test_predictor_needs_only_what_scoring_declares("smg", dims)
    contract.test_first_handover_depends_on_the_seed_alone("smg")
    contract.test_itinerary_is_a_tour_that_can_be_walked("smg")
    for training in ({"steps": 3, "batch_size": 3, "lr_step": 2}, {"epochs": 1, "batch_size": 4}, {"batch_size": 1}):
        contract.test_every_request_is_within_the_declared_args("smg", training)
    contract.test_same_bits_whatever_the_global_generators("smg")
    contract.test_the_seed_matters("smg")
    contract.test_resume_equals_uninterrupted("smg", "adamw", 2)
    contract.test_a_resumed_departure_has_the_same_metrics("smg")
    contract.test_no_learning_rate_changes_no_weight("smg", {})
    contract.test_no_step_changes_no_weight("smg")
    contract.test_diverged_training_is_no_departure("smg")


# Mistakes


def test_more_than_twenty_cases_are_one_sentence() -> None:
    with pytest.raises(UnknownParameter, match=r"^strategy\.cases: [^\n]*20[^\n]*\.$"):
        strategy_for(kept(cases=21))


def test_a_site_that_never_kept_a_case_is_not_taken_for_one_with_none() -> None:
    plan, shelf = kept("AB"), Shelf()
    conduct(plan, make_sites(plan), shelf=shelf)
    del shelf.stops[1]
    shelf.memories.clear()
    with pytest.raises(KeyError):
        conduct(plan, make_sites(plan), shelf=shelf)

"""What every registered strategy keeps: one suite over the registry, so that a new method is held to it unasked."""

import random
from collections.abc import Iterator
from itertools import chain, count, islice
from typing import Any

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss

from protos.handover import Handover, HandoverSchema, Kind
from protos.plan import Plan
from strategies import networks
from strategies.randomness import Seeds, derive
from strategies.registry import STRATEGIES, UnknownStrategy, strategy_class, strategy_for
from strategies.strategy import UnknownParameter
from tests.strategies import harness
from tests.strategies.harness import CPU, Blobs, Shelf, Slot, answer, conduct, digests, make_plan, make_sites

every_strategy = pytest.mark.parametrize("name", STRATEGIES)

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adam": {"optimizer": "adam"},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1},
    "sgd": {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9},
}
every_optimizer = pytest.mark.parametrize("training", OPTIMIZERS.values(), ids=OPTIMIZERS)

NEUTRAL = [name for name in STRATEGIES if strategy_class(name).neutral is not None]


class Crash(Exception):
    """The process dies here."""


class Pulse:
    """Counts heartbeats, and crashes at one of them."""

    def __init__(self, crash_at: int | None = None) -> None:
        self.count = 0
        self.crash_at = crash_at

    def __call__(self) -> None:
        self.count += 1
        if self.count == self.crash_at:
            raise Crash


def global_state() -> tuple[Any, ...]:
    """The state of every global generator that a strategy could draw from."""
    return random.getstate(), repr(np.random.get_state()), torch.get_rng_state().numpy().tobytes()


@pytest.fixture(autouse=True)
def untouched_generators() -> Iterator[None]:
    """Whatever a strategy does, it leaves all global generators as they were."""
    before = global_state()
    yield
    assert global_state() == before


# What is declared


@every_strategy
def test_registered_under_its_own_name(name: str) -> None:
    found = strategy_class(name)
    assert found.name == name
    assert found.source
    assert found.summary
    assert "\n" not in found.summary


@pytest.mark.parametrize("dims", [2, 3])
@every_strategy
def test_schema_is_that_of_the_first_handover(name: str, dims: Any) -> None:
    strategy = strategy_for(make_plan(name, dims=dims))
    first = strategy.first_handover()
    assert strategy.schema() == HandoverSchema.of(first)
    assert strategy.schema().nbytes() == first.nbytes()
    assert strategy.schema().kinds <= strategy.carries
    for site, stop in (("A", 0), ("C", 0), ("A", 2), ("a site never visited", 1)):
        assert strategy.scoring_schema(site, stop) == HandoverSchema.of(strategy.for_scoring(first, site, stop))
    assert all(tensor.finite() for _, _, tensor in first.items())


@every_strategy
def test_first_handover_depends_on_the_seed_alone(name: str) -> None:
    first, again, other, longer = (
        strategy_for(make_plan(name, **changes)).first_handover().digest(Kind.WEIGHTS)
        for changes in ({}, {}, {"seed": 4}, {"steps": 9, "sites": ("Z", "Y")})
    )
    assert first == again == longer
    assert first != other


@every_strategy
def test_itinerary_is_a_tour_that_can_be_walked(name: str) -> None:
    plan = make_plan(name)
    strategy = strategy_for(plan)
    stops = strategy.itinerary()
    assert [stop.index for stop in stops] == list(range(len(stops)))
    assert {site for stop in stops for site in stop.sites} == set(plan.sites)
    for stop in stops:
        assert stop.follows is None or 0 <= stop.follows < stop.index
        assert set(stop.rehearsing) <= {site for earlier in stops[: stop.index] for site in earlier.sites}
        assert not set(stop.rehearsing) & set(stop.sites)
        assert strategy.declares(stop.action).handover is not None
        for site in (*plan.sites, "a site never visited"):
            model = strategy.model_for(site, stop.index)
            assert model is None or 0 <= model <= stop.index


@pytest.mark.parametrize("dims", [2, 3])
@every_strategy
def test_only_declared_artifacts_leave(name: str, dims: Any) -> None:
    """The harness holds every departure against the declaration; here, what the stops end with."""
    plan = make_plan(name, dims=dims)
    strategy = strategy_for(plan)
    handovers = conduct(plan, make_sites(plan))
    assert len(handovers) == len(strategy.itinerary())
    for handover in handovers:
        assert HandoverSchema.of(handover) == strategy.schema()
        assert {kind for kind, _, _ in handover.items()} <= strategy.carries
        assert Handover.from_bytes(handover.to_bytes()) == handover
        assert handover != strategy.first_handover()


@pytest.mark.parametrize(
    "training",
    [
        {"steps": 7, "batch_size": 3, "lr_step": 2},
        {"epochs": 2, "batch_size": 4, "lr_step": 1, "lr_decay_visits": "first"},
        {"steps": 1, "batch_size": 1, "lr": 0.0},
    ],
    ids=["steps", "epochs", "least"],
)
@every_strategy
def test_every_request_is_within_the_declared_args(name: str, training: dict[str, Any]) -> None:
    """Also with sites of very unequal size, in every round, and whatever the order of magnitude of the parameters."""
    kinds: list[dict[str, Any]] = [{}, dict(harness.VIVID.get(name, {}))]
    if name == "replay":
        kinds += [{"memory_batch": 9}, *({"mode": "interleaved", "local_steps": n, "memory_steps": m} for n in (1, 9)
                                         for m in (None, 5))]  # fmt: skip
    for parameters in kinds:
        plan = make_plan(name, ("A", "B", "C"), parameters=parameters, **training)
        strategy = strategy_for(plan)
        for stop in strategy.itinerary():
            declared = strategy.takes(stop.action)
            assert all(bound.low <= bound.high for bound in declared.values())
            gathering = strategy.gather(stop, strategy.first_handover(), {"A": 1, "B": 23, "C": 4}, harness.average)
            for number in range(gathering.rounds):
                for _, ask in gathering.asks(number):
                    assert ask.args.keys() == declared.keys()
                    assert all(declared[key].holds(value) for key, value in ask.args.items()), (ask.args, declared)


@pytest.mark.parametrize("dims", [2, 3])
@every_strategy
def test_predictor_needs_only_what_scoring_declares(name: str, dims: Any) -> None:
    plan = make_plan(name, dims=dims)
    strategy = strategy_for(plan)
    predict = strategy.predictor(strategy.for_scoring(strategy.first_handover(), "a site never visited", 0), CPU)
    image = Blobs("A", 3, plan.task.size).batch([0, 1, 2]).image
    with torch.inference_mode():
        logits = predict(image)
        assert logits.shape == (3, len(plan.task.classes), *plan.task.size)
        assert torch.equal(predict(image), logits)
        torch.testing.assert_close(predict(image[1:2]), logits[1:2])


# Determinism


def draw() -> None:
    """What other work in the same process may do between two steps."""
    torch.rand(3)


@every_strategy
def test_same_bits_whatever_the_global_generators(name: str) -> None:
    plan = make_plan(name)
    sites = make_sites(plan)
    once = digests(conduct(plan, sites))
    with torch.random.fork_rng():
        torch.manual_seed(99)
        torch.rand(7)
        assert digests(conduct(plan, sites, pulse=draw)) == once


@every_strategy
def test_the_seed_matters(name: str) -> None:
    one, other = make_plan(name), make_plan(name, seed=4)
    assert digests(conduct(one, make_sites(one)))[-1] != digests(conduct(other, make_sites(other)))[-1]


# Resume


@pytest.mark.parametrize(("optimizer", "checkpoint_every"), [("adam", 1), ("adamw", 2), ("sgd", 3)])
@every_strategy
def test_resume_equals_uninterrupted(name: str, optimizer: str, checkpoint_every: int) -> None:
    plan = make_plan(name, ("A", "B"), checkpoint_every=checkpoint_every, **OPTIMIZERS[optimizer])
    sites = make_sites(plan)
    whole = Pulse()
    expected = digests(conduct(plan, sites, pulse=whole))
    for crash_at in range(1, whole.count + 1, max(1, whole.count // 4)):
        shelf = Shelf()
        with pytest.raises(Crash):
            conduct(plan, sites, shelf=shelf, pulse=Pulse(crash_at))
        rest = Pulse()
        assert digests(conduct(plan, sites, shelf=shelf, pulse=rest)) == expected, f"crash at {crash_at}"
        if all(len(stop.sites) == 1 for stop in strategy_for(plan).itinerary()):
            assert (
                crash_at + rest.count - whole.count <= checkpoint_every + 1
            )  # what was done twice: steps, and a stop's end


@every_strategy
def test_resume_after_many_crashes(name: str) -> None:
    plan = make_plan(name, ("A", "B"), checkpoint_every=1)
    sites = make_sites(plan)
    shelf = Shelf()
    for _ in range(500):
        try:
            handovers = conduct(plan, sites, shelf=shelf, pulse=Pulse(crash_at=4))
            break
        except Crash:
            continue
    assert digests(handovers) == digests(conduct(plan, sites))


@every_strategy
def test_a_resumed_departure_has_the_same_metrics(name: str) -> None:
    plan = make_plan(name, ("A",))
    samples = make_sites(plan)["A"]
    strategy = strategy_for(plan)
    (stop,) = strategy.itinerary()
    gathering = strategy.gather(stop, strategy.first_handover(), {"A": len(samples)}, lambda replies: Handover())
    ((site, ask),) = gathering.asks(0)
    whole = Pulse()
    expected = answer(plan, stop, site, ask, samples, Slot(Shelf(), (0, 0, site)), whole)
    for crash_at in range(1, whole.count + 1):
        slot = Slot(Shelf(), (0, 0, site))
        with pytest.raises(Crash):
            answer(plan, stop, site, ask, samples, slot, Pulse(crash_at))
        assert answer(plan, stop, site, ask, samples, slot, Pulse()) == expected


# Identities


@every_optimizer
@pytest.mark.parametrize("name", NEUTRAL)
def test_neutral_parameters_are_finetuning_bit_for_bit(name: str, training: dict[str, Any]) -> None:
    neutral = make_plan(name, parameters=strategy_class(name).neutral, **training)
    finetune = make_plan("finetune", **training)
    sites = make_sites(finetune)
    both = zip(conduct(neutral, sites), conduct(finetune, sites), strict=True)
    assert all(one.weights == other.weights for one, other in both)  # what else it carries, fine-tuning has not


def plain_training(plan: Plan, samples: Blobs) -> torch.nn.Module:
    """Local training at the plan's one site, written down once more and without any of strategies' machinery."""
    training, seeds = plan.training, Seeds(plan.seed, 0, plan.sites[0])
    torch.manual_seed(derive(plan.seed, "first handover"))
    model = networks.build(plan.task, plan.network)
    match training.optimizer:
        case "adam":
            optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), training.lr)
        case "adamw":
            optimizer = torch.optim.AdamW(model.parameters(), training.lr, weight_decay=training.weight_decay)
        case "sgd":
            optimizer = torch.optim.SGD(model.parameters(), training.lr, training.momentum)
    loss_function = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True)
    orders = (
        np.random.Generator(np.random.PCG64(seeds("order", epoch))).permutation(len(samples)) for epoch in count()
    )
    stream = chain.from_iterable(orders)
    model.train()
    for step in range(training.steps):
        first = step * training.batch_size
        batch = samples.batch(
            [int(index) for index in islice(stream, training.batch_size)],
            [seeds("augment", first + place) for place in range(training.batch_size)],
        )
        optimizer.zero_grad()
        loss_function(model(batch.image), batch.label).backward()
        optimizer.step()
    return model


@every_optimizer
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        *((name, strategy_class(name).neutral) for name in NEUTRAL),
        ("individual", {}),
        ("joint", {}),
        ("joint-fedavg", {"local_steps": 7}),  # all of them: one round, and the mean of one site
    ],
)
def test_one_site_is_plain_local_training(name: str, parameters: dict[str, Any], training: dict[str, Any]) -> None:
    """Seven steps of two over five samples, so that a batch crosses from one epoch into the next."""
    plan = make_plan(name, ("A",), parameters=parameters, steps=7, **training)
    samples = Blobs("A", 5)
    with torch.random.fork_rng():
        expected = Handover.of(weights=plain_training(plan, samples).state_dict())
    (handover,) = conduct(plan, {"A": samples})
    assert handover.weights == expected.weights


@every_optimizer
@every_strategy
def test_no_learning_rate_changes_no_weight(name: str, training: dict[str, Any]) -> None:
    """Sites of four samples each, since means weighted by powers of two are exact."""
    plan = make_plan(name, ("A", "B"), **training | {"lr": 0.0})
    handovers = conduct(plan, make_sites(plan, counts=(4,)))
    first = strategy_for(plan).first_handover()
    assert {handover.digest(Kind.WEIGHTS) for handover in handovers} == {first.digest(Kind.WEIGHTS)}


@every_strategy
def test_no_step_changes_no_weight(name: str) -> None:
    plan = make_plan(name, steps=0)
    handovers = conduct(plan, make_sites(plan))
    first = strategy_for(plan).first_handover()
    assert {handover.digest(Kind.WEIGHTS) for handover in handovers} == {first.digest(Kind.WEIGHTS)}


# Mistakes


@every_strategy
def test_unknown_parameter_is_one_sentence_that_names_the_key(name: str) -> None:
    with pytest.raises(UnknownParameter, match=r"^strategy\.stregnth: [^\n]*\.$") as caught:
        strategy_for(make_plan(name, parameters={"stregnth": 0.5}))
    known = strategy_class(name).Parameters.model_fields
    assert all(key in str(caught.value) for key in known)


@pytest.mark.parametrize("value", ["much", None, float("nan"), float("inf"), -1, [1]])
@every_strategy
def test_impossible_parameter_is_one_sentence_that_names_the_key(name: str, value: Any) -> None:
    for key, field in strategy_class(name).Parameters.model_fields.items():
        if value is None and field.default is None:
            continue  # "work it out yourself" is possible
        with pytest.raises(UnknownParameter, match=rf"^strategy\.{key}: [^\n]*\.$"):
            strategy_for(make_plan(name, parameters={key: value}))


def test_unknown_strategy_is_one_sentence_that_names_the_others() -> None:
    with pytest.raises(UnknownStrategy, match=r"^strategy\.name: 'fintune' [^\n]*\.$") as caught:
        strategy_for(make_plan("fintune"))
    assert all(name in str(caught.value) for name in STRATEGIES)


@every_strategy
def test_diverged_training_is_no_departure(name: str) -> None:
    """Either the loop says so, or the harness finds values that are not finite: nothing half-learnt passes as done."""
    plan = make_plan(name, ("A",), lr=1e30, optimizer="sgd", steps=6)
    with pytest.raises((FloatingPointError, AssertionError)):
        conduct(plan, make_sites(plan))

"""Joint training without pooling: how batches are dealt out, and that the sum over sites is the pooled gradient."""

from collections import Counter
from collections.abc import Iterator
from itertools import count

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.handover import UPDATE, Kind
from protos.plan import NetworkChoice, Plan
from strategies import networks
from strategies.data import Batch
from strategies.losses import segmentation_loss
from strategies.randomness import Seeds
from strategies.registry import strategy_for
from strategies.strategy import Strategy
from tests.strategies.harness import Blobs, Shelf, Slot, answer, average, conduct, make_plan, make_sites


@pytest.fixture
def double_precision() -> Iterator[None]:
    """Networks and samples in float64 for the length of a test."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def pooled_batches(plan: Plan, sites: dict[str, Blobs]) -> Iterator[Batch]:
    """The batches of pooled training: one shuffled stream over all sites' cases, each site's own order within it."""
    pooled = [site for site in plan.sites for _ in range(len(sites[site]))]
    place_at = {site: count() for site in plan.sites}
    stream: list[tuple[str, int]] = []
    for epoch in count():
        seed = Seeds(plan.seed, 0, "all sites")("order", epoch)
        for number in np.random.Generator(np.random.PCG64(seed)).permutation(len(pooled)):
            stream.append((pooled[number], next(place_at[pooled[number]])))
        while len(stream) >= plan.training.batch_size:
            parts = []
            for site, place in stream[: plan.training.batch_size]:
                seeds = Seeds(plan.seed, 0, site)
                parts.append(sites[site].batch([seeds.sample(place, len(sites[site]))], [seeds("augment", place)]))
            del stream[: plan.training.batch_size]
            yield Batch(torch.cat([part.image for part in parts]), torch.cat([part.label for part in parts]))


def pooled_model(plan: Plan, strategy: Strategy) -> torch.nn.Module:
    model = networks.build(plan.task, plan.network)
    model.load_state_dict(strategy.first_handover().state(Kind.WEIGHTS))
    return model


@pytest.mark.usefixtures("double_precision")
@pytest.mark.parametrize("loss", ["dice_ce", "dice", "ce"])
@pytest.mark.parametrize("norm", ["instance", "group"])
def test_sum_of_gradients_is_the_pooled_gradient(norm: str, loss: str) -> None:
    network = NetworkChoice.model_validate({"channels": (4, 8), "norm": norm})
    plan = make_plan("joint", batch_size=7, loss=loss, network=network)
    sites = make_sites(plan)
    strategy = strategy_for(plan)
    (stop,) = strategy.itinerary()
    gathering = strategy.gather(
        stop, strategy.first_handover(), {site: len(samples) for site, samples in sites.items()}, average
    )
    federated: dict[str, torch.Tensor] = {}
    asked = list(gathering.asks(0))
    assert len(asked) > 1
    for site, ask in asked:
        reply = answer(plan, stop, site, ask, sites[site], Slot(Shelf(), (0, 0, site)), lambda: None)
        share = reply.metrics["samples"] / plan.training.batch_size
        for name, tensor in reply.handover.state(Kind.WEIGHTS).items():
            federated[name] = federated.get(name, torch.zeros_like(tensor)) + share * tensor
    model = pooled_model(plan, strategy)
    batch = next(pooled_batches(plan, sites))
    value = segmentation_loss(model(batch.image), batch.label, plan.training.loss)
    value.backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert (federated[UPDATE + name] - parameter.grad).abs().max() < 1e-12, name


@pytest.mark.usefixtures("double_precision")
def test_steps_of_adam_are_those_of_pooled_training() -> None:
    """Six updates of four out of 15 cases: the second epoch begins within a batch."""
    plan = make_plan("joint", batch_size=4, steps=2, lr=1e-3)
    sites = make_sites(plan)
    strategy = strategy_for(plan)
    model = pooled_model(plan, strategy)
    optimizer = torch.optim.Adam(model.parameters(), plan.training.lr)
    batches = pooled_batches(plan, sites)
    for _ in range(plan.training.steps * len(plan.sites)):
        batch = next(batches)
        optimizer.zero_grad()
        segmentation_loss(model(batch.image), batch.label, plan.training.loss).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    (handover,) = conduct(plan, sites)
    joint = handover.state(Kind.WEIGHTS)
    first = strategy.first_handover().state(Kind.WEIGHTS)
    for name, value in model.state_dict().items():
        assert (joint[name] - value).abs().max() < 1e-10, name
        if name.endswith("weight"):  # a bias before InstanceNorm has no effect, and its gradient is rounding error
            assert (joint[name] - first[name]).abs().max() > 1e-4, name


@settings(max_examples=30)
@given(
    cases=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    batch_size=st.integers(1, 12),
    steps=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_every_batch_is_dealt_out_whole(cases: list[int], batch_size: int, steps: int, seed: int) -> None:
    names = [f"site {number}" for number in range(len(cases))]
    plan = make_plan("joint", names, batch_size=batch_size, steps=steps, seed=seed)
    strategy = strategy_for(plan)
    (stop,) = strategy.itinerary()
    gathering = strategy.gather(stop, strategy.first_handover(), dict(zip(names, cases, strict=True)), average)
    assert gathering.rounds == steps * len(names)  # as many updates as the sequence makes
    dealt: Counter[str] = Counter()
    for number in range(gathering.rounds):
        asked = list(gathering.asks(number))
        assert [site for site, _ in asked] == sorted({site for site, _ in asked})
        assert sum(ask.args["count"] for _, ask in asked) == batch_size
        for site, ask in asked:
            assert ask.args["position"] == dealt[site]  # every site's stream is used up without gap or overlap
            assert ask.args["count"] > 0
            dealt[site] += int(ask.args["count"])
        epochs, rest = divmod((number + 1) * batch_size, sum(cases))
        for site, size in zip(names, cases, strict=True):
            assert epochs * size <= dealt[site] <= epochs * size + min(size, rest)  # once per epoch, each sample


def test_a_site_without_a_part_of_the_batch_is_not_asked() -> None:
    plan = make_plan("joint", ("A", "B"), batch_size=1)
    strategy = strategy_for(plan)
    (stop,) = strategy.itinerary()
    gathering = strategy.gather(stop, strategy.first_handover(), {"A": 3, "B": 3}, average)
    assert {len(list(gathering.asks(number))) for number in range(gathering.rounds)} == {1}


def test_a_gradient_leaves_as_an_update_and_weights_never() -> None:
    strategy = strategy_for(make_plan("joint"))
    declared = strategy.declares("gradient").handover
    assert declared is not None
    assert all(name.startswith(UPDATE) for name in declared.tensors[Kind.WEIGHTS])
    assert declared.nbytes() == strategy.schema().nbytes()

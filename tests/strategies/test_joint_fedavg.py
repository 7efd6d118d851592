"""Joint training by FedAvg: how batches are split, how many updates there are, what a round sets out from."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strategies.baselines.joint_fedavg import apportion
from strategies.registry import strategy_for
from tests.strategies.harness import Shelf, Slot, answer, average, conduct, make_plan, make_sites

SIZES = st.dictionaries(st.sampled_from("ABCDEFG"), st.integers(1, 10_000), min_size=1)


@given(total=st.integers(1, 64), sizes=SIZES)
def test_parts_sum_to_the_batch_with_one_each_at_least(total: int, sizes: dict[str, int]) -> None:
    parts = apportion(total, sizes)
    assert list(parts) == list(sizes)
    assert min(parts.values()) >= 1
    assert sum(parts.values()) == max(total, len(sizes))


@given(total=st.integers(1, 64), sizes=SIZES)
def test_parts_are_the_exact_shares_but_for_rounding(total: int, sizes: dict[str, int]) -> None:
    exact = {site: total * size / sum(sizes.values()) for site, size in sizes.items()}
    if min(exact.values()) >= 1:
        assert all(abs(part - exact[site]) < 1 for site, part in apportion(total, sizes).items())


@given(total=st.integers(1, 64), sizes=SIZES)
def test_a_larger_site_never_has_a_smaller_part(total: int, sizes: dict[str, int]) -> None:
    parts = apportion(total, sizes)
    for (a, large), (b, small) in product(sizes.items(), repeat=2):
        assert large <= small or parts[a] >= parts[b]


def test_ones_for_small_sites_come_out_of_the_largest() -> None:
    assert apportion(4, {"A": 1000, "B": 1, "C": 1}) == {"A": 2, "B": 1, "C": 1}
    assert apportion(2, {"A": 1000, "B": 1, "C": 1}) == {"A": 1, "B": 1, "C": 1}


@pytest.mark.parametrize("steps", [0, 1, 5, 6])
@pytest.mark.parametrize("local_steps", [1, 4, 100])
def test_steps_times_sites_updates_in_all(steps: int, local_steps: int) -> None:
    plan = make_plan("joint-fedavg", parameters={"local_steps": local_steps}, steps=steps, batch_size=8)
    strategy = strategy_for(plan)
    (stop,) = strategy.itinerary()
    gathering = strategy.gather(stop, strategy.first_handover(), {"A": 5, "B": 7, "C": 3}, average)
    done = 0
    for number in range(gathering.rounds):
        asked = list(gathering.asks(number))
        assert [site for site, _ in asked] == ["A", "B", "C"]
        assert {(ask.args["first_step"], ask.args["steps"]) for _, ask in asked} == {
            (done, min(local_steps, 3 * steps - done))
        }
        assert sum(ask.args["batch_size"] for _, ask in asked) == 8
        done += int(asked[0][1].args["steps"])
    assert done == 3 * steps


def test_every_round_sets_out_from_the_average() -> None:
    plan = make_plan("joint-fedavg")
    sites = make_sites(plan)
    strategy = strategy_for(plan)
    (stop,) = strategy.itinerary()
    cases = {site: len(samples) for site, samples in sites.items()}
    gathering = strategy.gather(stop, strategy.first_handover(), cases, average)
    expected = strategy.first_handover()
    for number in range(gathering.rounds):
        asked = list(gathering.asks(number))
        assert all(ask.handover == expected for _, ask in asked)
        replies = [
            answer(plan, stop, site, ask, sites[site], Slot(Shelf(), (0, number, site)), lambda: None)
            for site, ask in asked
        ]
        assert [reply.metrics["samples"] for reply in replies] == [len(sites[site]) for site in plan.sites]
        gathering.receive(number, iter(replies))
        expected = average(replies)
    assert [gathering.result()] == [expected] == conduct(plan, sites)


def test_rounds_go_on_in_the_sites_stream() -> None:
    """With one site and an optimizer that remembers nothing, it does not matter where a round ends."""
    whole, parts = (
        make_plan("joint-fedavg", ("A",), parameters={"local_steps": n}, steps=7, optimizer="sgd", momentum=0.0, lr=0.1)
        for n in (7, 3)
    )
    assert conduct(parts, make_sites(parts)) == conduct(whole, make_sites(whole))

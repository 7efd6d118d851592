"""What a policy may ask of updates, and what releases come to by the accountant."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.optimize import minimize_scalar
from scipy.special import log_ndtr

from node.policy import Policy
from node.privacy import Release, Updates, epsilon
from protos.refusals import Refusal, RefusalCode

noises = st.sampled_from([0.1, 0.5, 1.0, 1.1, 10.0, 50.0, 1000.0])
counts = st.integers(1, 10**7)
deltas = st.sampled_from([1e-300, 1e-12, 1e-5, 1e-3, 0.01])


def closed_form(noise: float, count: int, delta: float) -> float:
    """min over alpha of alpha n / (2 sigma^2) + log((alpha - 1) / alpha) - log(delta alpha) / (alpha - 1).

    Mironov 2017 for the Gaussian mechanism, with the conversion of Balle et al. 2020, Theorem 21.
    """
    rho = count / (2 * noise**2)

    def at(log_excess: float) -> float:
        excess = math.exp(log_excess)
        alpha = 1 + excess
        return alpha * rho + math.log(excess / alpha) - (math.log(delta) + math.log(alpha)) / excess

    grid = np.linspace(-18, 16, 400)
    best = grid[np.argmin([at(x) for x in grid])]
    return max(0.0, minimize_scalar(at, bounds=(best - 0.2, best + 0.2), method="bounded").fun)


@settings(max_examples=60)
@given(noises, counts, deltas)
def test_epsilon_is_that_of_the_gaussian_mechanism(noise: float, count: int, delta: float) -> None:
    wanted = closed_form(noise, count, delta)
    # the orders are a grid: the best of them may lie beside the best of all, which shows where there is next to nothing
    assert epsilon({noise: count}, delta) == pytest.approx(wanted, rel=1e-3, abs=1e-5)
    assert epsilon({noise: count}, delta) >= wanted * (1 - 1e-9) - 1e-12  # never less than what is true


@settings(max_examples=60)
@given(noises, st.integers(1, 1000))
def test_epsilon_is_no_less_than_the_exact_one(noise: float, count: int) -> None:
    """Balle and Wang 2018, Theorem 8: delta of the Gaussian mechanism at an epsilon, for n of them together."""
    spent, mu = epsilon({noise: count}, 1e-5), math.sqrt(count) / noise
    log_first, log_second = log_ndtr(mu / 2 - spent / mu), spent + log_ndtr(-mu / 2 - spent / mu)
    delta = math.exp(log_first) - (math.exp(log_second) if log_second < log_first else math.exp(log_first))
    assert delta <= 1e-5


@settings(max_examples=60)
@given(st.dictionaries(noises, st.integers(1, 10**5), min_size=1), noises, deltas)
def test_every_further_release_costs(releases: dict[float, int], noise: float, delta: float) -> None:
    more = releases | {noise: releases.get(noise, 0) + 1}
    assert epsilon(more, delta) >= epsilon(releases, delta)
    assert epsilon(releases | {0.0: 7}, delta) == epsilon(releases, delta)


def test_the_table_on_the_page_on_privacy_is_true() -> None:
    page = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text()
    table = page[page.index("| noise | 1 update |") :].partition("\n\n")[0]
    heads, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    updates = [int(head.split()[0]) for head in heads[1:]]
    assert len(rows) == 5
    for noise, *cells in rows:
        assert [float(cell) for cell in cells] == [
            pytest.approx(epsilon({float(noise): count}, 1e-5), rel=5e-3) for count in updates
        ]


def test_two_halves_are_a_whole() -> None:
    """Noise sqrt(2) larger and twice as many releases come to the same."""
    assert epsilon({2.0: 20}, 1e-5) == pytest.approx(epsilon({2.0 * math.sqrt(2): 40}, 1e-5))
    mixed = epsilon({2.0: 10, 2.0 * math.sqrt(2): 20}, 1e-5)
    assert mixed == pytest.approx(epsilon({2.0: 20}, 1e-5))


def test_releases_add_up_over_settings() -> None:
    first = Release.after(None, Updates(clip=1, noise=2, delta=1e-5))
    second = Release.after(first, Updates(clip=3, noise=2, delta=1e-6))
    third = Release.after(second, Updates(clip=3))
    fourth = Release.after(third, Updates(clip=1, noise=4, delta=1e-5))
    assert fourth.releases == {2.0: 2, 0.0: 1, 4.0: 1}
    assert third.epsilon is None
    assert first.epsilon is not None
    assert second.epsilon == epsilon({2.0: 2}, 1e-6) > first.epsilon
    assert fourth.epsilon == epsilon({2.0: 2, 4.0: 1}, 1e-5)
    assert Release.model_validate_json(fourth.model_dump_json()) == fourth


def test_a_budget_is_kept_to_the_last_release() -> None:
    updates = Updates(clip=1, noise=10, delta=1e-5, epsilon=2)
    left = next(count for count in range(1000) if epsilon({10.0: count + 1}, 1e-5) > 2)
    assert left > 5
    release = None
    for _ in range(left):
        release = Release.after(release, updates)
    with pytest.raises(Refusal, match=r"updates\.epsilon is 2\.") as caught:
        Release.after(release, updates)
    assert caught.value.code is RefusalCode.PRIVACY_BUDGET


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"noise": 1}, "updates.clip: Field required"),
        ({"clip": 0}, "updates.clip: Input should be greater than 0"),
        ({"clip": float("inf")}, "updates.clip"),
        ({"clip": 1, "noise": -1}, "updates.noise"),
        ({"clip": 1, "noise": 0.01, "delta": 1e-5}, "updates: noise is 0, for clipping alone, or at least 0.1"),
        ({"clip": 1, "noise": 1}, "updates: noise needs delta"),
        ({"clip": 1, "noise": 1, "delta": 0}, "updates.delta"),
        ({"clip": 1, "noise": 1, "delta": 0.5}, "updates.delta"),
        ({"clip": 1, "noise": 1, "delta": 1e-5, "epsilon": 0}, "updates.epsilon"),
        ({"clip": 1, "epsilon": 8}, "updates: delta and epsilon need noise"),
        ({"clip": 1, "delta": 1e-5}, "updates: delta and epsilon need noise"),
        ({"clip": 1, "sigma": 1}, "updates.sigma"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(tmp_path, asked: dict, says: str) -> None:
    with pytest.raises(ValidationError):
        Updates.model_validate(asked)
    (tmp_path / "policy.yaml").write_text(f"updates: {str(asked).replace(chr(39), '').replace('inf', '.inf')}")
    with pytest.raises(Refusal) as caught:
        Policy.of(tmp_path)
    assert caught.value.code is RefusalCode.POLICY_UNREADABLE
    assert says in caught.value.detail
    assert caught.value.detail.count("\n") == 0


def test_a_policy_as_people_write_it(tmp_path) -> None:
    (tmp_path / "policy.yaml").write_text("updates: {clip: 1.0, noise: 1.1, delta: 1.0e-5, epsilon: 8.0}")
    assert Policy.of(tmp_path).updates == Updates(clip=1, noise=1.1, delta=1e-5, epsilon=8)
    (tmp_path / "policy.yaml").write_text("updates: {clip: 2}")
    assert Policy.of(tmp_path).updates == Updates(clip=2)

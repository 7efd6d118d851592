"""The metrics over R, against the papers' formulae written out as loops, their tables, and examples by hand."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from coordinator import metrics
from coordinator.metrics import DEFINITIONS, evaluate, in_visiting_order

NAN = float("nan")
fractions = st.floats(0, 1, width=32).map(float)


def squares(low: int = 2, high: int = 6, elements=fractions):
    return st.integers(low, high).flatmap(lambda k: arrays(np.float64, (k, k), elements=elements))


# Three visits, then an unseen site; worked out by hand below.
HAND = np.array(
    [
        [0.9, 0.5, 0.3, 0.2],
        [0.6, 0.8, 0.4, 0.1],
        [0.7, 0.9, 1.0, 0.6],
    ]
)
IN_ORDER = (0, 1, 2)


def test_by_hand_dsc():
    assert evaluate(HAND, IN_ORDER, "dsc") == pytest.approx(
        {
            "overall": (0.7 + 0.9 + 1.0 + 0.6) / 4,
            "bwt": ((0.7 - 0.9) + (0.9 - 0.8)) / 2,
            "bwt_all_pairs": (-0.3 - 0.2 + 0.1) / 3,
            "bwt_plus": 0.1 / 3,
            "rem": (0.7 + 0.8 + 1.0) / 3,
            "fwt": (0.5 + 0.3 + 0.4) / 3,
            "tl": (0.9 + 0.8 + 1.0) / 3,
            "cl": (0.9 + 0.6 + 0.8 + 0.7 + 0.9 + 1.0) / 6,
        }
    )


def test_by_hand_asd():
    """A distance that grows has been forgotten; nothing on REM's scale is defined."""
    R = np.array([[1.0, 7.0, 3.0], [4.0, 2.0, 5.0]])
    assert evaluate(R, (0, 1), "asd") == pytest.approx(
        {
            "overall": 11 / 3,
            "bwt": 3.0,
            "bwt_all_pairs": 3.0,
            "bwt_plus": 3.0,
            "rem": None,
            "fwt": 7.0,
            "tl": 1.5,
            "cl": 7 / 3,
        }
    )


def test_overall_is_smgs_with_the_unseen_site():
    """SMG-Learning's row of its Table I: six sites, F unseen, Overall 91.98."""
    final = np.array([92.22, 93.73, 88.80, 90.31, 92.56, 94.25])
    R = np.vstack([np.zeros((4, 6)), final])
    assert round(evaluate(R, range(5), "dsc")["overall"], 2) == 91.98


@given(squares())
def test_against_the_papers_loops(S):
    """The formulae as printed, one index at a time (1-based there)."""
    n = len(S)
    pairs = [(i, j) for i in range(n) for j in range(i)]
    rem = 2 * sum(1 - abs(min(S[i, j] - S[j, j], 0)) for i, j in pairs) / (n * (n - 1))
    plus = 2 * sum(max(S[i, j] - S[j, j], 0) for i, j in pairs) / (n * (n - 1))
    fwt = sum(S[i, j] for i in range(n) for j in range(i + 1, n)) / sum(n - i for i in range(1, n))
    bwt = sum(S[n - 1, i] - S[i, i] for i in range(n - 1)) / (n - 1)
    cl = [S[i, j] for i in range(n) for j in range(i + 1)]
    assert metrics.rem(S) == pytest.approx(rem)
    assert metrics.bwt_plus(S) == pytest.approx(plus)
    assert metrics.fwt(S) == pytest.approx(fwt)
    assert metrics.bwt(S) == pytest.approx(bwt)
    assert metrics.cl(S) == pytest.approx(sum(cl) / len(cl))
    assert metrics.tl(S) == pytest.approx(np.trace(S) / n)


@given(squares())
def test_rem_and_bwt_plus_are_the_two_halves_of_bwt(S):
    assert metrics.rem(S) + metrics.bwt_plus(S) - 1 == pytest.approx(metrics.bwt_all_pairs(S), abs=1e-12)


@given(st.lists(fractions, min_size=2, max_size=6))
def test_perfect_memory(diagonal):
    """Every site keeps the score of its own visit for good."""
    k = len(diagonal)
    S = np.where(np.tril(np.ones((k, k))) > 0, np.array(diagonal), 0.123)
    assert metrics.rem(S) == 1
    assert metrics.bwt_plus(S) == metrics.bwt(S) == metrics.bwt_all_pairs(S) == 0


@given(squares(3), st.data())
def test_one_pair_changes_exactly_its_own_share(S, data):
    """Moving one cell below the diagonal moves the pair means by its own change over the number of pairs."""
    k = len(S)
    i = data.draw(st.integers(1, k - 1))
    j = data.draw(st.integers(0, i - 1))
    moved = S.copy()
    moved[i, j] = data.draw(fractions)
    pairs = k * (k - 1) / 2
    change = moved[i, j] - S[i, j]
    assert metrics.bwt_all_pairs(moved) - metrics.bwt_all_pairs(S) == pytest.approx(change / pairs, abs=1e-12)
    fell = min(moved[i, j] - S[j, j], 0) - min(S[i, j] - S[j, j], 0)
    assert metrics.rem(moved) - metrics.rem(S) == pytest.approx(fell / pairs, abs=1e-12)
    in_last_row = i == k - 1
    expected = change / (k - 1) if in_last_row else 0
    assert metrics.bwt(moved) - metrics.bwt(S) == pytest.approx(expected, abs=1e-12)
    assert metrics.tl(moved) == metrics.tl(S)
    assert metrics.fwt(moved) == metrics.fwt(S)


@given(squares(), st.data())
def test_columns_may_stand_in_any_order(S, data):
    """Only who was visited when counts, not where a site's column stands; unseen columns touch Overall alone."""
    k = len(S)
    order = data.draw(st.permutations(range(k + 1)))[:k]
    R = np.full((k, k + 1), 0.5)
    R[:, order] = S
    assert (in_visiting_order(R, order) == S).all()
    shuffled, listed = evaluate(R, order, "dsc"), evaluate(np.column_stack([S, np.full(k, 0.5)]), range(k), "dsc")
    assert shuffled.pop("overall") == pytest.approx(listed.pop("overall"))
    assert shuffled == listed


@given(squares(), st.data())
def test_a_missing_cell_makes_undefined_exactly_what_needs_it(S, data):
    k = len(S)
    i, j = data.draw(st.integers(0, k - 1)), data.draw(st.integers(0, k - 1))
    holed = S.copy()
    holed[i, j] = NAN
    values = evaluate(holed, range(k), "dsc")
    undefined = {key for key, value in values.items() if value is None}
    below = {"bwt_all_pairs", "bwt_plus", "rem", "cl"}
    if j > i:
        assert undefined == {"fwt"}
    elif j == i:  # the last site's own score enters no pair
        needed = {"tl", "cl"} if i == k - 1 else below | {"tl", "bwt"}
        assert undefined == needed | ({"overall"} if i == k - 1 else set())
    else:
        assert undefined == below | ({"bwt", "overall"} if i == k - 1 else set())


def test_joint_training_is_one_row_without_a_diagonal():
    values = evaluate(np.array([[0.8, 0.9, 0.7]]), None, "dsc")
    assert values.pop("overall") == pytest.approx(0.8)
    assert set(values.values()) == {None}


def test_individual_training_forgets_nothing():
    """Each site has a model of its own once it was visited; before that, and for the unseen site, there is none."""
    R = np.array([[0.9, NAN, NAN, NAN], [0.9, 0.7, NAN, NAN], [0.9, 0.7, 0.8, NAN]])
    values = evaluate(R, IN_ORDER, "dsc")
    assert values["bwt"] == values["bwt_all_pairs"] == values["bwt_plus"] == 0
    assert values["rem"] == 1
    assert values["tl"] == values["overall"] == pytest.approx(0.8)
    assert values["fwt"] is None


def test_overall_does_not_leave_out_a_site_that_just_failed_to_answer():
    R = np.array([[0.9, 0.5, 0.4], [0.8, 0.7, NAN]])
    assert evaluate(R, (0, 1), "dsc")["overall"] is None


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_visits(rows):
    values = evaluate(HAND[:rows], range(rows), "dsc")
    defined = {key for key, value in values.items() if value is not None}
    assert defined == ({"overall", "tl", "cl"} if rows else set())


@pytest.mark.parametrize("order", [(0, 1), (0, 1, 1), (0, 1, 4), (0, 1, -1)])
def test_refuses_an_order_that_is_none(order):
    with pytest.raises(ValueError, match="distinct column"):
        evaluate(HAND, order, "dsc")


@given(squares(1), st.sampled_from(["dsc", "asd"]))
def test_values_are_plain_json(S, score):
    values = evaluate(S, range(len(S)), score)
    assert set(values) == set(DEFINITIONS)
    assert json.loads(json.dumps(values, allow_nan=False)) == values


# Per site and per visit


@given(squares(2), st.randoms(use_true_random=False))
def test_bwt_per_site_averages_to_bwt_in_any_order(S, random):
    order = random.sample(range(len(S)), len(S))
    by_site = metrics.bwt_by_site(S, order)
    assert by_site[order[-1]] == 0
    assert np.mean([by_site[j] for j in order[:-1]]) == pytest.approx(metrics.bwt(in_visiting_order(S, order)))


@given(squares(2), st.randoms(use_true_random=False))
def test_the_curves_hold_the_cells_of_fwt_and_of_the_whole_matrix(S, random):
    order = random.sample(range(len(S)), len(S))
    left = metrics.zero_shot(S, order)
    assert left[-1] is None
    cells = sum(value * (len(S) - 1 - i) for i, value in enumerate(left[:-1]))
    pairs = len(S) * (len(S) - 1) / 2
    assert cells / pairs == pytest.approx(metrics.fwt(in_visiting_order(S, order)))
    assert np.mean(metrics.all_sites(S)) == pytest.approx(S.mean())


def test_by_hand_per_site_and_per_visit():
    assert metrics.bwt_by_site(HAND, IN_ORDER) == [pytest.approx(-0.2), pytest.approx(0.1), 0.0, None]
    assert metrics.zero_shot(HAND[:, :3], IN_ORDER) == [pytest.approx(0.4), pytest.approx(0.4), None]
    # a visit that was skipped leaves its site unvisited to the end
    assert metrics.zero_shot(HAND[:2, :3], (0, 2)) == [pytest.approx(0.4), pytest.approx(0.8)]
    gone = HAND.copy()
    gone[2, 0] = NAN
    assert metrics.bwt_by_site(gone, IN_ORDER)[0] is None
    assert metrics.all_sites(gone[:, :3])[2] is None


@given(fractions, fractions, fractions)
def test_a_gap_is_closed_from_0_to_1(floor, ceiling, value):
    closed = metrics.gap_closed(value, floor, ceiling, "higher")
    if ceiling <= floor:
        assert closed is None
    else:
        assert closed * (ceiling - floor) + floor == pytest.approx(value)
        assert metrics.gap_closed(floor, floor, ceiling, "higher") == 0
        assert metrics.gap_closed(ceiling, floor, ceiling, "higher") == 1
    assert metrics.gap_closed(value, floor, ceiling, "lower") is None or ceiling < floor

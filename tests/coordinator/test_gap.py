"""How much of the gap a method closes: said in words, run by run, and said to be undefined where it is."""

import json
from io import StringIO

import pytest
from rich.console import Console

from coordinator import console
from coordinator.compare import comparison
from coordinator.gap import Gap, gap_in_words
from coordinator.methods import Methods
from tests.coordinator.test_compare import overall, run

ENDS = [overall("finetune", 0.612, 0), overall("joint", 0.884, 0)]


def closing(share: float, seed: int = 0, **changes):
    return overall("smg", 0.612 + share * (0.884 - 0.612), seed, **changes)


def test_one_run_is_one_plain_sentence():
    (sentence,) = gap_in_words([*ENDS, closing(0.926)])
    assert sentence == (
        "smg closes 92.6 % of the gap between finetune (61.2) and joint (88.4): overall DSC 86.4, REM 1.00."
    )


def test_several_seeds_are_a_mean_with_the_share_of_each():
    runs = [r for seed in range(3) for r in (overall("finetune", 0.612, seed), overall("joint", 0.884, seed))]
    runs += [closing(share, seed) for seed, share in enumerate((0.95, 0.91, 0.93))]
    (sentence,) = gap_in_words(runs)
    assert sentence == (
        "smg closes 93.0 ± 2.0 % of the gap between finetune (61.2) and joint (88.4), mean of 3 runs "
        "(95.0 % with seed 0, 91.0 % with seed 1, 93.0 % with seed 2): overall DSC 86.5, REM 1.00."
    )
    many = [r for seed in range(8) for r in (overall("finetune", 0.612, seed), overall("joint", 0.884, seed))]
    many += [closing(0.9 + seed / 100, seed) for seed in range(8)]
    assert "mean of 8 runs (from 90.0 to 97.0 %)" in gap_in_words(many)[0]


def test_the_share_is_taken_within_each_seed_not_between_means():
    runs = [overall("finetune", 0.2, 0), overall("joint", 0.4, 0), overall("smg", 0.4, 0)]
    runs += [overall("finetune", 0.2, 1), overall("joint", 1.0, 1), overall("smg", 0.2, 1)]
    assert "closes 50.0 ± 70.7 %" in gap_in_words(runs)[0]  # between the means it were 20 %


def test_where_joint_is_no_better_there_is_no_share():
    (sentence,) = gap_in_words([overall("finetune", 0.8, 0), overall("joint", 0.7, 0), overall("smg", 0.9, 0)])
    assert sentence == (
        "How much of the gap smg closes is not defined: with seed 0 joint (70.0) is not better than finetune (80.0); "
        "overall DSC 90.0, REM 1.00."
    )


def test_one_seed_without_a_gap_leaves_no_mean_and_the_others_are_named():
    runs = [*ENDS, closing(0.9), overall("finetune", 0.8, 1), overall("joint", 0.8, 1), overall("smg", 0.8, 1)]
    (sentence,) = gap_in_words([*runs, overall("smg", 0.8, 2)])
    assert "with seed 1 joint (80.0) is not better than finetune (80.0), with seed 2 there is no finished" in sentence
    assert "it closes 90.0 % with seed 0" in sentence
    assert "±" not in sentence
    gap = Gap(Methods(runs))
    assert [gap.closed(r) for r in runs if r.strategy == "smg"] == [pytest.approx(0.9), None]


@pytest.mark.parametrize(
    "runs",
    [
        [],
        [ENDS[0], closing(0.9)],
        ENDS,
        [ENDS[0], overall("joint", 0.884, 0, status="failed"), closing(0.9)],
        [ENDS[0], overall("joint", 0.884, 0, steps=50), closing(0.9)],
        [ENDS[0], overall("joint", 0.884, 0, unseen=("v",)), closing(0.9)],
    ],
)
def test_nothing_is_said_without_both_ends_in_the_same_plan(runs):
    assert gap_in_words(runs) == ()


def test_every_setting_of_a_method_has_its_own_sentence():
    whole, part = closing(0.9, parameters={"gamma": 0.1}), closing(0.5, parameters={"gamma": 0.0}, run="w/o")
    said = gap_in_words([*ENDS, whole, part])
    assert [sentence.partition(" closes ")[0] for sentence in said] == ["smg (gamma=0.1)", "smg (gamma=0.0)"]


def in_order(strategy: str, score: float, sites: tuple[str, str]):
    if strategy == "joint":
        return run([[score] * 3], sites=sites, strategy="joint", visited=(sites,), run=f"joint-{sites}")
    return overall(strategy, score, 0, sites=sites, run=f"{strategy}-{sites}")


def test_every_order_has_its_own_ends():
    runs = []
    for sites, scores in ((("a", "b"), (0.4, 0.6, 0.8)), (("b", "a"), (0.5, 0.75, 0.75))):
        runs += [in_order(name, score, sites) for name, score in zip(("finetune", "smg", "joint"), scores, strict=True)]
    said = gap_in_words(runs)
    assert [sentence.partition(" % of")[0] for sentence in said[:2]] == [
        "smg (order 1) closes 50.0",
        "smg (order 2) closes 100.0",
    ]
    assert said[2:] == ("Order 1: a, b.", "Order 2: b, a.")
    (pooled,) = comparison(runs, pool=True).words
    assert "75.0 ± 35.4 %" in pooled
    assert "(50.0 % with seed 0 in order 1, 100.0 % with seed 0 in order 2)" in pooled


def test_the_comparison_says_it_everywhere(tmp_path):
    table = comparison([*ENDS, closing(0.926)])
    document = json.loads(json.dumps(table.document(), allow_nan=False))
    assert [method["gap_closed"] for method in document["methods"]] == [[0.0], [1.0], [pytest.approx(0.926)]]
    assert document["words"] == list(table.words)
    out = StringIO()
    table.show(Console(file=out))
    assert table.words[0] in out.getvalue()
    assert f"- {table.words[0]}" in table.write(tmp_path)[1].read_text()
    assert "gap_closed" not in comparison(ENDS[:1]).document()["methods"][0]


def test_a_command_with_several_runs_ends_with_it(capsys):
    console.print_conclusion([*ENDS, closing(0.926)], [])
    assert "smg closes 92.6 % of the gap between finetune (61.2) and joint (88.4)" in capsys.readouterr().out
    console.print_conclusion([closing(0.926)], [])
    assert "gap" not in capsys.readouterr().out

"""Runs side by side: grouped by what they have in common, averaged over seeds, refused where they do not match."""

import csv
import io
import json
import statistics

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from coordinator.compare import Comparison, NotComparable, Stat, comparison
from coordinator.summary import RunSummary
from protos.plan import Plan, Split, StrategyChoice, Task, Training

NAN = float("nan")


def run(
    dsc, sites=("a", "b"), unseen=("u",), seed=0, strategy="finetune", steps=300, visited=None, **changes
) -> RunSummary:
    """A finished one-class run with the score matrix `dsc`, and an ASD of ten times what DSC lacks."""
    scores = np.array(dsc, float)[:, :, None]
    rows, columns, _ = scores.shape
    parameters = changes.pop("parameters", {})
    classes = changes.pop("classes", ("background", "organ"))
    split = changes.pop("split", Split())
    fields = {
        "run": f"{strategy}-{seed}-{steps}",
        "status": "done",
        "scenario": "s",
        "plan": Plan(
            task=Task(classes=classes),
            strategy=StrategyChoice(name=strategy, **parameters),
            training=Training(steps=steps),
            split=split,
            sites=sites,
            seed=seed,
        ),
        "unseen": unseen,
        "stops": (),
        "visited": visited or tuple((site,) for site in sites[:rows]),
        "dsc": scores,
        "asd": 10 * (1 - scores),
        "both_empty": np.zeros((rows, columns), int),
        "penalised": np.zeros((rows, columns), int),
        "cases": np.full(columns, 5),
        "traffic": (),
        "seconds": 1.0,
        "weights_sha256": None,
        "software": "locum 0.1.0",
        "command": "",
    }
    return RunSummary(**fields | changes)


def value(table: Comparison, method: int, key: str, score="dsc") -> Stat | None:
    index = [column.key for column in table.columns].index(key)
    return table.methods[method].values[score][index]


def finetune(seed: int, final: float = 0.5) -> RunSummary:
    return run([[0.9, 0.3, 0.4], [final, 0.8, 0.6]], seed=seed)


def joint(seed: int = 0) -> RunSummary:
    return run([[0.92, 0.7, 0.66]], seed=seed, strategy="joint", visited=(("a", "b"),))


def test_mean_and_sample_deviation_over_seeds():
    finals = [0.4, 0.5, 0.65]
    table = comparison([finetune(seed, final) for seed, final in enumerate(finals)])
    (method,) = table.methods
    assert method.label == "finetune"
    assert method.seeds == (0, 1, 2)
    stat = value(table, 0, "a")
    assert stat.n == 3
    assert stat.mean == pytest.approx(np.mean(finals))
    assert stat.sd == pytest.approx(np.std(finals, ddof=1))
    overall = [(final + 0.8 + 0.6) / 3 for final in finals]
    assert value(table, 0, "overall").sd == pytest.approx(statistics.stdev(overall))
    assert value(table, 0, "bwt").mean == pytest.approx(np.mean(finals) - 0.9)
    assert value(table, 0, "bwt", "asd").mean == pytest.approx(9 - 10 * np.mean(finals))
    assert stat.text(100) == "51.67 ± 12.58"


def test_one_seed_has_no_deviation():
    stat = value(comparison([finetune(0)]), 0, "a")
    assert stat == Stat(0.5, None, 1)
    assert stat.text() == "0.50"


def test_undefined_for_one_seed_is_undefined_for_all_of_them():
    """A mean over the seeds that happened to have a value would be a mean over other seeds than the row says."""
    table = comparison([finetune(0), run([[0.9, NAN, 0.4], [0.5, 0.8, 0.6]], seed=1)])
    assert value(table, 0, "fwt") is None
    assert value(table, 0, "overall").n == 2


def test_joint_stands_beside_the_sequence_without_forgetting():
    table = comparison([finetune(0), joint()])
    assert [method.label for method in table.methods] == ["finetune", "joint"]
    assert value(table, 1, "overall").mean == pytest.approx((0.92 + 0.7 + 0.66) / 3)
    assert value(table, 1, "bwt") is None


def test_settings_that_differ_make_methods_of_their_own():
    cells = [[0.9, 0.3, 0.4], [0.5, 0.8, 0.6]]
    table = comparison(
        [
            run(cells, strategy="l2", parameters={"strength": 0.1}),
            run(cells, strategy="l2", parameters={"strength": 0.2}, run="other"),
            run(cells),
            run(cells, steps=50),
            run(cells, split=Split(seed=4), run="resplit"),
        ]
    )
    assert [method.label for method in table.methods] == [
        "l2 (split.seed=0, strength=0.1, training.steps=300)",
        "l2 (split.seed=0, strength=0.2, training.steps=300)",
        "finetune (split.seed=0, training.steps=300)",
        "finetune (split.seed=0, training.steps=50)",
        "finetune (split.seed=4, training.steps=300)",
    ]


def test_own_parameters_are_not_named_where_nothing_else_has_the_strategy():
    cells = [[0.9, 0.3, 0.4], [0.5, 0.8, 0.6]]
    table = comparison([run(cells, strategy="l2", parameters={"strength": 0.1}), run(cells)])
    assert [method.label for method in table.methods] == ["l2", "finetune"]


def test_another_order_is_another_method_with_its_scores_under_the_right_sites():
    forwards = run([[0.9, 0.3, 0.4], [0.5, 0.8, 0.6]], sites=("a", "b"))
    backwards = run([[0.7, 0.2, 0.4], [0.1, 0.6, 0.6]], sites=("b", "a"), run="backwards")
    table = comparison([forwards, backwards])
    assert [method.label for method in table.methods] == ["finetune (order 1)", "finetune (order 2)"]
    assert value(table, 1, "a").mean == 0.6
    assert value(table, 1, "b").mean == 0.1
    assert table.notes == ("Order 1: a, b.", "Order 2: b, a.")


def test_an_unfinished_run_is_never_averaged_with_finished_ones():
    table = comparison([finetune(0), run([[0.9, 0.3, 0.4]], seed=1, status="failed")])
    assert [method.label for method in table.methods] == ["finetune", "finetune (failed after 1 visits)"]
    assert table.notes == ("Not complete: finetune-1-300.",)


def test_other_test_cases_are_pointed_out():
    table = comparison(
        [finetune(0), run([[0.92, 0.7, 0.66]], strategy="joint", visited=(("a", "b"),), cases=np.array([5, 6, 5]))]
    )
    assert table.notes == ("The runs were scored on different numbers of cases, so their data or splits differ.",)


CELLS = [[0.9, 0.3, 0.4], [0.5, 0.8, 0.6]]


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        ([], "no run to compare"),
        (
            [finetune(0), run(CELLS, sites=("a", "c"), run="x")],
            r"finetune-0-300 and x have different sites \(a, b; a, c\)",
        ),
        ([finetune(0), run(CELLS, unseen=("v",), run="x")], r"different unseen sites \(u; v\)"),
        ([finetune(0), run(CELLS, classes=("background", "tumour"), run="x")], r"different classes \(organ; tumour\)"),
        ([finetune(0), finetune(0)], "named twice"),
        ([finetune(0), run(CELLS, run="again")], "finetune-0-300 and again are one experiment with seed 0"),
        ([run(np.zeros((0, 3)), visited=())], "no scores yet"),
    ],
)
def test_refuses_in_one_sentence(runs, says):
    with pytest.raises(NotComparable, match=says) as refusal:
        comparison(runs)
    assert str(refusal.value).endswith(".")
    assert "\n" not in str(refusal.value)


def test_best_is_the_highest_dsc_and_the_lowest_asd():
    table = comparison([finetune(0), joint()])
    column = {column.key: index for index, column in enumerate(table.columns)}
    assert table.best("dsc", column["a"]) == table.best("asd", column["a"]) == {1}
    assert table.best("dsc", column["b"]) == table.best("asd", column["b"]) == {0}
    assert table.best("dsc", column["bwt"]) == set()  # only one method has any
    tie = comparison([finetune(0), run(CELLS, strategy="l2")])
    assert tie.best("dsc", column["a"]) == {0, 1}
    assert tie.best("asd", column["rem"]) == set()


def test_printed_plainly_for_other_programs():
    out = io.StringIO()
    comparison([finetune(0, 0.4), finetune(1, 0.6), joint()]).show(Console(file=out, width=40))
    text = out.getvalue()
    assert "\x1b" not in text
    header, first, second = text.splitlines()[1:4]
    assert header.split()[:5] == ["Method", "n", "a", "b", "u"]
    assert first.split()[:5] == ["finetune", "2", "50.00", "±", "14.14"]
    assert second.split()[:4] == ["joint", "1", "*", "92.00"]


@pytest.mark.parametrize("width", [60, 400])
def test_printed_on_a_terminal_every_number_is_whole(width):
    out = io.StringIO()
    comparison([finetune(0), joint()]).show(Console(file=out, width=width, force_terminal=True))
    for number in ("50.00", "92.00", "66.00", "-40.00", "5.00"):
        assert number in out.getvalue()
    assert "…" not in out.getvalue()


def test_markup_in_labels_is_text():
    out = io.StringIO()
    table = comparison([run(CELLS, strategy="[red]x[/red]"), joint()])
    table.show(Console(file=out, width=400, force_terminal=True))
    assert "[red]x[/red]" in out.getvalue()


def test_written_files_agree(tmp_path):
    table = comparison([finetune(0), finetune(1, 0.7), joint()])
    image, lines, document = table.write(tmp_path / "new")
    Image.open(image).load()
    loaded = json.loads(document.read_text())
    assert loaded == json.loads(json.dumps(table.document()))
    assert loaded["methods"][0]["dsc"][0] == {"mean": pytest.approx(0.6), "sd": pytest.approx(0.2 / 2**0.5), "n": 2}
    with lines.open(newline="") as file:
        rows = {(r["method"], r["score"], r["column"]): r for r in csv.DictReader(file)}
    assert float(rows["joint", "asd", "u"]["mean"]) == pytest.approx(3.4)
    assert rows["joint", "asd", "u"]["sd"] == ""
    assert rows["joint", "dsc", "bwt"]["n"] == "0"
    assert rows["finetune", "dsc", "a"]["seeds"] == "0 1"


def test_many_sites_still_make_a_picture(tmp_path):
    sites = tuple(f"site {number}" for number in range(300))
    image, *_ = comparison([run(np.full((1, 301), 0.5), sites=sites, visited=(sites,))]).write(tmp_path)
    with Image.open(image) as picture:
        assert max(picture.size) < 4000

"""Runs side by side: grouped by what they have in common, averaged over seeds, refused where they do not match."""

import csv
import io
import json
import statistics

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from coordinator.compare import NotComparable, comparison
from coordinator.summary import RunSummary
from coordinator.tables import Comparison, Panel, Stat
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
        "drift": np.full((rows, columns, 3), NAN),
        "traffic": (),
        "seconds": 1.0,
        "weights_sha256": None,
        "software": "locum 0.1.0",
        "command": "",
    }
    return RunSummary(**fields | changes)


def panel(table: Comparison, key="dsc") -> Panel:
    return next(panel for panel in table.panels if panel.key == key)


def value(table: Comparison, method: int, key: str, score="dsc") -> Stat | None:
    index = [column.key for column in panel(table, score).columns].index(key)
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
    assert table.notes[0] == "The runs were scored on different numbers of cases, so their data or splits differ."


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
    dsc, asd = panel(table, "dsc"), panel(table, "asd")
    column = {column.key: index for index, column in enumerate(dsc.columns)}
    assert table.best(dsc, column["a"]) == table.best(asd, column["a"]) == {1}
    assert table.best(dsc, column["b"]) == table.best(asd, column["b"]) == {0}
    assert table.best(dsc, column["bwt"]) == set()  # only one method has any
    tie = comparison([finetune(0), run(CELLS, strategy="l2")])
    assert tie.best(dsc, column["a"]) == {0, 1}
    assert tie.best(asd, column["rem"]) == set()


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
    image, page, lines, document = table.write(tmp_path / "new")
    assert "| joint | 1 | **92.00** | 70.00 | **66.00** |" in page.read_text()
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


# The papers' tables


MATRIX = [[0.8, 0.2, 0.4, 0.1], [0.5, 0.9, 0.6, 0.2], [0.6, 0.7, 0.7, 0.3]]  # three visits, then an unseen site
THREE = ("a", "b", "c")


def tour(matrix=MATRIX, seed=0, sites=THREE, **changes) -> RunSummary:
    return run(matrix, sites=sites, seed=seed, run=f"{changes.get('strategy', 'finetune')}-{seed}-{sites}", **changes)


def test_the_columns_of_mas_lr_are_the_papers_in_its_order():
    table = comparison([tour(), tour([[0.7, 0.7, 0.7, 0.5]], strategy="joint", visited=(THREE,))], "mas-lr", pool=True)
    (only,) = table.panels
    assert [column.title for column in only.columns] == ["CL DSC", "REM", "BWT+", "TL", "FWT"]
    by_hand = [
        (0.8 + 0.5 + 0.9 + 0.6 + 0.7 + 0.7) / 6,
        1 - (0.3 + 0.2 + 0.2) / 3,
        0.0,
        (0.8 + 0.9 + 0.7) / 3,
        (0.2 + 0.4 + 0.6) / 3,
    ]
    assert [stat.mean for stat in table.methods[0].values["dsc"]] == pytest.approx(by_hand)
    assert table.methods[1].values["dsc"] == (None,) * 5


def test_the_table_of_ms_er_has_bwt_per_site_and_both_curves(tmp_path):
    table = comparison([tour(), tour([[0.7, 0.8, 0.9, 0.5]], strategy="joint", visited=(THREE,))], "ms-er", pool=True)
    finetuned, joined = table.methods
    means = {key: [stat and stat.mean for stat in stats] for key, stats in finetuned.values.items()}
    assert means["bwt"] == pytest.approx([-0.2, -0.2, 0.0, -0.2])  # per site, then the mean over all but the last
    assert means["zero_shot"] == pytest.approx([(0.2 + 0.4) / 2, 0.6])
    assert means["all_sites"] == pytest.approx([1.4 / 3, 2.0 / 3, 2.0 / 3])
    assert joined.values["bwt"] == (None,) * 4
    assert joined.values["zero_shot"] == (None, None)
    assert [stat.mean for stat in joined.values["all_sites"]] == pytest.approx([0.8] * 3)
    paths = table.write(tmp_path)
    assert [path.name for path in paths][-1] == "curves.png"
    with paths[2].open(newline="") as file:
        rows = {(r["method"], r["kind"], r["column"]): r for r in csv.DictReader(file)}
    assert float(rows["finetune", "zero_shot", "2"]["mean"]) == pytest.approx(0.6)


def test_pooling_averages_over_orders_under_the_right_sites():
    other = [[0.9, 0.1, 0.3, 0.2], [0.4, 0.8, 0.5, 0.2], [0.3, 0.6, 0.7, 0.2]]  # in the order c, b, a
    table = comparison([tour(), tour(other, sites=("c", "b", "a")), tour(seed=1)], "ms-er", pool=True)
    (method,) = table.methods
    assert method.label == "finetune"
    assert method.seeds == (0, 0, 1)
    assert "Pooled over 2 seeds and 2 orders of the visits." in table.notes
    by_site = {column.key: stat for column, stat in zip(panel(table, "bwt").columns, method.values["bwt"], strict=True)}
    assert by_site["a"].mean == pytest.approx((-0.2 + 0.0 - 0.2) / 3)
    assert by_site["c"].mean == pytest.approx((0.0 - 0.6 + 0.0) / 3)
    assert method.values["zero_shot"][0].mean == pytest.approx((0.3 + 0.2 + 0.3) / 3)
    apart = comparison([tour(), tour(other, sites=("c", "b", "a"))], "ms-er")
    assert [method.label for method in apart.methods] == ["finetune (order 1)", "finetune (order 2)"]


def test_a_pooled_experiment_that_is_there_twice_is_refused():
    with pytest.raises(NotComparable, match="one experiment with seed 0"):
        comparison([tour(), run(MATRIX, sites=THREE, run="again")], pool=True)


def test_an_unfinished_run_has_the_curves_as_far_as_it_came():
    table = comparison([tour(MATRIX[:2], status="failed")], "ms-er", pool=True)
    (method,) = table.methods
    assert method.label == "finetune (failed after 2 visits)"
    assert [stat and stat.mean for stat in method.values["all_sites"]] == [
        pytest.approx(1.4 / 3), pytest.approx(2.0 / 3), None,
    ]  # fmt: skip
    assert method.values["bwt"][2] is None


def overall(strategy: str, score: float, seed: int, **changes) -> RunSummary:
    visited = (("a", "b"),) if strategy == "joint" else None
    rows = [[score] * 3] if strategy == "joint" else [[0.5] * 3, [score] * 3]
    return run(rows, strategy=strategy, seed=seed, visited=visited, **changes)


def test_the_gap_closed_is_taken_run_by_run_and_only_between_equals():
    runs = [
        *(overall("finetune", score, seed) for seed, score in enumerate((0.4, 0.2))),
        *(overall("joint", score, seed) for seed, score in enumerate((0.8, 0.6))),
        *(overall("l2", score, seed) for seed, score in enumerate((0.6, 0.5))),
        overall("dropout", 0.5, 7),
    ]
    table = comparison(runs)
    assert value(table, 2, "gap").mean == pytest.approx((0.5 + 0.75) / 2)
    assert value(table, 2, "gap", "asd").mean == pytest.approx((0.5 + 0.75) / 2)  # ASD is linear in DSC here
    assert (value(table, 0, "gap").mean, value(table, 1, "gap").mean) == (0.0, 1.0)
    assert value(table, 3, "gap") is None  # neither of the two has its seed
    assert any(note.startswith("Gap closed: ") for note in table.notes)
    resplit = comparison([*runs[:4], overall("l2", 0.6, 0, split=Split(seed=9), run="resplit")])
    assert value(resplit, 2, "gap") is None
    nothing = comparison([overall("finetune", 0.8, 0), overall("joint", 0.7, 0), overall("l2", 0.9, 0)])
    assert value(nothing, 2, "gap") is None  # joint training is no better: there is no gap
    without = comparison([overall("finetune", 0.8, 0), overall("l2", 0.9, 0)])
    assert "gap" not in {column.key for column in panel(without).columns}

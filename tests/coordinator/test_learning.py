"""What a report and a comparison show of the visits themselves: courses, drift, near-copies, replays, orders."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coordinator import comparison_figures, learning, line_figures
from coordinator.batch import write_report_of
from coordinator.compare import comparison
from coordinator.report import write_report
from coordinator.summary import DRIFTS, Stop
from strategies.generative.course import CURVE
from tests.conftest import Desk
from tests.coordinator.test_compare import overall, run
from tests.coordinator.test_report import HOSTILE, SAMPLE, Page, summary

NAN = float("nan")
SECTIONS = ("Real and replayed images", "Drift of the replays", "Near-copies of training images", "Within the visits")


def course(kind: str, values) -> dict[str, float]:
    return {f"{kind}.{part:02d}": value for part, value in enumerate(values) if not math.isnan(value)}


def visited(sites, steps=100, **metrics) -> tuple[Stop, ...]:
    return tuple(
        Stop(index=i, sites=(site,), action="visit", status="done", metrics={"steps": steps, **metrics})
        for i, site in enumerate(sites)
    )


def told(**changes):
    """A run of two sites whose visits tell everything."""
    metrics = {
        **course("loss", np.linspace(3, 1, 20)),
        **course("alignment", np.linspace(-0.5, 0.5, 20)),
        "copies": 0.25,
        "copy_similarity": 0.375,
        "loss_last": 0.75,
    }
    drift = np.full((2, 3, 3), NAN)
    drift[0, 0], drift[1, :2] = (0.125, 0.25, 0.5), ((0.126, 0.251, 0.501), (0.127, 0.252, 0.502))
    fields = {"stops": visited(("north", "south"), **metrics), "drift": drift}
    return summary([[0.93, 0.3, 0.2], [0.41, 0.9, 0.5]], ["north", "south"], ["west"], **fields | changes)


def test_a_run_that_tells_nothing_shows_nothing(tmp_path: Path):
    quiet = summary([[0.9, 0.3, 0.2]], ["north", "south"], ["west"])
    text = Page(write_report(quiet, tmp_path).read_text()).text
    assert not any(title in text for title in SECTIONS)
    assert "drift" not in quiet.document()


def test_the_report_shows_all_that_the_visits_tell(tmp_path: Path):
    run = told()
    source = write_report(run, tmp_path, replays=[("north", 2, SAMPLE.getvalue())]).read_text()
    page = Page(source)
    for said in (*SECTIONS, "Only synthetic sites: real images stay at the site", "north, after visit 2"):
        assert said in page.text
    for number in ("0.125", "0.251", "0.502", "0.250", "0.375", "loss_last 0.75"):
        assert number in page.text
    assert "alignment.07" not in page.text  # no twenty numbers per course among a stop's notes
    assert "Loss on replay" not in page.text
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    document = json.loads((tmp_path / "run.json").read_text())
    assert document["drift"] == {
        name: [[run.drift[0, 0, i], None, None], [run.drift[1, 0, i], run.drift[1, 1, i], None]]
        for i, name in enumerate(DRIFTS)
    }


def test_hostile_names_are_only_text_here_too(tmp_path: Path):
    one = summary([[0.9]], [HOSTILE], stops=visited((HOSTILE,), copies=1.0, **course("loss", [1.0])), run=HOSTILE)
    one = replace(one, drift=np.ones((1, 1, 3)))
    page = Page(write_report(one, tmp_path, replays=[(HOSTILE, 1, b"none")]).read_text())
    assert "script" not in page.tags
    assert not page.handlers


def test_a_drift_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="drift of run run-1 has shape"):
        told(drift=np.zeros((2, 3)))


def lines(figure, panel=0):
    return [(list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[panel].get_lines()]


def test_a_course_is_drawn_over_the_steps_with_its_gaps():
    short = course("loss", [4.0, NAN, 2.0])  # fewer steps than twentieths leave some out
    run = told(stops=visited(("north", "south"), steps=40, **short, **course("generator_loss", [9.0] * 20)))
    figure = line_figures.course_over_steps(run, "loss")
    ((x, y), _) = lines(figure)
    assert (x[:3], y[0], y[2]) == ([1.0, 3.0, 5.0], 4.0, 2.0)
    assert np.isnan(y[1])
    assert np.isnan(y[3:]).all()
    low, high = figure.axes[0].get_ylim()
    assert low < 2 < 4 < high
    assert figure.axes[0].get_xlabel() == "step"
    generator = line_figures.course_over_steps(run, "generator_loss")  # whose steps the stop does not tell
    assert (lines(generator)[0][0][-1], generator.axes[0].get_xlabel()) == (97.5, "% of the steps")


def test_many_stops_still_make_a_course():
    sites = [f"site {number}" for number in range(30)]
    run = summary(np.full((30, 30), 0.5), sites, stops=visited(sites, **course("loss", [1.0] * 20)))
    assert len(lines(line_figures.course_over_steps(run, "loss"))) == 30


@pytest.mark.parametrize("sites", [2, 30])
def test_drift_is_drawn_for_few_and_for_many_sites(sites: int):
    names = [f"site {number}" for number in range(sites)]
    drift = np.full((sites, sites, 3), NAN)
    drift[np.tril_indices(sites)] = 7.0
    drift[0] = NAN  # the first site could not be scored
    figure = line_figures.drift_over_visits(summary(np.full((sites, sites), 0.5), names, drift=drift))
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(DRIFTS)
    assert figure.axes[0].get_ylim()[1] > 7


def test_metrics_that_look_alike_are_no_course():
    stop = visited(["a"], **course("loss", [1.0]), **{"dsc.01": 2.0, "copies": 0.5})[0]
    assert learning.scalars(stop) == {"steps": 100, "dsc.01": 2.0}
    assert learning.course(stop, "alignment") is None


# Comparison


def aligned(seed: int, value: float, steps: int = 100, **changes):
    first, last = visited(("a", "b"), steps=steps, **course("alignment", [value] * 20))
    first = replace(first, metrics={"steps": steps, **course("alignment", [-9.0] * 20)})
    return overall("smg", 0.7, seed, stops=(first, last), **changes)


def test_a_comparison_draws_the_last_visit_as_a_mean_over_seeds(tmp_path: Path):
    table = comparison([aligned(0, 0.25), aligned(1, 0.75), overall("finetune", 0.5, 0)])
    (alignment,) = table.learning
    (label,) = alignment.lines
    assert (label, alignment.across, alignment.x[0]) == ("smg", "step", 2.5)
    means, deviations = alignment.lines[label]
    assert means == [0.5] * 20
    assert deviations == pytest.approx([math.sqrt(0.125)] * 20)
    Image.open(next(path for path in table.write(tmp_path) if path.name == "learning.png")).load()
    assert comparison([overall("finetune", 0.5, 0)]).learning == ()


def test_visits_of_different_lengths_share_an_axis_of_percent():
    (alignment,) = comparison(
        [aligned(0, 0.25), aligned(0, 0.75, steps=50, run="other", parameters={"gamma": 1})]
    ).learning
    assert alignment.across == "% of the steps"


def test_a_course_that_one_seed_lacks_is_not_averaged():
    assert comparison([aligned(0, 0.25), overall("smg", 0.7, 1)]).learning == ()


def test_orders_are_bars_of_the_overall_score(tmp_path: Path):
    def made(strategy, score, seed, sites):
        return overall(strategy, score, seed, sites=sites, run=f"{strategy}-{seed}-{sites}")

    runs = [made("finetune", 0.25 + 0.5 * seed, seed, sites) for seed in (0, 1) for sites in (("a", "b"), ("b", "a"))]
    table = comparison([*runs, made("l2", 0.6, 0, ("b", "a"))])
    chart = table.orders
    assert chart.groups == ["order 1", "order 2"]
    means, deviations = chart.bars["finetune"]
    assert (means, deviations) == ([0.5, 0.5], pytest.approx([math.sqrt(0.125)] * 2))
    assert np.array(chart.bars["l2"][0]) == pytest.approx([NAN, 0.6], nan_ok=True)
    assert np.isnan(chart.bars["l2"][1]).all()  # one run has no deviation
    (axes,) = comparison_figures.bars(chart).axes
    assert [bar.get_height() for bar in axes.containers[1]] == [0.5, 0.5]
    assert "orders.png" in {path.name for path in table.write(tmp_path)}
    assert comparison(runs, pool=True).orders is None
    assert comparison([run([[0.5] * 3])]).orders is None


# A run


@pytest.fixture(scope="module")
def visited_by_smg(tmp_path_factory: pytest.TempPathFactory) -> tuple[Desk, str]:
    desk = Desk(tmp_path_factory.mktemp("smg"))
    small = (
        "{name: smg, generator_steps: 2, generator_batch: 2, evaluations: 2, replays: 2, generator: {channels: [8]}}"
    )
    return desk, desk.simulate(f"strategy={small}", "sites=[" + ", ".join(SITES) + "]")


SITES = [f"{{name: {name}, phantom: {{task: organ, cases: 8, size: 16}}}}" for name in ("north", "east")]


def test_a_run_of_smg_has_it_all_in_its_report(visited_by_smg: tuple[Desk, str]):
    desk, name = visited_by_smg
    found = desk.summary(name)
    measured = ~np.isnan(found.drift).any(axis=2)
    assert measured.tolist() == [[True, False, False], [True, True, False]]
    assert [learning.course(stop, "alignment") is None for stop in found.stops] == [True, False]
    assert {row.kind for row in found.traffic} >= {"weights", "generator", "prompts"}
    page = Page(write_report_of(found, desk.home).read_text())
    for said in (*SECTIONS, "generator, all sites", "prompts, all sites", "Alignment of the gradients"):
        assert said in page.text
    assert page.text.count("north, after visit") == 4  # overlays and replays, after its own visit and the last


def test_a_course_has_as_many_points_as_strategies_tell() -> None:
    assert learning.PARTS == CURVE

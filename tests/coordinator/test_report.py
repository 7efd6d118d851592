"""The run document, its figures and its page: complete, honest about what is missing, and closed to the outside."""

import csv
import io
import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from coordinator import figures, line_figures
from coordinator.report import plain_words, write_report
from coordinator.summary import RunSummary, Stop, Traffic
from protos.plan import Plan, Split, StrategyChoice, Task

NAN = float("nan")
CLASSES = ("background", "left", "right")


def summary(dsc, sites, unseen=(), visited=None, classes=CLASSES, **changes) -> RunSummary:
    """A finished run whose score matrix (mean over classes) is `dsc`."""
    mean = np.array(dsc, float).reshape(-1, len(sites) + len(unseen))
    rows, columns = mean.shape
    visited = tuple((site,) for site in sites[:rows]) if visited is None else visited
    both = mean[:, :, None] + np.array([0.01, -0.01])
    plan = Plan(task=Task(classes=CLASSES), strategy=StrategyChoice(name="finetune"), sites=("a",), split=Split(seed=5))
    plan = plan.model_copy(
        update={"sites": tuple(sites), "seed": 3, "task": plan.task.model_copy(update={"classes": classes})}
    )
    fields = {
        "run": "run-1",
        "status": "done",
        "scenario": "lungs",
        "plan": plan,
        "unseen": tuple(unseen),
        "stops": tuple(
            Stop(
                index=i,
                sites=row,
                action="visit",
                status="done",
                seconds=1.5,
                sent={"weights": 10},
                metrics={"loss": 0.5},
            )
            for i, row in enumerate(visited)
        ),
        "visited": visited,
        "dsc": both,
        "asd": 10 * (1 - both),
        "both_empty": np.zeros((rows, columns), int),
        "penalised": np.zeros((rows, columns), int),
        "cases": np.full(columns, 7),
        "drift": np.full((rows, columns, 3), NAN),
        "traffic": tuple(Traffic(site=site, kind="weights", sent=2000, received=1000) for site in sites),
        "seconds": 83.0,
        "weights_sha256": "ab" * 32,
        "software": "locum 0.1.0",
        "command": "locum simulate lungs.yaml",
    }
    return RunSummary(**fields | changes)


SAMPLE = io.BytesIO()
Image.new("RGB", (4, 4), "red").save(SAMPLE, "PNG")
OVERLAYS = [("north", 2, SAMPLE.getvalue())]


@pytest.fixture(scope="module")
def forgetful():
    counts = {"both_empty": np.full((2, 3), 1234), "penalised": np.full((2, 3), 4321)}
    return summary([[0.93, 0.3, 0.2], [0.41, 0.9, 0.5]], ["north", "south"], ["west"], **counts)


@pytest.fixture(scope="module")
def written(forgetful, tmp_path_factory):
    """The folder of one report."""
    return write_report(forgetful, tmp_path_factory.mktemp("report") / "new" / "folder", OVERLAYS).parent


@pytest.fixture
def individual():
    return summary([[0.9, NAN, NAN], [0.9, 0.8, NAN]], ["north", "south"], ["west"])


@pytest.fixture
def joint():
    return summary([[0.9, 0.8, 0.7]], ["north", "south"], ["west"], visited=(("north", "south"),))


class Page(HTMLParser):
    """What a page refers to, which elements it has, and its text."""

    def __init__(self, source: str):
        super().__init__()
        self.tags, self.references, self.handlers, self.text = [], [], [], ""
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in {"src", "href", "srcset", "action", "data", "poster", "background", "formaction", "xlink:href"}:
                self.references.append(value)
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_data(self, data):
        self.text += data


def test_document_is_exactly_the_agreed_one(forgetful):
    document = json.loads(json.dumps(forgetful.document(), allow_nan=False))
    assert list(document) == [
        "run",
        "status",
        "strategy",
        "parameters",
        "sites",
        "unseen",
        "matrix",
        "metrics",
        "weights_sha256",
        "traffic_bytes",
        "seconds",
    ]
    assert np.allclose(document["matrix"]["dsc"], [[0.93, 0.3, 0.2], [0.41, 0.9, 0.5]])
    assert document["traffic_bytes"] == 6000
    for score in ("dsc", "asd"):
        assert {"overall", "bwt", "bwt_plus", "rem", "fwt", "tl", "cl"} <= set(document["metrics"][score])
    assert document["metrics"]["dsc"]["bwt"] == pytest.approx(-0.52)


def test_cells_that_do_not_exist_are_null(individual, joint):
    assert individual.document()["matrix"]["dsc"][0][1:] == [None, None]
    assert individual.document()["metrics"]["dsc"]["bwt"] == 0
    assert joint.document()["metrics"]["dsc"]["bwt"] is None
    assert joint.document()["metrics"]["dsc"]["overall"] == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cases": np.zeros(2)}, "cases of run run-1 has shape"),
        ({"asd": np.zeros((2, 3, 1))}, "asd of run run-1 has shape"),
        ({"unseen": ("north",)}, "names one site twice"),
        ({"visited": (("north",), ("mars",))}, "mars"),
    ],
)
def test_refuses_what_does_not_fit_together(forgetful, change, says):
    with pytest.raises(ValueError, match=says):
        replace(forgetful, **change)


def test_plain_words(forgetful, individual, joint):
    assert plain_words(forgetful) == [
        "After the last visit the model segments north at 0.41 DSC; right after its own visit it was 0.93.",
        "Where it never was, it reaches 0.50 DSC on west.",
        "Over all sites it ends at 0.60 DSC.",
    ]
    assert plain_words(individual) == [
        "Nothing was forgotten: on north the model is no worse than right after its own visit.",
        "Over all sites it ends at 0.85 DSC.",
        "There is no score on west, so the means leave that out.",
    ]
    assert plain_words(joint)[0] == "One model learnt from 2 sites at once, so there is no visit to forget."


def test_plain_words_name_the_worst_first_and_what_improved():
    rows = [[0.9, 0, 0, 0], [0.9, 0.8, 0, 0], [0.9, 0.8, 0.5, 0], [0.8, 0.2, 0.7, 0.9]]
    words = plain_words(summary(rows, ["a", "b", "c", "d"]))
    assert "segments b at 0.20 DSC" in words[0]
    assert words[1] == "It also forgot some of a (0.90 to 0.80)."
    assert words[2] == "It went on improving on c (0.50 to 0.70)."


def test_plain_words_hide_nothing_that_went_wrong():
    stops = (
        Stop(index=0, sites=("a",), action="visit", status="done"),
        Stop(index=1, sites=("b",), action="visit", status="skipped", skipped_by="Ann", why="scanner moved"),
        Stop(index=2, sites=("c",), action="visit", status="failed", failed_at="c", code="guard.shape"),
    )
    run = summary([[0.9, 0.4, 0.3]], ["a", "b", "c"], visited=(("a",),), stops=stops, status="failed")
    said = " ".join(plain_words(run))
    assert "Stop 1 (b) was skipped by Ann: scanner moved" in said
    assert "Stop 2 (c) failed at c: guard.shape." in said
    assert "The run is failed: 1 of 3 stops are done." in said


def test_a_run_without_any_score_still_has_a_report(tmp_path):
    run = summary([], ["a", "b"], visited=(), status="failed", weights_sha256=None)
    assert plain_words(run)[-1] == "No model has been scored yet."
    page = write_report(run, tmp_path).read_text()
    assert "Score matrix" not in page
    assert (tmp_path / "matrix_dsc.png").stat().st_size


def test_every_file_is_there_and_says_the_same(forgetful, written):
    assert {file.name for file in written.iterdir()} == {
        "report.html",
        "matrix_dsc.png",
        "matrix_asd.png",
        "curves.png",
        "scores.csv",
        "run.json",
    }
    for picture in written.glob("*.png"):
        Image.open(picture).load()
    assert json.loads((written / "run.json").read_text()) == forgetful.document()
    text = Page((written / "report.html").read_text()).text
    for said in (*plain_words(forgetful), "locum 0.1.0", "ab" * 32, "run 3, split 5", "locum simulate lungs.yaml"):
        assert said in text


def test_scores_csv_holds_every_number_exactly(forgetful, written):
    with (written / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    whole = [r for r in rows if r["metric"] == "dsc" and not r["class"]]
    R = forgetful.matrix("dsc")
    assert {(int(r["visit"]), r["scored_site"]): float(r["value"]) for r in whole} == {
        (i + 1, site): R[i, j] for i in range(2) for j, site in enumerate(forgetful.columns)
    }
    right = [float(r["value"]) for r in rows if r["metric"] == "asd" and r["class"] == "right"]
    assert right == forgetful.asd[:, :, 1].ravel().tolist()
    penalised = [int(r["value"]) for r in rows if r["metric"] == "penalised"]
    assert penalised == forgetful.penalised.ravel().tolist()
    assert {r["scored_site"] for r in rows if r["unseen"] == "1"} == {"west"}


def test_empty_masks_are_counted_and_explained(written):
    text = Page((written / "report.html").read_text()).text
    for said in ("1234", "2468", "4321", "8642", "DSC counts as 1 and ASD as 0", "length of the image's diagonal"):
        assert said in text


def test_page_refers_to_nothing_outside(written):
    source = (written / "report.html").read_text()
    page = Page(source)
    assert page.references
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert not page.handlers
    style = source[source.index("<style>") : source.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in source
    assert "north, after visit 2" in page.text


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}$\\frac{'


def test_hostile_names_are_only_text(tmp_path):
    stops = (
        Stop(index=0, sites=(HOSTILE,), action="visit", status="skipped", skipped_by=HOSTILE, why=HOSTILE),
        Stop(index=1, sites=(HOSTILE,), action=HOSTILE, status="failed", failed_at=HOSTILE, code=HOSTILE),
    )
    run = summary(
        [[0.9, 0.1]],
        [HOSTILE],
        ["un" + HOSTILE],
        classes=("background", HOSTILE, "x" + HOSTILE),
        stops=stops,
        run=HOSTILE,
        scenario=HOSTILE,
        command=HOSTILE,
        software=HOSTILE,
        traffic=(Traffic(site=HOSTILE, kind=HOSTILE, sent=1, received=1),),
    )
    source = write_report(run, tmp_path, [(HOSTILE, 1, b"no picture at all")]).read_text()
    page = Page(source)
    assert page.text.count(HOSTILE) >= 15
    assert "49" not in page.text
    assert "script" not in page.tags
    assert not page.handlers
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)


@pytest.mark.parametrize(
    ("sites", "theme"), [(1, figures.LIGHT), (2, figures.DARK), (12, figures.LIGHT), (40, figures.DARK)]
)
def test_figures_for_few_and_for_many_sites(sites, theme):
    names = [f"hospital number {number} of the land" for number in range(sites)]
    run = summary(np.linspace(0, 1, sites * (sites + 1)), names, ["west"])
    for figure in (
        figures.heat_map(run, "dsc", theme),
        line_figures.scores_over_visits(run, theme=theme),
        figures.traffic(run, theme),
    ):
        image = Image.open(io.BytesIO(figures.png(figure))).convert("RGB")
        assert len(set(image.resize((64, 64)).tobytes())) > 8
        assert max(image.size) < 4000


def test_figures_show_missing_cells_and_single_rows(individual, joint):
    for run in (individual, joint):
        texts = [text.get_text() for axes in figures.heat_map(run, "dsc").axes for text in axes.texts]
        assert texts.count("–") == int(np.isnan(run.matrix("dsc")).sum())
        assert "0.90" in texts
        figures.png(line_figures.scores_over_visits(run))


def test_the_same_run_gives_the_same_page(forgetful, written, tmp_path):
    assert write_report(forgetful, tmp_path, OVERLAYS).read_bytes() == (written / "report.html").read_bytes()

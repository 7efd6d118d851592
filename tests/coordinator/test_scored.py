"""Runs that are scored on validation cases: no test case is looked at, and whoever shows a score says so."""

import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from coordinator.compare import NotComparable, comparison
from coordinator.conductor import VisitFailed
from coordinator.console import matrix_table
from coordinator.report import plain_words, write_report
from coordinator.results import summarise
from coordinator.scenario import ScenarioError
from node.data.cache import SiteCache
from node.data.splits import part_of
from node.phantoms.source import write_phantoms
from protos.plan import PhantomSite, Split
from tests.conftest import Desk, outcome

TEXT = """
name: search
task: {size: [16, 16], classes: [background, organ]}
sites: [north, east]
network: {channels: [2, 4]}
training: {steps: 2, batch_size: 2}
split: {train: 0.5, val: 0.25, test: 0.25}
scored: val
"""


@pytest.fixture(autouse=True)
def nothing_decoded_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.app._cache", SiteCache(budget=2**30))


def hospitals(folder: Path, desk: Desk) -> None:
    for number, site in enumerate(("north", "east")):
        phantom = PhantomSite(task="organ", appearance=number, cases=16, size=16)
        write_phantoms(phantom, desk.scenario(text=TEXT).task, folder / site)


def files_of(folder: Path, part: str, split_seed: int) -> list[Path]:
    split = Split(train=0.5, val=0.25, test=0.25, seed=split_seed)
    return [path for path in sorted(folder.glob("*/*/*")) if part_of(path.stem, split) == part]


@given(seed=st.integers(0, 2**16), garbage=st.binary(max_size=64), strategy=st.sampled_from(["finetune", "joint"]))
@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_test_case_is_opened(
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    garbage: bytes,
    strategy: str,
):
    """Were one opened, the node would leave it out and log so."""
    outcomes = []
    for spoilt in (False, True):
        monkeypatch.setattr("node.app._cache", SiteCache(budget=2**30))
        desk = Desk(tmp_path_factory.mktemp("desk"))
        hospitals(desk.folder, desk)
        tests = files_of(desk.folder, "test", seed)
        assert files_of(desk.folder, "train", seed)
        if spoilt:
            for path in tests:
                path.write_bytes(garbage)
        run = desk.begin(f"split.seed={seed}", f"strategy={strategy}", text=TEXT)
        try:
            desk.carry_out(run)
        except VisitFailed as error:  # a part may be empty by chance
            outcomes.append(str(error).replace(run, ""))
        else:
            outcomes.append(outcome(desk.row(run)))
        assert not desk.home.nodes_log.exists()
    assert outcomes[0] == outcomes[1]


def test_it_learns_the_same_as_a_run_scored_on_test_cases(desk: Desk):
    hospitals(desk.folder, desk)
    val, test = (desk.row(desk.simulate(f"scored={part}", text=TEXT)) for part in ("val", "test"))
    assert [stop.weights_sha256 for stop in val.stops] == [stop.weights_sha256 for stop in test.stops]
    for row in (val, test):
        for score in row.scores:
            part = files_of(desk.folder, row.scenario["scored"], 0)
            assert score.metrics is not None
            assert score.metrics["cases"] == sum(path.match(f"{score.site}/images/*") for path in part)
    assert [row.metrics for row in val.scores] != [row.metrics for row in test.scores]


def test_a_site_without_validation_cases_is_known_before_any_training(desk: Desk):
    hospitals(desk.folder, desk)
    run = desk.begin("split={train: 0.5, val: 0, test: 0.5}", text=TEXT)
    events = []
    with pytest.raises(VisitFailed, match=r"no case falls to its val part; add cases, or change split\.val"):
        desk.carry_out(run, events.append)
    assert not any(event[0] == "stepped" for event in events)


def test_unseen_sites_are_refused_in_one_sentence(desk: Desk):
    with pytest.raises(ScenarioError) as caught:
        desk.scenario("unseen=[island]", text=TEXT)
    assert str(caught.value).count("\n") == 0
    assert "site island of unseen has no validation cases" in str(caught.value)


def test_whoever_shows_a_score_says_so(desk: Desk):
    hospitals(desk.folder, desk)
    summary, other = (summarise(desk.row(desk.simulate(f"scored={part}", text=TEXT))) for part in ("val", "test"))
    out = io.StringIO()
    Console(file=out, width=200).print(matrix_table(summary, "dsc"))
    comparison([summary]).show(Console(file=out))
    shown = [out.getvalue(), " ".join(plain_words(summary)), write_report(summary, desk.folder / "page").read_text()]
    assert all("validation cases" in text for text in shown)
    assert summary.document()["scored"] == "val"
    assert "scored" not in other.document()
    assert "alidation" not in write_report(other, desk.folder / "other").read_text()
    with pytest.raises(NotComparable, match=r"have different scored cases \(validation cases; test cases\)"):
        comparison([summary, other])

"""A whole run: what the matrix means, what is passed on, what is counted, and what happens when a site fails."""

import gc
import json
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from coordinator.conductor import VisitFailed
from coordinator.home import RunBusy, is_busy
from coordinator.results import summarise
from coordinator.skipping import NotSkippable, skip
from node.data.cache import SiteCache
from node.data.site import SiteData
from node.phantoms.source import write_phantoms
from node.settings import SiteSettings
from protos.handover import Handover
from protos.locum.v1.handover_pb2 import HandoverManifest
from protos.plan import PhantomSite
from strategies.registry import STRATEGIES, strategy_for
from tests.conftest import Desk, outcome
from tests.strategies.harness import VIVID

COLUMNS = ("north", "east", "south", "island")


@pytest.fixture(scope="module")
def finetuned(shared_desk: Desk) -> str:
    return shared_desk.simulate()


# The score matrix


def test_r_has_a_row_per_visit_and_a_column_per_site_then_unseen(shared_desk: Desk):
    summary = shared_desk.summary(shared_desk.simulate("order=[south, north, east]", "training.steps=1"))
    assert summary.columns == ("south", "north", "east", "island")
    assert summary.visited == (("south",), ("north",), ("east",))
    assert summary.dsc.shape == summary.asd.shape == (3, 4, 1)
    assert np.isfinite(summary.dsc).all()
    assert summary.status == "done"
    document = summary.document()
    assert np.shape(document["matrix"]["dsc"]) == np.shape(document["matrix"]["asd"]) == (3, 4)


def test_every_cell_is_what_the_vaults_artifact_scores(shared_desk: Desk, finetuned: str):
    """Segmented and compared anew, here, with nothing but the artifact, the plan and the site's cases."""
    scenario, row = shared_desk.scenario(), shared_desk.row(finetuned)
    plan = scenario.plan()
    found = shared_desk.summary(finetuned).matrix("dsc")
    for stop in row.stops:
        handover = Handover.from_bytes(shared_desk.vault.get(stop.artifact))
        assert handover.digest().hex() != stop.artifact  # one addresses the file, the other the tensors
        predict = strategy_for(plan).predictor(handover, torch.device("cpu"))
        for column, entry in enumerate((*scenario.sites, *scenario.unseen)):
            settings = SiteSettings(name=entry.name, home=shared_desk.folder / "none", phantom=entry.phantom)
            dice = []
            with torch.inference_mode():
                for case in SiteData(settings, plan, entry in scenario.unseen).scored_cases():
                    ours, truth = case.predict(predict) == 1, case.truth == 1
                    dice.append(2 * (ours & truth).sum() / (ours.sum() + truth.sum()))
            assert found[stop.index, column] == pytest.approx(np.mean(dice), abs=1e-12)


def test_the_same_scenario_gives_the_same_run_bit_for_bit(shared_desk: Desk, finetuned: str):
    assert outcome(shared_desk.row(shared_desk.simulate())) == outcome(shared_desk.row(finetuned))


def test_another_seed_gives_another_run(shared_desk: Desk, finetuned: str):
    other = shared_desk.summary(shared_desk.simulate("seed=1"))
    assert other.weights_sha256 != shared_desk.summary(finetuned).weights_sha256


def test_every_visit_sets_out_with_what_the_visit_before_left(shared_desk: Desk, finetuned: str):
    """As the nodes' ledgers have it."""
    crossed = {}
    for site in COLUMNS:
        for entry in shared_desk.ledger(site).entries():
            if entry.run == finetuned and entry.message_type == "train.visit":
                manifest = HandoverManifest.FromString(zlib.decompress(entry.manifest))
                crossed[entry.stop, entry.direction] = manifest.digest
    first = strategy_for(shared_desk.scenario().plan()).first_handover()
    assert crossed[0, "in"] == first.digest()
    assert crossed[1, "in"] == crossed[0, "out"]
    assert crossed[2, "in"] == crossed[1, "out"]
    for stop in shared_desk.row(finetuned).stops:
        assert Handover.from_bytes(shared_desk.vault.get(stop.artifact)).digest() == crossed[stop.index, "out"]


def test_each_site_uses_its_own_model_under_individual(shared_desk: Desk):
    run = shared_desk.simulate("strategy=individual")
    matrix = shared_desk.summary(run).matrix("dsc")
    assert np.isnan(matrix[:, 3]).all()  # no model is an unseen site's own
    for column in range(3):
        assert np.isnan(matrix[:column, column]).all()
        own = matrix[column, column]
        assert np.isfinite(own)
        assert (matrix[column:, column] == own).all()
    scored = [entry for site in COLUMNS for entry in shared_desk.ledger(site).entries() if entry.run == run]
    assert sum(entry.message_type == "evaluate.score" and entry.direction == "in" for entry in scored) == 3
    assert shared_desk.summary(run).document()["matrix"]["dsc"][0][3] is None
    # each site trains as if it were the first: the first one is fine-tuning's first visit
    assert shared_desk.row(run).stops[0].artifact == shared_desk.row(shared_desk.simulate()).stops[0].artifact


@pytest.mark.parametrize("strategy", ["joint", "{name: joint-fedavg, local_steps: 3}"])
def test_joint_training_has_one_row_for_all_sites(shared_desk: Desk, strategy: str):
    summary = shared_desk.summary(shared_desk.simulate(f"strategy={strategy}"))
    assert summary.visited == (("north", "east", "south"),)
    assert summary.matrix("dsc").shape == (1, 4)
    assert np.isfinite(summary.matrix("dsc")).all()
    assert len(summary.stops) == 1
    assert summary.complete


def test_a_case_that_is_scored_was_never_trained_on(shared_desk: Desk):
    scenario = shared_desk.scenario()
    for entry in scenario.sites:
        settings = SiteSettings(name=entry.name, home=shared_desk.folder / "none", phantom=entry.phantom)
        counts = SiteData(settings, scenario.plan()).counts()
        assert counts["test"] > 0
        assert sum(counts.values()) == entry.phantom.cases


# What is counted


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_the_traffic_is_what_the_ledgers_of_all_nodes_let_through(desk: Desk, strategy: str):
    choice = json.dumps({"name": strategy, **VIVID.get(strategy, {})})
    run = desk.simulate(f"strategy={choice}", "training.steps=3")
    crossed: Counter[tuple[str, str, str]] = Counter()
    for site in COLUMNS:
        ledger = desk.ledger(site)
        assert ledger.verify() == []
        for entry in ledger.entries():
            assert entry.verdict == "allowed"
            assert entry.run == run
            for kind, size in json.loads(entry.kind_bytes).items():
                crossed[site, kind, entry.direction] += size
    summary = desk.summary(run)
    assert summary.traffic_bytes == sum(crossed.values()) > 0
    for row in summary.traffic:
        assert (row.sent, row.received) == (
            crossed[row.site, row.kind, "in"],
            crossed[row.site, row.kind, "out"],
        )


def test_scores_of_cases_and_pictures_stay_at_the_nodes(shared_desk: Desk, finetuned: str):
    home = shared_desk.home.folder
    everything = b"".join(path.read_bytes() for path in home.glob("coordinator.db*"))
    assert b"case-00" not in everything
    assert (home / "nodes" / "north" / "overlays" / finetuned / "0002.png").is_file()
    assert not list((home / "runs").rglob("*.png"))


def test_the_vault_holds_one_artifact_per_stop_and_no_rounds(desk: Desk):
    for strategy, count in (("finetune", 3), ("joint", 1), ("joint-fedavg", 1)):
        before = set(desk.vault.folder.rglob("*"))
        run = desk.simulate(f"strategy={strategy}")
        new = [path for path in set(desk.vault.folder.rglob("*")) - before if path.is_file()]
        assert len(new) == count
        assert {path.stem for path in new} == {stop.artifact for stop in desk.row(run).stops}
    assert not list((desk.home.folder / "nodes").rglob("checkpoints/*"))


def test_the_coordinators_memory_does_not_grow_with_visits(desk: Desk):
    sites = ", ".join(
        f"{{name: s{number}, phantom: {{task: organ, cases: 5, size: 16, seed: {number}}}}}" for number in range(12)
    )
    alive = []

    def handovers() -> int:
        gc.collect()
        return sum(type(thing) is Handover for thing in gc.get_objects())

    def count(event: tuple) -> None:
        if event[0] == "stop ended" and event[1] in (1, 6, 11):  # a look at everything takes its time
            alive.append(handovers() - others)

    others = handovers()  # other tests' constants
    run = desk.begin(f"sites=[{sites}]", "unseen=[]", "training.steps=1")
    desk.carry_out(run, on=count)
    assert alive == [alive[0]] * 3
    assert alive[0] <= 4


def test_what_a_listener_is_told(desk: Desk):
    run = desk.begin("training.steps=2")
    events = desk.carry_out(run).events
    assert events[0] == ("run began", 3, 0)
    assert events[1:4] == [
        ("stop began", 0, ("north",), 1, 0),
        ("stepped", 0, "north", 1, 2),
        ("stepped", 0, "north", 2, 2),
    ]
    assert [event[:3] for event in events[4:9]] == [
        ("stop ended", 0, ("north",)),
        *(("scored", 0, site) for site in COLUMNS),
    ]
    assert events[-1] == ("run ended", "done")
    again = desk.carry_out(run).events
    assert again == [("run began", 3, 3), ("run ended", "done")]


# When a site fails


@pytest.fixture
def clinic(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a hospital with files, which may break; every `carry_out` is a process of its own to it."""
    task = desk.scenario().task
    write_phantoms(PhantomSite(task="organ", appearance=1, cases=8, size=16), task, desk.folder / "clinic")
    new_process(monkeypatch)
    return desk.folder / "clinic"


def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new process has decoded nothing yet."""
    monkeypatch.setattr("node.app._cache", SiteCache(budget=2**30))


AS_SECOND = "sites.1={name: clinic}"
AS_UNSEEN = "unseen=[{name: clinic}]"


def broken(folder: Path) -> dict[Path, bytes]:
    """Spoil every image of a site; what they were."""
    whole = {path: path.read_bytes() for path in folder.glob("images/*")}
    for path in whole:
        path.write_bytes(b"no picture")
    return whole


def repair(whole: dict[Path, bytes]) -> None:
    for path, data in whole.items():
        path.write_bytes(data)


def test_a_failed_visit_names_site_and_code_and_resume_finishes_after_repair(desk, clinic, monkeypatch):
    undisturbed = outcome(desk.row(desk.simulate(AS_SECOND)))
    new_process(monkeypatch)
    whole = broken(clinic)
    run = desk.begin(AS_SECOND)
    with pytest.raises(VisitFailed) as caught:
        desk.carry_out(run)
    (sentence,) = str(caught.value).splitlines()
    assert sentence.startswith(f"Run {run} failed at stop 1: Site clinic: ")
    assert "[SITE_DATA]" in sentence

    row = desk.row(run)
    assert row.status == "failed"
    assert [stop.status for stop in row.stops] == ["done", "failed", "pending"]
    assert (row.stops[1].error["site"], row.stops[1].error["code"]) == ("clinic", "SITE_DATA")
    assert row.stops[0].artifact == undisturbed["stops"][0][1]  # what was done is committed
    assert {(s.site, s.error is None) for s in row.scores} == {
        ("north", True), ("clinic", False), ("south", True), ("island", True)}  # fmt: skip
    summary = summarise(row)
    assert (summary.stops[1].failed_at, summary.stops[1].code) == ("clinic", "SITE_DATA")
    assert np.isnan(summary.matrix("dsc")[0, 1])

    repair(whole)
    new_process(monkeypatch)
    events = desk.carry_out(run).events
    assert ("run began", 3, 1) in events
    assert not [event for event in events if event[:2] == ("stepped", 0)]  # nothing done is done again
    assert outcome(desk.row(run)) == undisturbed
    assert desk.row(run).stops[1].error is None


def test_an_unseen_site_that_cannot_score_leaves_the_run_incomplete_until_it_can(desk, clinic, monkeypatch):
    undisturbed = outcome(desk.row(desk.simulate(AS_UNSEEN)))
    new_process(monkeypatch)
    whole = broken(clinic)
    run = desk.begin(AS_UNSEEN)
    events = desk.carry_out(run).events
    assert [event for event in events if event[0] == "scored" and event[3] is None] == [
        ("scored", stop, "clinic", None) for stop in range(3)
    ]
    assert desk.row(run).status == "incomplete"
    assert not desk.summary(run).complete
    assert np.isnan(desk.summary(run).matrix("dsc")[:, 3]).all()

    repair(whole)
    new_process(monkeypatch)
    events = desk.carry_out(run).events
    assert [event[:3] for event in events if event[0] == "scored"] == [("scored", stop, "clinic") for stop in range(3)]
    assert not [event for event in events if event[0] == "stepped"]
    assert outcome(desk.row(run)) == undisturbed


def test_a_site_that_cannot_take_part_is_known_before_anything_is_trained(desk: Desk):
    run = desk.begin("sites.2={name: south, phantom: {task: organ, cases: 1, size: 16}}")
    with pytest.raises(VisitFailed, match=rf"^Run {run} failed: Site south: no case falls to its .*\[SITE_DATA\]$"):
        desk.carry_out(run)
    row = desk.row(run)
    assert row.status == "failed"
    assert [stop.status for stop in row.stops] == ["pending"] * 3
    assert not desk.vault.folder.exists()


def test_a_stop_is_skipped_by_a_named_person_for_a_reason(desk, clinic):
    run = desk.begin(AS_SECOND)
    broken(clinic)
    with pytest.raises(VisitFailed):
        desk.carry_out(run)
    skip(run, 1, desk.home, by="Dr Ada [Byron]", why="the scanner is broken")
    desk.carry_out(run)
    row = desk.row(run)
    assert row.status == "incomplete"
    assert [stop.status for stop in row.stops] == ["done", "skipped", "done"]
    assert (row.stops[1].skipped_by, row.stops[1].skipped_why) == ("Dr Ada [Byron]", "the scanner is broken")
    summary = desk.summary(run)
    assert summary.visited == (("north",), ("south",))
    assert not summary.complete
    assert (summary.stops[1].skipped_by, summary.stops[1].why) == ("Dr Ada [Byron]", "the scanner is broken")
    # the model went from the first site straight on to the third
    visits = [e for e in desk.ledger("south").entries() if e.message_type == "train.visit" and e.direction == "in"]
    arrived = HandoverManifest.FromString(zlib.decompress(visits[0].manifest)).digest
    assert Handover.from_bytes(desk.vault.get(row.stops[0].artifact)).digest() == arrived


def test_the_first_stop_can_be_skipped_as_well(desk: Desk):
    run = desk.begin()

    def stop(event: tuple) -> None:
        if event[0] == "stepped":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        desk.carry_out(run, on=stop)
    assert desk.row(run).status == "running"
    skip(run, 0, desk.home, by="Ada", why="no consent")
    desk.carry_out(run)
    assert [stop.status for stop in desk.row(run).stops] == ["skipped", "done", "done"]
    # as if the site had not been there, but for its place in the itinerary, on which the seeds depend
    assert desk.summary(run).matrix("dsc").shape == (2, 4)
    assert np.isfinite(desk.summary(run).matrix("dsc")).all()


def test_what_cannot_be_skipped(shared_desk: Desk, finetuned: str, desk: Desk):
    with pytest.raises(NotSkippable, match=r"Stop 1 .* is done already"):
        skip(finetuned, 1, shared_desk.home, by="Ada", why="why not")
    with pytest.raises(NotSkippable, match=r"has no stop 7; `locum show"):
        skip(finetuned, 7, shared_desk.home, by="Ada", why="why not")
    for by, why in (("", "why not"), ("Ada", " ")):
        with pytest.raises(NotSkippable, match="fill in --by and --why"):
            skip(finetuned, 1, shared_desk.home, by=by, why=why)
    assert outcome(shared_desk.row(finetuned))["status"] == "done"


def test_a_run_is_carried_out_by_one_process_at_a_time(desk: Desk):
    run = desk.begin()
    refused = []

    def meddle(event: tuple) -> None:
        if event[:2] == ("stop began", 1):
            assert is_busy(desk.home, run)
            for attempt in (lambda: desk.carry_out(run), lambda: skip(run, 2, desk.home, by="Ada", why="haste")):
                with pytest.raises(RunBusy) as caught:
                    attempt()
                refused.append(str(caught.value))

    desk.carry_out(run, on=meddle)
    assert refused == [f"Run {run} is being carried out by another process; wait for it or stop it."] * 2
    assert not is_busy(desk.home, run)
    assert desk.row(run).status == "done"


def test_two_equal_runs_do_not_discard_each_others_rounds(desk: Desk):
    """Their states between rounds hold equal tensors; the one that finishes first must not take the other's away."""
    strategy = ("strategy=joint", "training.checkpoint_every=2")
    waiting = desk.begin(*strategy)

    def stop(event: tuple) -> None:
        if event[0] == "stepped" and event[3] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        desk.carry_out(waiting, on=stop)
    assert desk.row(waiting).stops[0].rounds_done == 4
    finished = desk.simulate(*strategy)
    events = desk.carry_out(waiting).events
    assert [event[3] for event in events if event[0] == "stepped"] == list(range(5, 13))
    assert outcome(desk.row(waiting)) == outcome(desk.row(finished))

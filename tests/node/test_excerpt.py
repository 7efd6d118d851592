"""The check as a scenario's run will go: the same task, split, labels and role, or one sentence that says why not."""

import re

import pytest

from coordinator.scenario import parse_scenario
from node.cli import main
from node.data.layouts import FolderSource
from node.data.splits import split_cases
from node.phantoms import write_phantoms
from node.settings import SiteSettings
from protos.plan import PhantomSite, Task

SCENARIO = """
name: cells
task: {size: [16, 16], classes: [background, rim, nucleus]}
sites: [other, {name: here, labels: {1: nucleus}}, {name: made, phantom: {task: organ}}, 2001]
unseen: [{name: far, labels: {1: rim}}]
split: {train: 0.5, val: 0.25, test: 0.25, group: {csv: who.csv, column: patient}, seed: 3}
strategy: finetune
"""


def said_by(arguments, capsys):
    """Exit status, standard output and standard error of `locum-node check`."""
    with pytest.raises(SystemExit) as ended:
        main(["check", *map(str, arguments)])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return ended.value.code, out, err


@pytest.fixture
def folder(tmp_path):
    task = Task(classes=("background", "organ"), size=(16, 16))
    write_phantoms(PhantomSite(task="organ", cases=20, size=16), task, tmp_path)
    rows = "".join(f"case-{number:03d},{number % 7}\n" for number in range(20))
    (tmp_path / "who.csv").write_text("case,patient\n" + rows)
    return tmp_path


@pytest.fixture
def scenario(folder):
    (folder / "scenario.yaml").write_text(SCENARIO)
    return folder / "scenario.yaml"


def test_a_scenario_gives_the_split_of_its_run(folder, scenario, capsys):
    status, out, _ = said_by([folder, "--scenario", scenario, "--site", "here"], capsys)
    assert status == 0
    plan = parse_scenario(SCENARIO, "test").plan()
    source = FolderSource(SiteSettings(name="here", home=folder, data=folder), plan.task, plan.split)
    parts = split_cases(source.names, source.patient, plan.split)
    assert all(parts.values())
    for part, cases in parts.items():
        patients = {int(name[-3:]) % 7 for name in cases}
        assert re.search(rf"^ {part} +{len(cases)} +{len(patients)} *$", out, re.M)
    assert re.search(r"^ nucleus +1 +20 ", out, re.M)
    assert re.search(r"^ rim +0 ", out, re.M)


def test_an_unseen_site_is_all_tests_and_has_its_own_labels(folder, scenario, capsys):
    status, out, _ = said_by([folder, "--scenario", scenario, "--site", "far"], capsys)
    assert status == 0
    assert re.search(r"^ test +20 +7 *$", out, re.M)
    assert re.search(r"^ rim +1 +20 ", out, re.M)
    assert (
        said_by([folder, "--scenario", scenario, "--site", "2001"], capsys)[0] == 0
    )  # a name that looks like a number


@pytest.mark.parametrize(
    ("edit", "site", "said"),
    [
        (("", ""), "nowhere", "has no site 'nowhere'; it has other, here, made, 2001, far."),
        (("", ""), "made", "made is a synthetic hospital"),
        (("seed: 3", "seed: 3, seed: 4"), "here", "the key 'seed' stands twice"),
        (("0.5, val", "0.6, val"), "here", "split: train, val and test sum to 1.1"),
        (("task: {", "task: {dimms: 2, "), "here", "task.dimms: "),
        (("sites: [other, ", "sites: [here, "), "here", "'here' twice"),
        (("sites: ", "places: "), "here", "sites: "),
        (("name: cells", "- cells"), "here", "not valid YAML"),
        ((SCENARIO, "cells"), "here", "is a mapping"),
    ],
)
def test_a_scenario_that_says_nothing_clear_is_one_sentence(folder, scenario, capsys, edit, site, said):
    scenario.write_text(SCENARIO.replace(*edit))
    status, out, err = said_by([folder, "--scenario", scenario, "--site", site], capsys)
    assert (status, out) == (2, "")
    assert err.startswith(f"locum-node: {scenario}: ")
    assert said in err
    assert err.endswith(".\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--classes", "a,b"], "--classes"),
        (["--dims", "2"], "--dims"),
        (["--channels", "1"], "--channels"),
        (["--labels", "1=a"], "--labels"),
        (["--group", "(a)"], "--group"),
        (["--split-seed", "0"], "--split-seed"),
        (["--unseen"], "--unseen"),
    ],
)
def test_options_that_contradict_a_scenario_are_refused(folder, scenario, capsys, options, said):
    status, out, err = said_by([folder, "--scenario", scenario, "--site", "here", *options], capsys)
    assert (status, out) == (2, "")
    assert err == f"locum-node: {said}: the scenario says that itself; leave out the option or --scenario.\n"


def test_a_scenario_needs_a_site_and_a_file_that_is_there(folder, scenario, capsys):
    for arguments in (["--site", "here"], ["--scenario", scenario]):
        status, _, err = said_by([folder, *arguments], capsys)
        assert status == 2
        assert "give both" in err
    status, _, err = said_by([folder, "--scenario", folder / "no.yaml", "--site", "here"], capsys)
    assert status == 2
    assert "no.yaml: the scenario cannot be read (No such file or directory)" in err


@pytest.mark.parametrize(
    ("shares", "scored", "said"),
    [
        (
            "train: 0.5, val: 0, test: 0.5",
            "val",
            "No case falls to val (split.val is 0); add cases or raise the share.",
        ),
        ("train: 0.5, val: 0, test: 0.5", "test", ""),
        ("train: 0.5, val: 0.5, test: 0", "val", ""),
        ("train: 0.5, val: 0.5, test: 0", "test", "No case falls to test (split.test is 0)"),
        ("train: 0, val: 1, test: 0", "val", "No case falls to train (split.train is 0)"),
    ],
)
def test_the_part_that_is_scored_must_not_be_empty(folder, scenario, capsys, shares, scored, said):
    text = SCENARIO.replace("train: 0.5, val: 0.25, test: 0.25", shares).replace(
        "unseen: [{name: far, labels: {1: rim}}]\n", ""
    )
    scenario.write_text(f"{text}scored: {scored}\n")
    status, out, _ = said_by([folder, "--scenario", scenario, "--site", "here"], capsys)
    assert (status, said in out, "spoils training" in out) == (bool(said), True, bool(said))

"""The committed scenarios fit what is installed; the papers' small counterparts run as studies, shortened."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import coordinator.cli
from coordinator.home import Home
from coordinator.scenario import load_scenario
from coordinator.simulate import begin_all
from coordinator.store import sqlite_url
from protos.plan import StrategyChoice
from tests.documentation import ROOT, blocks

FOLDER = ROOT / "scenarios"
SCENARIOS = {str(path.relative_to(FOLDER)): path for path in sorted(FOLDER.rglob("*.yaml"))}
PAPERS = FOLDER / "papers" / "README.md"


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_run_of_a_scenario_fits_what_is_installed(name: str, tmp_path: Path) -> None:
    """Folders are there and empty, since what is looked at is the file."""
    scenario = load_scenario(SCENARIOS[name], [])
    for site in (*scenario.sites, *scenario.unseen):
        if site.phantom is None:
            (tmp_path / (site.path or site.name)).mkdir()
    home = Home(tmp_path / "home", sqlite_url(tmp_path / "home"))
    runs = list(scenario.runs())
    assert len(begin_all(runs, home, tmp_path, "locum", source=name, device="cpu")) == len(runs)


# What is compared and not chosen: how much a site keeps, and the ablations of SMG-Learning.
COMPARED = {"cases", "arbitrary", "orientation", "smd", "replay_labels", "replay_masks"}


@pytest.mark.parametrize("name", [name for name in SCENARIOS if name.startswith("search/")])
def test_a_search_differs_from_what_it_is_for_in_nothing_but_scores_and_strategies(name: str) -> None:
    """What was chosen there holds here: equal task, sites, network, training and split; scored on validation cases."""
    search = load_scenario(SCENARIOS[name], [])
    use = load_scenario(SCENARIOS[name.removeprefix("search/")], [])
    assert (search.scored, use.scored) == ("val", "test")
    apart = {"name", "scored", "study", "strategy", "unseen", "seed"}
    assert search.model_dump(exclude=apart) == use.model_dump(exclude=apart)
    assert not any(site in search.sites for site in use.unseen)
    searched = [run.strategy for run in search.runs()]

    def tuned(choice: StrategyChoice) -> dict[str, Any]:
        return {key: value for key, value in choice.model_dump().items() if key not in COMPARED and value is not None}

    names = {choice.name for choice in searched}
    chosen = [choice for choice in (tuned(run.strategy) for run in use.runs()) if len(choice) > 1]
    tried = [tuned(choice) for choice in searched]
    assert [choice for choice in chosen if choice["name"] in names and choice not in tried] == []


# The papers' experiments


def commands() -> list[list[str]]:
    """The words of the commands in the page's blocks."""
    return [line.split() for block in blocks(PAPERS) for line in block.lines if line.startswith("locum ")]


def counterparts() -> dict[str, str]:
    """Scenario -> its small counterpart, where the page's table names one."""
    rows = re.findall(r"^\| `([\w.-]+)` \|.*\| (?:`([\w.-]+)`)? *\|$", PAPERS.read_text(), re.M)
    return {scenario: small for scenario, small in rows if small}


def test_the_page_of_the_papers_names_every_scenario_and_its_commands_exist() -> None:
    found = {path.name for path in PAPERS.parent.glob("*.yaml")}
    assert {name for name in found if f"`{name}`" in PAPERS.read_text()} == found
    assert {words[2] for words in commands()} == {f"scenarios/papers/{name}" for name in counterparts()}


@pytest.mark.parametrize("words", commands(), ids=lambda words: Path(words[2]).stem)
def test_a_command_of_the_page_makes_a_table_of_the_small_counterpart(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = PAPERS.parent / counterparts()[Path(words[2]).name]
    scenario = yaml.safe_load(path.read_text())
    sites = [site | {"phantom": site["phantom"] | {"cases": 8, "size": 16}} for site in scenario["sites"][:2]]
    fewer = {"generator": {"channels": [8]}, "generator_steps": 2, "evaluations": 2, "replays": 2}
    choices = [{"name": choice} if isinstance(choice, str) else choice for choice in scenario["study"]["strategies"]]
    shorter: dict[str, Any] = {
        "sites": sites,
        "study.strategies": [choice | fewer if choice["name"] == "smg" else choice for choice in choices],
        "task.size": [16] * scenario["task"].get("dims", 2),
        "network.channels": [2, 4],
        "training.epochs": 1,
        "study.seeds": [0],
    }
    table = words[words.index("--table") :]
    sets = [f"--set={key}={json.dumps(value)}" for key, value in shorter.items()]
    with pytest.raises(SystemExit) as ended:
        coordinator.cli.main(["study", str(path), *table, *sets, f"--home={tmp_path}", "--json"])
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    document = json.loads(said.out)
    assert [run["status"] for run in document["runs"]] == ["done"] * len(scenario["study"]["strategies"])
    assert len(document["comparison"]["methods"]) == len(document["runs"])

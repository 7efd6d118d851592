"""The command line: what it prints where, and the status it ends with."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main

from coordinator import cli
from node.data.cache import SiteCache
from node.phantoms.source import write_phantoms
from protos.plan import PhantomSite
from strategies.registry import STRATEGIES
from tests.conftest import TINY, Desk

COMMANDS = {"simulate", "study", "resume", "skip", "runs", "show", "report", "compare", "strategies", "export"}
DOCUMENT = {
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
}
METRICS = {"overall", "bwt", "bwt_plus", "rem", "fwt", "tl", "cl"}
NAMES = ("north", "east", "south")
ESCAPE = "\x1b"


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


@dataclass(frozen=True)
class Terminal:
    """Calls commands as `main` does, each with the same home; `scenario` is the tiny one."""

    desk: Desk
    capsys: pytest.CaptureFixture[str]

    @property
    def scenario(self) -> str:
        path = self.desk.folder / "tiny.yaml"
        path.write_text(TINY)
        return str(path)

    def __call__(self, *arguments: str) -> Said:
        with pytest.raises(SystemExit) as end:
            cli.main([*arguments, *self._home(arguments)])
        said = self.capsys.readouterr()
        assert isinstance(end.value.code, int)
        assert "Traceback" not in said.err
        return Said(end.value.code, said.out, said.err)

    def _home(self, arguments: tuple[str, ...]) -> list[str]:
        alone = {"strategies", "--help"} & set(arguments) or not arguments
        return [] if alone or any(a.startswith("--home") for a in arguments) else [f"--home={self.desk.home.folder}"]


@pytest.fixture
def locum(desk: Desk, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(desk, capsys)


@pytest.fixture(scope="module")
def finished(shared_desk: Desk) -> str:
    return shared_desk.simulate()


@pytest.fixture
def later(shared_desk: Desk, finished: str, capsys: pytest.CaptureFixture[str]) -> Terminal:
    """A terminal at a home where a run is finished already."""
    return Terminal(shared_desk, capsys)


def check_document(document: dict[str, Any], run: str) -> None:
    assert set(document) == DOCUMENT
    assert document["run"] == run
    assert (document["status"], document["strategy"]) == ("done", "finetune")
    assert (document["sites"], document["unseen"]) == (["north", "east", "south"], ["island"])
    for score in ("dsc", "asd"):
        assert [len(row) for row in document["matrix"][score]] == [4, 4, 4]
        assert set(document["metrics"][score]) == METRICS | {"bwt_all_pairs"}
    assert set(document["matrix"]) == set(document["metrics"]) == {"dsc", "asd"}
    assert re.fullmatch("[0-9a-f]{64}", document["weights_sha256"])
    assert document["traffic_bytes"] > 0
    assert document["seconds"] > 0


# What there is


def test_every_command_is_there_and_explains_itself(locum: Terminal):
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    assert set(commands) >= COMMANDS
    for name in commands:
        said = locum(name, "--help")
        assert said.status == 0
        assert "Usage:" in said.out


def test_help_imports_nothing_heavy():
    """Help must answer at once, so nothing is imported that takes a while."""
    heavy = ["torch", "monai", "flwr", "matplotlib", "sqlalchemy", "pydantic", "numpy", "rich.progress"]
    code = (
        "import sys; from coordinator.cli import main\n"
        "for words in ['--help'], ['simulate', '--help'], ['compare', '--help']:\n"
        "    try: main(words)\n"
        "    except SystemExit as end: assert end.code == 0\n"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_without_arguments_it_shows_its_help(locum: Terminal):
    said = locum()
    assert said.status == 2
    assert "Usage: " in said.out + said.err


# Running


def test_simulate_prints_one_document_on_stdout_and_plain_progress_on_stderr(locum: Terminal):
    said = locum("simulate", locum.scenario, "--json", "--no-report")
    assert said.status == 0
    run = said.document["run"]
    check_document(said.document, run)
    lines = said.err.splitlines()
    assert lines[0] == f"run {run}, 3 stops"
    assert lines[-1] == f"run {run}: done"
    ends = [line.split(":")[0] for line in lines[1:-1] if ": done in " in line]  # a slow machine says more meanwhile
    assert ends == [f"stop {i} at {s}" for i, s in enumerate(NAMES)]
    assert ESCAPE not in said.out + said.err
    check_document(locum("show", run, "--json").document, run)
    assert locum("show", run, "--json").document == said.document
    again = locum("resume", run, "--json", "--no-report")
    assert again.status == 0
    assert again.err.splitlines() == [f"run {run}, 3 of its 3 stops are done", f"run {run}: done"]
    assert again.document | {"seconds": 0} == said.document | {"seconds": 0}
    assert not (locum.desk.home.folder / "runs" / run).exists()


def test_simulate_for_people_ends_with_the_matrix_plain_words_and_the_report(locum: Terminal):
    said = locum("simulate", locum.scenario, "--set=training.steps=1", "--set", "seed=3")
    assert said.status == 0
    assert ESCAPE not in said.out
    for site in (*NAMES, "island (unseen)"):
        assert site in said.out
    path = Path(said.out.splitlines()[-1].removeprefix("report: "))
    assert path.is_file()
    assert path.suffix == ".html"
    assert path.is_relative_to(locum.desk.home.folder)
    assert json.loads(locum("show", "tiny", "--json").out)["run"].startswith("tiny-finetune-s3-")


def test_a_study_prints_all_its_runs_in_one_document(locum: Terminal):
    sets = ["--set=study={seeds: [0, 1], strategies: [finetune, joint]}", "--set=training.steps=1"]
    said = locum("simulate", locum.scenario, *sets, "--json", "--no-report")
    assert set(said.document) == {"runs"}
    found = [(document["strategy"], document["run"].split("-")[-2]) for document in said.document["runs"]]
    assert found == [("finetune", "s0"), ("finetune", "s1"), ("joint", "s0"), ("joint", "s1")]
    assert all(set(document) == DOCUMENT for document in said.document["runs"])


def test_the_scenarios_folder_is_where_the_data_are_unless_said_otherwise(locum: Terminal, tmp_path: Path):
    task = locum.desk.scenario().task
    write_phantoms(PhantomSite(task="organ", cases=6, size=16), task, tmp_path / "elsewhere" / "clinic")
    sets = ("--set=unseen=[clinic]", "--set=training.steps=1", "--no-report")
    missing = locum("simulate", locum.scenario, *sets)
    assert missing.status == 2
    folder = Path(locum.scenario).parent / "clinic"
    assert missing.err == (
        f"locum: {locum.scenario}: site clinic: there is no folder {folder}; name the data folder with --data, "
        "or give the site a path in the scenario.\n"
    )
    assert locum("simulate", locum.scenario, *sets, f"--data={tmp_path / 'elsewhere'}").status == 0


def test_home_is_locum_home_or_a_folder_here(desk: Desk, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    locum = Terminal(desk, capsys)
    monkeypatch.chdir(desk.folder)

    def where(*arguments: str) -> set[str]:
        with pytest.raises(SystemExit):
            cli.main(["simulate", locum.scenario, "--set=training.steps=0", "--no-report", *arguments])
        return {str(path.relative_to(desk.folder)) for path in desk.folder.rglob("coordinator.db")}

    monkeypatch.delenv("LOCUM_HOME", raising=False)
    assert where() == {".locum/coordinator.db"}
    monkeypatch.setenv("LOCUM_HOME", "named")
    assert where() == {".locum/coordinator.db", "named/coordinator.db"}
    assert "given/coordinator.db" in where("--home=given")
    assert locum("runs").status == 0


# Statuses


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["simulate", "nowhere.yaml"], "locum: nowhere.yaml: the scenario cannot be read (No such file or directory);"),
        (["simulate", "TINY", "--set=training.stps=1"], "training.stps: unknown key; did you mean steps?"),
        (["simulate", "TINY", "--set=strategy=no-such"], "tiny.yaml: strategy.name: 'no-such' is not installed;"),
        (["show", "no-such"], "locum: There is no run 'no-such' in "),
        (["resume", "no-such"], "locum: There is no run 'no-such' in "),
        (["skip", "no-such", "0", "--by=Ada", "--why=x"], "locum: There is no run 'no-such' in "),
        (["report", "no-such"], "locum: There is no run 'no-such' in "),
        (["compare", "no-such"], "locum: There is no run 'no-such' in "),
        (["export", "no-such", "bundle"], "locum: There is no run 'no-such' in "),
        (["skip", "no-such", "0", "--by=Ada"], "Missing option '--why'"),
        (["skip", "no-such", "first", "--by=Ada", "--why=x"], "'first' is not a valid integer"),
        (["simulte"], "No such command 'simulte'"),
        (["simulate", "TINY", "--device=abacus"], "locum: --device abacus: "),
    ],
)
def test_wrong_usage_ends_with_2_and_a_sentence(locum: Terminal, words: list[str], said: str):
    found = locum(*[locum.scenario if word == "TINY" else word for word in words])
    assert found.status == 2
    assert said in found.err
    assert found.out == ""


def test_a_database_that_is_not_there_ends_with_1_and_a_sentence(locum: Terminal):
    said = locum("runs", "--database=postgresql+psycopg://me:topsecret@127.0.0.1:1/x?connect_timeout=1")
    assert (said.status, said.out) == (1, "")
    assert re.fullmatch(
        r"locum: The database .* cannot be used \(.*\); --home or --database names another.\n", said.err
    )
    assert "topsecret" not in said.err


def test_a_failure_a_skip_and_the_end_of_an_incomplete_run(locum: Terminal, monkeypatch: pytest.MonkeyPatch):
    """1: failed. 0: skipped, in brackets that are not markup. 3: finished, but not whole."""
    task = locum.desk.scenario().task
    write_phantoms(PhantomSite(task="organ", cases=6, size=16), task, locum.desk.folder / "clinic")
    for path in (locum.desk.folder / "clinic" / "images").iterdir():
        path.write_bytes(b"no picture")
    monkeypatch.setattr("node.app._cache", SiteCache(budget=2**30))
    failed = locum("simulate", locum.scenario, "--set=sites.1={name: clinic}", "--set=training.steps=1", "--no-report")
    assert failed.status == 1
    (run,) = [row["run"] for row in locum("runs", "--json").document["runs"]]
    assert f"locum: Run {run} failed at stop 1: Site clinic: " in failed.err
    assert locum("show", run, "--json").document["status"] == "failed"
    assert "clinic: SITE_DATA" in locum("show", run).out

    skipped = locum("skip", run, "1", "--by=Dr [bold]Ada[/bold]", "--why=the [scanner] is broken [/]")
    assert skipped.status == 0
    assert f"locum resume {run}" in skipped.out
    assert locum("skip", run, "1", "--by=Ada", "--why=again").status == 2
    assert locum("skip", run, "9", "--by=Ada", "--why=none").status == 2
    assert locum("skip", run, "2", "--by= ", "--why=none").status == 2

    resumed = locum("resume", run, "--json", "--no-report")
    assert resumed.status == 3
    assert resumed.document["status"] == "incomplete"
    assert resumed.document["matrix"]["dsc"][0][1] is None
    assert "skipped by Dr [bold]Ada[/bold]: the [scanner] is broken [/]" in locum("show", run).out
    assert locum("show", run).status == 0


# Looking back


def test_runs_lists_them_newest_first(later: Terminal, finished: str):
    newest = later.desk.simulate("strategy=individual", "training.steps=1", "seed=5")
    rows = later("runs", "--json").document["runs"]
    assert rows[0]["run"] == newest
    assert finished in [row["run"] for row in rows]
    assert rows[0]["stops_done"] == rows[0]["stops"] == 3
    assert (rows[0]["strategy"], rows[0]["seed"], rows[0]["status"]) == ("individual", 5, "done")
    said = later("runs")
    assert newest in said.out
    assert ESCAPE not in said.out


def test_runs_of_one_strategy_are_told_apart_by_their_parameters(later: Terminal):
    names = {
        mode: later.desk.begin(f"strategy={{name: replay, mode: {mode}, cases: 3}}")
        for mode in ("exact", "interleaved")
    }
    rows = {row["run"]: row for row in later("runs", "--json").document["runs"]}
    listed = " ".join(later("runs").out.split())
    for mode, name in names.items():
        assert (rows[name]["strategy"], rows[name]["parameters"]) == ("replay", {"mode": mode, "cases": 3})
        assert f"replay (mode: {mode}, cases: 3)" in listed
        assert f"replay (mode: {mode}, cases: 3): DSC" in later("show", name).out
        assert later("show", name, "--json").document["parameters"] == {"mode": mode, "cases": 3}


def test_a_run_is_known_by_the_beginning_of_its_name(later: Terminal, finished: str):
    assert later("show", finished[:-1], "--json").document["run"] == finished
    later.desk.begin("seed=1")
    said = later("show", "tiny-")
    assert said.status == 2
    assert "may be " in said.err
    assert "give more of the name." in said.err
    assert later("show", "tiny_", "--json").status == 2  # a wildcard of SQL is none here
    assert later("show", "%", "--json").status == 2


def test_show_prints_both_matrices_the_metrics_and_the_stops(later: Terminal, finished: str):
    said = later("show", finished)
    assert said.status == 0
    assert said.out.startswith(f"run {finished}: done\n")
    for word in ("DSC", "ASD (mm; pixels for pictures)", "island (unseen)", "bwt_plus", "after visiting", "stops"):
        assert word in said.out


def test_show_of_a_run_that_has_not_begun(later: Terminal):
    run = later.desk.begin("seed=9")
    document = later("show", run, "--json").document
    assert document["matrix"] == {"dsc": [], "asd": []}
    assert document["weights_sha256"] is None
    assert later("show", run).status == 0


def test_report_writes_a_page_and_prints_its_path(later: Terminal, finished: str):
    said = later("report", finished)
    assert said.status == 0
    path = Path(said.out.strip())
    assert path.is_file()
    assert finished in path.read_text()


def test_compare_prints_a_table_and_writes_files(later: Terminal, finished: str, tmp_path: Path):
    other = later.desk.simulate("seed=2")
    said = later("compare", finished, other, f"--out={tmp_path / 'table'}")
    assert said.status == 0
    assert "finetune" in said.out
    written = [Path(line) for line in said.err.splitlines()]
    assert {path.suffix for path in written} == {".png", ".md", ".csv", ".json"}
    assert all(path.stat().st_size for path in written)
    assert later("compare", finished, other, "--json").document


def test_strategies_lists_all_with_their_parameters(later: Terminal):
    rows = later("strategies", "--json").document["strategies"]
    assert {row["strategy"] for row in rows} == set(STRATEGIES)
    assert all(row["carries"] and row["summary"] and row["source"] for row in rows)
    said = later("strategies")
    assert all(name in said.out for name in STRATEGIES)


def test_export_writes_a_bundle_and_prints_its_path(later: Terminal, finished: str, tmp_path: Path):
    said = later("export", finished, str(tmp_path / "bundle"))
    assert said.status == 0
    assert Path(said.out.strip()) == tmp_path / "bundle"
    assert (tmp_path / "bundle" / "configs").is_dir()


def test_the_printed_command_makes_the_same_run_again(locum: Terminal, monkeypatch: pytest.MonkeyPatch):
    words = ["simulate", locum.scenario, "--set", "task={size: [16, 16], classes: [background, organ]}", "--no-report"]
    monkeypatch.setattr(sys, "argv", ["locum", *words])
    locum(*words)
    (run,) = [row["run"] for row in locum("runs", "--json").document["runs"]]
    command = locum.desk.row(run).command
    assert shlex.split(command) == ["locum", *words]


def test_the_console_script_leaves_with_all_its_output_and_its_status(tmp_path: Path):
    for arguments, status, out in ((["runs", "--json"], 0, '{"runs": []}\n'), (["show", "nothing"], 2, "")):
        command = f"import sys; sys.argv = ['locum', *{arguments!r}]; from coordinator.cli import run; run()"
        done = subprocess.run(
            [sys.executable, "-c", command],
            env=os.environ | {"LOCUM_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (status, out)
        assert (done.stderr == "") == (status == 0)

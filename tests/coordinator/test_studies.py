"""Runs and studies that fail, diverge, are interrupted or meet a full disk: what is said, kept and gone on with."""

import logging
import re
import shlex
import shutil
import sqlite3
import stat
import time
from collections.abc import Callable
from contextlib import closing
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import typer.main
from rich.console import Console

from coordinator import cli, live
from coordinator.batch import command_of, given
from coordinator.conductor import VisitFailed
from coordinator.home import alone
from coordinator.live import Live
from node.data.cache import SiteCache
from node.phantoms.source import write_phantoms
from protos.plan import PhantomSite
from protos.refusals import RefusalCode, explain
from strategies.registry import STRATEGIES
from strategies.strategy import Strategy
from strategies.visit import Departure, Visit
from tests.conftest import Desk, outcome
from tests.coordinator.test_cli import Said, Terminal

SECRET = "patient Jane Roe"
DIVERGING = ("training.lr=1.0e+30", "training.optimizer=sgd")


# Divergence and the nodes' log


class Arithmetic(FloatingPointError):
    """Not Python's own."""


class Raising(Strategy):
    """Its visits end in `error`."""

    name = "raising"
    summary = "raises"
    source = "nowhere"
    error: Exception = FloatingPointError(SECRET)

    def visit(self, visit: Visit) -> Departure:
        raise self.error


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> type[Raising]:
    monkeypatch.setitem(STRATEGIES, "raising", f"{__name__}:Raising")
    return Raising


def failure(desk: Desk, *overrides: str) -> str:
    run = desk.begin(*overrides)
    with pytest.raises(VisitFailed) as caught:
        desk.carry_out(run)
    return str(caught.value).removeprefix(f"Run {run} failed at stop 0: Site north: ")


def test_a_loss_that_is_not_finite_has_a_code_and_a_remedy(desk: Desk):
    said = failure(desk, *DIVERGING)
    assert said == f"{explain(RefusalCode.DIVERGED)} [DIVERGED]"
    assert "a smaller training.lr may help" in said
    last = list(desk.ledger("north").entries())[-1]
    assert (last.direction, last.verdict, last.code) == ("out", "failed", "DIVERGED")
    for strategy in ("joint", "joint-fedavg"):
        assert failure(desk, *DIVERGING, f"strategy={strategy}").endswith("[DIVERGED]")


def test_only_pythons_own_error_says_that_training_diverged(
    desk: Desk, raising: type[Raising], monkeypatch: pytest.MonkeyPatch
):
    assert failure(desk, "strategy=raising").endswith("[DIVERGED]")
    monkeypatch.setattr(raising, "error", Arithmetic(SECRET))
    assert failure(desk, "strategy=raising").endswith("(Exception) [EXCEPTION]")


def test_tracebacks_of_the_nodes_go_to_a_private_file(
    desk: Desk, raising: type[Raising], capsys: pytest.CaptureFixture[str]
):
    path = desk.home.nodes_log
    for times in (1, 2):
        failure(desk, "strategy=raising")
        assert capsys.readouterr().err == ""
        assert path.read_text().count("Traceback") == path.read_text().count(f"FloatingPointError: {SECRET}") == times
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not any(logging.getLogger(name).handlers for name in ("node", "locum.node"))


def test_a_warning_is_a_line_on_stderr(desk: Desk, capsys: pytest.CaptureFixture[str]):
    def warn(event: tuple[Any, ...]) -> None:
        if event == ("stepped", 0, "north", 1, 4):
            logging.getLogger("node.data.site").warning("a case is left out", exc_info=ValueError(SECRET))

    desk.carry_out(desk.begin(), warn)
    assert capsys.readouterr().err == "a case is left out\n"
    assert f"ValueError: {SECRET}" in desk.home.nodes_log.read_text()


def test_a_quiet_run_writes_no_log(desk: Desk):
    desk.simulate("training.steps=1")
    assert not desk.home.nodes_log.exists()


def test_a_log_that_cannot_be_written_changes_no_answer(
    desk: Desk, raising: type[Raising], capsys: pytest.CaptureFixture[str]
):
    desk.home.nodes_log.mkdir(parents=True)
    assert failure(desk, "strategy=raising").endswith("[DIVERGED]")
    assert "Traceback" not in capsys.readouterr().err


# Studies

SEEDS = ("--set=study={seeds: [0, 1, 2]}", "--set=training.steps=1", "--no-report")


@pytest.fixture
def locum(desk: Desk, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(desk, capsys)


def states(locum: Terminal) -> dict[str, str]:
    """Run -> status, as `locum runs` lists them, oldest first."""
    rows = locum("runs", "--json").document["runs"]
    return {row["run"]: row["status"] for row in reversed(rows)}


def seed_of(run: str) -> str:
    return run.split("-")[-2]


def interrupt(monkeypatch: pytest.MonkeyPatch, seed: str) -> None:
    """Ctrl-C at the first step of the run of this seed; what is told first is the run's name."""
    names = []

    def began(self: Live, run: str, stops: int, done: int) -> None:
        names.append(run)

    def stepped(self: Live, *_: Any) -> None:
        if seed_of(names[-1]) == seed:
            raise KeyboardInterrupt

    monkeypatch.setattr(Live, "run_began", began)
    monkeypatch.setattr(Live, "stepped", stepped)


def printed_command(said: Said) -> list[str]:
    """The words of the `locum resume` that was printed, less `locum`."""
    (command,) = re.findall(r"`(locum resume [^`]*)` goes on", said.err)
    return shlex.split(command)[1:]


def test_an_interrupted_study_keeps_its_runs_and_the_printed_command_finishes_them(
    locum: Terminal, monkeypatch: pytest.MonkeyPatch
):
    with monkeypatch.context() as patch:
        interrupt(patch, "s1")
        said = locum("simulate", locum.scenario, *SEEDS, "--device=cpu")
    assert said.status == 130
    found = states(locum)
    assert list(found.values()) == ["done", "interrupted", "pending"]
    runs = list(found)
    assert locum("show", runs[1], "--json").document["status"] == "interrupted"
    assert locum("show", runs[2], "--json").document["status"] == "pending"
    words = printed_command(said)
    assert words == ["resume", *runs[1:], f"--home={locum.desk.home.folder}", "--device=cpu"]
    resumed = locum(*words, "--json", "--no-report")
    assert resumed.status == 0
    assert [document["run"] for document in resumed.document["runs"]] == runs[1:]
    assert list(states(locum).values()) == ["done"] * 3


def test_what_the_environment_says_needs_no_option(locum: Terminal, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LOCUM_HOME", str(locum.desk.home.folder))
    monkeypatch.setattr(Terminal, "_home", lambda self, arguments: [])
    with monkeypatch.context() as patch:
        interrupt(patch, "s0")
        said = locum("simulate", locum.scenario, *SEEDS)
    runs = list(states(locum))
    assert printed_command(said) == ["resume", *runs]


def test_a_failed_run_does_not_keep_the_others_from_their_turn(locum: Terminal):
    study = "--set=study={strategies: [{name: l2, strength: 1.0e+38}, finetune]}"
    said = locum("simulate", locum.scenario, study, "--set=training.lr=1", "--json", "--no-report")
    assert said.status == 1
    failed, done = said.document["runs"]
    assert (failed["status"], done["status"]) == ("failed", "done")
    assert [len(document["matrix"]["dsc"]) < 3 for document in (failed, done)] == [True, False]
    assert f"locum: Run {failed['run']} failed at stop " in said.err
    assert "[DIVERGED]" in said.err
    assert f"locum: details: {locum.desk.home.nodes_log}" in said.err
    assert printed_command(said) == ["resume", failed["run"], f"--home={locum.desk.home.folder}"]
    assert locum("show", failed["run"]).status == 0


def test_runs_side_by_side_end_as_one_after_another(locum: Terminal):
    study = "--set=study={strategies: [finetune, {name: l2, strength: 1.0e+38}, joint]}"
    sets = (study, "--set=training.lr=1", "--set=training.steps=2")
    one, two = (
        locum("simulate", locum.scenario, *sets, "--json", "--no-report", f"--workers={workers}") for workers in (1, 2)
    )
    assert (one.status, two.status) == (1, 1)
    ends = [[(run["weights_sha256"], run["matrix"]) for run in said.document["runs"]] for said in (one, two)]
    assert ends[0] == ends[1]
    failed = two.document["runs"][1]
    assert failed["status"] == "failed"
    assert printed_command(two) == ["resume", failed["run"], f"--home={locum.desk.home.folder}"]


def test_a_run_that_another_process_carries_out_has_not_failed(locum: Terminal, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        interrupt(patch, "s1")
        locum("simulate", locum.scenario, *SEEDS)
    run = list(states(locum))[1]
    with alone(locum.desk.home, run):
        said = locum("study", locum.scenario, *SEEDS[:2], "--json")
    assert said.status == 3
    assert [run["status"] for run in said.document["runs"]] == ["done", "running", "done"]
    assert f"run {run}: carried out by another process; " in said.err
    assert "locum: 1 of 3 runs are being carried out by another process; when they have ended, `locum" in said.err
    assert "failed" not in said.err


def test_failed_runs_have_a_page_and_tables_too(locum: Terminal):
    said = locum("simulate", locum.scenario, "--set=training.lr=1.0e+30", "--set=training.optimizer=sgd")
    assert said.status == 1
    assert Path(said.out.splitlines()[-1].removeprefix("report: ")).is_file()


def test_a_study_that_does_not_fit_as_a_whole_leaves_no_runs(locum: Terminal):
    said = locum("simulate", locum.scenario, "--set=study={strategies: [finetune, no-such]}")
    assert said.status == 2
    assert states(locum) == {}


def test_several_runs_may_be_resumed_and_one_named_twice_is_one(locum: Terminal):
    first, second = (locum.desk.begin(f"seed={seed}", "training.steps=1") for seed in (1, 2))
    said = locum("resume", second, first, second, "--json", "--no-report")
    assert said.status == 0
    assert [document["run"] for document in said.document["runs"]] == [second, first]


# Status


def test_all_commands_tell_the_same_status(locum: Terminal, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        interrupt(patch, "s0")
        locum("simulate", locum.scenario, "--no-report")
    ((run, status),) = states(locum).items()
    assert status == "interrupted" == locum("show", run, "--json").document["status"]
    assert locum("show", run).out.startswith(f"run {run}: interrupted\n")
    with alone(locum.desk.home, run):
        assert states(locum)[run] == "running" == locum("show", run, "--json").document["status"]


def test_looking_at_nothing_makes_nothing(locum: Terminal):
    said = locum("runs")
    assert (said.status, said.out) == (0, f"There are no runs in {locum.desk.home.folder}.\n")
    assert locum("runs", "--json").document == {"runs": []}
    assert locum("show", "any").status == 2
    assert not locum.desk.home.folder.exists()


# Devices and data


def test_a_run_keeps_its_device_and_resume_may_name_another(locum: Terminal):
    run = locum.desk.begin("training.steps=1")
    with locum.desk.home.store().transaction() as session:
        session.merge(locum.desk.row(run)).device = "abacus"
    said = locum("resume", run)
    assert (said.status, said.err.startswith("locum: --device abacus: ")) == (2, True)
    assert locum("resume", run, "--device=cpu", "--no-report").status == 0
    assert locum.desk.row(run).device == "abacus"


def test_data_that_moved_are_found_again(locum: Terminal, monkeypatch: pytest.MonkeyPatch):
    desk = locum.desk
    write_phantoms(PhantomSite(task="organ", cases=6, size=16), desk.scenario().task, desk.folder / "clinic")
    sets = ("sites.1={name: clinic}", "training.steps=1")
    reference = desk.simulate(*sets)
    run = desk.begin(*sets)
    shutil.move(desk.folder / "clinic", desk.folder / "moved" / "clinic")
    monkeypatch.setattr("node.app._cache", SiteCache(budget=2**30))
    for options in ([], [f"--data={desk.folder / 'home'}"]):
        said = locum("resume", run, *options)
        assert said.status == 2
        assert "site clinic: there is no folder " in said.err
    monkeypatch.chdir(desk.folder)
    assert locum("resume", run, "--data=moved", "--no-report").status == 0
    assert outcome(desk.row(run)) == outcome(desk.row(reference))
    assert desk.row(run).data == str(desk.folder / "moved")


# Disks and databases


def test_a_disk_that_takes_no_files_is_one_sentence_and_a_way_to_go_on(locum: Terminal):
    vault = locum.desk.vault.folder
    vault.parent.mkdir(parents=True)
    vault.write_text("in the way")
    said = locum("simulate", locum.scenario, *SEEDS)
    assert (said.status, said.out) == (1, "")
    assert f"locum: {vault}" in said.err
    assert "free or mend the disk" in said.err
    vault.unlink()
    assert locum(*printed_command(said), "--no-report").status == 0
    assert set(states(locum).values()) == {"done"}


def test_a_database_that_takes_no_rows_is_one_sentence_without_its_statement(locum: Terminal):
    run = locum.desk.begin("training.steps=1")
    with closing(sqlite3.connect(locum.desk.home.folder / "coordinator.db")) as connection:
        full = "SELECT RAISE(FAIL, 'database or disk is full')"
        connection.execute(f"CREATE TRIGGER full BEFORE INSERT ON scores BEGIN {full}; END")
    said = locum("resume", run)
    assert said.status == 1
    assert "locum: The database could not be used (database or disk is full); free or mend its disk" in said.err
    assert "INSERT" not in said.err
    assert printed_command(said)[:2] == ["resume", run]


def test_a_folder_that_cannot_be_made_is_one_sentence(locum: Terminal):
    run = locum.desk.simulate("training.steps=1")
    (locum.desk.home.folder / "runs" / run).write_text("in the way")
    said = locum("report", run)
    assert (said.status, len(said.err.splitlines())) == (1, 1)
    assert str(locum.desk.home.folder / "runs" / run) in said.err


def test_a_password_is_neither_kept_nor_shown(monkeypatch: pytest.MonkeyPatch):
    url = "postgresql+psycopg://me:topsecret@host/name"
    words = ["resume", "some-run", "--database", url, "--home=a b"]
    monkeypatch.setattr("sys.argv", ["locum", *words])
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    shown = ["--home=a b", "--database=postgresql+psycopg://me:***@host/name"]
    assert given(commands["resume"].make_context("resume", words[1:])) == shown
    assert shlex.split(command_of(url)) == ["locum", *words[:3], "postgresql+psycopg://me:***@host/name", words[4]]


# Waiting


def waited(do: Callable[[Live], None], monkeypatch: pytest.MonkeyPatch, seconds: float = 0.02) -> list[str]:
    """The lines that a listener off the terminal prints when `do` is followed by a long silence."""
    monkeypatch.setattr(live, "LINE_SECONDS", seconds)
    out = StringIO()
    with Live(Console(file=out)) as listener:
        do(listener)
        deadline = time.monotonic() + 0.5
        while time.monotonic() < deadline and "for more than" not in out.getvalue():
            time.sleep(0.005)
    return out.getvalue().splitlines()


@pytest.mark.parametrize(
    ("do", "line"),
    [
        (lambda listener: listener.describing("north"), "reading north for more than 0 s"),
        (lambda listener: listener.stop_began(3, ("east",), 1, 0), "stop 3 at east: reading its cases for more"),
        (lambda listener: listener.scoring(2, "[east]"), "stop 2: scoring at [east] for more than 0 s"),
    ],
)
def test_a_long_wait_is_said_off_the_terminal(do: Any, line: str, monkeypatch: pytest.MonkeyPatch):
    assert waited(do, monkeypatch)[-1].startswith(line)


def test_a_short_wait_and_an_answer_are_not(monkeypatch: pytest.MonkeyPatch):
    def answered(listener: Live) -> None:
        listener.scoring(0, "north")
        listener.scored(0, "north", 0.5)

    assert waited(lambda listener: listener.describing("north"), monkeypatch, seconds=60) == []
    assert waited(answered, monkeypatch, seconds=0.2) == []


def test_a_terminal_shows_what_is_waited_for():
    out = StringIO()
    with Live(Console(file=out, force_terminal=True, width=120)) as listener:
        listener.run_began("r", 2, 0)
        for tell, shown in (
            (lambda: listener.describing("north"), "reading north"),
            (lambda: listener.scoring(0, "east"), "scoring at east"),
        ):
            tell()
            listener._bars.refresh()
            assert shown in out.getvalue()

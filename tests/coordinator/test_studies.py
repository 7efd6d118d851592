"""Runs and studies that fail, diverge, are interrupted or meet a full disk: what is said, kept and gone on with."""

import logging
import stat
from typing import Any

import pytest

from coordinator.conductor import VisitFailed
from protos.refusals import RefusalCode, explain
from strategies.registry import STRATEGIES
from strategies.strategy import Strategy
from strategies.visit import Departure, Visit
from tests.conftest import Desk

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

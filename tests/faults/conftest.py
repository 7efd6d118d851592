"""Shared by the tests of what dies or is damaged."""

import pytest

from tests.conftest import Desk, outcome
from tests.coordinator.test_cli import Terminal
from tests.faults.damaging import Outcome, Undisturbed


@pytest.fixture
def locum(desk: Desk, capsys: pytest.CaptureFixture[str]) -> Terminal:
    return Terminal(desk, capsys)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The outcome of an undisturbed run of a strategy, made once."""
    desk = Desk(tmp_path_factory.mktemp("undisturbed"))
    made: dict[str, Outcome] = {}

    def of(strategy: str) -> Outcome:
        if strategy not in made:
            made[strategy] = outcome(desk.row(desk.simulate(f"strategy={strategy}")))
        return made[strategy]

    return of

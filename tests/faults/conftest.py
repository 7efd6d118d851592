"""Shared by the tests of what dies or is damaged: a deployment, and what runs come to when nothing happens."""

from collections.abc import Iterator

import pytest

from tests.conftest import Desk, outcome
from tests.coordinator.serving import brought_up, in_process
from tests.coordinator.test_cli import Terminal
from tests.faults.damaging import Outcome, Undisturbed
from tests.faults.deployment import SLOW, Deployment


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


@pytest.fixture(scope="session")
def _deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with brought_up(Deployment(tmp_path_factory.mktemp("deployment"))) as deployment:
        yield deployment


@pytest.fixture
def deployment(_deployment: Deployment) -> Iterator[Deployment]:
    """A coordinator with the nodes of north and east, all there whatever other tests did to it."""
    _deployment.whole()
    yield _deployment
    for proxy in _deployment.proxies.values():
        proxy.rate = float("inf")
        proxy.mend()


@pytest.fixture(scope="session")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """The scenario with long visits in process, undisturbed."""
    return in_process(tmp_path_factory.mktemp("slow"), *SLOW)

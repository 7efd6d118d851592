from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import chromium
from tests.conftest import Desk
from tests.node.dashboard.houses import Opened, add_entries, copy_of, make_house

__all__ = ["chromium"]


@pytest.fixture(scope="session")
def after_a_run(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """What a tiny run left behind; only to be read."""
    return make_house(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="session")
def lived_in(after_a_run: Desk, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home of its site north, with refusals and hostile texts in its ledger; only to be read."""
    home = copy_of(after_a_run.home.folder / "nodes" / "north", tmp_path_factory.mktemp("lived-in") / "north")
    add_entries(home)
    return home


@pytest.fixture(scope="module")
def opened(lived_in: Path) -> Iterator[Opened]:
    found = Opened.of(lived_in)
    yield found
    found.house.jobs.close()

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from node import memory as memory_module
from node.data.cache import SiteCache
from node.data.samples import SiteSamples
from tests.node.remembering import Site


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data; tests that ask for it are skipped where it is not."""
    given = os.environ.get("LOCUM_SHARED_DATA")
    folder = Path(given) if given else Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs real data: looked in {folder} (LOCUM_SHARED_DATA names another folder)")
    return folder


@pytest.fixture
def restart(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A new process, which has decoded nothing yet."""

    def begin() -> None:
        monkeypatch.setattr(memory_module, "_cache", SiteCache[SiteSamples](2**20))

    begin()
    return begin


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "home")

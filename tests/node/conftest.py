import os
from pathlib import Path

import pytest


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data; tests that ask for it are skipped where it is not."""
    given = os.environ.get("LOCUM_SHARED_DATA")
    folder = Path(given) if given else Path(__file__).parents[3] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"needs real data: looked in {folder} (LOCUM_SHARED_DATA names another folder)")
    return folder

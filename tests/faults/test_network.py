"""Cut the network in the middle of a handover of 50 MB, for a moment and for longer than a node may be silent."""

import time
from pathlib import Path
from typing import Literal

import pytest

from tests.conftest import Desk
from tests.coordinator.serving import TINY, in_process, wait_for
from tests.faults.deployment import AWAY, Deployment

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

BIG = TINY.replace("{channels: [2, 4]}", "{channels: [4, 1150], residual_units: 2}").replace("steps: 4", "steps: 2")
MEGABYTES = 2**20


def big(folder: Path, seed: int) -> Desk:
    return in_process(folder, f"seed={seed}", text=BIG)


def cut_in_a_handover(
    deployment: Deployment, seed: int, way: Literal["up", "down"], how: Literal["stall", "reset"], seconds: float
) -> str:
    """The name of a run, between whose second site and the coordinator nothing went for a while.

    What goes down to that site is the first stop's model, which it scores and then has, and up what it made of that.
    With another seed these are other bytes, which neither end has from earlier runs.
    """
    (deployment.folder / "big.yaml").write_text(BIG)
    (run,) = deployment.ask("schedule", str(deployment.folder / "big.yaml"), f"--set=seed={seed}").out.split()
    proxy = deployment.proxies["east"]
    deployment.wait_for_event(run, "stop_began", 1 if way == "down" else 2)
    proxy.rate = 4 * MEGABYTES
    before = getattr(proxy, way)
    wait_for(lambda: getattr(proxy, way) > before + 16 * MEGABYTES)
    proxy.cut(how)
    time.sleep(seconds)
    assert getattr(proxy, way) < before + 40 * MEGABYTES  # it was in the middle
    proxy.mend()
    return run


@pytest.mark.parametrize(("seed", "way", "how"), [(1, "down", "reset"), (2, "up", "stall")])
def test_for_ten_seconds(
    seed: int, way: Literal["up", "down"], how: Literal["stall", "reset"], deployment: Deployment, tmp_path: Path
) -> None:
    run = cut_in_a_handover(deployment, seed, way, how, 10)
    deployment.ends(run)
    deployment.assert_nothing_lost(run, big(tmp_path, seed))


def test_for_five_minutes(deployment: Deployment, tmp_path: Path) -> None:
    run = cut_in_a_handover(deployment, 3, "up", "stall", 300)
    assert AWAY.format("east") in deployment.ends(run)
    deployment.assert_nothing_lost(run, big(tmp_path, 3))

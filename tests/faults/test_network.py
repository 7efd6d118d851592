"""Cut the network in the middle of a handover of 50 MB, for a moment and for longer than a node may be silent."""

import time
from typing import Literal

import pytest

from protos.messages import DESCRIBE
from tests.conftest import Desk
from tests.coordinator.serving import TINY, in_process, wait_for
from tests.faults.deployment import AWAY, Deployment

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]

BIG = TINY.replace("{channels: [2, 4]}", "{channels: [4, 1150], residual_units: 2}").replace("steps: 4", "steps: 2")
MEGABYTES = 2**20


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return in_process(tmp_path_factory.mktemp("big"), text=BIG)


def cut_in_a_handover(
    deployment: Deployment, way: Literal["up", "down"], how: Literal["stall", "reset"], seconds: float
) -> str:
    """The name of a run, between whose second site and the coordinator nothing went for a while."""
    (deployment.folder / "big.yaml").write_text(BIG)
    (run,) = deployment.ask("schedule", str(deployment.folder / "big.yaml")).out.split()
    proxy = deployment.proxies["east"]
    deployment.wait_for_event(run, "stop_began", 2)
    proxy.rate = 4 * MEGABYTES
    before = getattr(proxy, way)
    wait_for(lambda: getattr(proxy, way) > before + 16 * MEGABYTES)
    proxy.cut(how)
    time.sleep(seconds)
    assert getattr(proxy, way) < before + 40 * MEGABYTES  # it was in the middle
    proxy.mend()
    return run


@pytest.mark.parametrize(("way", "how"), [("down", "reset"), ("up", "stall")])
def test_for_ten_seconds(
    way: Literal["up", "down"], how: Literal["stall", "reset"], deployment: Deployment, big: Desk
) -> None:
    run = cut_in_a_handover(deployment, way, how, 10)
    assert "is away" not in deployment.ends(run)
    deployment.assert_nothing_lost(run, big)


def test_for_five_minutes(deployment: Deployment, big: Desk) -> None:
    run = cut_in_a_handover(deployment, "up", "stall", 300)
    assert AWAY.format("east") in deployment.ends(run)
    deployment.assert_nothing_lost(run, big)


def test_a_question_whose_delivery_was_cut(deployment: Deployment, slow: Desk) -> None:
    """The SuperLink has handed the first question of all out, and the node never got it."""
    proxy = deployment.proxies["north"]
    proxy.cut("deaf")
    run = deployment.schedule_slow()
    wait_for(lambda: deployment.handed_out("north", DESCRIBE))
    proxy.mend()
    assert AWAY.format("north") in deployment.ends(run)
    deployment.assert_nothing_lost(run, slow)

"""Containers are killed and cut off in the middle of a visit, for real; what is lost is nothing. `make test-compose`.

Every run has the same scenario, so it must end with the weights of the one that nothing happened to, and each of its
visits must stand once in its hospital's ledger.
"""

import json
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
import yaml

from tests.compose.deployed import Deployment, docker, wants_an_engine

PROJECT = "locum-faults"
SITES = ("north", "east")
LONG = 1500.0  # seconds after which something will not happen any more
SCENARIO = {
    "name": "faults",
    "task": {"size": [16, 16], "classes": ["background", "organ"]},
    "sites": [*SITES],
    "network": {"channels": [2, 4]},
    "training": {"steps": 12000, "batch_size": 2, "checkpoint_every": 100},
}

pytestmark = [pytest.mark.compose, pytest.mark.timeout(3000), pytest.mark.xdist_group("compose")]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Coordinator, gateway and two hospitals, signed on; no demo."""
    wants_an_engine()
    folder = tmp_path_factory.mktemp("faults")
    (folder / "scenario.yaml").write_text(yaml.safe_dump(SCENARIO))
    (folder / "override.yaml").write_text("services: {}\n")
    folder.chmod(0o755)  # another user reads it
    (folder / "reports").mkdir()
    deployment = Deployment(PROJECT, folder / "override.yaml", folder / "reports")
    deployment.compose("down", "--volumes")
    deployment.compose("build", "--quiet")
    try:
        deployment.compose("up", "--detach", "--no-build", "--wait", *SITES)
        yield deployment
    finally:
        deployment.compose("down", "--volumes")


def schedule(up: Deployment) -> str:
    """The name of a new run, queued."""
    mount = f"{up.override.parent}/scenario.yaml:/scenario.yaml:ro"
    return up.compose("run", "--rm", "-T", "--no-deps", "-v", mount, "locum", "schedule", "/scenario.yaml").split()[-1]


def wait_for(there: Callable[[], bool]) -> None:
    end = time.monotonic() + LONG
    while not there():
        assert time.monotonic() < end
        time.sleep(0.5)


def in_the_middle(up: Deployment, site: str, run: str) -> bool:
    """Whether the run's visit at the site has a checkpoint, and so is under way."""
    return up.inside(site, "sh", "-c", f"ls /site/checkpoints/{run} 2>/dev/null || true") != ""


def end_of(up: Deployment, run: str) -> str:
    """The digest of the weights that the run ends with; `locum watch` ends with it, and with status 0 if it is done."""
    up.locum("watch", run)
    shown = json.loads(up.locum("show", run, "--json"))
    assert shown["status"] == "done"
    return str(shown["weights_sha256"])


def visits(up: Deployment, site: str, run: str) -> list[str]:
    """The verdicts on what was to leave the site for its visits of the run."""
    entries = json.loads(up.inside(site, "locum-node", "ledger", "--home", "/site", "--json", "--limit", "0"))
    return [
        entry["verdict"]
        for entry in entries
        if (entry["run"], entry["direction"], entry["message_type"]) == (run, "out", "train.visit")
    ]


@pytest.fixture(scope="module")
def undisturbed(up: Deployment) -> str:
    """The digest of the weights of a run that nothing happens to."""
    return end_of(up, schedule(up))


def kill(service: str) -> Callable[[Deployment], None]:
    def do(up: Deployment) -> None:
        subprocess.run(["docker", "kill", up.container(service)], check=True, capture_output=True, timeout=60)
        up.compose("up", "--detach", "--no-deps", "--no-build", "--wait", service)  # what a machine's restart does

    return do


def cut_off(up: Deployment) -> None:
    """No network for ten seconds."""
    ends = (f"{PROJECT}_north", up.container("north"))
    docker("network", "disconnect", *ends)
    time.sleep(10)
    docker("network", "connect", *ends)


FAULTS = {
    "coordinator killed": kill("coordinator"),
    "gateway killed": kill("gateway"),
    "node killed": kill("north"),
    "network cut": cut_off,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_ends_as_if_nothing_had_happened(fault: str, up: Deployment, undisturbed: str) -> None:
    run = schedule(up)
    wait_for(lambda: in_the_middle(up, "north", run))
    FAULTS[fault](up)
    assert visits(up, "north", run) == []  # it did happen in the middle
    assert end_of(up, run) == undisturbed
    for site in SITES:
        assert visits(up, site, run) == ["allowed"]
        up.inside(site, "locum-node", "ledger", "--home", "/site", "--verify")

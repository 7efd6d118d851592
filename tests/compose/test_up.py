"""`docker compose up` for real: what is proven is proven from inside the containers. `make test-compose` runs this.

The demo is shortened, and its project, volumes and reports are the test's own.
"""

import json
from collections.abc import Iterator

import pytest
import yaml

from tests.compose.deployed import Deployment, docker, wants_an_engine
from tests.documentation import ROOT

PROJECT = "locum-test"
HOSPITALS = ("north", "east", "south", "west", "island")
STAYING = ("coordinator", "gateway", *HOSPITALS)

pytestmark = [pytest.mark.compose, pytest.mark.timeout(3000), pytest.mark.xdist_group("compose")]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """All services, the hospitals signed on, the shortened demo under way."""
    wants_an_engine()
    folder = tmp_path_factory.mktemp("compose")
    scenario = yaml.safe_load((ROOT / "deploy" / "demo.yaml").read_text())
    scenario["training"]["steps"] = 5
    scenario["study"]["strategies"][1] |= {"generator_steps": 5, "evaluations": 2, "replays": 4}
    (folder / "demo.yaml").write_text(yaml.safe_dump(scenario))
    override = {"services": {"demo": {"volumes": [f"{folder}/demo.yaml:/etc/locum/demo.yaml:ro"]}}}
    (folder / "override.yaml").write_text(yaml.safe_dump(override))
    folder.chmod(0o755)  # another user reads it
    (folder / "reports").mkdir()
    deployment = Deployment(PROJECT, folder / "override.yaml", folder / "reports")
    deployment.compose("down", "--volumes")
    deployment.compose("build", "--quiet")
    try:
        deployment.compose("up", "--detach", "--no-build")
        yield deployment
    finally:
        deployment.compose("down", "--volumes")


def test_every_hospital_is_registered_and_online(up: Deployment) -> None:
    assert up.online() == set(HOSPITALS)


# Networks


@pytest.mark.parametrize("hospital", HOSPITALS)
def test_a_hospital_reaches_its_gateway_and_nothing_else(hospital: str, up: Deployment) -> None:
    others = {f"{other}:8443": up.address(other, other) for other in HOSPITALS if other != hospital}
    coordinator, elsewhere = up.address("coordinator", "control"), up.address("gateway", "control")
    closed = {
        *(f"{address}:{port}" for address in others.values() for port in (8443, 8000, 22)),
        *(f"{coordinator}:{port}" for port in (8000, 8001)),
        f"{elsewhere}:8443",  # the gateway's address on the control network
        *("1.1.1.1:443", "8.8.8.8:53", "172.17.0.1:22", "169.254.169.254:80"),
    }
    own = f"{up.address('gateway', hospital)}:8443"
    unknown = [name for name in (*HOSPITALS, "coordinator", "register", "example.org") if name != hospital]
    found = up.probe(hospital, "reach", ",".join(unknown), *sorted(closed), own)
    assert found["known"] == []
    assert found["open"] == [own]


def test_the_coordinator_reaches_no_hospital_and_no_outside_address(up: Deployment) -> None:
    hospitals = [f"{up.address(name, name)}:8443" for name in HOSPITALS]
    own = f"{up.address('gateway', 'control')}:8443"
    found = up.probe("coordinator", "reach", ",".join(HOSPITALS), *hospitals, "1.1.1.1:443", own)
    assert (found["known"], found["open"]) == ([], [own])


REFUSED = (
    "POST /v1/control/list-nodes", "POST /v1/control/start-run", "POST /v1/control/register-node",
    "POST /v1/runtime/acquire-task", "POST /v1/runtime/pull-messages", "POST /v1/fleet/register-node",
    "POST /v1/fleet/unregister-node", "GET /docs", "GET /openapi.json", "GET /", "GET /v1/fleet/pull-messages",
    "PUT /v1/fleet/pull-messages", "POST /health", "POST //v1/control/list-nodes",
    "POST /v1/fleet/../control/list-nodes", "POST /v1/fleet/pull-messages/../../control/list-nodes",
    "POST /v1/fleet/pull-messages%2f..%2f..%2fcontrol/list-nodes", "POST /v1/fleet/pull-messages/",
    "POST /v1/fleet/%2e%2e/control/list-nodes", "POST /V1/control/list-nodes", "POST /v1/fleet/get-runs",
)  # fmt: skip


def test_the_gateway_passes_nodes_calls_alone(up: Deployment) -> None:
    found = up.probe("north", "ask", *REFUSED, "GET /health", "POST /v1/fleet/pull-messages")
    assert {request: found[request] for request in REFUSED} == dict.fromkeys(REFUSED, 403)
    assert found["GET /health"] == 200
    assert found["POST /v1/fleet/pull-messages"] == 415  # the SuperLink itself: this was no protobuf


def test_a_key_opens_its_own_node_and_nothing_else(up: Deployment) -> None:
    own, other = (up.inside(name, "cat", "/site/node-id") for name in ("north", "east"))
    found = up.probe("north", "sign", own, other)
    assert found == {"own key, own number": 200, "own key, other number": 401, "unknown key, own number": 401}


# Containers


@pytest.mark.parametrize("service", STAYING)
def test_a_container_is_locked(service: str, up: Deployment) -> None:
    assert up.inside(service, "id", "-u") == "10001"
    assert "Read-only file system" in up.inside(service, "sh", "-c", "touch /x /opt/x 2>&1 || true")
    status = up.inside(service, "cat", "/proc/1/status")
    held = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if ":\t" in line and line.split()[1:]}
    assert {held[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {""}
    assert held["NoNewPrivs"] == "1"
    (found,) = docker("inspect", up.container(service))
    assert found["HostConfig"]["Memory"] > 0
    assert not found["NetworkSettings"]["Ports"] or not any(found["NetworkSettings"]["Ports"].values())


def test_the_image_holds_no_pip_no_headers_and_no_tests(up: Deployment) -> None:
    up.inside("coordinator", "python", "-c", "import torch, monai, coordinator.server, node.app")
    assert "No module named" in up.inside("coordinator", "sh", "-c", "python -m pip 2>&1 || true")
    for searched in ("-type d -name tests", "-type d -name include", "-name pip", "-name '*.a'", "-name _pytest"):
        assert up.inside("coordinator", "sh", "-c", f"find /opt/locum/lib {searched}") == ""


def test_no_secret_is_shown_by_docker_or_logged(up: Deployment) -> None:
    secrets = [up.inside("coordinator", "cat", "/access/token"), up.inside("north", "cat", "/site/node.key")]
    secrets += [up.inside("coordinator", "cat", f"/coordinator/{name}") for name in ("keys/ca.key", "keys/server.key")]
    secrets.append(up.inside("gateway", "cat", "/etc/locum/gateway/server.key"))
    shown = json.dumps(
        docker("inspect", *docker("ps", "-aq", "--filter", f"label=com.docker.compose.project={PROJECT}"))
    )
    shown += up.compose("logs", "--no-color")
    for secret in secrets:
        lines = [line for line in secret.splitlines() if "-----" not in line]
        assert lines
        assert not any(line in shown for line in lines)


def test_a_hospital_holds_its_own_images_and_keys_alone(up: Deployment) -> None:
    keys = {name: up.inside(name, "cat", "/site/node.key.pub") for name in HOSPITALS}
    images = {name: up.inside(name, "sha256sum", "/data/images/case-000.png") for name in HOSPITALS}
    assert len(set(keys.values())) == len(set(images.values())) == len(HOSPITALS)
    for name in HOSPITALS:
        assert "Read-only" in up.inside(name, "sh", "-c", "touch /data/x /authority/x 2>&1 || true")
        assert up.inside(name, "stat", "-c", "%a %U", "/site/node.key") == "600 locum"
        assert up.inside(name, "ls", "/authority") == "ca.crt"
        assert up.inside(name, "ls", "-A", "/coordinator", "/access", "/gateway", "/etc/locum/gateway", "/public") == (
            "/access:\n\n/coordinator:\n\n/etc/locum/gateway:\n\n/gateway:\n\n/public:"
        )


# The demo, and what comes after


def test_the_demo_ends_well_and_its_reports_are_there(up: Deployment) -> None:
    assert up.status_of("demo") == 0, up.compose("logs", "--no-color", "demo")
    runs = up.runs()
    assert {run.split("-")[1]: status for run, status in runs.items()} == dict.fromkeys(
        ("finetune", "smg", "joint"), "done"
    )
    for run in runs:
        assert run in (up.reports / "runs" / run / "report.html").read_text()
    for hospital in HOSPITALS:
        up.inside(hospital, "locum-node", "ledger", "--home", "/site", "--verify")


def test_a_commands_status_is_its_own(up: Deployment) -> None:
    up.locum("show", "nobody", fails=True)
    for run in up.runs():
        assert run in up.locum("show", run)


def test_a_killed_node_comes_back_as_the_same(up: Deployment) -> None:
    before = up.inside("south", "cat", "/site/node-id")
    up.compose("kill", "south")
    up.compose("up", "--detach", "--no-deps", "--wait", "south")
    assert up.inside("south", "cat", "/site/node-id") == before
    assert "south" in up.online()


def test_hospitals_find_a_coordinator_that_was_made_anew(up: Deployment) -> None:
    up.compose("up", "--detach", "--no-deps", "--wait", "--force-recreate", "coordinator")
    up.compose("restart", "north")
    up.compose("up", "--detach", "--no-deps", "--wait", "north")
    assert "north" in up.online()
    assert set(up.runs().values()) == {"done"}


def test_up_a_second_time_makes_nothing_anew(up: Deployment) -> None:
    runs, key = up.runs(), up.inside("north", "cat", "/site/node.key.pub")
    up.compose("up", "--detach", "--no-build")
    assert up.status_of("demo") == 0
    assert up.runs() == runs
    assert up.inside("north", "cat", "/site/node.key.pub") == key
    assert up.online() == set(HOSPITALS)


def test_down_leaves_nothing_but_the_reports(up: Deployment) -> None:
    up.compose("down", "--volumes")
    for kind in (("ps", "--all"), ("volume", "ls"), ("network", "ls")):
        assert docker(*kind, "--quiet", "--filter", f"label=com.docker.compose.project={PROJECT}") == []
    assert list(up.reports.rglob("report.html"))

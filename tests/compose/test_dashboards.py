"""The dashboards in containers: from this machine with the right token, and from nowhere else."""

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.compose.deployed import Deployment, docker, wants_an_engine

PROJECT = "locum-dashboards"
PORTS = {"north": 8101, "east": 8102}
OVERVIEW = 8002

pytestmark = [pytest.mark.compose, pytest.mark.timeout(3000), pytest.mark.xdist_group("compose")]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """The coordinator and two hospitals with their dashboards and doors."""
    wants_an_engine()
    folder = tmp_path_factory.mktemp("compose")
    (folder / "override.yaml").write_text("services: {}\n")
    deployment = Deployment(PROJECT, folder / "override.yaml", folder)
    deployment.compose("down", "--volumes")
    deployment.compose("build", "--quiet")
    try:
        doors = [f"{name}-door" for name in (*PORTS, "overview")]
        deployment.compose("up", "--detach", "--no-build", "--wait", *PORTS, *doors)
        yield deployment
    finally:
        deployment.compose("down", "--volumes")


def asked(port: int, token: str, host: str = "", path: str = "now") -> tuple[int, str]:
    """Status and body of the answer to a question of this machine's."""
    headers = ({"authorization": f"Bearer {token}"} if token else {}) | ({"host": host} if host else {})
    answer = httpx.get(f"http://127.0.0.1:{port}/api/{path}", headers=headers, timeout=60)
    return answer.status_code, answer.text


def test_each_dashboard_wants_its_own_token(up: Deployment) -> None:
    tokens = {name: up.inside(name, "cat", "/site/dashboard.token") for name in PORTS}
    for name, port in PORTS.items():
        assert asked(port, "")[0] == 401
        for other, token in tokens.items():
            status, body = asked(port, token)
            assert status == (200 if other == name else 401)
            assert other != name or json.loads(body)["site"] == name
    assert asked(PORTS["north"], tokens["north"], host="evil.example")[0] == 421


def test_the_overview_wants_the_coordinators_token(up: Deployment) -> None:
    token = up.inside("coordinator", "cat", "/access/dashboard.token")
    assert asked(OVERVIEW, "", path="sites")[0] == 401
    assert asked(OVERVIEW, up.inside("north", "cat", "/site/dashboard.token"), path="sites")[0] == 401
    status, body = asked(OVERVIEW, token, path="sites")
    assert status == 200
    assert set(PORTS) <= {site["site"] for site in json.loads(body)["sites"]}
    assert asked(OVERVIEW, token, host="evil.example", path="sites")[0] == 421


@pytest.mark.parametrize(
    ("service", "command", "home", "port"),
    [("north", "locum-node", "/site", PORTS["north"]), ("coordinator", "locum", "/coordinator", OVERVIEW)],
)
def test_a_person_of_a_container_signs_in_until_they_are_removed(
    service: str, command: str, home: str, port: int, up: Deployment
) -> None:
    person = ("exec", "-T", service, command, "person", "Dr. Roe", "--home", home)
    up.compose(*person, given="a good password\na good password\n")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as browser:
        fields = {"name": "Dr. Roe", "secret": "a good password", "next": "/"}
        assert browser.post("/sign-in", data=fields).status_code == 303
        assert "Dr. Roe" in browser.get("/").raise_for_status().text
        up.compose(*person, "--remove")
        assert browser.get("/").headers["location"] == "/sign-in"


def test_the_doors_are_open_to_this_machine_alone(up: Deployment) -> None:
    for name, port in {**PORTS, "overview": OVERVIEW}.items():
        (found,) = docker("inspect", up.container(f"{name}-door"))
        published = {inside: where for inside, where in found["NetworkSettings"]["Ports"].items() if where}
        assert published == {"8100/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]}


def test_nobody_inside_reaches_more_than_before(up: Deployment) -> None:
    """Neither node nor dashboard nor door reaches another hospital or the world; a door reaches its own dashboard."""
    dashboards = {name: f"{up.address(f'{name}-dashboard', f'{name}-dashboard')}:8100" for name in PORTS}
    doors = {name: f"{up.address(f'{name}-door', 'browser')}:8100" for name in (*PORTS, "overview")}
    shown = f"{up.address('coordinator', 'overview')}:8100"
    gateway = f"{up.address('gateway', 'east')}:8443"
    world = ["1.1.1.1:443", "172.17.0.1:22", f"{up.address('gateway', 'control')}:8443"]
    everywhere = [*dashboards.values(), *doors.values(), shown, f"{up.address('north', 'north')}:22", gateway, *world]
    assert up.probe("east", "reach", "dashboard,north,example.org", *everywhere)["open"] == [gateway]
    found = up.probe("east-dashboard", "reach", "north,gateway,coordinator,example.org", *everywhere)
    assert found["known"] == []
    assert set(found["open"]) <= {dashboards["east"]}
    for place in (dashboards["north"], doors["north"], doors["overview"], shown, gateway, *world):
        host, _, port = place.rpartition(":")
        up.inside("east-door", "timeout", "4", "bash", "-c", f"</dev/tcp/{host}/{port}", fails=True)

"""The compose file and the examples in `deploy/`, read and held to the rules; nothing is started."""

import ast
import inspect
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr.supernode.fleet_http_client import FleetHttpClient

from coordinator.scenario import load_scenario
from coordinator.serve_config import ServeConfig
from node.policy import Policy
from node.service_config import ServiceConfig
from tests.documentation import ROOT

DEPLOY = ROOT / "deploy"
FILE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
HOSPITALS = ("north", "east", "south", "west", "island")
NODES = [name + kind for name in HOSPITALS for kind in ("", "-gpu")]
ROOTS_OWN = {"reports"}  # the one service that runs as root, and why stands beside it

every_service = pytest.mark.parametrize("name", SERVICES)
every_hospital = pytest.mark.parametrize("hospital", HOSPITALS)


def volumes(service: str) -> dict[str, tuple[str, bool]]:
    """What a service mounts: volume or path -> (where, whether it may only read)."""
    # a variable's default may hold colons
    mounts = [re.sub(r"\$\{[^}]*\}", "VARIABLE", mount).split(":") for mount in SERVICES[service].get("volumes", [])]
    return {mount[0]: (mount[1], mount[2:] == ["ro"]) for mount in mounts}


def users(volume: str) -> set[str]:
    return {name for name in SERVICES if volume in volumes(name)}


# Networks


def test_every_network_is_closed_to_the_world_and_to_the_host_but_that_of_the_doors() -> None:
    networks = dict(FILE["networks"])
    assert networks.pop("browser") == {
        "driver_opts": {
            "com.docker.network.bridge.enable_ip_masquerade": "false",
            "com.docker.network.bridge.enable_icc": "false",
        }
    }
    assert set(networks) == {"control", "overview", *HOSPITALS, *(f"{name}-dashboard" for name in HOSPITALS)}
    for network in networks.values():
        assert network["internal"] is True
        assert network["driver_opts"] == {"com.docker.network.bridge.inhibit_ipv4": "true"}


def on(network: str) -> set[str]:
    return {name for name, service in SERVICES.items() if network in service.get("networks", [])}


@every_hospital
def test_a_hospital_shares_a_network_with_the_gateway_and_nobody_else(hospital: str) -> None:
    assert on(hospital) == {hospital, f"{hospital}-gpu", "gateway"}
    assert SERVICES[hospital]["networks"] == SERVICES[f"{hospital}-gpu"]["networks"] == [hospital]


def test_on_the_control_network_are_the_coordinator_its_gateway_and_its_clients() -> None:
    assert on("control") == {"coordinator", "gateway", "register", "demo", "locum"}
    assert on("overview") == {"coordinator", "overview-door"}
    assert list(SERVICES["coordinator"]["networks"]) == ["control", "overview"]


@every_hospital
def test_a_hospitals_dashboard_is_reached_by_its_own_door_alone_and_reaches_nobody(hospital: str) -> None:
    dashboard = f"{hospital}-dashboard"
    assert on(dashboard) == {dashboard, f"{hospital}-door"}
    assert list(SERVICES[dashboard]["networks"]) == [dashboard]
    assert SERVICES[f"{hospital}-door"]["networks"] == [dashboard, "browser"]
    assert "--no-token" not in SERVICES[dashboard]["command"]


def test_what_is_published_is_the_doors_and_for_this_machine_alone() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    hospitals = {f"{name}-door": [f"127.0.0.1:{8101 + number}:8100"] for number, name in enumerate(HOSPITALS)}
    assert published == hospitals | {"overview-door": ["127.0.0.1:8002:8100"]}
    assert on("browser") == published.keys()
    assert all(volumes(name) == {"./deploy/door.conf": ("/etc/locum/door.conf", True)} for name in published)


def test_what_an_override_publishes_is_for_this_machine_unless_told() -> None:
    services = [yaml.safe_load(path.read_text())["services"].values() for path in DEPLOY.glob("*.override.yaml")]
    published = [port for several in services for service in several for port in service.get("ports", [])]
    assert published == ["${LOCUM_LISTEN:-127.0.0.1}:8443:8443"]


def test_images_and_policy_of_a_hospitals_own_are_with_all_that_read_them() -> None:
    own = yaml.safe_load((DEPLOY / "hospital.override.yaml").read_text())["services"]
    assert own.keys() == {name for name in SERVICES if "north-images:/data:ro" in SERVICES[name].get("volumes", [])}
    assert all(service == own["north"] for service in own.values())


@every_service
def test_a_service_is_on_named_networks_or_on_none(name: str) -> None:
    service = SERVICES[name]
    assert ("networks" in service) != (service.get("network_mode") == "none")


# Volumes


@every_hospital
def test_a_hospitals_volumes_are_its_own(hospital: str) -> None:
    own = {name for name in FILE["volumes"] if name.startswith(f"{hospital}-")}
    assert own == {f"{hospital}-home", f"{hospital}-images", f"{hospital}-public"}
    at_home = {hospital, f"{hospital}-gpu", f"{hospital}-setup", f"{hospital}-dashboard"}
    assert users(f"{hospital}-home") == users(f"{hospital}-images") == at_home
    assert users(f"{hospital}-public") == {f"{hospital}-setup", "register"}
    for name in NODES:
        assert volumes(name).keys() & own == (own - {f"{hospital}-public"} if name.startswith(hospital) else set())
    assert volumes(hospital) == volumes(f"{hospital}-gpu")
    assert volumes(f"{hospital}-dashboard").keys() == {f"{hospital}-home", f"{hospital}-images"}
    for name in (hospital, f"{hospital}-dashboard"):
        assert volumes(name)[f"{hospital}-images"] == ("/data", True)


def test_nothing_that_can_be_written_is_shared_between_hospitals() -> None:
    shared = {volume for name in NODES for volume in volumes(name) if len({*users(volume)} & {*HOSPITALS}) > 1}
    assert shared == {"authority"}
    assert all(
        volumes(name)["authority"][1] for name in SERVICES if "authority" in volumes(name) and name != "certificates"
    )


def test_what_the_coordinator_keeps_no_hospital_mounts() -> None:
    assert users("coordinator") == {"coordinator", "certificates"}
    assert users("gateway") == {"gateway", "certificates"}
    assert users("access") == {"coordinator", "register", "demo", "locum"}
    assert all(volumes(name)["access"][1] for name in users("access") - {"coordinator"})


def test_every_folder_that_a_volume_is_mounted_on_is_in_the_image() -> None:
    """Or the volume would belong to root."""
    made = (ROOT / "Dockerfile").read_text()
    for volume in FILE["volumes"]:
        writers = [volumes(name)[volume][0] for name in users(volume) if not volumes(name)[volume][1]]
        assert writers
        assert all(re.search(rf" {folder}\b", made) for folder in writers), volume


# What a container may


@every_service
def test_a_container_may_do_little(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["init"] is True
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert ("user" in service, "cap_add" in service) == (name in ROOTS_OWN, name in ROOTS_OWN)
    assert not service.keys() & {"privileged", "pid", "ipc", "devices", "userns_mode", "extra_hosts"}
    assert not any("docker.sock" in volume for volume in volumes(name))


@every_service
def test_no_secret_is_in_an_environment_or_a_command(name: str) -> None:
    environment = SERVICES[name].get("environment", {})
    client = {
        "LOCUM_COORDINATOR": "coordinator:8001",
        "LOCUM_AUTHORITY": "/authority/ca.crt",
        "LOCUM_TOKEN": "/access/token",  # where it lies
        "LOCUM_HOME": "/reports",
    }
    assert environment in ({}, client) or environment.keys() == {"SITE", "APPEARANCE"}


@every_service
def test_what_goes_on_is_watched_and_what_ends_is_waited_for(name: str) -> None:
    service = SERVICES[name]
    assert (service["restart"] == "unless-stopped") == ("healthcheck" in service)
    for other, how in service.get("depends_on", {}).items():
        ends = SERVICES[other]["restart"] == "no"
        assert how["condition"] == ("service_completed_successfully" if ends else "service_healthy")


@every_hospital
def test_the_profile_gpu_reserves_a_device_for_each_node(hospital: str) -> None:
    with_gpu = SERVICES[f"{hospital}-gpu"]
    assert (SERVICES[hospital]["profiles"], with_gpu["profiles"]) == (["cpu"], ["gpu"])
    (device,) = with_gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    apart = {"profiles", "deploy"}
    assert {key: with_gpu[key] for key in with_gpu.keys() - apart} == {
        key: SERVICES[hospital][key] for key in SERVICES[hospital].keys() - apart
    }
    assert (ROOT / ".env").read_text() == "COMPOSE_PROFILES=cpu\n"


# The gateway


def test_the_gateway_passes_the_calls_that_a_node_makes_and_no_others() -> None:
    config = (DEPLOY / "gateway.conf").read_text()
    (found,) = re.findall(r"location ~ \^/v1/fleet/\(([\w|-]+)\)\$ \{", config)
    tree = ast.parse((ROOT / "node" / "fleet.py").read_text())
    made = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self._client" and node.attr[0].isupper()
    }
    paths = {re.findall(r'path="(.*?)"', inspect.getsource(getattr(FleetHttpClient, name)))[0] for name in made}
    assert {f"/v1/fleet/{call}" for call in found.split("|")} == paths
    assert re.findall(r"location ([^{]+) \{", config)[1:] == ["= /health", "/"]
    assert re.search(r"location / \{\s+return 403;\s+\}", config)


def test_the_gateway_verifies_whom_it_passes_calls_to_and_keeps_none() -> None:
    config = (DEPLOY / "gateway.conf").read_text()
    for line in ("proxy_ssl_verify on;", "proxy_request_buffering off;", "proxy_buffering off;", "listen 8443 ssl;"):
        assert f" {line}\n" in config
    assert len(re.findall(r"\blisten\b", config)) == 1
    assert set(re.findall(r"proxy_pass (https?)://", config)) == {"https"}


# The examples


def test_the_demo_is_that_of_the_command_line_with_names_for_sites() -> None:
    here = load_scenario(DEPLOY / "demo.yaml", [])
    there = load_scenario(ROOT / "coordinator" / "demo.yaml", [])
    apart: dict[str, Any] = {"sites": True, "unseen": True, "study": True, "training": {"steps"}}
    assert here.model_dump(exclude=apart) == there.model_dump(exclude=apart)
    methods, joint = (list(scenario.runs()) for scenario in (here, there))
    assert [run.strategy for run in methods[:-1]] == [run.strategy for run in joint[:-1]]
    assert (methods[-1].strategy.name, joint[-1].strategy.name) == ("joint-fedavg", "joint")
    assert [site.name for site in (*here.sites, *here.unseen)] == list(HOSPITALS)
    assert [site.name for site in (*there.sites, *there.unseen)] == list(HOSPITALS)
    for number, site in enumerate((*there.sites, *there.unseen)):
        assert site.phantom is not None
        assert site.phantom.appearance == number == SERVICES[f"{site.name}-setup"]["environment"]["APPEARANCE"]
        assert site.name == SERVICES[f"{site.name}-setup"]["environment"]["SITE"]
        assert f"--task {site.phantom.task} --cases {site.phantom.cases} " in str(SERVICES["north-setup"]["command"])


def test_the_nodes_example_names_every_key() -> None:
    ServiceConfig.read(DEPLOY / "node.yaml")
    text = (DEPLOY / "node.yaml").read_text()
    assert set(re.findall(r"^(?:# )?(\w+): ", text, re.M)) == ServiceConfig.model_fields.keys()


@pytest.mark.parametrize("path", [DEPLOY / "coordinator.yaml", DEPLOY / "compose" / "coordinator.yaml"], ids=str)
def test_the_coordinators_examples_are_understood(path: Path) -> None:
    assert "coordinator" in ServeConfig.read(path).names  # as the gateway calls it


def test_the_policys_example_is_understood_and_narrows(tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "policy.yaml", tmp_path)
    policy = Policy.of(tmp_path)
    assert policy != Policy()
    assert policy.model_fields_set == {"kinds", "strategies", "max_bytes", "hold", "memory"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", ["locum-coordinator", "locum-node", "locum-gateway"])
def test_systemd_understands_the_unit(unit: str, tmp_path: Path) -> None:
    text = (DEPLOY / f"{unit}.service").read_text()
    copy = tmp_path / f"{unit}.service"
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.M))
    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    hardened = {"NoNewPrivileges=yes", "ProtectSystem=strict", "PrivateTmp=yes", "CapabilityBoundingSet=", "User=locum"}
    assert hardened <= set(text.splitlines())

"""A compose project of a test's own, and what is asked of its containers."""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.documentation import ROOT

PROBES = Path(__file__).parent / "probes"


@dataclass(frozen=True)
class Deployment:
    """A compose project under way."""

    project: str
    override: Path
    reports: Path

    def compose(self, *words: str, given: str = "", fails: bool = False) -> str:
        """What `docker compose` with these words prints; `fails` says that its status must not be 0."""
        command = [
            "docker",
            "compose",
            "-p",
            self.project,
            "-f",
            "docker-compose.yml",
            "-f",
            str(self.override),
            *words,
        ]
        environment = {**os.environ, "LOCUM_REPORTS": str(self.reports), "COMPOSE_PROFILES": "cpu"}
        done = subprocess.run(
            command, cwd=ROOT, env=environment, input=given, capture_output=True, text=True, timeout=1500
        )
        assert (done.returncode != 0) == fails, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def inside(self, service: str, *words: str, fails: bool = False) -> str:
        """What a command prints in a service's container."""
        return self.compose("exec", "-T", service, *words, fails=fails).strip()

    def probe(self, service: str, name: str, *arguments: str) -> dict[str, Any]:
        """What a script of `probes/` finds in a service's container."""
        script = (PROBES / f"{name}.py").read_text()
        found = self.compose("exec", "-T", service, "python", "-", *arguments, given=script)
        return dict(json.loads(found))

    def locum(self, *words: str, fails: bool = False) -> str:
        """What a command of the operator's prints."""
        return self.compose("run", "--rm", "-T", "--no-deps", "locum", *words, fails=fails)

    def container(self, service: str) -> str:
        return self.compose("ps", "--all", "--quiet", service).strip()

    def status_of(self, service: str) -> int:
        """The exit status of a service that ends, once it has; `docker compose wait` knows none that ended before."""
        return int(subprocess.check_output(["docker", "wait", self.container(service)], text=True, timeout=1500))

    def address(self, service: str, network: str) -> str:
        (found,) = docker("inspect", self.container(service))
        return str(found["NetworkSettings"]["Networks"][f"{self.project}_{network}"]["IPAddress"])

    def online(self) -> set[str]:
        return {site["site"] for site in json.loads(self.locum("sites", "--json"))["sites"] if site["online"]}

    def runs(self) -> dict[str, str]:
        return {run["run"]: run["status"] for run in json.loads(self.locum("runs", "--json"))["runs"]}


def docker(*words: str) -> Any:
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout) if words[0] == "inspect" else done.stdout.split()


def wants_an_engine() -> None:
    """Skip where no Docker engine answers."""
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        pytest.skip("no Docker engine answers")

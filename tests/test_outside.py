"""Nothing outside this machine is looked up or connected to, and no process outlives the command that began it."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.coordinator.serving import TINY as TWO_SITES
from tests.coordinator.serving import wait_for
from tests.observed import ROOT, Observation, unobserved

pytestmark = pytest.mark.timeout(900)  # many processes, which a busy machine keeps waiting

SECLUDED = ("unshare", "--map-root-user", "--net", "--mount")


def simulation(folder: Path, *overrides: str) -> list[str]:
    (folder / "tiny.yaml").write_text(TWO_SITES)
    settings = [f"--set={override}" for override in overrides]
    where = [str(folder / "tiny.yaml"), f"--home={folder / 'home'}"]
    return ["simulate", *where, "--engine=flower", "--no-report", *settings]


def test_what_is_observed_is_seen(tmp_path: Path) -> None:
    """The test's own eyes: look-ups, connections and programs, in the process, in one it forked and in one it began."""
    seen = Observation(tmp_path)
    looks = "import socket; s = socket.socket(); s.settimeout(0.01); s.connect_ex(('192.0.2.1', 9))"
    code = (
        f"import os, subprocess, sys\n{looks}\n"
        f"if not os.fork(): socket.gethostbyname('localhost'); os._exit(0)\nos.wait()\n"
        f"subprocess.run([sys.executable, '-P', '-c', '{looks[:13]}; socket.getaddrinfo(b\"nowhere.invalid\", 1)'])\n"
        "subprocess.run(['true'])"
    )
    subprocess.run([sys.executable, "-c", code], env=seen.environment, check=False, stderr=subprocess.DEVNULL)
    assert [(what, whom[0]) for _, what, whom in seen.outside()] == [
        ("socket.connect", ["192.0.2.1", 9]),
        ("socket.getaddrinfo", "nowhere.invalid"),
        ("subprocess.Popen", "true"),
    ]
    assert ("socket.gethostbyname", ["localhost"]) in [(what, whom) for _, what, whom in seen.events()]
    assert seen.left() == []


@pytest.fixture
def secluded(tmp_path: Path) -> list[str]:
    """The beginning of a command line that carries out the rest where there is loopback and nothing else."""
    if shutil.which("unshare") is None or subprocess.run([*SECLUDED, "true"], check=False).returncode != 0:
        pytest.skip("needs Linux's namespaces: unshare --map-root-user --net --mount is not allowed here")
    helper = [sys.executable, "-P", str(ROOT / "tests" / "secluded.py")]
    return [*SECLUDED, *helper, str(tmp_path / "resolv.conf"), str(tmp_path / "names")]


def test_a_name_that_is_looked_up_in_seclusion_is_heard_of(tmp_path: Path, secluded: list[str]) -> None:
    look = [sys.executable, "-c", "import socket; socket.gethostbyname('telemetry.example.org')"]
    assert subprocess.run([*secluded, *look], check=False, stderr=subprocess.DEVNULL).returncode != 0
    assert set((tmp_path / "names").read_text().split()) == {"telemetry.example.org"}


def test_a_simulation_needs_and_asks_nobody_outside(tmp_path: Path, secluded: list[str]) -> None:
    seen = Observation(tmp_path)
    observed = ["env", *(f"{name}={value}" for name, value in seen.hook.items())]
    locum = [sys.executable, "-P", "-c", "from coordinator.cli import run; run()", *simulation(tmp_path)]
    done = subprocess.run([*secluded, *observed, *locum], capture_output=True, text=True, check=False, env=unobserved())
    assert done.returncode == 0, done.stderr
    assert all(map(seen.began, ("coordinator.superlink", "node", "node.worker")))
    assert seen.outside() == []
    assert not (tmp_path / "names").exists()
    wait_for(lambda: not seen.left())


SERVED = """
import sys
from pathlib import Path
from tests.coordinator.serving import two_sites
with two_sites(Path(sys.argv[1])) as served:
    (run,) = served.schedule()
    assert served.ask("watch", run).status == 0
    assert served.seen.began("node.worker")
"""


@pytest.mark.faults
def test_a_control_service_and_its_nodes_need_and_ask_nobody_outside(tmp_path: Path, secluded: list[str]) -> None:
    """That their processes, seen from within, do not is held by every test of theirs."""
    python = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-P", "-c", SERVED, str(tmp_path / "served")]
    done = subprocess.run([*secluded, *python], capture_output=True, text=True, check=False, env=unobserved())
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "names").exists()


def began(module: str) -> Callable[[Observation, str], bool]:
    return lambda seen, said: seen.began(module)


def says(pattern: str) -> Callable[[Observation, str], bool]:
    return lambda seen, said: bool(re.search(pattern, said))


MOMENTS = {
    "the SuperLink begins": began("coordinator.superlink"),
    "the nodes begin": began("node"),
    "the run begins": says(r"^run \S+, 2 stops"),
    "the work begins": began("node.worker"),
    "in a visit": says(r"stop 0 at north: step"),
    "between visits": says(r"stop 0 at north: done"),
}
FEW = ("the nodes begin", "in a visit")


@pytest.mark.parametrize(
    "moment", [pytest.param(name, marks=() if name in FEW else pytest.mark.faults) for name in MOMENTS]
)
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.faults)], ids=str)
def test_an_interrupted_deployment_leaves_no_process(number: signal.Signals, moment: str, tmp_path: Path) -> None:
    seen = Observation(tmp_path)
    with (tmp_path / "said").open("wb") as said:
        steps = 300 if moment == "between visits" else 100_000
        process = seen.start("locum", *simulation(tmp_path, f"training.steps={steps}"), stdout=said, stderr=said)
    wait_for(lambda: process.poll() is not None or MOMENTS[moment](seen, (tmp_path / "said").read_text()))
    os.killpg(process.pid, number)  # as Ctrl-C does
    status = process.wait(120)
    text = (tmp_path / "said").read_text()
    wait_for(lambda: not seen.left())
    assert seen.outside() == []
    if number is signal.SIGINT:
        assert status == 130, text
        assert re.search(r"^locum: interrupted; `locum resume tiny-finetune-s0-[0-9a-f]{8} .*` goes on", text, re.M), (
            text
        )
        assert "Traceback" not in text

"""Clocks that jump by hours: what waits by the clock waits by the new one, everything else goes on as undisturbed."""

import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from socket import socket
from threading import Thread

import grpc
import pytest
from cryptography.x509 import load_pem_x509_certificate

from coordinator.deployment import Node, local_deployment
from coordinator.engine import Deployed
from coordinator.grid import simulated_sites
from coordinator.keys import ServerKeys, public_key, server_keys
from coordinator.link import Link
from coordinator.simulate import carry_out
from tests.conftest import Desk, Recorder, outcome
from tests.coordinator.serving import ROOT, TINY, Served, assert_as_in_process, two_sites, wait_for
from tests.faults.clocks import Clock, a_clock
from tests.faults.damaging import left_with_visits
from tests.faults.deployment import under_way

pytestmark = pytest.mark.timeout(900)

LONG = "training.steps=500"  # so that a clock can jump in the middle of a visit


# A whole deployment on machines whose clocks jump together


@dataclass(frozen=True)
class Jumping:
    served: Served
    clock: Clock


@pytest.fixture(scope="module")
def jumping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jumping]:
    """A coordinator and the nodes of north and east, all by one clock."""
    folder = tmp_path_factory.mktemp("jumping")
    clock = a_clock(folder)
    with ExitStack() as stack:
        with clock.for_children():  # and no longer: what other tests start has clocks of its own
            served = stack.enter_context(two_sites(folder))
        yield Jumping(served, clock)
        clock.jump(0)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    desk = Desk(tmp_path_factory.mktemp("in-process"))
    desk.simulate(LONG, text=TINY)
    return desk


def visits(served: Served, site: str, run: str) -> list[str]:
    """The verdicts on what was to leave the site for its visit."""
    desk = Desk(served.folder)
    (desk.home.folder / "nodes").mkdir(exist_ok=True)
    if not (link := desk.home.folder / "nodes" / site).exists():
        link.symlink_to(served.folder / site)
    return [entry.verdict for entry in left_with_visits(desk, site, run)]


@pytest.mark.faults
@pytest.mark.parametrize("hours", [3, -4])
def test_all_clocks_jump_in_the_middle_of_a_visit(hours: float, jumping: Jumping, expected: Desk) -> None:
    served = jumping.served
    jumping.clock.jump(0)
    (run,) = served.schedule(f"--set={LONG}")
    wait_for(lambda: under_way(served.folder / "north", run, 0))
    jumping.clock.jump(hours)
    watched = served.ask("watch", run)
    assert watched.status == 0, watched.err
    assert "Traceback" not in served.log
    assert_as_in_process(served, run, expected)
    assert [visits(served, site, run) for site in ("north", "east")] == [["allowed"], ["allowed"]]
    made = [(event.kind, event.stop) for event in served.events(run) if event.kind in ("stop_ended", "run_ended")]
    assert made == [("stop_ended", 0), ("stop_ended", 1), ("run_ended", None)]  # in the order of what happened


@pytest.mark.faults
def test_a_run_that_waits_for_its_time_waits_by_the_coordinator_s_clock(jumping: Jumping) -> None:
    served = jumping.served
    jumping.clock.jump(0)
    at = (datetime.now().astimezone() + timedelta(hours=1)).isoformat(timespec="seconds")
    (run,) = served.schedule("--at", at)
    waits = f"Run {run} waits for its time, "
    wait_for(lambda: waits in served.log)
    jumping.clock.jump(-2)
    assert served.home.store().run(run).status == "pending"
    jumping.clock.jump(2)
    assert served.ask("watch", run).status == 0


# A node whose clock is wrong


@pytest.mark.faults
@pytest.mark.parametrize("hours", [2, -2])
def test_a_node_whose_clock_jumps_is_waited_for(hours: float, tmp_path: Path) -> None:
    """The coordinator lets in nobody whose clock differs; the node says so, and gives its reply once it is right."""
    desk, clock = Desk(tmp_path / "deployed"), a_clock(tmp_path)
    run = desk.begin(LONG)
    sites = {s.name: s for s in simulated_sites(desk.scenario(LONG), desk.folder, desk.home.folder, "cpu")}
    east = sites.pop("east")
    waited: list[tuple[str, float]] = []

    class Waiting(Recorder):
        def waiting(self, site: str, seconds: float) -> None:
            waited.append((site, seconds))
            clock.jump(0)

    def jump_in_the_visit() -> None:
        wait_for(lambda: under_way(east.home, run, 1))
        clock.jump(hours)

    jumping = Thread(target=jump_in_the_visit)

    def jump(event: tuple[object, ...]) -> None:
        if event[:2] == ("stop began", 1):
            jumping.start()

    with ExitStack() as stack:
        config = stack.enter_context(local_deployment(list(sites.values()), desk.folder / "flower"))
        node = Node(east, config)
        with clock.for_children():
            node.start()
        stack.callback(node.wait)
        stack.callback(node.tell_to_end)  # before it is waited for
        wait_for((east.home / "node.key.pub").exists)
        with Link(config) as link:
            link.register("east", public_key(east.home / "node.key.pub"))
            wait_for(lambda: any(one.name == "east" and one.online for one in link.nodes()))
        carry_out(run, desk.home, device="cpu", listener=Waiting(on=jump), engine=Deployed(config))
        jumping.join()
    assert {site for site, _ in waited} == {"east"}
    log = (east.home / "node.log").read_text()
    assert "does not let this node in: its key is not registered" in log
    assert "or the clocks of the two differ" in log
    undisturbed = Desk(tmp_path / "undisturbed")
    assert outcome(desk.row(run)) == outcome(undisturbed.row(undisturbed.simulate(LONG)))
    assert [entry.verdict for entry in left_with_visits(desk, "east", run)] == ["allowed"]
    assert desk.ledger("east").verify() == []


@pytest.mark.faults
def test_a_simulation_does_not_look_at_the_clock(tmp_path: Path) -> None:
    """In one process: the clock jumps to and fro all the while."""
    undisturbed, desk, clock = Desk(tmp_path / "undisturbed"), Desk(tmp_path / "jumping"), a_clock(tmp_path)
    expected = outcome(undisturbed.row(undisturbed.simulate(LONG)))
    run = desk.begin(LONG)
    code = "from coordinator.cli import main; main()"
    command = [sys.executable, "-c", code, "resume", run, f"--home={desk.home.folder}", "--no-report"]
    with clock.for_children():
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    hours = 5.0
    while process.poll() is None:
        clock.jump(hours := -hours)
        time.sleep(0.2)
    assert process.stderr is not None
    assert process.returncode == 0, process.stderr.read()
    process.stderr.close()
    assert outcome(desk.row(run)) == expected
    for site in ("north", "east", "south"):
        assert desk.ledger(site).verify() == []
        assert len(left_with_visits(desk, site, run)) == 1


# Certificates


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> ServerKeys:
    return server_keys(tmp_path_factory.mktemp("keys"), ["localhost"])


SIGN_ON = """
import sys
from pathlib import Path
from node.fleet import Fleet, Unreachable
from node.keys import make_key, read_key
folder, address, authority = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
make_key(folder / "node.key")
with Fleet(address, authority, read_key(folder / "node.key")) as fleet:
    try:
        fleet.sign_on(None)
    except Unreachable as error:
        print(error)
"""
ASK = """
import sys
from coordinator.cli import main
main(["runs", f"--coordinator={sys.argv[2]}", f"--token={sys.argv[1]}/token", f"--authority={sys.argv[3]}"])
"""
YEAR = 365 * 24
WRONG = {
    -YEAR: "shows a certificate that is not valid yet by this machine's clock (20",
    20 * YEAR: "shows a certificate that has expired by this machine's clock (20",
}


def said_by(code: str, address: str, authority: Path, folder: Path, hours: float) -> str:
    clock = a_clock(folder)
    clock.jump(hours)
    (folder / "token").write_text("token")
    command = [sys.executable, "-c", code, str(folder), address, str(authority)]
    with clock.for_children():
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


@pytest.mark.faults
@pytest.mark.parametrize("hours", WRONG)
def test_a_node_with_a_clock_of_another_year_says_so(hours: float, server: ServerKeys, tmp_path: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.certificate, server.key)
    with socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def shake_hands() -> None:
            connection, _ = listening.accept()
            with connection, pytest.raises(OSError):
                context.wrap_socket(connection, server_side=True)

        with ThreadPoolExecutor(1) as pool:
            shaken = pool.submit(shake_hands)
            address = f"localhost:{listening.getsockname()[1]}"
            said = said_by(SIGN_ON, address, server.authority, tmp_path, hours)
            shaken.result(60)
    assert said.startswith(f"The coordinator at {address} {WRONG[hours]}")


@pytest.mark.faults
@pytest.mark.parametrize("hours", WRONG)
def test_a_command_with_a_clock_of_another_year_says_so(hours: float, server: ServerKeys, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        listening = grpc.server(pool)
        pair = (server.key.read_bytes(), server.certificate.read_bytes())
        port = listening.add_secure_port("localhost:0", grpc.ssl_server_credentials([pair]))
        listening.start()
        said = said_by(ASK, f"localhost:{port}", server.authority, tmp_path, hours)
        listening.stop(None).wait()
    assert said.startswith(f"locum: The coordinator at localhost:{port} {WRONG[hours]}"), said


@pytest.mark.faults
@pytest.mark.parametrize("hours", WRONG)
def test_a_coordinator_with_a_clock_of_another_year_says_so(hours: float, server: ServerKeys, tmp_path: Path) -> None:
    clock = a_clock(tmp_path)
    clock.jump(hours)
    code = (
        "import sys; from pathlib import Path; from coordinator.keys import UnusableKey, server_keys\n"
        "try: server_keys(Path(sys.argv[1]), ['localhost'])\n"
        "except UnusableKey as error: print(error)"
    )
    with clock.for_children():
        command = [sys.executable, "-c", code, str(server.authority.parent)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    when = "is not valid yet" if hours < 0 else "has expired"
    assert done.stdout.startswith(f"{server.authority}: by this machine's clock (20")
    assert f"the authority's certificate {when}; set the clock right" in done.stdout


def test_certificates_hold_for_clocks_that_are_hours_behind(server: ServerKeys) -> None:
    for path in (server.authority, server.certificate):
        certificate = load_pem_x509_certificate(path.read_bytes())
        assert certificate.not_valid_before_utc < datetime.now().astimezone() - timedelta(hours=24)

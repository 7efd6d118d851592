"""The control service for real: SuperLink and nodes as processes, asked through the commands."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from node.database import open_database
from node.ledger import Ledger
from protos.locum.v1 import control_pb2 as pb
from tests.conftest import Desk, outcome
from tests.coordinator.serving import Served, locum, wait_for

TINY = """
name: tiny
task: {size: [16, 16], classes: [background, organ]}
sites:
  - {name: north, phantom: {task: organ, appearance: 0, cases: 6, size: 16}}
  - {name: east, phantom: {task: organ, appearance: 1, cases: 7, size: 16}}
network: {channels: [2, 4]}
training: {steps: 4, batch_size: 2, checkpoint_every: 2, augment: [rotate]}
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator with the nodes of north and east, for all tests of the module."""
    os.environ["NO_COLOR"] = "1"
    served = Served(tmp_path_factory.mktemp("served"))
    try:
        served.start()
        (served.folder / "tiny.yaml").write_text(TINY)
        for site, appearance, cases in (("north", 0, 6), ("east", 1, 7)):
            served.start_node(site, appearance, cases)
            assert served.ask("node", "add", site, f"--key={served.key(site)}").status == 0
        wait_for(lambda: all(site["online"] for site in json.loads(served.ask("sites", "--json").out)["sites"]))
        yield served
        children = psutil.Process(served.service.pid).children(recursive=True)
        assert served.stop() == 0
        assert not [child for child in children if child.is_running()]
        assert "Traceback" not in served.log
    finally:
        served.close()
        served.home.store().engine.dispose()


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """The same scenario in process."""
    desk = Desk(tmp_path_factory.mktemp("in-process"))
    desk.simulate(text=TINY)
    return desk


def in_process(expected: Desk) -> str:
    (run,) = [row["run"] for row in json.loads(locum("runs", "--json", f"--home={expected.home.folder}").out)["runs"]]
    return str(run)


def assert_as_in_process(served: Served, run: str, expected: Desk) -> None:
    assert outcome(served.home.store().run(run)) == outcome(expected.row(in_process(expected)))
    for site in ("north", "east"):
        assert Ledger(open_database(served.folder / site)).verify() == []


def test_a_run_is_scheduled_watched_and_told_of_as_in_process(served: Served, expected: Desk, tmp_path: Path) -> None:
    (run,) = served.schedule()
    watched = served.ask("watch", run)
    assert watched.status == 0, watched.err
    assert re.search(
        rf"run {run}, 2 stops\n.*stop 0 at north: done.*stop 1 at east: done.*run {run}: done", watched.err, re.S
    )
    assert_as_in_process(served, run, expected)

    here = f"--home={served.home.folder}"
    for words in (["show", run], ["show", run, "--json"], ["runs"], ["runs", "--json"]):
        assert served.ask(*words) == locum(*words, here), words
    document = json.loads(served.ask("show", run, "--json").out)
    known = json.loads(locum("show", in_process(expected), "--json", f"--home={expected.home.folder}").out)
    for key in ("status", "strategy", "sites", "matrix", "metrics", "weights_sha256"):
        assert document[key] == known[key]
    assert watched.out in served.ask("resume", run, f"--home={tmp_path}").out  # it is done, and stays so
    page = Path(served.ask("report", run, f"--home={tmp_path}").out.strip())
    assert page == tmp_path / "runs" / run / "report.html"
    assert json.loads((page.parent / "run.json").read_text())["weights_sha256"] == known["weights_sha256"]
    assert served.ask("watch", run).err == watched.err  # the events are kept

    (site, _) = json.loads(served.ask("sites", "--json").out)["sites"]
    assert (site["site"], site["online"], site["cases"]) == ("east", True, {"test": 2, "train": 4, "val": 1})
    assert site["schema_version"] == 1


def test_runs_at_the_same_site_wait_for_each_other_and_others_do_not(served: Served) -> None:
    (north,) = served.schedule("--set=sites=[north]")
    (east,) = served.schedule("--set=sites=[east]")
    (again,) = served.schedule("--set=sites=[north]")
    (after,) = served.schedule("--set=sites=[east]", f"--after={again}")
    began, ended = {}, {}
    for run in (north, east, again, after):
        assert served.ask("watch", run).status == 0
        (began[run],) = [event.time for event in served.events(run) if event.kind == "run_began"]
        (ended[run],) = [event.time for event in served.events(run) if event.kind == "run_ended"]
    assert began[north] < ended[east]
    assert began[east] < ended[north]
    assert ended[north] <= began[again]
    assert ended[again] <= began[after]
    said = [event.fields["sentence"] for event in served.events(again) if event.kind == "said"]
    assert f"Run {again} waits for site north, where it is the turn of run {north}." in said
    said = [event.fields["sentence"] for event in served.events(after) if event.kind == "said"]
    assert any(re.fullmatch(rf"Run {after} waits for run {again}, which is (pending|running)\.", line) for line in said)


def test_a_service_that_is_killed_goes_on_and_so_do_those_who_watch(served: Served, expected: Desk) -> None:
    (run,) = served.schedule()
    watcher = served.process("watch.log", "watch", run, *served.options)
    served.wait_for_event(run, "stop_ended")
    children = psutil.Process(served.service.pid).children(recursive=True)
    served.kill()
    wait_for(lambda: not any(child.is_running() and child.status() != "zombie" for child in children))
    served.start()
    assert watcher.wait(240) == 0
    said = (served.folder / "watch.log").read_text()
    assert "The connection to the coordinator was lost; looking for it again." in said
    assert said.count("stop 0 at north: done") == 1
    assert_as_in_process(served, run, expected)


def test_a_superlink_that_dies_is_started_again(served: Served, expected: Desk) -> None:
    (run,) = served.schedule()
    served.wait_for_event(run, "stop_ended")
    served.superlink_process().kill()
    assert served.ask("watch", run).status == 0
    assert_as_in_process(served, run, expected)


def test_a_process_that_dies_is_made_anew(served: Served, expected: Desk) -> None:
    (run,) = served.schedule()
    served.wait_for_event(run, "stop_began")
    (worker,) = [
        child for child in psutil.Process(served.service.pid).children() if "coordinator.worker" in child.cmdline()
    ]
    worker.kill()
    watched = served.ask("watch", run)
    assert watched.status == 0
    assert f"The process of run {run} ended by SIGKILL; it is taken up anew." in watched.err
    assert_as_in_process(served, run, expected)


def test_a_cancelled_run_stays_as_it_is_until_it_is_resumed(served: Served, expected: Desk) -> None:
    (run,) = served.schedule()
    served.wait_for_event(run, "stop_ended")
    cancelled = served.ask("cancel", run)
    assert (cancelled.status, cancelled.out) == (0, f"Run {run} is cancelled; `locum resume {run}` goes on.\n")
    assert json.loads(served.ask("show", run, "--json").out)["status"] == "cancelled"
    assert served.ask("cancel", run).err == (
        f"locum: Run {run} is cancelled; only a run that is queued or carried out is cancelled.\n"
    )
    assert served.ask("watch", run).status == 1
    here = locum("resume", run, f"--home={served.home.folder}")
    assert here.status == 2
    assert here.err.startswith(f"locum: Run {run} is made by a deployment's own nodes;")
    resumed = served.ask("resume", run, "--no-report")
    assert resumed.status == 0, resumed.err
    assert_as_in_process(served, run, expected)


def test_a_stop_is_skipped_by_name_and_a_refusal_is_one_sentence(served: Served) -> None:
    (run,) = served.schedule("--set=task.channels=3")
    watched = served.ask("watch", run)
    assert watched.status == 1
    (line,) = [line for line in watched.err.splitlines() if line.startswith(f"locum: Run {run} failed")]
    assert "Site north:" in line
    skipped = served.ask("skip", run, "0", "--by=Dr Grey", "--why=wrong channels")
    assert skipped.out == f"Stop 0 of run {run} will be skipped; `locum resume {run}` goes on.\n"
    assert served.ask("skip", run, "7", "--by=Dr Grey", "--why=wrong channels").err == (
        f"locum: Run {run} has no stop 7; `locum show {run}` lists its stops, counted from 0.\n"
    )


def test_a_node_is_let_in_and_put_out(served: Served) -> None:
    served.start_node("south", 2, 8)
    wait_for(lambda: "its key is not registered" in served.node_said("south"))

    def sites() -> dict[str, bool]:
        return {site["site"]: site["online"] for site in json.loads(served.ask("sites", "--json").out)["sites"]}

    assert sites() == {"north": True, "east": True}
    key = f"--key={served.key('south')}"
    other = served.ask("node", "add", "east", key)
    assert (other.status, other.err) == (
        2, "locum: Site east has a node with another key; `locum node remove east` puts that out first.\n",
    )  # fmt: skip
    assert served.ask("node", "add", "south", key).out == "The node with this key is let in as site south.\n"
    assert served.ask("node", "add", "west", key).err.startswith("locum: The key is that of site south already;")
    wait_for(lambda: sites() == {"north": True, "east": True, "south": True})
    assert served.ask("node", "remove", "south").status == 0
    assert sites() == {"north": True, "east": True}
    refusals = served.node_said("south").count("its key is not registered")
    wait_for(lambda: served.node_said("south").count("its key is not registered") > refusals)
    assert served.ask("node", "add", "south", key).err.startswith("locum: The key was put out once and stays so;")
    assert served.ask("node", "remove", "south").status == 2


def test_a_run_waits_for_its_time_and_its_sites(served: Served) -> None:
    (late,) = served.schedule("--at=2099-01-01T00:00:00+00:00")
    (missing,) = served.schedule("--set=sites=[north, elsewhere]")
    for run, sentence in (
        (late, "its time, 2099-01-01T00:00:00+00:00"),
        (missing, "site elsewhere, which has no registered node; `locum node add` lets one in"),
    ):
        served.wait_for_event(run, "said", 2)
        assert served.events(run)[-1].fields["sentence"] == f"Run {run} waits for {sentence}."
        assert served.ask("skip", run, "0", "--by=Dr Grey", "--why=late").status == 2  # it has no stops yet
        assert served.ask("cancel", run).status == 0
        assert served.ask("watch", run).status == 1


@pytest.mark.parametrize("shown", [None, "Bearer wrong", "Bearer ", "bearer \u00e9".encode()])
def test_every_call_asks_for_the_token(served: Served, shown: str | bytes | None) -> None:
    service = pb.DESCRIPTOR.services_by_name["Control"]
    authority = (served.home.folder / "keys" / "ca.crt").read_bytes()
    key = "authorization" if not isinstance(shown, bytes) else "authorization-bin"
    metadata = [] if shown is None else [(key, shown)]
    with grpc.secure_channel(f"localhost:{served.control}", grpc.ssl_channel_credentials(authority)) as channel:
        for name in [method.name for method in service.methods] + ["Unknown"]:
            call = channel.unary_stream(f"/{service.full_name}/{name}")
            with pytest.raises(grpc.RpcError) as refused:
                list(call(b"", metadata=metadata, timeout=30))
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED, name


def test_what_is_needed_to_ask_is_said_in_one_sentence(served: Served, tmp_path: Path) -> None:
    coordinator, token, authority = served.options
    wrong = tmp_path / "token"
    wrong.write_text("guessed")
    other = Served(tmp_path / "other")
    other.folder.mkdir()
    from coordinator.keys import server_keys

    foreign = server_keys(tmp_path / "keys", ["localhost"]).authority
    for words, said in (
        ([], "It is not said which coordinator to ask"),
        ([coordinator], "The coordinator asks for its token"),
        ([coordinator, token], "The coordinator is known by its authority"),
        ([coordinator, f"--token={wrong}", authority], "does not know the token"),
        ([coordinator, f"--token={tmp_path / 'none'}", authority], "cannot be read"),
        ([coordinator, token, f"--authority={foreign}"], "is not signed by"),
        ([f"--coordinator=localhost:{other.control}", token, authority], "does not answer"),
    ):
        done = locum("sites", *words)
        assert done.status in (1, 2)
        assert re.fullmatch(rf"locum: [^\n]*{re.escape(said)}[^\n]*\n", done.err), done.err
        assert "guessed" not in done.err


BOMB = "\n".join(
    [
        "a: &a [x, x, x, x, x, x, x, x, x]",
        *(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
    ]
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "a scenario is a mapping"),
        ("{" * 5000, "not valid YAML"),
        ("name: !!python/object/apply:os.system [id]", "not valid YAML"),
        (BOMB, "comes to more than"),
        ("a: &a [*a]", "comes to more than"),
        (TINY.replace("name: tiny", "name: ../../tiny"), "lower-case letters"),
        (TINY + "strategy: nonesuch", "nonesuch"),
        (TINY + f"study: {{seeds: {list(range(1001))}}}", "more than 1000 runs"),
        (TINY + "# " + "x" * 2**20, "smaller scenario"),
        ("\x00\x1b[2J", "not valid YAML"),
    ],
    ids=range(10),
)
def test_a_hostile_scenario_is_refused_in_one_sentence(served: Served, tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "hostile.yaml"
    path.write_text(text)
    done = served.ask("schedule", str(path))
    assert done.status == 2, done
    assert not done.out
    assert re.fullmatch(rf"locum: [^\n]*{re.escape(said)}[^\n]*\n", done.err), done.err
    assert done.err.isprintable() or done.err.rstrip("\n").isprintable()


@pytest.mark.parametrize("name", ["", "%", "_" * 8, "../../etc/passwd", "\x1b[31m", "x" * 10_000, "' OR 1=1 --", "*"])
def test_a_hostile_name_is_refused_in_one_sentence(served: Served, name: str) -> None:
    for words in (["show"], ["watch"], ["cancel"], ["resume"], ["report"], ["skip", "0", "--by=x", "--why=y"]):
        done = served.ask(words[0], name, *words[1:])
        assert done.status == 2
        assert re.fullmatch(r"locum: [^\n]+\n", done.err)
        assert done.err.rstrip("\n").isprintable()
    for words in (["node", "add", name, f"--key={served.key('north')}"], ["node", "remove", name]):
        done = served.ask(*words)
        assert done.status == 2
        assert done.err.rstrip("\n").isprintable()


def test_no_secret_is_in_a_log_or_an_argument(served: Served) -> None:
    token = (served.home.folder / "token").read_text()
    assert len(token) > 40
    assert (served.home.folder / "token").stat().st_mode & 0o777 == 0o600
    assert token not in served.log
    for process in psutil.Process(served.service.pid).children(recursive=True):
        assert token not in " ".join(process.cmdline())

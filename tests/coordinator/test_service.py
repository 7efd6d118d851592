"""The control service for real: SuperLink and nodes as processes, asked through the commands."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from coordinator.keys import server_keys
from coordinator.listing import listed
from protos.locum.v1 import control_pb2 as pb
from protos.software import PACKAGES, installed
from tests.conftest import Desk
from tests.coordinator.serving import ROOT, TINY, Served, assert_as_in_process, in_process, locum, two_sites, wait_for

pytestmark = pytest.mark.timeout(900)  # many processes, which a busy machine keeps waiting


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A coordinator with the nodes of north and east, which has other code, for all tests of the module."""
    release = tmp_path_factory.mktemp("release")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, release / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (release / "node" / "app.py").open("a") as file:
        file.write("# mended\n")
    with two_sites(tmp_path_factory.mktemp("served"), release) as served:
        (served.folder / "north" / "policy.yaml").write_text("memory: {cases: 3}\n")
        yield served


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """The same scenario in process."""
    return in_process(tmp_path_factory.mktemp("in-process"))


def lasting(lines: str) -> list[str]:
    """What is said of a run however long things take."""
    return [line for line in lines.splitlines() if "for more than" not in line]


def test_a_run_is_watched_cancelled_resumed_and_told_of_as_in_process(
    served: Served, expected: Desk, tmp_path: Path
) -> None:
    (run,) = served.schedule()
    served.wait_for_event(run, "stop_ended")
    cancelled = served.ask("cancel", run)
    assert (cancelled.status, cancelled.out) == (0, f"Run {run} is cancelled; `locum resume {run}` goes on.\n")
    assert json.loads(served.ask("show", run, "--json").out)["status"] == "cancelled"
    assert served.ask("cancel", run) == cancelled
    assert served.ask("watch", run).status == 1
    here = f"--home={served.home.folder}"
    alone = locum("resume", run, here)
    assert alone.status == 2
    assert alone.err.startswith(f"locum: Run {run} is made by a deployment's own nodes;")

    resumed = served.ask("resume", run, "--no-report")
    assert resumed.status == 0, resumed.err
    assert re.search(
        rf"run {run}, 2 stops\n.*run {run}, 1 of its 2 stops are done\n.*run {run}: done", resumed.err, re.S
    )
    assert_as_in_process(served, run, expected)
    assert served.home.store().run(run).policies == [{"north": {"memory": {"cases": 3}}}]
    for words in (["show", run], ["show", run, "--json"], ["runs"], ["runs", "--json"]):
        assert served.ask(*words) == locum(*words, here), words
    document = json.loads(served.ask("show", run, "--json").out)
    (known,) = [expected.summary(row["run"]).document() for row in listed(expected.home)]
    for key in ("status", "strategy", "sites", "matrix", "metrics", "weights_sha256"):
        assert document[key] == known[key]
    late = served.ask("cancel", run)
    assert (late.status, late.err) == (
        2, f"locum: Run {run} is done; only a run that is queued or carried out is cancelled.\n",
    )  # fmt: skip

    watched = served.ask("watch", run)  # the events are kept
    assert (watched.status, watched.out) == (0, resumed.out)
    assert lasting(watched.err) == lasting(resumed.err)
    page = Path(served.ask("report", run, f"--home={tmp_path}").out.strip())
    assert page == tmp_path / "runs" / run / "report.html"
    assert json.loads((page.parent / "run.json").read_text())["weights_sha256"] == known["weights_sha256"]

    east, north = json.loads(served.ask("sites", "--json").out)["sites"]
    assert (east["site"], east["online"], east["cases"]) == ("east", True, {"test": 2, "train": 4, "val": 1})
    assert east["schema_version"] == 1
    assert (north["software"], north["code_sha256"]) == (installed().name, installed().code)
    assert (east["software"], east["torch"]) == (north["software"], north["torch"])
    assert re.match(re.escape(north["torch"]) + r"\b", installed().torch)
    assert east["code_sha256"] == {entry.code_sha256 for entry in served.ledger("east").entries()}.pop()
    shown = served.ask("sites").out
    assert all(f" {site['code_sha256'][:8]} " in shown for site in (east, north))
    (warning,) = {line for line in watched.err.splitlines() if line.startswith("The code is not the same everywhere:")}
    assert warning.endswith(
        f"locum {installed().locum} ({installed().code[:8]}) at the coordinator and north; "
        f"locum {installed().locum} ({east['code_sha256'][:8]}) at east; install one release at all of them."
    )


def test_a_refusal_is_one_sentence_and_a_stop_is_skipped_by_name(served: Served) -> None:
    (run,) = served.schedule("--set=task.channels=2")
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


def test_a_run_waits_for_its_time_its_sites_and_other_runs(served: Served) -> None:
    (late,) = served.schedule("--at=2099-01-01T00:00:00+00:00")
    (missing,) = served.schedule("--set=sites=[north, elsewhere]", "--set=patience.then=wait")
    (after,) = served.schedule(f"--after={late}")
    for run, sentence in (
        (late, "its time, 2099-01-01T00:00:00+00:00"),
        (missing, "site elsewhere, which has no registered node, as long as it takes; `locum node add` lets one in"),
        (after, f"run {late}, which is pending"),
    ):
        served.wait_for_event(run, "said", 2)
        assert served.events(run)[-1].fields["sentence"] == f"Run {run} waits for {sentence}."
        (row,) = [row for row in json.loads(served.ask("runs", "--json").out)["runs"] if row["run"] == run]
        assert (row["status"], row["waits_for"]) == ("pending", sentence)
        assert served.ask("skip", run, "0", "--by=Dr Grey", "--why=late").status == 2  # it has no stops yet
    for run in (late, missing, after):
        assert served.ask("cancel", run).status == 0
        assert served.ask("watch", run).status == 1


def test_a_run_fails_or_goes_on_without_a_site_that_does_not_come(served: Served) -> None:
    sites = ["--set=sites=[north, elsewhere]", "--set=patience.wait=1 s"]
    (failing,) = served.schedule(*sites)
    (skipping,) = served.schedule(*sites, "--set=patience.then={skip: Dr Grey}")
    failed = served.ask("watch", failing)
    assert failed.status == 1
    assert f"Run {failing} waits for site elsewhere, which has no registered node, until " in failed.err
    why = "Site elsewhere: it was away for more than 15 s; resume the run when it is back. [AWAY]"
    assert f"locum: Run {failing} failed: {why}" in failed.err.splitlines()
    skipped = served.ask("watch", skipping)
    assert skipped.status == 3
    assert [(stop.status, stop.skipped_by) for stop in served.home.store().run(skipping).stops] == [
        ("done", None), ("skipped", "Dr Grey"),
    ]  # fmt: skip
    said = [event.fields["sentence"] for event in served.events(skipping) if event.kind == "said"]
    assert "Site elsewhere is still away." in said
    assert not [sentence for sentence in said if sentence.startswith("Site elsewhere is away; it is waited for")]


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


@pytest.mark.faults  # for the minutes it takes
def test_runs_at_one_site_wait_for_each_other_and_others_do_not(served: Served) -> None:
    north, again = served.schedule("--set=sites=[north]", "--set=study={strategies: [finetune, finetune]}")
    (east,) = served.schedule("--set=sites=[east]")
    for run in (north, again, east):
        assert served.ask("cancel", run).status == 0
    with served.client() as client:
        for run in (north, again, east):
            client.resume(run)
    began, ended = {}, {}
    for run in (north, again, east):
        assert served.ask("watch", run).status == 0
        began[run], ended[run] = ([event.time for event in served.events(run) if event.kind == kind][-1]
                                  for kind in ("run_began", "run_ended"))  # fmt: skip
    assert began[north] < ended[east]
    assert began[east] < ended[north]
    assert ended[north] <= began[again]
    said = [event.fields.get("sentence") for event in served.events(again)]
    assert f"Run {again} waits for site north, where it is the turn of run {north}." in said

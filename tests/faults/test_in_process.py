"""Kill a run at any moment, resume it: it ends as if nothing had happened, same matrix, same weights, bit for bit."""

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import TINY, Desk, outcome

EVERY = 2  # steps or rounds between two checkpoints
TWO = (
    "--set=sites=[{name: north, phantom: {task: organ, cases: 6, size: 16}}, "
    "{name: east, phantom: {task: organ, appearance: 1, cases: 7, size: 16}}]"
)
KILLED = -signal.SIGKILL


class Zygote:
    """forking.py, talked to."""

    def __init__(self) -> None:
        environment = os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", Path(__file__).parent / "forking.py"],  # not with tests/ before the rooms
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=Path(__file__).parents[2],
        )  # fmt: skip

    def _ask(self, order: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, argv: list[str], log: Path, output: Path, at: int | None, number: int) -> int:
        order = {"start": argv, "log": str(log), "output": str(output), "at": at, "signal": number}
        pid: int = self._ask(order)
        return pid

    def wait(self, pid: int) -> tuple[int, bool]:
        status, stopped = self._ask({"wait": pid})
        return status, stopped

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


@dataclass
class Trial:
    """One home folder, and the commands that live and die there."""

    zygote: Zygote
    desk: Desk
    strategy: str = "finetune"
    _numbers: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.desk.folder.mkdir(parents=True, exist_ok=True)
        (self.desk.folder / "tiny.yaml").write_text(TINY)

    @property
    def log(self) -> Path:
        return self.desk.folder / "moments"

    def start(self, *command: str, at: int | None = None, number: int = signal.SIGKILL) -> int:
        argv = [*command, f"--home={self.desk.home.folder}"]
        output = self.desk.folder / f"output-{next(self._numbers)}"
        return self.zygote.start(argv, self.log, output, at, number)

    def simulate(self, **how: Any) -> int:
        scenario = str(self.desk.folder / "tiny.yaml")
        sets = (TWO, f"--set=training.checkpoint_every={EVERY}", f"--set=strategy={self.strategy}")
        return self.start("simulate", scenario, *sets, "--json", "--no-report", **how)

    def resume(self, **how: Any) -> int:
        return self.start("resume", self.run, "--json", "--no-report", **how)

    def end(self, pid: int) -> int:
        return self.zygote.wait(pid)[0]

    @property
    def runs(self) -> list[str]:
        path = self.desk.home.folder / "coordinator.db"
        if not path.exists():
            return []
        with closing(sqlite3.connect(path)) as connection:
            there = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'runs'").fetchone()[0]
            return [name for (name,) in connection.execute("SELECT id FROM runs")] if there else []

    @property
    def run(self) -> str:
        (run,) = self.runs
        return run

    def moments(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def output(self, number: int = -1) -> dict[str, Any]:
        files = sorted(self.desk.folder.glob("output-*[0-9]"), key=lambda path: int(path.name.split("-")[1]))
        document: dict[str, Any] = json.loads(files[number].read_text())
        return document

    def errors(self) -> str:
        files = sorted(self.desk.folder.glob("output-*.err"), key=lambda path: int(path.stem.split("-")[1]))
        return files[-1].read_text()

    def finish(self) -> None:
        """Resume the run until it is done; one that was never written down is begun again."""
        pid = self.resume() if self.runs else self.simulate()
        status = self.end(pid)
        assert status == 0, self.errors()


@pytest.fixture(scope="module")
def undisturbed(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The trial of an undisturbed run of a strategy."""
    made: dict[str, Trial] = {}

    def of(strategy: str) -> Trial:
        if strategy not in made:
            trial = Trial(zygote, Desk(tmp_path_factory.mktemp("undisturbed")), strategy)
            assert trial.end(trial.simulate()) == 0, trial.errors()
            made[strategy] = trial
        return made[strategy]

    return of


def assert_as_undisturbed(trial: Trial, reference: Trial, kills: int = 1) -> None:
    row = trial.desk.row(trial.run)
    assert outcome(row) == outcome(reference.desk.row(reference.run))
    document, expected = trial.output(), reference.output()
    for key in ("status", "sites", "unseen", "matrix", "metrics", "weights_sha256"):
        assert document[key] == expected[key]
    assert repeated(trial) <= kills * EVERY
    for site in ("north", "east", "island"):
        assert trial.desk.ledger(site).verify() == []
        left = Counter(visits_that_left(trial, site))
        of_many = {(stop.index,) for stop in row.stops if stop.rounds_done > 1}
        assert left.keys() == set(visits_that_left(reference, site))
        assert all(times == 1 for key, times in left.items() if key[:1] not in of_many)
    homes = [t.desk.home.folder for t in (trial, reference)]
    artifacts = [{path.name for path in (home / "vault").rglob("*.safetensors")} for home in homes]
    assert artifacts[1] <= artifacts[0]
    assert not list((homes[0] / "nodes").rglob("checkpoints/*/*.safetensors"))  # none outlives its stop


def visits_that_left(trial: Trial, site: str) -> list[tuple[object, ...]]:
    wanted = "out", "train.visit"
    return [
        (e.stop, e.round, e.action)
        for e in trial.desk.ledger(site).entries()
        if (e.direction, e.message_type) == wanted
    ]


def repeated(trial: Trial) -> int:
    """Steps that were taken more than once, or rounds, in stops of many."""
    of_many = {stop.index for stop in trial.desk.row(trial.run).stops if stop.rounds_done > 1}
    moments = [line.split() for line in trial.moments() if line.startswith("step")]
    steps = Counter(tuple(words) for words in moments if int(words[1]) not in of_many)
    rounds: set[tuple[int, int]] = set()
    for site in ("north", "east"):
        entries = [e for e in trial.desk.ledger(site).entries() if e.message_type == "train.visit"]
        asked = Counter((e.stop, e.round) for e in entries if e.direction == "in" and e.stop in of_many)
        rounds |= {key for key, times in asked.items() if times > 1}
    return len(rounds) + sum(times - 1 for times in steps.values())


def kill_at(zygote: Zygote, undisturbed: Any, folder: Path, strategy: str, at: int) -> None:
    reference = undisturbed(strategy)
    trial = Trial(zygote, Desk(folder), strategy)
    status = trial.end(trial.simulate(at=at))
    assert status == KILLED, trial.errors()
    assert trial.moments() == reference.moments()[: at + 1]
    trial.finish()
    assert_as_undisturbed(trial, reference)
    trial.desk.home.store().engine.dispose()


def find(moments: list[str], what: str, after: str, more: int = 0) -> int:
    """The number of the first moment `what` after `after`, and so many further."""
    return moments.index(what, moments.index(after)) + more


NAMED = {
    "within the first visit, after its first checkpoint": ("step 0 north 3", "step 0 north 2", 0),
    "while the checkpoint is written": ("sync", "step 0 north 2", 0),
    "when the checkpoint is written, not yet renamed": ("rename", "step 0 north 2", 0),
    "when the visit is over, its artifact not written": ("sync", "step 0 north 4", 0),
    "when the artifact is renamed, not yet committed": ("commit coordinator.db", "step 0 north 4", 0),
    "when the visit is committed, before its first score": ("commit coordinator.db", "step 0 north 4", 1),
    "between two scores": ("commit coordinator.db", "step 0 north 4", 2),
    "when the last step of all is taken": ("step 1 east 4", "step 1 east 3", 0),
}


@pytest.mark.parametrize("moment", NAMED)
def test_a_run_survives_a_kill(zygote, undisturbed, tmp_path, moment):
    what, after, more = NAMED[moment]
    moments = undisturbed("finetune").moments()
    at = find(moments, what, after)
    for _ in range(more):
        at = moments.index(what, at + 1)
    kill_at(zygote, undisturbed, tmp_path, "finetune", at)


@pytest.mark.parametrize("part", [0.4, 0.8])
def test_joint_training_survives_a_kill_between_its_rounds(zygote, undisturbed, tmp_path, part):
    kill_at(zygote, undisturbed, tmp_path, "joint", int(part * len(undisturbed("joint").moments())))


REPLAYS = {
    "exact": "{name: replay, cases: 2}",
    "interleaved": "{name: replay, mode: interleaved, cases: 2, local_steps: 2}",
}
every_replay = pytest.mark.parametrize("strategy", REPLAYS.values(), ids=REPLAYS)


@every_replay
def test_rehearsal_survives_a_kill_between_its_rounds(zygote, undisturbed, tmp_path, strategy):
    moments = undisturbed(strategy).moments()
    second = [number for number, moment in enumerate(moments) if moment.startswith("commit node.db")]
    kill_at(zygote, undisturbed, tmp_path, strategy, second[int(0.6 * len(second))])


@every_replay
@pytest.mark.parametrize("file", [1, 2, 3], ids=["first case", "second case", "index"])
def test_a_memory_survives_a_kill_while_it_is_written(zygote, undisturbed, tmp_path, strategy, file):
    """The first file of all that is renamed is the database's copy, the next are those of the first site's memory."""
    renames = [number for number, moment in enumerate(undisturbed(strategy).moments()) if moment == "rename"]
    kill_at(zygote, undisturbed, tmp_path, strategy, renames[file])
    memory = tmp_path / "home" / "nodes" / "north" / "memory"
    assert len(list((memory / "cases").glob("[0-9a-f]*.safetensors"))) == 2


def test_a_run_survives_being_killed_over_and_over(zygote, undisturbed, tmp_path):
    """Every process gets a little further than the one before it: going on takes some thirty moments of its own, in
    which the run is opened, the database copied, and every site describes itself.
    """
    reference = undisturbed("finetune")
    trial = Trial(zygote, Desk(tmp_path))
    draw = random.Random(0)
    kills = 0
    assert trial.end(trial.simulate(at=30)) == KILLED
    while (status := trial.end(trial.resume(at=draw.randrange(34, 56)))) == KILLED:
        kills += 1
        assert kills < 20
    assert status == 0, trial.errors()
    assert kills >= 2
    assert_as_undisturbed(trial, reference, kills + 1)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_survives_kills_from_outside_at_any_time(zygote, undisturbed, tmp_path, seed):
    killed_from_outside(zygote, undisturbed, tmp_path, seed, "finetune")


def killed_from_outside(zygote: Zygote, undisturbed: Any, folder: Path, seed: int, strategy: str) -> None:
    """Between any two machine instructions, in the middle of a write."""
    reference = undisturbed(strategy)
    seconds = reference.output()["seconds"]
    trial = Trial(zygote, Desk(folder), strategy)
    draw = random.Random(seed)
    kills = 0
    for _ in range(2):
        pid = trial.resume() if trial.runs else trial.simulate()
        time.sleep(draw.uniform(0.1, 1.0) * seconds)
        os.kill(pid, signal.SIGKILL)
        kills += trial.end(pid) == KILLED
    trial.finish()
    assert_as_undisturbed(trial, reference, kills)
    trial.desk.home.store().engine.dispose()


def test_an_interrupted_run_says_how_to_go_on(zygote, undisturbed, tmp_path):
    """Ctrl-C is no kill: the command says what to do, ends with 130, and leaves the run to be resumed."""
    trial = Trial(zygote, Desk(tmp_path))
    at = find(undisturbed("finetune").moments(), "step 0 north 3", "step 0 north 2")
    assert trial.end(trial.simulate(at=at, number=signal.SIGINT)) == 130
    assert f"locum resume {trial.run}" in trial.errors()
    assert "Traceback" not in trial.errors()
    trial.finish()
    assert_as_undisturbed(trial, undisturbed("finetune"))


def test_a_second_process_on_the_same_run_is_refused_until_the_first_is_gone(zygote, undisturbed, tmp_path):
    trial = Trial(zygote, Desk(tmp_path))
    at = find(undisturbed("finetune").moments(), "step 0 north 3", "step 0 north 2")  # within no transaction
    first = trial.simulate(at=at, number=signal.SIGSTOP)
    assert zygote.wait(first) == (0, True)  # stopped in the middle, alive
    assert trial.end(trial.resume()) == 2
    assert (
        trial.errors() == f"locum: Run {trial.run} is being carried out by another process; wait for it or stop it.\n"
    )
    assert trial.end(trial.start("runs", "--json")) == 0
    assert trial.output()["runs"][0]["status"] == "running"
    os.kill(first, signal.SIGKILL)
    assert trial.end(first) == KILLED
    assert trial.end(trial.start("runs", "--json")) == 0
    assert trial.output()["runs"][0]["status"] == "interrupted"
    trial.finish()
    assert_as_undisturbed(trial, undisturbed("finetune"))


def test_a_kill_while_the_database_is_made_leaves_one_that_can_be_made(zygote, undisturbed, tmp_path):
    assert undisturbed("finetune").moments()[0] == "commit coordinator.db"
    kill_at(zygote, undisturbed, tmp_path, "finetune", 0)


def test_runs_side_by_side_in_one_home_do_not_disturb_each_other(zygote, undisturbed, tmp_path):
    trial = Trial(zygote, Desk(tmp_path))
    together = [trial.simulate() for _ in range(3)]
    assert [trial.end(pid) for pid in together] == [0, 0, 0], trial.errors()
    expected = undisturbed("finetune")
    for run in trial.runs:
        assert outcome(trial.desk.row(run)) == outcome(expected.desk.row(expected.run))
    assert len(trial.runs) == 3


@pytest.mark.storm
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    "strategy", ["finetune", "joint", "{name: joint-fedavg, local_steps: 3}", "individual", *REPLAYS.values()]
)
def test_storm_every_moment(zygote, undisturbed, tmp_path, strategy):
    """The whole argument: a kill at every moment there is."""
    moments = undisturbed(strategy).moments()
    for at in range(len(moments)):
        kill_at(zygote, undisturbed, tmp_path / str(at), strategy, at)


@pytest.mark.storm
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("strategy", ["finetune", "joint", *REPLAYS.values()])
def test_storm_from_outside(zygote, undisturbed, tmp_path, strategy):
    for seed in range(20):
        killed_from_outside(zygote, undisturbed, tmp_path / str(seed), seed, strategy)

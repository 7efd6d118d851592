"""A node's ledger that is damaged, gone or set back: nothing crosses until a person has decided, and that stands."""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from node import database
from node.cli import main
from node.database import open_database
from node.ledger import GENESIS
from node.ledger_head import LedgerBroken, open_ledger
from node.privacy import epsilon
from protos.refusals import RefusalCode, explain
from tests.conftest import Desk, outcome
from tests.coordinator.test_cli import Terminal
from tests.faults.damaging import Undisturbed, cut, interrupted, left_with_visits, remove
from tests.node.test_ledger import crossing


def empty(path: Path) -> None:
    os.truncate(path, 0)


def scribble(path: Path) -> None:
    path.write_bytes(os.urandom(200) + path.read_bytes()[200:])


Damage = Callable[[Path], None]
DAMAGE: dict[str, tuple[Damage, str]] = {
    "cut in half": (cut, "is damaged (database disk image is malformed)"),
    "cut to nothing": (empty, "is empty"),
    "gone": (remove, "is gone"),
    "its head overwritten": (scribble, "is damaged (file is not a database)"),
}
every_damage = pytest.mark.parametrize(("damage", "reason"), DAMAGE.values(), ids=DAMAGE)
SIGNED = ("--by", "Dr. Roe", "--why", "the disk failed")


def closed(home: Path) -> Path:
    """The node's database as the end of its last process leaves it."""
    database._opened.pop(home.absolute()).engine.dispose()
    assert not (home / "node.db-wal").exists()
    return home / "node.db"


@pytest.fixture
def node(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Calls `locum-node`: status, standard output, standard error."""

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(words)
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return int(str(end.value.code)), said.out, said.err

    return call


@every_damage
def test_nothing_crosses_until_a_person_has_decided(
    desk: Desk, locum: Terminal, node, damage: Damage, reason: str, undisturbed: Undisturbed
) -> None:
    run = interrupted(desk, "stop began", 1)
    home = desk.home.folder / "nodes" / "east"
    file = closed(home)
    damage(file)
    left = file.read_bytes() if file.exists() else None
    sentence = f"The ledger in {file} {reason}; restore it from a backup, or set it aside and begin a new one with "

    for _ in range(2):  # not even the second time
        said = locum("resume", run, "--no-report")
        assert said.status == 1
        what = explain(RefusalCode.LEDGER_BROKEN)
        assert f"locum: Run {run} failed: Site east: {what} [LEDGER_BROKEN]\n" in said.err
        assert sentence in desk.home.nodes_log.read_text()
        assert "Traceback" not in desk.home.nodes_log.read_text()
        assert (file.read_bytes() if file.exists() else None) == left
    for option in ([], ["--verify"]):
        status, _, err = node("ledger", f"--home={home}", *option)
        assert (status, err.startswith(sentence)) == (1, True)

    status, out, _ = node("renew", f"--home={home}", *SIGNED)
    assert status == 0
    assert f"The ledger before this one {reason}, and was set aside by Dr. Roe on " in out
    aside = next(iter(home.glob("node.db.broken-*[0-9]")), None)  # not its -wal and -shm
    assert (None if aside is None else aside.read_bytes()) == left
    digest = "no file" if left is None else f"SHA-256 {hashlib.sha256(left).hexdigest()}"
    assert digest in out

    assert locum("resume", run, "--no-report").status == 0
    assert outcome(desk.row(run)) == undisturbed("finetune")
    status, out, _ = node("ledger", f"--home={home}", "--verify")
    assert (status, out.startswith("The ledger is sound: ")) == (0, True)
    assert f"Entry 1: The ledger before this one {reason}, and " in out
    assert digest in out
    assert [len(left_with_visits(desk, site, run)) for site in ("north", "east", "south")] == [1, 1, 1]


def test_every_break_is_shown_for_ever(tmp_path: Path, node) -> None:
    """Also after the next one, as far as the broken ledger can be read."""
    for number in range(3):
        open_ledger(tmp_path).record(crossing(number))
        shutil.copy(closed(tmp_path), tmp_path / "older.db")
        open_ledger(tmp_path).record(crossing(number))
        closed(tmp_path)
        (tmp_path / "older.db").replace(tmp_path / "node.db")  # a backup that is older than the ledger was
        assert node("renew", f"--home={tmp_path}", "--by=Dr. Roe", f"--why=time {number}")[0] == 0
    status, out, _ = node("ledger", f"--home={tmp_path}", "--verify", "--json")
    found = json.loads(out)
    assert (status, found["sound"], found["entries"]) == (0, True, 3)
    assert [text.partition(" UTC: ")[2].partition(".")[0] for text in found["breaks"]] == ["time 0", "time 1", "time 2"]
    assert all("has lost entries: number " in text for text in found["breaks"])
    assert len(list(tmp_path.glob("node.db.broken-*[0-9]"))) == 3


def test_a_ledger_that_was_exchanged_is_found(tmp_path: Path) -> None:
    for name in ("one", "other"):
        for number in range(2):
            open_ledger(tmp_path / name).record(crossing(number, detail=name))
        closed(tmp_path / name)
    shutil.copy(tmp_path / "other" / "node.db", tmp_path / "one" / "node.db")
    with pytest.raises(LedgerBroken, match=r"is another one than it was: number 2 has not the hash that was written; "):
        open_ledger(tmp_path / "one")


def test_what_is_remembered_may_lag_behind_or_be_damaged_itself(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    for number in range(3):
        ledger.record(crossing(number))
    assert (tmp_path / "ledger.head").read_text().split()[:2] == ["000000000003", ledger.head()]
    (tmp_path / "ledger.head").write_bytes(b"")
    closed(tmp_path)
    assert open_ledger(tmp_path).count() == 3
    remove(tmp_path / "node.db")
    with pytest.raises(LedgerBroken, match="is gone"):
        open_ledger(tmp_path)
    remove(tmp_path / "ledger.head")  # as a person does who removes all of it
    assert open_ledger(tmp_path).head() == GENESIS


def test_what_was_spent_of_the_privacy_budget_stays_spent(tmp_path: Path, node) -> None:
    """Also that of entries which are lost, whether the node waits for the disk or not."""
    for durable in (True, False):
        home = tmp_path / str(durable)
        for number in range(5):
            open_ledger(home, durable).record(crossing(number))
            if number == 2:
                shutil.copy(closed(home), tmp_path / "older.db")
        closed(home)
        (tmp_path / "older.db").replace(home / "node.db")
        if not durable:
            cut(home / "node.db")
        for times in range(2):
            assert node("renew", f"--home={home}", *SIGNED)[0] == 0
            release = open_ledger(home).last_release()
            assert release is not None
            assert (release.releases, release.epsilon) == ({10.0: 5}, epsilon({10.0: 5}, 1e-5)), times
            closed(home).unlink()


def test_what_is_not_to_be_set_aside_is_not(tmp_path: Path, node) -> None:
    open_ledger(tmp_path).record(crossing())
    status, _, err = node("renew", f"--home={tmp_path}", *SIGNED)
    sound = f"locum-node: The ledger in {tmp_path / 'node.db'} is sound; there is nothing to set aside.\n"
    assert (status, err) == (2, sound)
    remove(closed(tmp_path))
    with (tmp_path / "node.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, _, err = node("renew", f"--home={tmp_path}", *SIGNED)
    assert (status, "`locum-node serve` is using the ledger; stop it first." in err) == (2, True)
    status, _, err = node("renew", f"--home={tmp_path}", "--by", " ", "--why", "")
    assert (status, "fill in --by and --why" in err) == (2, True)
    status, _, err = node("renew", f"--home={tmp_path / 'nowhere'}", *SIGNED)
    assert (status, "There is no node in" in err) == (2, True)
    assert not (tmp_path / "node.db").exists()


def test_a_crash_while_it_is_set_aside_is_gone_on_with(tmp_path: Path, node) -> None:
    open_ledger(tmp_path).record(crossing())
    aside = tmp_path / "node.db.broken-20300101T000000000000"
    closed(tmp_path).rename(aside)
    status, out, _ = node("renew", f"--home={tmp_path}", *SIGNED)
    assert (status, f"{aside.name}, SHA-256 {hashlib.sha256(aside.read_bytes()).hexdigest()}" in out) == (0, True)


def test_a_chain_that_does_not_hold_together_may_be_set_aside(tmp_path: Path, node) -> None:
    for number in range(3):
        open_ledger(tmp_path).record(crossing(number))
    with open_database(tmp_path).begin() as connection:
        for statement in ("DROP TRIGGER ledger_no_update", "UPDATE ledger SET detail = 'x' WHERE seq = 2"):
            connection.exec_driver_sql(statement)
    assert node("ledger", f"--home={tmp_path}", "--verify")[0] == 1
    status, out, _ = node("renew", f"--home={tmp_path}", *SIGNED)
    assert (status, "does not hold together (Entry 2 was changed" in out) == (0, True)
    assert node("ledger", f"--home={tmp_path}", "--verify")[0] == 0

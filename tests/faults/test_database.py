"""A coordinator's database that was damaged: said in one sentence, gone back from to its copy, and nothing is lost."""

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.database_copy import copy_of, go_back, keep_copy
from coordinator.home import alone
from coordinator.skipping import skip
from coordinator.store import StoreUnusable, close_store
from tests.conftest import Desk, outcome
from tests.coordinator.test_cli import Terminal
from tests.faults.damaging import Undisturbed, cut, died, interrupted, left_with_visits, remove, stops_made


def empty(path: Path) -> None:
    os.truncate(path, 0)


def scribble(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[:200] = os.urandom(200)
    path.write_bytes(data)


def one_page(path: Path) -> None:
    """As where what was in the write-ahead log got lost: a database without tables."""
    path.unlink()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


DAMAGE = {
    "cut in half": (cut, "database disk image is malformed"),
    "cut to nothing": (empty, "it is empty"),
    "gone": (remove, "it is gone"),
    "its head overwritten": (scribble, "file is not a database"),
    "its log lost": (one_page, "its tables are gone"),
}


def file_of(desk: Desk) -> Path:
    return desk.home.folder / "coordinator.db"


def closed(desk: Desk) -> Path:
    """The database's file, as the end of the last process that used it leaves it."""
    close_store(desk.home.database)
    assert not file_of(desk).with_name("coordinator.db-wal").exists()
    return file_of(desk)


@pytest.mark.parametrize(("damage", "reason"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_database_is_said_and_gone_back_from(
    desk: Desk, locum: Terminal, damage: Callable[[Path], None], reason: str, undisturbed: Undisturbed
) -> None:
    """It was damaged after a stop and some scores were committed: the copy has the stop, the scores are asked again."""
    run = interrupted(desk, "scored", 1, "east")
    path = closed(desk)
    damage(path)
    for command in (["runs"], ["resume", run], ["show", run], ["simulate", locum.scenario]):
        said = locum(*command)
        assert said.status == 1
        assert said.err.splitlines()[0].startswith(
            f"locum: The database {path} is damaged ({reason}); `locum restore` goes back to its copy of 20"
        )
        assert len(said.err.splitlines()) == 1
    restored = locum("restore")
    assert restored.status == 0
    assert "The database is that of 20" in restored.out
    assert bool(list(path.parent.glob("coordinator.db.damaged-*"))) == (damage is not remove)
    assert locum("resume", run, "--no-report").status == 0
    assert outcome(desk.row(run)) == undisturbed("finetune")
    for site in ("north", "east", "south"):
        assert len(left_with_visits(desk, site, run)) == 1
        assert desk.ledger(site).verify() == []


def test_what_was_committed_after_the_copy_is_made_again(desk: Desk, undisturbed: Undisturbed) -> None:
    """The worst case: the process died between the commit of stop 1 and its copy."""
    run = interrupted(desk, "stop began", 1)
    old = copy_of(file_of(desk)).read_bytes()
    died(desk, run, "stop ended", 1)
    copy_of(file_of(desk)).write_bytes(old)
    cut(closed(desk))
    go_back(file_of(desk))
    assert [stop.status for stop in desk.row(run).stops] == ["done", "pending", "pending"]
    assert stops_made(desk.carry_out(run).events) == [1, 2]
    assert outcome(desk.row(run)) == undisturbed("finetune")


def test_a_place_within_a_stop_that_is_gone_by_the_time_of_the_copy(desk: Desk, undisturbed: Undisturbed) -> None:
    """The copy may name a state of rounds that was discarded since: the stop begins anew."""
    run = interrupted(desk, "stepped", 0, "", 3, strategy="joint")
    desk.home.store().keep_copy()
    died(desk, run, "stepped", 0, "", 7)
    cut(closed(desk))
    go_back(file_of(desk))
    desk.carry_out(run)
    assert outcome(desk.row(run)) == undisturbed("joint")


def test_damage_while_a_run_goes_on_ends_it_in_one_sentence(
    desk: Desk, locum: Terminal, undisturbed: Undisturbed
) -> None:
    run = desk.begin()

    def damage(event: tuple[object, ...]) -> None:
        if event[:2] == ("stop began", 1):
            cut(file_of(desk))
            cut(file_of(desk).with_name("coordinator.db-wal"))

    with pytest.raises(
        StoreUnusable, match=rf"^The database {file_of(desk)} (is damaged|could not be used) \([^)]+\); "
    ):
        desk.carry_out(run, damage)
    close_store(desk.home.database)
    assert locum("restore").status == 0
    assert locum("resume", run, "--no-report").status == 0
    assert outcome(desk.row(run)) == undisturbed("finetune")


def test_a_person_s_word_is_in_the_copy(desk: Desk) -> None:
    run = interrupted(desk, "stop began", 1)
    skip(run, 1, desk.home, by="Dr. Roe", why="no consent")
    remove(closed(desk))
    go_back(file_of(desk))
    assert desk.row(run).stops[1].skipped_by == "Dr. Roe"


def test_a_damaged_database_does_not_become_the_copy(desk: Desk) -> None:
    interrupted(desk, "stop began", 1)
    path = closed(desk)
    before = copy_of(path).read_bytes()
    cut(path)
    with pytest.raises(sqlite3.DatabaseError):
        keep_copy(path)
    assert copy_of(path).read_bytes() == before
    assert not list(path.parent.glob(".new-*"))


def test_what_cannot_be_gone_back_to_is_said(desk: Desk, locum: Terminal) -> None:
    run = interrupted(desk, "stop began", 1)
    path = file_of(desk)
    sound = locum("restore")
    assert (sound.status, sound.err) == (1, f"locum: The database {path} is sound; nothing was restored.\n")
    cut(closed(desk))
    with alone(desk.home, run):
        busy = locum("restore")
    assert (busy.status, f"{run}.lock: another process is using the database; stop it first." in busy.err) == (2, True)
    cut(copy_of(path))
    said = locum("restore")
    assert (said.status, said.err) == (
        1,
        f"locum: {copy_of(path)}: the copy is damaged too; restore {path} from a backup.\n",
    )
    copy_of(path).unlink()
    assert locum("restore").err == f"locum: There is no copy of the database {path}; restore it from a backup.\n"
    assert locum("runs").err.endswith(
        f"{path} is damaged (database disk image is malformed); restore it from a backup.\n"
    )
    server = locum("restore", "--database=postgresql+psycopg://me:secret@127.0.0.1/x").err
    assert ("no file of SQLite's" in server, "secret" in server) == (True, False)


def test_lost_commits_are_gone_back_from_though_the_file_is_sound(desk: Desk, locum: Terminal) -> None:
    """A write-ahead log that was cut leaves an older state, without a word from SQLite."""
    path = desk.home.folder / "coordinator.db"
    desk.begin()
    older = closed(desk).read_bytes()
    run = desk.begin()
    closed(desk).write_bytes(older)
    assert locum("show", run).status == 2
    assert locum("restore").status == 0
    assert json.loads(locum("show", run, "--json").out)["run"] == run
    assert len(list(path.parent.glob("coordinator.db.damaged-*"))) == 1

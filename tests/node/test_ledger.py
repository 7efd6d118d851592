"""The ledger's chain shows every change to it, under concurrent writers and after a kill."""

import hashlib
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from importlib.metadata import version
from pathlib import Path

import pytest
from sqlalchemy.exc import IntegrityError

from node.audit import Decision
from node.database import open_database
from node.ledger import GENESIS, TABLE, Crossing, Direction, Ledger, LedgerUnwritable, Verdict, _link
from node.ledger_view import FAULTY, NO_LEDGER, SOUND, run_ledger
from node.privacy import Updates, epsilon
from protos.handover import Kind, manifest_of
from protos.refusals import Refusal, RefusalCode
from protos.software import code_digest
from tests.node.guarded import small_handover

UPDATES = Updates(clip=1.5, noise=10, delta=1e-5)
ROOT = Path(__file__).parents[2]
MANIFEST = manifest_of(small_handover(), run="run-1", stop=0, site="north", strategy="finetune").SerializeToString()


def crossing(number: int = 0, **changes) -> Crossing:
    fields = {
        "direction": Direction.OUT,
        "site": "north",
        "message_type": "train.visit",
        "verdict": Verdict.ALLOWED,
        "run": "run-1",
        "stop": number,
        "round": 0,
        "action": "visit",
        "strategy": "finetune",
        "kind_bytes": {Kind.WEIGHTS: 1208},
        "metrics": {"loss": 0.1 * number},
        "manifest": MANIFEST,
        "updates": UPDATES,
        "audit": Decision(by="Dr. Roe", why="as agreed", handover="0" * 64),
    }
    return Crossing(**(fields | changes))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Six entries."""
    ledger = Ledger(open_database(tmp_path))
    for number in range(6):
        ledger.record(crossing(number))
    return ledger


@pytest.fixture
def tamper(tmp_path: Path, ledger: Ledger):
    """Run SQL behind the ledger's back, as somebody with the file could."""

    def run(*statements: str) -> None:
        with open_database(tmp_path).begin() as connection:
            for statement in ("DROP TRIGGER ledger_no_update", "DROP TRIGGER ledger_no_delete", *statements):
                connection.exec_driver_sql(statement)

    return run


def test_an_untouched_chain_is_sound(ledger: Ledger) -> None:
    assert ledger.verify() == []
    assert [entry.seq for entry in ledger.entries()] == [1, 2, 3, 4, 5, 6]
    assert [entry.seq for entry in ledger.entries(last=2)] == [5, 6]
    assert [entry.seq for entry in ledger.entries(last=99)] == [1, 2, 3, 4, 5, 6]
    assert ledger.count() == 6


def test_an_empty_ledger_is_sound(tmp_path: Path) -> None:
    ledger = Ledger(open_database(tmp_path))
    assert (ledger.head(), ledger.verify(), ledger.verify(GENESIS)) == (GENESIS, [], [])


@pytest.mark.parametrize("column", [column.name for column in TABLE.columns if column.name not in ("seq", "hash")])
@pytest.mark.parametrize("value", ["'changed'", "NULL", "x'00'", "7"])
def test_a_changed_field_is_found(ledger: Ledger, tamper, column: str, value: str) -> None:
    tamper(
        "ALTER TABLE ledger RENAME TO strict",
        f"CREATE TABLE ledger ({', '.join(c.name for c in TABLE.columns)})",  # takes any value
        "INSERT INTO ledger SELECT * FROM strict",
        f"UPDATE ledger SET {column} = {value} WHERE seq = 3",
    )
    assert ledger.verify() == ["Entry 3 was changed, moved or put in: its hash does not fit."]


def test_a_changed_hash_is_found(ledger: Ledger, tamper) -> None:
    tamper(f"UPDATE ledger SET hash = '{GENESIS}' WHERE seq = 3")
    assert [fault.split(" was")[0] for fault in ledger.verify()] == ["Entry 3", "Entry 4"]


@pytest.mark.parametrize(("gone", "says"), [("1", "1 missing"), ("3", "3 missing"), ("3, 4", "3 to 4 missing")])
def test_a_removed_entry_is_found(ledger: Ledger, tamper, gone: str, says: str) -> None:
    tamper(f"DELETE FROM ledger WHERE seq IN ({gone})")
    (fault,) = ledger.verify()
    assert says in fault


def test_a_removed_entry_is_found_when_the_rest_moves_up(ledger: Ledger, tamper) -> None:
    tamper("DELETE FROM ledger WHERE seq = 3", *(f"UPDATE ledger SET seq = {n - 1} WHERE seq = {n}" for n in (4, 5, 6)))
    assert ledger.verify()[0].startswith("Entry 3")


def test_reordered_entries_are_found(ledger: Ledger, tamper) -> None:
    tamper(*(f"UPDATE ledger SET seq = {new} WHERE seq = {old}" for old, new in [(3, 99), (4, 3), (99, 4)]))
    assert [fault.split(" was")[0] for fault in ledger.verify()] == ["Entry 3", "Entry 4", "Entry 5"]


def test_an_inserted_entry_is_found(ledger: Ledger, tamper) -> None:
    columns = ", ".join(column.name for column in TABLE.columns if column.name != "seq")
    tamper(
        *(f"UPDATE ledger SET seq = {n + 1} WHERE seq = {n}" for n in (6, 5, 4)),
        f"INSERT INTO ledger (seq, {columns}) SELECT 4, {columns} FROM ledger WHERE seq = 3",
    )
    assert ledger.verify()[0].startswith("Entry 4")


def test_a_cut_end_is_found_by_a_head_noted_earlier(ledger: Ledger, tamper) -> None:
    early, head = [entry.hash for entry in ledger.entries()][3], ledger.head()
    assert ledger.verify(head) == ledger.verify(early) == []
    tamper("DELETE FROM ledger WHERE seq > 4")
    assert ledger.verify() == []  # this is what a chain alone cannot show
    assert ledger.verify(early) == []
    (fault,) = ledger.verify(head)
    assert "cut off" in fault


def test_a_ledger_written_anew_is_found_by_a_head_noted_earlier(ledger: Ledger, tamper) -> None:
    head = ledger.head()
    tamper("DELETE FROM ledger")
    for number in range(6):
        ledger.record(crossing(number, metrics={}))
    assert ledger.verify() == []
    assert len(ledger.verify(head)) == 1


@pytest.mark.parametrize("statement", ["UPDATE ledger SET detail = ''", "DELETE FROM ledger WHERE seq = 6"])
def test_the_node_itself_cannot_change_an_entry(tmp_path: Path, ledger: Ledger, statement: str) -> None:
    with pytest.raises(IntegrityError, match="append-only"), open_database(tmp_path).begin() as connection:
        connection.exec_driver_sql(statement)
    assert ledger.verify() == []


def test_texts_from_outside_are_kept_short_and_storable(ledger: Ledger) -> None:
    ledger.record(crossing(detail="\ud800\x00" + "x" * 5000, message_type="y" * 5000))
    *_, entry = ledger.entries()
    assert entry.detail.startswith("\\ud800\x00xxx")
    assert len(entry.detail) < 1100
    assert len(entry.message_type) == 1000
    assert ledger.verify() == []


def test_what_cannot_be_written_is_said(ledger: Ledger, tamper) -> None:
    tamper("DROP TABLE ledger")
    with pytest.raises(LedgerUnwritable, match="cannot be written"):
        ledger.record(crossing())


@pytest.mark.parametrize("since", [set(), {"privacy"}])
def test_a_ledger_of_an_older_release_is_read_and_goes_on(tmp_path: Path, since: set[str], capsys) -> None:
    """Its table lacks the columns that came later, and its hashes are over the others."""
    ledger = Ledger(open_database(tmp_path / "new"))
    for number in range(3):
        ledger.record(crossing(number, updates=None, audit=None))
    later = {"software", "code_sha256", "audit"} | since
    columns = [column for column in TABLE.columns if column.name not in later]
    head, rows = GENESIS, []
    for entry in ledger.entries():
        row = {column.name: getattr(entry, column.name) for column in columns if column.name != "hash"}
        hashed = row | {"manifest": hashlib.sha256(row["manifest"]).hexdigest()}
        hashed = {name: value for name, value in hashed.items() if name != "privacy" or value is not None}
        canonical = json.dumps(hashed, sort_keys=True, separators=(",", ":"))
        head = hashlib.sha256(f"{head}\n{canonical}".encode()).hexdigest()
        rows.append([*row.values(), head])
    with closing(sqlite3.connect(tmp_path / "node.db")) as connection, connection:
        connection.execute(f"CREATE TABLE ledger ({', '.join(f'{c.name} {c.type.compile()}' for c in columns)})")
        connection.executemany(f"INSERT INTO ledger VALUES ({', '.join('?' * len(columns))})", rows)

    old = Ledger(open_database(tmp_path))
    assert old.verify(head) == []
    assert old.last_release() is None
    old.record(crossing(3))
    release = old.last_release()
    assert release is not None
    assert release.releases == {10.0: 1}
    assert old.verify(head) == []
    assert [entry.privacy is None for entry in old.entries()] == [True, True, True, False]
    assert [entry.code_sha256 for entry in old.entries()] == [None, None, None, code_digest()]
    assert run_ledger(tmp_path, verify=True) == SOUND
    shown = capsys.readouterr().out.splitlines()
    assert shown[1] == "Written by a release that noted no code: 3 entries, 1 to 3"
    assert shown[2].startswith("Written by locum ")


def test_releases_add_up_however_many_write_at_once(tmp_path: Path) -> None:
    ledger = Ledger(open_database(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: ledger.record(crossing(number, run=f"run-{number % 3}")), range(24)))
    ledger.record(crossing(updates=Updates(clip=1)))
    ledger.record(crossing(updates=None))
    release = ledger.last_release()
    assert release is not None
    assert release.releases == {10.0: 24, 0.0: 1}
    spent = [json.loads(entry.privacy)["epsilon"] for entry in ledger.entries() if entry.privacy]
    assert spent[:24] == sorted(set(spent[:24]))
    assert spent[24] is None


def test_of_updates_that_race_for_the_last_of_a_budget_one_leaves(tmp_path: Path) -> None:
    room = epsilon({10.0: 5}, 1e-5)
    ledger = Ledger(open_database(tmp_path))

    def leaves(number: int) -> bool:
        try:
            ledger.record(crossing(number, updates=UPDATES.model_copy(update={"epsilon": room})))
        except Refusal as refusal:
            return refusal.code is not RefusalCode.PRIVACY_BUDGET
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(leaves, range(16))) == 5
    assert ledger.count() == 5
    assert ledger.verify() == []


def test_threads_write_one_chain(tmp_path: Path) -> None:
    def write(number: int) -> str:
        return Ledger(open_database(tmp_path)).record(crossing(number))

    with ThreadPoolExecutor(8) as pool:
        hashes = list(pool.map(write, range(40)))
    ledger = Ledger(open_database(tmp_path))
    assert ledger.verify() == []
    assert {entry.hash for entry in ledger.entries()} == set(hashes)


WRITER = """
import sys
from pathlib import Path
from itertools import count
from node.audit import Decision
from node.database import open_database
from node.ledger import Crossing, Direction, Ledger, Verdict
for number in range(20) if sys.argv[2] == "some" else count():
    ledger = Ledger(open_database(Path(sys.argv[1])))
    print(ledger.record(Crossing(Direction.IN, "north", "train.visit", Verdict.ALLOWED, stop=number)), flush=True)
"""


def test_processes_write_one_chain_even_when_one_is_killed(tmp_path: Path) -> None:
    def start(how_many: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", WRITER, str(tmp_path / "home"), how_many]
        return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)

    writers = [start("some") for _ in range(3)]
    endless = start("endless")
    written = [endless.stdout.readline().strip() for _ in range(5)]
    endless.send_signal(signal.SIGKILL)
    for process in [*writers, endless]:
        written += process.communicate()[0].split()
    assert [process.returncode for process in writers] == [0, 0, 0]
    ledger = Ledger(open_database(tmp_path / "home"))
    assert ledger.verify() == []
    hashes = {entry.hash for entry in ledger.entries()}
    assert set(written) <= hashes
    assert len(hashes) <= len(set(written)) + 1  # the killed one may have written, and not yet said so


def test_a_long_ledger_is_read_in_little_memory(tmp_path: Path) -> None:
    engine = open_database(tmp_path)
    ledger = Ledger(engine)
    ledger.record(crossing(detail="x" * 1000))
    (first,) = ledger.entries()
    rows, previous = [], first.hash
    for seq in range(2, 4_001):
        row = {**first._asdict(), "seq": seq}
        row["hash"] = previous = _link(previous, row)
        rows.append(row)
    with engine.begin() as connection:
        connection.execute(TABLE.insert(), rows)
    del rows
    tracemalloc.start()
    assert ledger.verify(previous) == []
    assert tracemalloc.get_traced_memory()[1] < 3 * 2**20  # the entries' texts alone are 4 MB
    tracemalloc.stop()


def test_a_replaced_database_is_opened_anew(tmp_path: Path) -> None:
    Ledger(open_database(tmp_path)).record(crossing())
    for file in tmp_path.glob("node.db*"):
        file.unlink()
    assert Ledger(open_database(tmp_path)).count() == 0


MANY = """
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (150, 150))
from pathlib import Path
from node.audit import Decision
from node.database import open_database
for number in range(60):
    open_database(Path(sys.argv[1]) / str(number))
"""


def test_a_process_may_hold_more_nodes_than_it_may_keep_files_open(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", MANY, str(tmp_path)], cwd=ROOT, check=True)
    assert Ledger(open_database(tmp_path / "0")).verify() == []


def test_the_home_is_for_its_owner_only(tmp_path: Path) -> None:
    open_database(tmp_path / "home")
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700


# What people see

HOSTILE = {"strategy": "[red]\x1b[2Jno\u202eon", "detail": "a\tb\nc\x07[/]"}


def test_lines_for_a_pipe(tmp_path: Path, ledger: Ledger, capsys) -> None:
    ledger.record(crossing(6, **HOSTILE))
    assert run_ledger(tmp_path, limit=2) == SOUND
    header, *lines = (line.split("\t") for line in capsys.readouterr().out.splitlines())
    assert [dict(zip(header, line, strict=True))["seq"] for line in lines] == ["6", "7"]
    entry = dict(zip(header, lines[1], strict=True))
    assert entry["strategy"] == "[red]\\x1b[2Jno\\u202eon"
    assert entry["detail"] == "a\\tb\\nc\\x07[/]"


def test_a_table_for_a_terminal(tmp_path: Path, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger.record(crossing(6, code="METRICS", verdict=Verdict.REFUSED, **HOSTILE))
    master, terminal = pty.openpty()
    monkeypatch.setenv("COLUMNS", "250")
    with os.fdopen(terminal, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert run_ledger(tmp_path, limit=2) == SOUND
    read = b""
    with suppress(OSError):  # so ends a terminal that was closed; what it held may come in parts
        while part := os.read(master, 100_000):
            read += part
    os.close(master)
    shown = read.decode()
    assert "weights 1,208 bytes; loss=0.5; clip 1.5, noise 10; epsilon" in shown
    assert "[red]\\x1b[2Jno\\u202eon" in shown
    assert "a\\tb\\nc\\x07[/]" in shown
    assert "\x1b[2J" not in shown


def test_json_for_programs(tmp_path: Path, ledger: Ledger, capsys) -> None:
    ledger.record(crossing(6, manifest=None, **HOSTILE))
    assert run_ledger(tmp_path, json=True) == SOUND
    entries = json.loads(capsys.readouterr().out)
    assert [entry["seq"] for entry in entries] == [1, 2, 3, 4, 5, 6, 7]
    assert entries[0]["kind_bytes"] == {"weights": 1208}
    release = {"clip": 1.5, "noise": 10.0, "delta": 1e-5, "epsilon": epsilon({10.0: 2}, 1e-5), "releases": {"10.0": 2}}
    assert entries[1]["privacy"] == release
    assert entries[0]["manifest"]["tensors"][0]["name"] == "conv.bias"
    assert entries[6]["detail"] == HOSTILE["detail"]


def test_verification(tmp_path: Path, ledger: Ledger, tamper, capsys) -> None:
    head = ledger.head()
    assert run_ledger(tmp_path, verify=True, head=head.upper()) == SOUND
    sound, code, _ = capsys.readouterr().out.splitlines()
    assert sound == f"The ledger is sound: 6 entries, head {head}"
    assert code == f"Written by locum {version('locum')}, code {code_digest()}: 6 entries, 1 to 6"
    tamper("UPDATE ledger SET metrics = '{}' WHERE seq = 2")
    assert run_ledger(tmp_path, verify=True) == FAULTY
    assert "Entry 2" in capsys.readouterr().out
    assert run_ledger(tmp_path, verify=True, json=True) == FAULTY
    told = json.loads(capsys.readouterr().out)
    assert told["sound"] is False
    assert [(span["code_sha256"], span["entries"]) for span in told["code"]] == [(code_digest(), 6)]


def test_an_entry_that_cannot_be_shown(tmp_path: Path, ledger: Ledger, tamper, capsys) -> None:
    tamper("UPDATE ledger SET manifest = x'00' WHERE seq = 2")
    assert run_ledger(tmp_path, json=True) == FAULTY
    assert "--verify" in capsys.readouterr().err


def test_no_ledger_is_one_sentence(tmp_path: Path, capsys) -> None:
    assert run_ledger(tmp_path / "nowhere") == NO_LEDGER
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "node.db").write_bytes(b"this is no database, " * 100)
    assert run_ledger(tmp_path) == FAULTY
    no_message, no_database = capsys.readouterr().err.splitlines()
    assert no_message.startswith("There is no ledger")
    assert "is damaged (file is not a database); restore it from a backup, or set it aside" in no_database


def test_a_reader_that_has_seen_enough_is_not_told_of_a_broken_ledger(tmp_path: Path) -> None:
    ledger = Ledger(open_database(tmp_path, durable=False))
    for _ in range(500):  # more than a pipe holds
        ledger.record(crossing())
    command = f"from node.cli import main; main(['ledger', '--limit', '0', '--home', {str(tmp_path)!r}])"
    shown = subprocess.Popen(
        [sys.executable, "-c", command], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert shown.stdout is not None
    assert shown.stderr is not None
    assert shown.stdout.readline()
    shown.stdout.close()
    assert "cannot be read" not in shown.stderr.read()
    shown.stderr.close()
    shown.wait()

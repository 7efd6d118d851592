"""What a site keeps, shown to its own people, and forgotten where they want it so."""

import json
import re
from pathlib import Path

import pytest

import node.cli
from node.memory_store import MemoryStore
from protos.refusals import Refusal
from tests.node.remembering import Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Two runs, which share some of what they keep."""
    site = Site(tmp_path / "home")
    site.memory("run-1").keep(400, seed=7)
    site.memory("run-2").keep(3, seed=7)
    return site


class Command:
    """`locum-node memory` at a site's node."""

    def __init__(self, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.home = home
        self._capsys = capsys

    def __call__(self, *options: str) -> tuple[int, str, str]:
        """Exit status, standard output and standard error."""
        with pytest.raises(SystemExit) as ended:
            node.cli.main(["memory", "--home", str(self.home), *options])
        out, err = self._capsys.readouterr()
        return int(ended.value.code or 0), out, err


@pytest.fixture
def memory(site: Site, capsys: pytest.CaptureFixture[str]) -> Command:
    return Command(site.home, capsys)


def test_everything_that_is_kept_is_listed(site: Site, memory: Command) -> None:
    status, out, err = memory("--json")
    rows = json.loads(out)
    assert (status, err) == (0, "")
    for run in ("run-1", "run-2"):
        assert [row["case"] for row in rows if row["run"] == run] == site.kept(run)
    sizes = {path.stem: path.stat().st_size for path in site.files}
    assert {row["sha256"]: row["bytes"] for row in rows} == sizes
    assert {row["state"] for row in rows} == {"kept"}
    assert all(re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d", row["kept"]) for row in rows)
    status, out, err = memory()
    head, *lines = out.splitlines()
    assert (status, err) == (0, "")
    assert head.split("\t")[:3] == ["run", "case", "bytes"]
    assert [line.split("\t")[1] for line in lines] == [row["case"] for row in rows]


def test_a_forgotten_case_is_gone_from_files_and_names_for_all_runs(site: Site, memory: Command) -> None:
    for run in ("run-1", "run-2"):
        site.memory(run).samples()  # decoded, and still in this process
    case, other = site.kept("run-2")[0], site.kept("run-1")
    files = site.files
    status, out, err = memory("--forget", case)
    assert (status, err) == (0, "")
    assert out.startswith(f"{case} is forgotten; a run that would rehearse on it stops: run-1, run-2.")
    (gone,) = set(files) - set(site.files)
    assert len(site.files) == len(files) - 1
    for path in (site.home / "memory").rglob("*"):
        assert not path.is_file() or case.encode() not in path.read_bytes()
    for run in ("run-1", "run-2"):
        with pytest.raises(Refusal, match=rf"{gone.name} was forgotten on 20.*; let the coordinator .*\.") as caught:
            site.memory(run).samples()
        assert case not in caught.value.detail
    status, out, _ = memory("--json")
    assert status == 0  # as it should be
    states = [row["state"] for row in json.loads(out) if not row["case"]]
    assert len(states) == 2
    assert all(re.fullmatch(r"forgotten 20\d\d-\d\d-\d\d", state) for state in states)
    assert {row["case"] for row in json.loads(out)} == {*other, ""} - {case}


def test_other_runs_rehearse_on(site: Site, memory: Command) -> None:
    case = next(name for name in site.kept("run-1") if name not in site.kept("run-2"))
    assert memory("--forget", case)[0] == 0
    assert len(site.memory("run-2").samples()) == 3
    site.memory("run-3").keep(400, seed=1)
    assert len(site.memory("run-3").samples()) == len(site.kept("run-1"))  # the archive still has it


def test_forgetting_ends_what_a_crash_left_half_done(
    site: Site, memory: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = site.kept("run-2")[0]

    def killed(*args: object) -> None:
        raise OSError("killed")

    with monkeypatch.context() as context:
        context.setattr(MemoryStore, "write", killed)
        with pytest.raises(OSError, match="killed"):
            MemoryStore(site.home).forget(case)
    with pytest.raises(Refusal, match="is missing"):
        site.memory("run-2").samples()
    assert memory()[0] == 1
    assert memory("--forget", case)[0] == 0
    assert case not in site.kept("run-1") + site.kept("run-2")
    assert memory()[0] == 0


def test_what_is_missing_or_damaged_is_named(site: Site, memory: Command) -> None:
    first, second, *_ = site.files
    first.unlink()
    second.write_bytes(b"")
    status, out, err = memory("--json")
    assert status == 1
    assert {row["sha256"] for row in json.loads(out) if row["state"] == "not usable"} == {first.stem, second.stem}
    for path, what in ((first, "cannot be read"), (second, "is damaged")):
        assert re.search(rf"{path.name} {what}.*\.$", err, re.M)


def test_a_damaged_index_is_named_and_does_not_hide_the_others(site: Site, memory: Command) -> None:
    (site.home / "memory" / "run-1.json").write_text("{")
    status, out, err = memory("--json")
    assert status == 1
    assert {row["run"] for row in json.loads(out)} == {"run-2"}
    assert "run-1.json is damaged" in err
    case = site.kept("run-2")[0]
    status, out, err = memory("--forget", case)
    assert status == 1
    assert out.startswith(f"{case} is forgotten")
    assert err.startswith("Whether a run kept it is not known: ")


@pytest.mark.parametrize("case", ["case-999", "", "../run-2", "*"])
def test_a_case_that_no_run_keeps_is_one_sentence(site: Site, memory: Command, case: str) -> None:
    memory("--forget", (real := site.kept("run-2")[0]))
    before = site.files
    for name in (case, real):
        status, out, err = memory("--forget", name)
        assert (status, out) == (2, "")
        assert len(err.splitlines()) == 1
        assert repr(name) in err
    assert site.files == before


def test_where_nothing_is_kept_and_where_there_is_no_node(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert Command(tmp_path, capsys)() == (0, "Nothing is kept for rehearsal.\n", "")
    assert Command(tmp_path, capsys)("--json") == (0, "[]\n", "")
    assert list(tmp_path.iterdir()) == []
    status, out, err = Command(tmp_path / "no", capsys)()
    assert (status, out) == (2, "")
    assert "There is no node in" in err

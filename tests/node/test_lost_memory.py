"""A memory that is lost, damaged or may hold a test case is refused in one sentence, whenever it is asked for."""

import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import node.files
from node import memory_store
from node.data.site import SiteData
from node.memory import SiteMemory
from node.memory_store import MemoryStore
from node.phantoms import write_phantoms
from node.settings import SiteSettings
from protos.messages import Request
from protos.plan import PhantomSite, Split, Task
from tests.node.remembering import PLAN, Site, assert_one_sentence, refused


def test_what_was_never_kept_or_is_lost_is_no_empty_memory(site: Site) -> None:
    assert_one_sentence(refused(site.memory()), "run-1.json")
    assert site.opened == 0
    assert not site.home.exists()
    site.memory().keep(2, seed=7)
    shutil.rmtree(site.home / "memory")
    assert_one_sentence(refused(site.memory()), "run-1.json")


def test_a_case_that_is_removed_meanwhile_is_not_rehearsed_on(site: Site) -> None:
    site.memory().keep(4, seed=7)
    site.memory().samples()
    (gone, *_) = site.files
    gone.unlink()
    refusal = refused(site.memory())
    assert_one_sentence(refusal, gone.name)
    assert "is missing" in refusal.detail


def test_a_crash_before_the_index_is_written_leaves_nothing_kept(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(path: Path, data: bytes) -> None:
        if path.suffix == ".json":
            raise KeyboardInterrupt
        real(path, data)

    real = node.files.replace_file
    monkeypatch.setattr(memory_store, "replace_file", crash)
    with pytest.raises(KeyboardInterrupt):
        site.memory().keep(3, seed=7)
    assert "is missing" in refused(site.memory()).detail
    monkeypatch.setattr(memory_store, "replace_file", real)
    site.memory().keep(3, seed=7)
    assert len(site.memory().samples()) == 3
    assert len(site.files) == 3


def test_half_written_files_of_a_killed_process_are_cleared_away(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            site.memory().keep(3, seed=7)
    (site.home / "memory" / ".new-index").touch()
    assert [path.name.startswith(".new-") for path in site.files] == [True]
    site.memory().keep(3, seed=7)
    assert len(site.files) == 3
    assert sorted(path.name for path in (site.home / "memory").iterdir()) == ["cases", "run-1.json"]


def test_nobody_clears_away_what_another_is_writing(site: Site) -> None:
    """The second waits for the first, whose half written file is still there."""
    order: list[str] = []

    def second() -> None:
        with MemoryStore(site.home).writing():
            order.append("second")

    with MemoryStore(site.home).writing():
        (half := site.home / "memory" / "cases" / ".new-half").touch()
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(timeout=0.2)
        order.append("first" if half.exists() else "lost")
    thread.join()
    assert order == ["first", "second"]
    assert not half.exists()


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], None]] = {
    "bit": flip_a_bit,
    "cut": cut,
    "gone": Path.unlink,
    "folder": replace_by_folder,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_case_is_refused_in_one_sentence(site: Site, damage: str) -> None:
    site.memory().keep(3, seed=7)
    DAMAGE[damage](site.files[1])
    assert_one_sentence(refused(site.memory()), site.files[1].name if damage != "gone" else ".safetensors")


@pytest.mark.parametrize("damage", ["cut", "folder", "nonsense"])
def test_a_damaged_index_is_refused_in_one_sentence(site: Site, damage: str) -> None:
    site.memory().keep(3, seed=7)
    index = site.home / "memory" / "run-1.json"
    if damage == "nonsense":
        index.write_text(index.read_text().replace('"sha256":"', '"sha256":"../../'))
    else:
        DAMAGE[damage](index)
    assert_one_sentence(refused(site.memory()), "run-1.json")


def test_under_another_split_what_was_kept_is_refused(site: Site) -> None:
    """Under another seed of the split a case that was kept may be a test case."""
    site.memory().keep(3, seed=7)
    other = PLAN.model_copy(update={"split": PLAN.split.model_copy(update={"seed": 1})})
    refusal = refused(site.memory(plan=other))
    assert_one_sentence(refusal, "memory")
    assert "another split" in refusal.detail


TABLES: dict[str, dict[str, Any]] = {
    "parts": {"table": {"csv": "parts.csv"}},
    "patients": {"group": {"csv": "parts.csv", "column": "part"}},
}


@pytest.mark.parametrize("split", TABLES.values(), ids=TABLES)
@pytest.mark.parametrize("when", ["while the site is open", "later", "gone"])
def test_when_the_sites_own_table_changes_what_was_kept_is_refused(
    tmp_path: Path, split: dict[str, Any], when: str
) -> None:
    folder, task = tmp_path / "north", Task(size=(16, 16), classes=("background", "organ"))
    write_phantoms(PhantomSite(task="organ", cases=8, size=16), task, folder)
    names = sorted(path.stem for path in (folder / "images").iterdir())

    def write(training: Sequence[str]) -> None:
        rows = (f"{name},{'train' if name in training else 'test'}\n" for name in names)
        (folder / "parts.csv").write_text("case,part\n" + "".join(rows))

    plan = PLAN.model_copy(update={"split": Split.model_validate(split)})
    settings = SiteSettings(name="north", home=tmp_path / "home", data=folder, labels={0: "background", 1: "organ"})
    memory = SiteMemory(settings, Request(run="run-1", site="north", plan=plan), lambda: data, most=None)
    write(names[:4])
    data = SiteData(settings, plan)
    if when != "while the site is open":
        memory.keep(2, seed=7)
        assert len(memory.samples()) == 2
    write(names[4:])
    if when == "while the site is open":
        memory.keep(2, seed=7)
    if when == "gone":
        (folder / "parts.csv").unlink()
    refusal = refused(memory)
    assert_one_sentence(refusal, "memory")
    assert "CSV file" in refusal.detail


def test_a_copied_home_is_a_memory_too(site: Site, tmp_path: Path) -> None:
    site.memory().keep(3, seed=7)
    shutil.copytree(site.home, tmp_path / "backup")
    assert len(Site(tmp_path / "backup").memory().samples()) == 3

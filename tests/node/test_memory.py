"""A site's memory: training cases only, chosen once by the seed, copied whole, checked whenever it is asked for."""

import json
import shutil
import stat
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import node.files
from node import memory as memory_module
from node import memory_store
from node.data.cache import SiteCache
from node.data.samples import SiteSamples
from node.data.site import SiteData
from node.data.source import Problem, Scan, Unreadable
from node.data.splits import part_of
from node.memory import SiteMemory
from node.memory_store import MemoryStore
from node.phantoms import write_phantoms
from node.settings import SiteSettings
from protos.messages import Request
from protos.plan import PhantomSite, Plan, Split, Task
from protos.refusals import Refusal, RefusalCode

PLAN = Plan.model_validate(
    {
        "task": {"size": (16, 16), "classes": ("background", "organ")},
        "strategy": {"name": "replay"},
        "training": {"augment": ("flip", "noise")},
        "sites": ("north",),
    }
)


class Shelf:
    """Forty scans in memory, of which some cannot be read."""

    synthetic = False
    problems: tuple[Problem, ...] = ()

    def __init__(self, broken: frozenset[str] = frozenset(), volumes: bool = False) -> None:
        self.broken = broken
        self.space = (16, 16, 3) if volumes else (16, 16)
        self.names = tuple(f"case-{number:03d}" for number in range(40))

    def patient(self, name: str) -> str:
        return name

    def fingerprint(self, names: Iterable[str]) -> str:
        return " ".join(names)

    def load(self, name: str) -> Scan:
        if name in self.broken:
            raise Unreadable(f"{name} is cut off.")
        rng = np.random.default_rng([*name.encode()])
        image = rng.normal(size=(1, *self.space)).astype(">f4")[
            ..., ::-1
        ]  # as readers may hand out: a view, big-endian
        return Scan(name, image, (image[0] > 0.5).astype(np.uint8), (0.7,) * len(self.space))


class Site:
    """Where a memory lives; `opened` counts how often the site's own data were asked for."""

    def __init__(self, home: Path, source: Shelf | None = None) -> None:
        self.home = home
        self.source = source or Shelf()
        self.opened = 0

    def data(self) -> SiteData:
        self.opened += 1
        return SiteData(self.settings, PLAN, source=self.source)

    @property
    def settings(self) -> SiteSettings:
        return SiteSettings(name="north", home=self.home, phantom=PhantomSite(task="organ"))

    def memory(self, run: str = "run-1", plan: Plan = PLAN, most: int | None = None) -> SiteMemory:
        return SiteMemory(self.settings, Request(run=run, site="north", plan=plan), self.data, most)

    def kept(self, run: str = "run-1") -> list[str]:
        index = json.loads((self.home / "memory" / f"{run}.json").read_text())
        return [entry["case"] for entry in index["cases"]]

    @property
    def files(self) -> list[Path]:
        return sorted((self.home / "memory" / "cases").iterdir())


@pytest.fixture(autouse=True)
def restart(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A new process, which has decoded nothing yet; every test begins as one."""

    def begin() -> None:
        monkeypatch.setattr(memory_module, "_cache", SiteCache[SiteSamples](2**20))

    begin()
    return begin


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "home")


def training(names: tuple[str, ...]) -> set[str]:
    return {name for name in names if part_of(name, PLAN.split) == "train"}


def refused(memory: SiteMemory) -> Refusal:
    with pytest.raises(Refusal) as caught:
        memory.samples()
    return caught.value


def test_what_was_never_kept_or_is_lost_is_no_empty_memory(site: Site) -> None:
    assert_one_sentence(refused(site.memory()), "run-1.json")
    assert site.opened == 0
    assert not site.home.exists()
    site.memory().keep(2, seed=7)
    shutil.rmtree(site.home / "memory")
    assert_one_sentence(refused(site.memory()), "run-1.json")


def test_a_site_that_has_no_case_today_keeps_some_when_it_has(tmp_path: Path) -> None:
    """An archive may be out of reach for a while."""
    site = Site(tmp_path, Shelf(broken=frozenset(Shelf().names)))
    site.memory().keep(2, seed=7)
    assert "is missing" in refused(site.memory()).detail
    site.source = Shelf()
    site.memory().keep(2, seed=7)
    assert len(site.memory().samples()) == 2


def test_the_sites_own_limit_narrows_and_nothing_forbids_rehearsal(site: Site) -> None:
    site.memory("run-1", most=3).keep(5, seed=7)
    site.memory("run-2", most=3).keep(2, seed=7)
    assert [len(site.kept(run)) for run in ("run-1", "run-2")] == [3, 2]
    for forbidden in (
        lambda: site.memory("run-3", most=0).keep(5, seed=7),
        lambda: site.memory("run-1", most=0).samples(),
    ):
        with pytest.raises(Refusal, match=r"memory\.cases is 0") as caught:
            forbidden()
        assert caught.value.code == RefusalCode.POLICY
    assert not (site.home / "memory" / "run-3.json").exists()
    assert len(site.memory("run-1", most=1).samples()) == 3  # what is kept already, stays


@pytest.mark.parametrize("cases", [0, 1, 5, 400])
def test_only_training_cases_are_kept_and_not_too_many(site: Site, cases: int) -> None:
    site.memory().keep(cases, seed=7)
    own = training(site.source.names)
    assert len(own) > 5
    assert len(site.kept()) == len(set(site.kept())) == min(cases, len(own))
    assert set(site.kept()) <= own
    assert len(site.memory().samples()) == len(site.kept())


def test_a_whole_volume_is_one_case(tmp_path: Path) -> None:
    site = Site(tmp_path, Shelf(volumes=True))
    site.memory().keep(2, seed=7)
    assert len(site.memory().samples()) == 2 * 3  # slices


def test_the_samples_are_those_of_the_sites_own_cases(site: Site, restart: Callable[[], None]) -> None:
    site.memory().keep(400, seed=7)
    own, kept = site.data().samples("train"), site.memory().samples()
    order = sorted(range(len(kept)), key=lambda index: site.kept()[index])  # the site's are sorted by name
    for seeds in (None, list(range(len(kept)))):
        ours, theirs = kept.batch(order, seeds), own.batch(range(len(own)), seeds)
        assert torch.equal(ours.image, theirs.image)
        assert torch.equal(ours.label, theirs.label)
    assert not torch.equal(kept.batch([0], [1]).image, kept.batch([0]).image)  # augmented as the plan says


def test_what_is_kept_is_never_chosen_anew(site: Site, restart: Callable[[], None]) -> None:
    site.memory().keep(3, seed=7)
    before = site.kept()
    site.memory().keep(9, seed=8)
    restart()
    site.memory().keep(3, seed=9)
    assert site.kept() == before


def test_the_seed_chooses(tmp_path: Path) -> None:
    sites = [Site(tmp_path / name) for name in "abc"]
    for site, seed in zip(sites, (7, 7, 8), strict=True):
        site.memory().keep(3, seed)
    same, again, other = (site.kept() for site in sites)
    assert same == again != other


def test_a_case_that_cannot_be_read_makes_room_and_moves_no_other(tmp_path: Path) -> None:
    whole = Site(tmp_path / "whole")
    whole.memory().keep(5, seed=7)
    lost = whole.kept()[2]
    poorer = Site(tmp_path / "poorer", Shelf(broken=frozenset({lost})))
    poorer.memory().keep(5, seed=7)
    assert len(poorer.kept()) == 5
    assert set(whole.kept()) - {lost} < set(poorer.kept())


def test_runs_do_not_see_each_others_memory_and_share_files(site: Site) -> None:
    site.memory("run-1").keep(400, seed=7)
    files = site.files
    assert "run-2.json is missing" in refused(site.memory("run-2")).detail
    site.memory("run-2").keep(2, seed=1)
    assert len(site.memory("run-2").samples()) == 2
    assert site.files == files


def test_the_memory_outlasts_the_sites_data_and_the_process(site: Site, restart: Callable[[], None]) -> None:
    site.memory().keep(4, seed=7)
    expected = site.memory().samples().batch(range(4), range(4))
    restart()
    site.source, opened = Shelf(broken=frozenset(site.source.names)), site.opened
    found = site.memory().samples().batch(range(4), range(4))
    assert torch.equal(found.image, expected.image)
    assert torch.equal(found.label, expected.label)
    assert site.opened == opened


def test_cases_are_decoded_once_and_not_per_round(site: Site) -> None:
    site.memory().keep(4, seed=7)
    first = site.memory().samples()
    assert site.memory().samples() is first


def test_a_case_that_is_removed_meanwhile_is_not_rehearsed_on(site: Site) -> None:
    site.memory().keep(4, seed=7)
    site.memory().samples()
    (gone, *_) = site.files
    gone.unlink()
    refusal = refused(site.memory())
    assert_one_sentence(refusal, gone.name)
    assert "is missing" in refusal.detail


def test_the_store_is_the_owners_alone(site: Site) -> None:
    site.memory().keep(2, seed=7)
    paths = [site.home / "memory", *(site.home / "memory").rglob("*")]
    assert len(paths) == 1 + 1 + 2 + 1
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


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


def assert_one_sentence(refusal: Refusal, name: str) -> None:
    assert refusal.code == RefusalCode.MEMORY
    assert name in refusal.detail
    assert refusal.detail.endswith(".")
    assert len(refusal.detail.splitlines()) == 1

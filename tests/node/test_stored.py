"""Samples on the disk: the bits of the memory, prepared once, whole or not there, and anew when files change."""

import gc
import shutil
import stat
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import nibabel
import numpy as np
import psutil
import pytest
import torch

from node.data.samples import SiteSamples, samples_of
from node.data.site import SiteData
from node.data.source import Scan, Unreadable
from node.data.stored import Shelf
from node.settings import SiteSettings
from protos.plan import PhantomSite, Plan, Split, StrategyChoice, Task, Training

CLASSES = ("background", "one", "two")
AUGMENT = ("flip", "rotate", "noise")


def scan_of(number, space=(18, 21, 9), soft=False):
    rng = np.random.default_rng(number)
    image = rng.normal(size=(1, *space)).astype(np.float32)
    label = rng.integers(0, 3, space).astype(np.uint8)
    if soft:
        label = (rng.random((2, *space)) * (rng.random((2, *space)) < 0.1) / 2).astype(np.float32)
    return Scan(f"case{number}", image, label, (1.0,) * len(space))


class MemorySource:
    """Scans in memory, each load of which is counted; `state` stands for their files'."""

    synthetic = True
    problems = ()

    def __init__(self, scans, broken=(), state="as it was"):
        self.scans = {scan.name: scan for scan in scans}
        self.broken = set(broken)
        self.state = state
        self.loads = Counter()

    @property
    def names(self):
        return tuple(sorted(self.scans))

    def patient(self, name):
        return name

    def load(self, name):
        self.loads[name] += 1
        if name in self.broken:
            raise Unreadable(f"{name} is cut off.")
        return self.scans[name]

    def fingerprint(self, names):
        return "-".join((self.state, *names))


def site(home, source, task, in_memory, **training):
    plan = Plan(
        task=task,
        strategy=StrategyChoice(name="finetune"),
        training=Training(loss="dice", augment=AUGMENT, **training),
        split=Split(train=1, val=0, test=0),
        sites=("italy",),
    )
    settings = SiteSettings(name="italy", home=home, phantom=PhantomSite(task="lesions"))
    return SiteData(settings, plan, source=source, in_memory=in_memory)


def equal(one, other):
    return all(
        torch.equal(a, b) and a.dtype == b.dtype for a, b in ((one.image, other.image), (one.label, other.label))
    )


TASKS = {
    "volumes": Task(dims=3, size=(8, 12, 8), classes=CLASSES, fit="patch"),
    "soft volumes": Task(dims=3, size=(8, 12, 8), classes=CLASSES, fit="patch", soft=True, foreground=1.0),
    "slices": Task(dims=2, size=(8, 12), classes=CLASSES, fit="patch"),
    "small slices": Task(dims=2, size=(32, 24), classes=CLASSES, fit="patch"),
    "resized": Task(dims=3, size=(8, 8, 8), classes=CLASSES),
    "soft, resized": Task(dims=3, size=(8, 8, 8), classes=CLASSES, soft=True),
}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_the_disk_gives_the_bits_of_the_memory(task, tmp_path):
    scans = [scan_of(number, soft=task.soft) for number in range(3)]
    held = site(tmp_path / "a", MemorySource(scans), task, 2**30).samples("train")
    data = site(tmp_path / "b", MemorySource(scans), task, 0)
    stored = data.samples("train")
    assert not (tmp_path / "a").exists()
    assert held.nbytes > 0 == stored.nbytes == data.nbytes
    assert len(held) == len(stored)
    everything = range(len(held))
    assert equal(held.batch(everything), stored.batch(everything))
    assert equal(held.batch([0, 1, 2] * 5, range(15)), stored.batch([0, 1, 2] * 5, range(15)))


def test_where_half_fits_all_go_to_the_disk_in_order(tmp_path):
    scans = [scan_of(number) for number in range(4)]
    task = TASKS["volumes"]
    held = SiteSamples([s for scan in scans for s in samples_of(scan, task)], task, AUGMENT)
    stored = site(tmp_path, MemorySource(scans), task, held.nbytes // 2).samples("train")
    assert stored.nbytes == 0
    assert equal(held.batch(range(4), range(4)), stored.batch(range(4), range(4)))


def test_a_later_process_decodes_nothing_and_finds_changed_files(tmp_path):
    scans = [scan_of(number) for number in range(3)]
    task = TASKS["volumes"]
    first = site(tmp_path, MemorySource(scans), task, 0).samples("train").batch([0, 1, 2])
    again = MemorySource(scans)
    assert equal(site(tmp_path, again, task, 0).samples("train").batch([0, 1, 2]), first)
    assert not again.loads
    changed = MemorySource([scan_of(7 + number) for number in range(2)] + scans[2:], state="changed")
    changed.scans = {f"case{number}": scan for number, scan in enumerate(changed.scans.values())}
    assert not equal(site(tmp_path, changed, task, 0).samples("train").batch([0, 1, 2]), first)
    assert sum(changed.loads.values()) == 3
    [slot] = (tmp_path / "cache").iterdir()
    assert len([place for place in slot.iterdir() if place.is_dir()]) == 1  # the old ones are gone


def test_another_task_or_number_of_threads_has_a_place_of_its_own(tmp_path):
    scans = [scan_of(number) for number in range(2)]
    for task, threads in ((TASKS["volumes"], 1), (TASKS["volumes"], 2), (TASKS["resized"], 1), (TASKS["volumes"], 1)):
        site(tmp_path, MemorySource(scans), task, 0, threads=threads).samples("train")
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_only_the_owner_may_look(tmp_path):
    site(tmp_path, MemorySource([scan_of(0)]), TASKS["volumes"], 0).samples("train")
    cache = tmp_path / "cache"
    for folder in (cache, *cache.iterdir()):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_an_unreadable_case_is_left_out_of_both_and_tried_again(tmp_path):
    scans = [scan_of(number) for number in range(3)]
    task = TASKS["volumes"]
    data = site(tmp_path, MemorySource(scans, broken=["case1"]), task, 0)
    first = data.samples("train")
    for opened in (data, site(tmp_path, MemorySource(scans, broken=["case1"]), task, 0)):
        samples = opened.samples("train")
        assert len(samples) == 2
        assert equal(samples.batch([0, 1]), first.batch([0, 1]))
        assert opened.counts()["train"] == 2
        assert [problem.sentence for problem in opened.problems] == ["case1 is cut off."]
    # its file was out of reach for a while and has not changed
    healed = site(tmp_path, MemorySource(scans), task, 0)
    assert len(healed.samples("train")) == 3
    assert healed.counts()["train"] == 3


@pytest.mark.parametrize("damage", ["cut", "gone", "index", "half"])
def test_what_is_damaged_is_prepared_anew(damage, tmp_path):
    scans = [scan_of(number) for number in range(2)]
    task = TASKS["volumes"]
    first = site(tmp_path, MemorySource(scans), task, 0).samples("train").batch([0, 1])
    [index] = tmp_path.glob("cache/*/*/index.json")
    case = index.with_name("000001.safetensors")
    match damage:
        case "cut":
            case.write_bytes(case.read_bytes()[:-1])
        case "gone":
            case.unlink()
        case "index":
            index.write_text("{")
        case "half":  # the process died while it wrote
            shutil.copytree(index.parent, index.parent.with_name("new"))
            shutil.rmtree(index.parent)
    source = MemorySource(scans)
    assert equal(site(tmp_path, source, task, 0).samples("train").batch([0, 1]), first)
    assert sum(source.loads.values()) == 2


def test_a_part_that_dies_half_written_is_not_there(tmp_path):
    def cases():
        yield 0, samples_of(scan_of(0), TASKS["volumes"])
        raise MemoryError

    shelf = Shelf(tmp_path / "cache" / "slot", "key")
    with pytest.raises(MemoryError):
        shelf.write(cases())
    assert shelf.read() is None
    shelf.write((number, samples_of(scan_of(number), TASKS["volumes"])) for number in range(2))
    stored = shelf.read()
    assert stored is not None
    assert stored.cases == {0, 1}


def test_two_at_once_prepare_once(tmp_path):
    """Whoever comes second waits for the lock, and takes what is there by then."""
    source = MemorySource([scan_of(number) for number in range(4)])

    def prepare(_):
        return site(tmp_path, source, TASKS["volumes"], 0).samples("train").batch(range(4)).image

    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(prepare, range(4))
    assert all(torch.equal(first, other) for other in others)
    assert sum(source.loads.values()) <= 4 + 3  # the others find out when their first case does not fit


def test_the_files_of_a_folder_are_told_apart_by_length_and_time(tmp_path):
    folder = tmp_path / "data"
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for number in range(2):
        scan = scan_of(number)
        for kind, array in (("images", scan.image[0]), ("labels", scan.label)):
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), folder / kind / f"{scan.name}.nii.gz")
    plan = Plan(
        task=TASKS["volumes"],
        strategy=StrategyChoice(name="finetune"),
        split=Split(train=1, val=0, test=0),
        sites=("italy",),
    )

    def images():
        data = SiteData(SiteSettings(name="italy", home=tmp_path / "home", data=folder), plan, in_memory=0)
        samples = data.samples("train")
        assert samples.nbytes == 0
        return samples.batch(range(2)).image

    before = images()
    assert torch.equal(images(), before)
    other = scan_of(9)
    nibabel.save(nibabel.Nifti1Image(other.image[0], np.eye(4)), folder / "images" / "case1.nii.gz")
    after = images()
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])


def test_scored_cases_that_do_not_fit_are_decoded_each_time(tmp_path):
    scans = [scan_of(number) for number in range(3)]
    source = MemorySource(scans)
    plan = Plan(
        task=TASKS["resized"],
        strategy=StrategyChoice(name="finetune"),
        split=Split(train=0, val=0, test=1),
        sites=("italy",),
    )
    settings = SiteSettings(name="italy", home=tmp_path, phantom=PhantomSite(task="lesions"))
    everything = SiteData(settings, plan, source=MemorySource(scans))
    one = next(everything.scored_cases()).nbytes
    data = SiteData(settings, plan, source=source, in_memory=2 * one)
    for _ in range(2):
        for case, same in zip(data.scored_cases(), everything.scored_cases(), strict=True):
            assert torch.equal(case.image, same.image)
            assert data.nbytes <= 2 * one
    assert source.loads == {"case0": 1, "case1": 1, "case2": 2}


def test_memory_does_not_grow_with_the_site(tmp_path):
    """Five volumes of 40 MB, windows from all over them."""
    task = Task(dims=3, size=(16, 16, 16), classes=CLASSES, fit="patch", intensity="none", foreground=1.0)
    space = (200, 200, 200)

    def cases():
        for number in range(5):
            label = np.zeros(space, np.uint8)
            label[number * 40 : number * 40 + 4, ::50, ::50] = 1
            yield number, samples_of(Scan("a", np.full((1, *space), number, np.float32), label, (1.0,) * 3), task)

    shelf = Shelf(tmp_path / "cache" / "slot", "key")
    shelf.write(cases())
    stored = shelf.read()
    assert stored is not None
    assert {sample.grid for sample in stored.samples} == {space}
    samples = SiteSamples(stored.samples, task)
    gc.collect()
    before = psutil.Process().memory_info().rss
    for seed in range(40):
        batch = samples.batch(range(5), [seed] * 5)
        assert batch.image.amax((1, 2, 3, 4)).tolist() == [0, 1, 2, 3, 4]
        assert batch.label.flatten(1).any(1).all()
    assert psutil.Process().memory_info().rss - before < 40e6

"""Work is found again by all that it depends on, done once by several processes, and never taken up half done."""

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from PIL import Image

import node.app as app_module
from node.data.cache import SiteCache
from node.settings import SiteSettings
from node.workshop import Workshop
from protos.messages import VISIT, Request, pack_request, read_handover
from protos.plan import StrategyChoice
from strategies.registry import strategy_for
from tests.node.guarded import instruction, over_the_wire
from tests.node.test_app import PLAN

ROOT = Path(__file__).parents[2]
RECIPE = {"what": "replay", "seeds": [1, 2], "lr": 0.1}


class Maker:
    """Makes something new every time it is called."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> dict[str, torch.Tensor]:
        self.made += 1
        return {"image": torch.arange(6.0).reshape(2, 3).t() + self.made, "label": torch.tensor([True, False])}


def bits(result: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {name: (tensor.dtype, tensor.tolist()) for name, tensor in result.items()}


def workshop(home: Path, device: str = "cpu", cases: str = "cases") -> Workshop:
    return Workshop(home, device, lambda: cases)


def test_an_equal_recipe_finds_what_was_made(tmp_path: Path) -> None:
    maker = Maker()
    first = workshop(tmp_path)(RECIPE, maker)
    again = workshop(tmp_path)(dict(reversed(RECIPE.items())), maker)  # the order of names says nothing
    assert maker.made == 1
    assert bits(first) == bits(again) == bits({**Maker()()})


@pytest.mark.parametrize("recipe", [{"what": "replay"}, {**RECIPE, "lr": 0.2}, {**RECIPE, "seeds": [2, 1]}, {}])
def test_another_recipe_is_other_work(tmp_path: Path, recipe: Mapping[str, Any]) -> None:
    maker = Maker()
    workshop(tmp_path)(RECIPE, maker)
    workshop(tmp_path)(recipe, maker)
    assert maker.made == 2


def test_other_cases_another_device_and_other_software_are_other_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maker = Maker()
    for changed in ({}, {"cases": "one case more"}, {"device": "cuda"}):
        workshop(tmp_path, **changed)(RECIPE, maker)
    assert maker.made == 3
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "99" if name == "torch" else real(name))
    workshop(tmp_path)(RECIPE, maker)
    assert maker.made == 4
    monkeypatch.undo()
    workshop(tmp_path)(RECIPE, maker)
    assert maker.made == 4


def test_what_no_json_can_hold_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        workshop(tmp_path)({"lr": float("nan")}, Maker())


def test_half_a_file_is_no_work_done_and_leftovers_go(tmp_path: Path) -> None:
    maker = Maker()
    workshop(tmp_path)(RECIPE, maker)
    (file,) = tmp_path.rglob("*.safetensors")
    data = file.read_bytes()
    for number, length in enumerate((0, 4, len(data) // 2, len(data) - 1)):
        file.write_bytes(data[:length])
        (file.parent / ".new-abcdef").write_bytes(data[:length])
        workshop(tmp_path)(RECIPE, maker)
        assert maker.made == number + 2
        assert sorted(path.name for path in file.parent.iterdir()) == ["lock", "made.safetensors"]
        workshop(tmp_path)(RECIPE, maker)
        assert maker.made == number + 2


def test_work_that_fails_is_asked_for_again(tmp_path: Path) -> None:
    def fail() -> dict[str, torch.Tensor]:
        raise FloatingPointError

    with pytest.raises(FloatingPointError):
        workshop(tmp_path)(RECIPE, fail)
    maker = Maker()
    workshop(tmp_path)(RECIPE, maker)
    assert maker.made == 1


def test_results_belong_to_whoever_asked(tmp_path: Path) -> None:
    """Neither the maker, going on with its tensors, nor an asker changes what others find."""
    own = {"weight": torch.zeros(4)}
    made = workshop(tmp_path)(RECIPE, lambda: own)
    own["weight"] += 1
    assert made["weight"].tolist() == [0] * 4
    for _ in range(2):
        found = workshop(tmp_path)(RECIPE, Maker())
        assert found["weight"].tolist() == [0] * 4
        found["weight"] += 1


def test_only_the_owner_reads_it(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        workshop(tmp_path)(RECIPE, Maker())
    finally:
        os.umask(mask)
    everything = [tmp_path / "workshop", *(tmp_path / "workshop").rglob("*")]
    assert len(everything) == 4
    assert all(path.stat().st_mode & 0o077 == 0 for path in everything)


def test_the_folder_can_be_removed_between_runs(tmp_path: Path) -> None:
    maker, kept = Maker(), workshop(tmp_path)
    kept(RECIPE, maker)
    for path in sorted((tmp_path / "workshop").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    kept(RECIPE, maker)
    assert maker.made == 2


PROCESS = """
import os, sys, time
from pathlib import Path
import torch
from node.workshop import Workshop

print("ready", flush=True)
for line in sys.stdin:
    home, seconds = line.split()

    def make():
        print("making", flush=True)
        time.sleep(float(seconds))
        return {"who": torch.tensor([os.getpid()])}

    print(Workshop(Path(home), "cpu", lambda: "cases")({"what": "replay"}, make)["who"].item(), flush=True)
"""


class Process:
    """A process that does the same work wherever it is told to, saying when it begins, and who did it in the end."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, "-c", PROCESS], cwd=ROOT, stdin=pipe, stdout=pipe, text=True)

    def tell(self, home: Path, seconds: float) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{home} {seconds}\n")
        self.process.stdin.flush()

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def test_two_processes_do_it_once_and_a_killed_one_leaves_it_to_the_other(tmp_path: Path) -> None:
    one, other = Process(), Process()
    with one.process, other.process:
        assert (one.says(), other.says()) == ("ready", "ready")
        for each in (one, other):  # at once
            each.tell(tmp_path / "first", 0.5)
        said = [one.says(), other.says()]
        maker = one if said[0] == "making" else other
        pid = str(maker.process.pid)
        assert sorted(said) == sorted(["making", pid])
        assert maker.says() == pid

        one.tell(tmp_path / "second", 600)
        assert one.says() == "making"
        other.tell(tmp_path / "second", 0)
        one.process.kill()
        assert other.says() == "making"
        assert other.says() == str(other.process.pid)
        other.process.kill()


# Through the node

TINY = PLAN.model_copy(
    update={
        "strategy": StrategyChoice(
            name="smg", generator={"channels": [8]}, generator_steps=2, generator_batch=2, evaluations=1
        )
    }
)


def generator_of(site: SiteSettings) -> Mapping[str, Any]:
    """What the generator is after a visit to the site, by a process of its own as far as what it remembers goes."""
    app_module._cache = SiteCache(budget=2**20)
    request = Request(run="run-1", site="north", plan=TINY)
    message = instruction(pack_request(request, strategy_for(TINY).first_handover()), VISIT)
    reply = app_module.app(over_the_wire(message), Context(1, 7, {"site": site.model_dump_json()}, RecordDict(), {}))
    handover = read_handover(over_the_wire(reply).content)
    assert handover is not None
    return handover.generator


def test_what_was_made_while_a_file_was_out_of_reach_is_not_found_by_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails for a while leaves a file's length and time as they are; here its bytes stand for the disk."""
    monkeypatch.setattr(app_module, "_cache", None)  # given back at the end
    rng = np.random.default_rng(0)
    for number in range(8):
        mask = np.zeros((16, 16), np.uint8)
        mask[4 : 8 + number, 4:9] = 1
        for folder, pixels in (("images", rng.integers(0, 255, (16, 16), np.uint8)), ("labels", mask)):
            (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "data" / folder / f"case{number}.png")

    def site(home: str) -> SiteSettings:
        return SiteSettings(name="north", home=tmp_path / home, data=tmp_path / "data", durable=False)

    whole = generator_of(site("one"))
    files = {path: (path.read_bytes(), path.stat()) for path in (tmp_path / "data" / "images").glob("*[0-4].png")}
    for path, (content, state) in files.items():
        path.write_bytes(bytes(len(content)))
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    part = generator_of(site("two"))
    assert part != whole
    for path, (content, state) in files.items():
        path.write_bytes(content)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    (tmp_path / "two" / "checkpoints").rename(tmp_path / "two" / "another run's")
    assert generator_of(site("two")) == whole

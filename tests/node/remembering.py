"""A site with a memory for rehearsal, for tests that keep cases there and lose them."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from node.data.site import SiteData
from node.data.source import Problem, Scan, Unreadable
from node.memory import SiteMemory
from node.settings import SiteSettings
from protos.messages import Request
from protos.plan import PhantomSite, Plan
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


def refused(memory: SiteMemory) -> Refusal:
    with pytest.raises(Refusal) as caught:
        memory.samples()
    return caught.value


def assert_one_sentence(refusal: Refusal, name: str) -> None:
    assert refusal.code == RefusalCode.MEMORY
    assert name in refusal.detail
    assert refusal.detail.endswith(".")
    assert len(refusal.detail.splitlines()) == 1

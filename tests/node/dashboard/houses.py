"""Houses for the tests of the dashboard: one that a tiny run left behind, and made-up entries for its ledger."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from starlette.testclient import TestClient

from node.dashboard.application import dashboard_for
from node.dashboard.house import House
from node.dashboard.reading import open_reader
from node.database import open_database
from node.ledger import Crossing, Direction, Ledger, Verdict
from node.phantoms import write_phantoms
from protos.handover import Handover, Kind, Tensor, manifest_of
from protos.plan import PhantomSite, Task
from tests.conftest import TINY, Desk

HOSTILE = "<img src=x onerror=alert(1)>'\"&{{7*7}}"
HOSTILE_CASE = "case-<b>x&'\"{{7*7}}"
REFUSED = f"{HOSTILE}\u202e\x07\x1b[31m" + "long " * 100
SMG = "{name: smg, generator: {channels: [8]}, generator_steps: 2, evaluations: 2, replays: 2}"


def make_house(folder: Path) -> Desk:
    """A desk whose site north is a folder with a case of a hostile name, after a tiny run by SMG."""
    desk = Desk(folder)
    north = folder / "north"
    write_phantoms(
        PhantomSite(task="organ", appearance=0, cases=14, size=16),
        Task(size=(16, 16), classes=("background", "organ")),
        north,
    )
    for sort in ("images", "labels"):
        (north / sort / "case-005.png").rename(north / sort / f"{HOSTILE_CASE}.png")
    (north / "images" / "scan.dcm").write_bytes(bytes(128) + b"DICM")
    text = TINY.replace("{name: north, phantom: {task: organ, appearance: 0, cases: 6, size: 16}}", "{name: north}")
    desk.simulate(f"strategy={SMG}", text=text)
    return desk


@dataclass(frozen=True)
class Opened:
    """A house and its application, open to everybody on the machine unless told."""

    home: Path
    app: FastAPI
    house: House

    @classmethod
    def of(cls, home: Path, token: bool = False) -> "Opened":
        app, house = dashboard_for(open_reader(home), token=token)
        return cls(home, app, house)

    def client(self) -> TestClient:
        return TestClient(self.app, base_url="http://127.0.0.1", follow_redirects=False)


def copy_of(home: Path, to: Path) -> Path:
    """A node's folder that may be written to."""
    open_database(home).dispose()
    shutil.copytree(home, to)
    return to


def carrying(**kinds: int) -> bytes:
    """A manifest of one tensor of so many bytes per kind, with a hostile name."""
    groups = {kind: {f"layer.{HOSTILE}": Tensor("uint8", (size,), bytes(size))} for kind, size in kinds.items()}
    handover = Handover(**groups)
    return manifest_of(handover, run="r", stop=0, site="north", strategy="smg").SerializeToString(deterministic=True)


def add_entries(home: Path) -> None:
    """What a run does not do by itself: refusals and failures, and texts that want to be more than texts."""
    ledger = Ledger(open_database(home))
    ledger.record(
        Crossing(
            Direction.IN, HOSTILE, HOSTILE, Verdict.REFUSED, "MESSAGE_TYPE", REFUSED, run=HOSTILE, strategy=HOSTILE
        )
    )
    ledger.record(
        Crossing(
            Direction.OUT, "north", "train.visit", Verdict.FAILED, "DIVERGED", "=cmd|' /C calc'!A0", run="r", stop=0
        )
    )
    ledger.record(
        Crossing(
            Direction.OUT, "north", "train.visit", Verdict.ALLOWED, run="r", stop=1, round=0, action="visit",
            strategy="ewc", kind_bytes={Kind.WEIGHTS: 1_900_000, Kind.IMPORTANCE: 100_000},
            metrics={"loss": 0.5, HOSTILE: 1}, manifest=carrying(weights=8, importance=4),
        )
    )  # fmt: skip

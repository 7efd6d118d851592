"""Rehearsal in whole runs: no message carries a case, the archive may go, a skipped site is left in peace."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Message
from flwr.common.serde import message_from_proto, message_to_proto

import coordinator.grid
import node.app
import node.memory
from coordinator import console, live
from coordinator.conductor import VisitFailed
from coordinator.report import write_report
from coordinator.simulate import carry_out
from coordinator.skipping import skip
from node.data.cache import SiteCache
from node.data.samples import SiteSamples
from node.data.site import SiteData
from node.memory_store import MemoryStore
from node.phantoms import write_phantoms
from node.settings import SiteSettings
from protos.handover import HandoverSchema
from protos.messages import SCORE, VISIT, read_handover
from protos.plan import PhantomSite, Plan
from strategies.data import Batch
from strategies.registry import strategy_for
from strategies.strategy import VISIT_METRICS
from tests.conftest import Desk, outcome

MODES = {
    "exact": "{name: replay, cases: 3}",
    "interleaved": "{name: replay, mode: interleaved, cases: 3, local_steps: 2}",
}
every_mode = pytest.mark.parametrize("strategy", MODES.values(), ids=MODES)
SITES = ("north", "east", "south")


# No message carries a case


class Wiretap:
    """Every message of a run, as the bytes that cross and as what they say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.messages: list[Message] = []
        self.wire = bytearray()

        def tapped(message: Message) -> Any:
            proto = message_to_proto(message)
            self.wire += proto.SerializeToString()
            self.messages.append(message_from_proto(proto))
            return proto

        monkeypatch.setattr(coordinator.grid, "message_to_proto", tapped)


def traces(data: SiteData) -> set[bytes]:
    """Bytes that only a case of the site has: rows of images, natively and as prepared, and whole labels."""
    found: set[bytes] = set()
    train = data.samples("train")
    prepared = train.batch(range(len(train)))
    native = list(data.training_scans(str.encode))
    for image in (*(scan.image for scan in native), *prepared.image.numpy()):
        for values in (image, image.astype(np.float64), image.astype(np.float16)):
            rows = values.reshape(-1, values.shape[-1])
            found |= {row.tobytes() for row in rows if len(np.unique(row)) > 8}
    for label in (*(scan.label for scan in native), *prepared.label.numpy()):
        for dtype in ("uint8", "int64", "float32"):
            found.add(np.ascontiguousarray(label, dtype).tobytes())
    return found | rows_of(prepared.image)


def rows_of(images: torch.Tensor) -> set[bytes]:
    """The rows of float32 images that are no background alone."""
    rows = images.numpy().reshape(-1, images.shape[-1])
    return {row.tobytes() for row in rows if len(np.unique(row)) > 8}


def carries(wire: bytes, secrets: Iterable[bytes]) -> bool:
    return any(secret in wire for secret in secrets)


def site_data(desk: Desk, plan: Plan, number: int, name: str) -> SiteData:
    phantom = PhantomSite(task="organ", appearance=number, cases=6 + number, size=16)
    return SiteData(SiteSettings(name=name, home=desk.folder / "elsewhere" / name, phantom=phantom), plan)


@every_mode
def test_no_message_carries_a_case(desk: Desk, monkeypatch: pytest.MonkeyPatch, strategy: str) -> None:
    tap = Wiretap(monkeypatch)
    fed: set[bytes] = set()  # what a model was shown: augmented, so that it is no row of a case as it lies there
    drawn = SiteSamples.batch

    def noted(self: SiteSamples, indices: Any, seeds: Any = None, only: Any = None) -> Batch:
        batch = drawn(self, indices, seeds, only)
        fed.update(rows_of(batch.image))
        return batch

    monkeypatch.setattr(SiteSamples, "batch", noted)
    run = desk.simulate(f"strategy={strategy}")
    assert len(fed) > 300
    plan = desk.summary(run).plan
    installed = strategy_for(plan)
    stops = installed.itinerary()
    assert stops[2].rehearsing == ("north", "east")

    secrets: set[bytes] = set(fed)
    for number, name in enumerate(SITES):
        secrets |= traces(site_data(desk, plan, number, name))
        memory = desk.home.folder / "nodes" / name / "memory"
        kept = [path.read_bytes() for path in (memory / "cases").iterdir()]
        assert len(kept) == 3
        assert all(carries(data, secrets) for data in kept)  # what is looked for is what the memory holds
    assert len(secrets - fed) > 300
    assert not carries(bytes(tap.wire), secrets)
    for path in desk.home.folder.rglob("*"):
        if path.is_file() and "nodes" not in path.relative_to(desk.home.folder).parts:
            assert not carries(path.read_bytes(), secrets), path

    rehearsals = 0
    for message in tap.messages:
        assert not message.has_error()
        is_request = "request" in message.content
        assert set(message.content) <= {"request", "manifest", "handover", "metrics"}
        assert is_request != ("metrics" in message.content)
        handover = read_handover(message.content)
        if handover is not None:
            for _, _, tensor in handover.items():
                assert tuple(plan.task.size) != tuple(tensor.shape[-2:])  # no batch of images, no label
        kind = message.metadata.message_type
        if is_request:
            sent = installed.scoring_schema("", 0) if kind == SCORE else installed.arrives(stops[0].action)
            assert handover is None or HandoverSchema.of(handover) == sent
            record = message.content["request"]
            assert isinstance(record, ConfigRecord)
            rehearsals += '"rehearse":1' in str(record["json"])
        elif kind == VISIT:
            declared = installed.declares(stops[0].action)
            assert handover is not None
            assert HandoverSchema.of(handover) == declared.handover
            assert set(message.content["metrics"]) <= set(declared.metrics) <= {*VISIT_METRICS, "loss"}
    assert rehearsals == {"gradient": 4 * (0 + 1 + 2), "steps": 2 * (0 + 1 + 2)}[stops[0].action]


def test_a_case_in_a_message_would_be_found(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The strategy below hides one row of a kept image in a gradient, which no guard can tell from a gradient."""
    from strategies import gradients

    honest = gradients.departure

    def hide(updates: dict[str, torch.Tensor], metrics: Any) -> Any:
        room = max(updates.values(), key=torch.Tensor.numel)
        assert room.numel() >= len(row)
        room.view(-1)[: len(row)] = torch.from_numpy(row)
        return honest(updates, metrics)

    tap = Wiretap(monkeypatch)
    run = desk.begin(f"strategy={MODES['exact']}")
    data = site_data(desk, desk.scenario(f"strategy={MODES['exact']}").plan(), 0, "north")
    row = data.samples("train").batch([0]).image.numpy()[0, 0, 8]
    monkeypatch.setattr("strategies.rehearsal.replay.departure", hide)
    desk.carry_out(run)
    assert carries(bytes(tap.wire), traces(data))


# The archive, skipped sites, what is shown


@pytest.fixture
def restart(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A new process, which has decoded nothing yet."""

    def begin() -> None:
        monkeypatch.setattr(node.app, "_cache", SiteCache[Any](2**30))
        monkeypatch.setattr(node.memory, "_cache", SiteCache[Any](2**30))

    begin()
    return begin


class Killed(BaseException):
    """The process dies here."""


def kill_after_first_stop(event: tuple[Any, ...]) -> None:
    if event[:2] == ("stop ended", 0):
        raise Killed


def hospitals(desk: Desk, folder: Path, strategy: str) -> tuple[str, ...]:
    """Write the sites' cases as files into `folder`; what makes of the desk's scenario one of these hospitals."""
    listed = [f"{{name: {name}, labels: {{0: background, 1: organ}}}}" for name in SITES]
    task = desk.scenario().task
    for number, name in enumerate(SITES):
        write_phantoms(PhantomSite(task="organ", appearance=number, cases=12, size=16), task, folder / name)
    return f"sites=[{', '.join(listed)}]", "unseen=[]", f"strategy={strategy}"


@every_mode
def test_a_site_that_archives_its_training_data_rehearses_on(
    desk: Desk, tmp_path: Path, restart: Callable[[], None], strategy: str
) -> None:
    sets = hospitals(desk, tmp_path, strategy)
    undisturbed = desk.simulate(*sets)

    run = desk.begin(*sets)
    with pytest.raises(Killed):
        desk.carry_out(run, kill_after_first_stop)
    restart()
    plan = desk.summary(run).plan
    settings = SiteSettings(name="north", home=tmp_path / "elsewhere", data=tmp_path / "north")
    archived = [scan.name for scan in SiteData(settings, plan).training_scans(str.encode)]
    assert len(archived) > 3
    for name in archived:
        (tmp_path / "north" / "images" / f"{name}.png").unlink()
        (tmp_path / "north" / "labels" / f"{name}.png").unlink()
    desk.carry_out(run)
    assert outcome(desk.row(run)) == outcome(desk.row(undisturbed))


@every_mode
def test_a_damaged_memory_stops_the_run_and_a_restored_one_lets_it_go_on(
    desk: Desk, restart: Callable[[], None], caplog: pytest.LogCaptureFixture, strategy: str
) -> None:
    undisturbed = desk.simulate(f"strategy={strategy}")
    shutil.rmtree(desk.home.folder / "nodes")
    run = desk.begin(f"strategy={strategy}")
    with pytest.raises(Killed):
        desk.carry_out(run, kill_after_first_stop)
    restart()
    case = next((desk.home.folder / "nodes" / "north" / "memory" / "cases").iterdir())
    whole = case.read_bytes()
    case.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(VisitFailed, match=rf"^Run {run} failed at stop 1: Site north: .*\[MEMORY\]$"):
        desk.carry_out(run)
    assert f"{case} is damaged; restore it" in caplog.text  # the node's own people learn what to do
    case.write_bytes(whole)
    desk.carry_out(run)
    assert outcome(desk.row(run)) == outcome(desk.row(undisturbed))


def lose_all(memory: Path) -> None:
    shutil.rmtree(memory)


def lose_an_index(memory: Path) -> None:
    next(memory.glob("*.json")).unlink()


def lose_a_case(memory: Path) -> None:
    next((memory / "cases").iterdir()).unlink()


def forget_a_case(memory: Path) -> None:
    store = MemoryStore(memory.parent)
    (run,) = store.runs()
    assert store.forget(store.index(run).cases[0].case) == ([run], [])


@pytest.mark.parametrize(
    ("lose", "strategy"),
    [*zip([lose_all, lose_an_index, lose_a_case, forget_a_case], [*MODES.values()] * 2, strict=True)],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_memory_that_is_lost_during_a_run_stops_it(
    desk: Desk, restart: Callable[[], None], strategy: str, lose: Callable[[Path], None]
) -> None:
    """In the middle of a stop, with the cases decoded in the process: nothing is rehearsed on from there."""
    run = desk.begin(f"strategy={strategy}")
    lost = []

    def on(event: tuple[Any, ...]) -> None:
        if event[:2] == ("stepped", 1) and event[2] == "" and event[3] == 2:
            lose(desk.home.folder / "nodes" / "north" / "memory")
            lost.append(event)

    for _ in range(2):  # and `resume` does not make little of it
        with pytest.raises(VisitFailed, match=rf"^Run {run} failed at stop 1: Site north: .*\[MEMORY\]$"):
            desk.carry_out(run, on)
        restart()
    assert len(lost) == 1
    assert "`locum-node memory`" in desk.row(run).stops[1].error["sentence"]


@every_mode
def test_a_site_whose_stop_was_skipped_does_not_rehearse_and_may_be_gone(
    desk: Desk, tmp_path: Path, restart: Callable[[], None], strategy: str
) -> None:
    sets = hospitals(desk, tmp_path, strategy)
    run = desk.begin(*sets)

    def kill(event: tuple[Any, ...]) -> None:
        if event[:2] == ("stepped", 0):
            raise Killed

    with pytest.raises((Killed, VisitFailed)):  # at the coordinator, or at the node
        desk.carry_out(run, kill)
    restart()
    assert (desk.home.folder / "nodes" / "north" / "memory").is_dir()  # it did keep cases
    skip(run, 0, desk.home, by="Ada", why="the site withdrew")
    shutil.rmtree(tmp_path / "north")
    desk.carry_out(run)
    summary = desk.summary(run)
    assert [(stop.status, stop.rehearsing) for stop in summary.stops] == [
        ("skipped", ()),
        ("done", ()),
        ("done", ("east",)),
    ]
    assert all("north" not in stop.traffic for stop in desk.row(run).stops[1:])


def test_the_rehearsal_is_shown(desk: Desk, tmp_path: Path, capfd: Any) -> None:
    run = desk.begin(f"strategy={MODES['exact']}")
    with live.Live() as listener:
        carry_out(run, desk.home, device="cpu", listener=listener)
    assert "stop 2 at south, rehearsing at north, east" in capfd.readouterr().err
    summary = desk.summary(run)
    assert [stop.where for stop in summary.stops] == [
        "north",
        "east, rehearsing at north",
        "south, rehearsing at north, east",
    ]
    assert summary.order == (0, 1, 2)  # the metrics are those of a tour
    assert all(value is not None for key, value in summary.metrics["dsc"].items() if key in ("rem", "bwt"))
    console.print_run(summary)
    page = write_report(summary, tmp_path / "report").read_text()
    for shown in (capfd.readouterr().out, page):
        assert "south, rehearsing at north, east" in shown

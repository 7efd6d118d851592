"""Hostile strategies in whole runs: a run stops, says where and why, and no file of the coordinator has the picture.

tests/node/test_guard.py tries the guard alone with many more tricks; here the picture meets everything behind it.
"""

import base64
import io
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from rich.console import Console

from coordinator.conductor import VisitFailed
from coordinator.live import Live
from coordinator.simulate import carry_out
from node.policy_file import FILE
from protos.handover import Handover, Tensor
from protos.refusals import Refusal, RefusalCode
from strategies.registry import STRATEGIES
from strategies.strategy import Strategy
from strategies.visit import Departure, Visit
from tests.conftest import Desk
from tests.node.adversaries import NAME, PICTURE, SECRET, leaks

HONEST = {"samples": 3, "steps": 4, "loss_first": 0.5, "loss_last": 0.25}
AS_TEXT = base64.b64encode(SECRET).decode()


def picture(dtype: str = "uint8") -> Tensor:
    return Tensor(dtype, PICTURE.shape, PICTURE.astype(dtype).tobytes())


def boxed(values: Tensor) -> Tensor:
    """As many pixels as there is room for, in the payloads of NaNs."""
    count = len(values.data) // 4
    pixels = np.resize(PICTURE.reshape(-1), count).astype(np.uint32) | 0x7FC00000
    return Tensor("float32", values.shape, pixels.tobytes())


class Hostile(Strategy):
    """Passes on what arrives, and something else."""

    summary = "steals"
    source = "nowhere"
    code: ClassVar[RefusalCode]

    def visit(self, visit: Visit) -> Departure:
        return self.steal(visit.handover)

    def steal(self, handover: Handover) -> Departure:
        return Departure(handover, HONEST)


TRICKS: dict[str, type[Hostile]] = {}


def trick(code: RefusalCode) -> Callable[[Callable[[Handover], Departure]], Callable[[Handover], Departure]]:
    """Register a hostile strategy whose visit ends with what the function returns."""

    def register(steal: Callable[[Handover], Departure]) -> Callable[[Handover], Departure]:
        name = steal.__name__.replace("_", "-")
        TRICKS[name] = type(
            f"Hostile_{steal.__name__}",
            (Hostile,),
            {"name": name, "code": code, "steal": lambda self, handover: steal(handover)},
        )
        return steal

    return register


def with_metrics(handover: Handover, metrics: Mapping[str, Any]) -> Departure:
    return Departure(handover, HONEST | dict(metrics))


@trick(RefusalCode.TENSORS)
def undeclared_tensor(handover: Handover) -> Departure:
    return Departure(Handover(weights={**handover.weights, "picture": picture()}), HONEST)


@trick(RefusalCode.TENSORS)
def undeclared_kind(handover: Handover) -> Departure:
    return Departure(Handover(weights=handover.weights, generator={"picture": picture()}), HONEST)


@trick(RefusalCode.TENSORS)
def wrong_shape(handover: Handover) -> Departure:
    first = next(iter(handover.weights))
    return Departure(Handover(weights={**handover.weights, first: picture("float32")}), HONEST)


@trick(RefusalCode.TENSORS)
def tensor_name(handover: Handover) -> Departure:
    first, *_ = handover.weights.values()
    return Departure(Handover(weights={**handover.weights, AS_TEXT: first}), HONEST)


@trick(RefusalCode.NOT_FINITE)
def nan_boxed(handover: Handover) -> Departure:
    return Departure(Handover(weights={name: boxed(tensor) for name, tensor in handover.weights.items()}), HONEST)


@trick(RefusalCode.METRICS)
def metric_name(handover: Handover) -> Departure:
    return with_metrics(handover, {AS_TEXT: 1.0})


@trick(RefusalCode.METRICS)
def metric_value(handover: Handover) -> Departure:
    return with_metrics(handover, {"loss_last": float(int.from_bytes(SECRET[:16], "big"))})


@trick(RefusalCode.METRICS)
def metric_list(handover: Handover) -> Departure:
    return with_metrics(handover, {"loss_last": PICTURE.reshape(-1).astype(float).tolist()})


@trick(RefusalCode.EXCEPTION)
def metric_text(handover: Handover) -> Departure:
    return with_metrics(handover, {"loss_last": AS_TEXT})


@trick(RefusalCode.EXCEPTION)
def exception_text(handover: Handover) -> Departure:
    raise ValueError(f"{NAME} {AS_TEXT}")


@trick(RefusalCode.EXCEPTION)
def exception_name(handover: Handover) -> Departure:
    raise type(f"E{SECRET.hex()}", (Exception,), {})


@trick(RefusalCode.EXCEPTION)
def exception_notes_and_cause(handover: Handover) -> Departure:
    error = ValueError(AS_TEXT)
    error.add_note(NAME)
    raise KeyError(AS_TEXT) from error


@trick(RefusalCode.SITE_DATA)
def error_path(handover: Handover) -> Departure:
    raise Refusal(RefusalCode.SITE_DATA, f"{NAME} {AS_TEXT}")


@trick(RefusalCode.EXCEPTION)
def exit_status(handover: Handover) -> Departure:
    raise SystemExit(AS_TEXT)


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hostile strategies are registered for one test only."""
    for name, kind in [*TRICKS.items(), ("loud-scores", LoudScores)]:
        monkeypatch.setattr(f"{__name__}.{kind.__name__}", kind, raising=False)
        monkeypatch.setitem(STRATEGIES, name, f"{__name__}:{kind.__name__}")


def coordinators_files(home: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in home.rglob("*") if p.is_file() and "nodes" not in p.relative_to(home).parts}


def carried_out(desk: Desk, run: str) -> str:
    """What the coordinator prints on the way."""
    lines = io.StringIO()
    with Live(Console(file=lines, width=10_000)) as live:
        carry_out(run, desk.home, device="cpu", listener=live)
    return lines.getvalue()


@pytest.mark.parametrize("name", TRICKS)
def test_the_run_says_at_which_site_and_why_and_nothing_got_out(desk: Desk, name: str, capfd: Any):
    code = TRICKS[name].code
    run = desk.begin(f"strategy={name}")
    with pytest.raises(VisitFailed) as caught:
        carried_out(desk, run)
    (sentence,) = str(caught.value).splitlines()
    assert sentence.startswith(f"Run {run} failed at stop 0: Site north: ")
    assert sentence.endswith(f"[{code.name}]")
    assert not leaks(sentence.encode())

    row = desk.row(run)
    assert row.status == "failed"
    assert [stop.status for stop in row.stops] == ["failed", "pending", "pending"]
    assert (row.stops[0].error["site"], row.stops[0].error["code"]) == ("north", code.name)
    files = coordinators_files(desk.home.folder)
    assert any(path.name == "coordinator.db" for path in files)
    assert not [path for path, data in files.items() if leaks(data)]
    assert not desk.vault.folder.exists()
    printed = capfd.readouterr()
    assert not leaks((printed.out + printed.err).encode())

    ledger = desk.ledger("north")
    assert ledger.verify() == []
    last = list(ledger.entries())[-1]
    assert (last.direction, last.code, last.run, last.stop) == ("out", code.name, run, 0)
    assert last.verdict == ("failed" if code in (RefusalCode.EXCEPTION, RefusalCode.SITE_DATA) else "refused")
    assert (last.kind_bytes, last.metrics, last.manifest) == ("{}", "{}", None)


class LoudScores(Strategy):
    """Learns nothing, and tells a secret when it is to score."""

    name = "loud-scores"
    summary = "steals"
    source = "nowhere"

    def visit(self, visit: Visit) -> Departure:
        return Departure(visit.handover, HONEST)

    def predictor(self, handover: Handover, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        raise ValueError(f"{NAME} {AS_TEXT}")


def test_a_score_that_raises_leaves_a_hole_in_the_matrix_and_nothing_else(desk: Desk, capfd: Any):
    run = desk.begin("strategy=loud-scores")
    lines = carried_out(desk, run)
    assert "stop 0: island could not be scored; the run will be incomplete" in lines
    row = desk.row(run)
    assert row.status == "incomplete"
    assert {score.error["code"] for score in row.scores} == {"EXCEPTION"}
    assert len(row.scores) == 12
    assert not leaks(lines.encode())
    assert not [path for path, data in coordinators_files(desk.home.folder).items() if leaks(data)]
    printed = capfd.readouterr()
    assert not leaks((printed.out + printed.err).encode())
    refused = [entry for entry in desk.ledger("island").entries() if entry.verdict == "failed"]
    assert [(entry.code, entry.stop) for entry in refused] == [("EXCEPTION", stop) for stop in range(3)]


def test_the_text_of_an_exception_is_in_the_nodes_own_log_only(desk: Desk, caplog: pytest.LogCaptureFixture):
    """People at the site need it. On one machine the node's log goes to the coordinator's terminal."""
    assert leaks(AS_TEXT.encode())
    assert leaks(picture().data)
    run = desk.begin("strategy=exception-text")
    with caplog.at_level(logging.DEBUG), pytest.raises(VisitFailed):
        carried_out(desk, run)
    told = [record for record in caplog.records if leaks((record.getMessage() + str(record.exc_info)).encode())]
    assert {record.name for record in told} == {"locum.node.guard"}


def test_a_sites_policy_stops_what_the_strategy_declares(desk: Desk):
    run = desk.begin()
    node = desk.home.folder / "nodes" / "east"
    node.mkdir(parents=True)
    (node / FILE).write_text("max_bytes: {weights: 100}\n")
    with pytest.raises(VisitFailed, match=rf"^Run {run} failed at stop 1: Site east: The site's own policy .*POLICY"):
        desk.carry_out(run)
    assert [stop.status for stop in desk.row(run).stops] == ["done", "failed", "pending"]
    (node / FILE).unlink()
    desk.carry_out(run)
    assert desk.row(run).status == "done"

"""The page Now: what this node is doing, what comes next, and what happened."""

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from node.dashboard.house import House
from node.dashboard.sentences import happenings
from node.dashboard.traffic import ChartShown
from node.dashboard.visits import at_work, last_visit, loss_chart, outlook, waits

RunName = Annotated[str, Path(max_length=80)]
StopNumber = Annotated[int, Path(ge=0, lt=2**32)]


class WorkShown(BaseModel):
    """The visit or scoring in progress. Times are UTC in ISO format, memory is the most so far, in bytes."""

    message_type: str
    run: str
    stop: int
    strategy: str
    since: str
    step: int | None
    steps: int | None
    loss: float | None
    last_sign: str | None
    device: str | None
    memory: int | None
    left_seconds: float | None


class HappeningShown(BaseModel):
    """What happened, in a sentence; `seq` is the entry of the ledger that tells more."""

    seq: int
    time: str
    sentence: str
    bad: bool


class WaitShown(BaseModel):
    """A handover that is ready to leave since a time; `released_by` is null until a named person has released it."""

    run: str
    stop: int
    round: int
    since: str
    released_by: str | None
    released: str | None


class NowShown(BaseModel):
    """What the node is doing; `at_work` is null while it waits."""

    site: str
    at_work: WorkShown | None
    waiting: list[WaitShown]
    happened: list[HappeningShown]


def now_router(house: House) -> APIRouter:
    """The page `/` and what it is made of."""
    router = APIRouter()

    @router.get("/", include_in_schema=False)
    def page(request: Request) -> Response:
        return house.look.render(request, "now.html", **_work(house), **_happened(house))

    @router.get("/now/work", include_in_schema=False)
    def work(request: Request) -> Response:
        return house.look.render(request, "_now_work.html", **_work(house))

    @router.get("/now/happened", include_in_schema=False)
    def happened(request: Request) -> Response:
        return house.look.render(request, "_now_happened.html", **_happened(house))

    @router.get("/api/now")
    def now() -> NowShown:
        """What the node is doing, what is ready to leave, and the newest happenings."""
        found = at_work(house.reader)
        shown = None
        if found is not None:
            shown = WorkShown(
                message_type=found.message_type, run=found.run, stop=found.stop, strategy=found.strategy,
                since=found.since, step=found.step, steps=found.steps, loss=found.loss, last_sign=found.sign,
                device=found.device, memory=found.memory, left_seconds=found.left_seconds,
            )  # fmt: skip
        beside = _happened(house)
        told = [HappeningShown(**vars(one)) for one in beside["happened"]]
        waiting = [WaitShown(**vars(one)) for one in beside["waiting"]]
        return NowShown(site=house.site, at_work=shown, waiting=waiting, happened=told)

    @router.get("/api/visits/{run}/{stop}/loss")
    def loss(run: RunName, stop: StopNumber) -> ChartShown:
        """The loss of a visit over its steps, as far as it has come; empty if no such visit was noted."""
        return loss_chart(house.reader, run, stop)

    return router


def _work(house: House) -> dict[str, Any]:
    found = at_work(house.reader)
    curve = (found.run, found.stop) if found is not None and found.step is not None else last_visit(house.reader)
    since = None
    if found is not None:
        since = (datetime.now(UTC) - datetime.fromisoformat(found.since)).total_seconds()
    return {"work": found, "curve": curve, "since": since}


def _happened(house: House) -> dict[str, Any]:
    return {
        "happened": happenings(house.reader),
        "outlook": outlook(house.reader),
        "site": house.site,
        "waiting": waits(house.reader),
    }

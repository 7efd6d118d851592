"""The page Replay: what the arrived generator makes for this site's prompt, what it remembers, how it drifts."""

from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel
from sqlalchemy import select, text
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from node.dashboard.house import House
from node.dashboard.reading import Reader
from node.dashboard.traffic import AxisShown, ChartShown, SeriesShown
from node.dashboard.visits import SCORE, VISIT, RunKnown, metrics_of, run_known, runs
from node.ledger import Entry, carries
from node.shown import replays
from protos.handover import Kind

ROWS = 100  # of a table, the newest
DRIFT = ("drift_mean", "drift_std", "drift_edge")

RunQuery = Annotated[str | None, Query(max_length=80)]


class RememberedShown(BaseModel):
    """What a generator that left this site remembers of single images: see docs/privacy.md."""

    stop: int
    copies: float
    copy_similarity: float | None
    held_out_similarity: float | None


class DriftShown(BaseModel):
    """How far the generator's images of this site are from the site's own after a stop; 0 is not at all."""

    stop: int
    drift_mean: float
    drift_std: float
    drift_edge: float


class ReplayShown(BaseModel):
    """What is known of a run's generator at this site; empty where its strategy has none."""

    run: str
    remembered: list[RememberedShown]
    drift: list[DriftShown]
    picture_after_stop: int | None


def replay_shown(house: House, known: RunKnown) -> ReplayShown:
    """All of it, from the ledger and the kept picture."""
    reader = house.reader
    kept = replays(house.home, known.run)
    return ReplayShown(
        run=known.run,
        remembered=[
            RememberedShown(
                stop=stop,
                copies=metrics["copies"],
                copy_similarity=metrics.get("copy_similarity"),
                held_out_similarity=metrics.get("held_out_similarity"),
            )
            for stop, metrics in sorted(metrics_of(reader, known.run, VISIT).items())
            if "copies" in metrics
        ],
        drift=[
            DriftShown(stop=stop, **{name: metrics[name] for name in DRIFT})
            for stop, metrics in sorted(metrics_of(reader, known.run, SCORE).items())
            if all(name in metrics for name in DRIFT)
        ],
        picture_after_stop=None if kept is None else kept[0],
    )


def sentences(found: ReplayShown) -> list[str]:
    """What the figures say, in words."""
    said = []
    if found.remembered:
        last = found.remembered[-1]
        share = f"{last.copies:.1%}".replace(".0%", "%")
        said.append(
            "None of the images that were tried are near-copies of training images of this site."
            if last.copies == 0
            else f"{share} of the images that were tried are near-copies of training images of this site."
        )
        if last.copy_similarity is not None and last.held_out_similarity is not None:
            gap = last.copy_similarity - last.held_out_similarity
            said.append(
                f"Its images are {'hardly more' if gap < 0.05 else 'more'} like the training images that they share a "
                f"mask with ({last.copy_similarity:.2f}) than images that it has not learnt are like theirs "
                f"({last.held_out_similarity:.2f})."
            )
    if len(found.drift) > 1:
        first, last_drift = found.drift[0], found.drift[-1]
        change = last_drift.drift_mean - first.drift_mean
        way = "farther from" if change > 0.02 else "closer to" if change < -0.02 else "as close as before to"
        said.append(
            f"After stop {last_drift.stop} its images of this site are {way} the real ones (difference of the means "
            f"{last_drift.drift_mean:.2f}, after stop {first.stop} it was {first.drift_mean:.2f}, in units of the "
            "images' own spread)."
        )
    return said


def newest_with_generator(reader: Reader) -> RunKnown | None:
    """The newest run that carried a generator here, else the newest one."""
    query = select(Entry.run).where(text(carries(Kind.GENERATOR))).order_by(Entry.seq.desc()).limit(1)
    run = reader.scalar(query)
    return (run_known(reader, run) if run else None) or next(iter(runs(reader, 1)), None)


def replay_router(house: House) -> APIRouter:
    """The page `/replay` and what it is made of."""
    router = APIRouter()
    reader = house.reader

    def chosen(run: str | None) -> RunKnown:
        found = run_known(reader, run) if run else newest_with_generator(reader)
        if found is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, "No such run has reached this node.")
        return found

    def context(run: str | None) -> dict[str, Any]:
        known = chosen(run)
        found = replay_shown(house, known)
        return {"known": known, "runs": runs(reader), "replay": found, "said": sentences(found), "rows": ROWS}

    @router.get("/replay", include_in_schema=False)
    def page(request: Request, run: RunQuery = None) -> Response:
        if not run and not runs(reader, 1):
            return house.look.render(request, "nothing.html", heading="Replay", page="/replay")
        return house.look.render(request, "replay.html", **context(run))

    @router.get("/replay/live", include_in_schema=False)
    def part(request: Request, run: RunQuery = None) -> Response:
        return house.look.render(request, "_replay.html", **context(run))

    @router.get("/replay/picture", include_in_schema=False)
    def picture(run: Annotated[str, Query(max_length=80)]) -> Response:
        kept = replays(house.home, chosen(run).run)
        if kept is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, "There is no picture of this run's replays.")
        return FileResponse(kept[1], media_type="image/png")

    @router.get("/api/replay")
    def replay(run: RunQuery = None) -> ReplayShown:
        """What is known of a run's generator at this site, the newest one unless a run is named."""
        return replay_shown(house, chosen(run))

    @router.get("/api/replay/chart")
    def chart(run: RunQuery = None) -> ChartShown:
        """The drift after every stop."""
        found = replay_shown(house, chosen(run)).drift
        values: list[list[float | None]] = [[float(one.stop) for one in found]]
        values += [
            [one.drift_mean for one in found],
            [one.drift_std for one in found],
            [one.drift_edge for one in found],
        ]
        labels = ("difference of the means", "difference of the spreads", "difference of the roughness")
        series = [SeriesShown(label=label, unit="") for label in labels]
        return ChartShown(x=AxisShown(label="stop", time=False), series=series, values=values)

    return router

"""The page My data: what the site holds, what `locum-node check` says of it, and small pictures that stay here."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import FileResponse, RedirectResponse, Response

from node.dashboard.house import House
from node.dashboard.visits import RunKnown, run_known, runs
from node.shown import thumbnail_file

LOOK = "look"  # the job that examines the data
SHOWN = 48  # cases on one page
GRIDS = 20  # rows of the table of sizes


class CaseFound(BaseModel):
    """One case: pixels or voxels per axis, spacing in mm."""

    case: str
    part: str
    patient: str
    shape: list[int]
    spacing: list[float]


class PartFound(BaseModel):
    """Who trains, who validates, who tests."""

    part: str
    cases: int
    patients: int


class GridFound(BaseModel):
    """How many cases have a shape and spacing."""

    shape: list[int]
    spacing: list[float]
    cases: int


class ClassFound(BaseModel):
    """A class: the values in the files that mean it, the cases that hold it, its share of all pixels."""

    name: str
    values: list[int]
    cases: int
    fraction: float


class ProblemFound(BaseModel):
    """What `locum-node check` says; `spoils`: training would suffer from it."""

    sentence: str
    spoils: bool


class DataFound(BaseModel):
    """What one look at every case found."""

    fingerprint: str
    cases: list[CaseFound]
    parts: list[PartFound]
    grids: list[GridFound]
    classes: list[ClassFound]
    problems: list[ProblemFound]
    synthetic: bool


class DataShown(BaseModel):
    """The site's data, as the newest run reads it; `found` is null until all cases were looked at."""

    run: str | None
    looking: bool
    done: int
    total: int
    failed: str
    found: DataFound | None


def data_router(house: House) -> APIRouter:
    """The page `/data` and what it is made of."""
    router = APIRouter()

    def known(run: str | None) -> RunKnown | None:
        return run_known(house.reader, run) if run else next(iter(runs(house.reader, 1)), None)

    def shown(run: str | None) -> DataShown:
        found = known(run)
        if found is None:
            return DataShown(run=None, looking=False, done=0, total=0, failed="", found=None)
        job = house.jobs.get(f"{LOOK} {found.run}")
        result: Mapping[str, Any] | None = job.result
        data = None if result is None else DataFound.model_validate(result)
        return DataShown(
            run=found.run, looking=job.running, done=job.done, total=job.total, failed=job.failed, found=data
        )

    def begin(run: str | None, anew: bool = False) -> None:
        found, settings = known(run), house.settings_json()
        if found is None or settings is None:
            return
        name = f"{LOOK} {found.run}"
        job = house.jobs.get(name)
        if anew or (job.result is None and not job.failed):
            plan = found.plan.model_dump(mode="json")
            order = {
                "what": "look",
                "home": str(house.home),
                "settings": settings,
                "task": plan["task"],
                "split": plan["split"],
                "unseen": found.unseen,
                "scored": found.plan.scored,
                "anew": anew,
            }
            house.jobs.start(name, ["node.dashboard.looking"], order)

    def context(run: str | None, first: int) -> dict[str, Any]:
        found = shown(run)
        cases = [] if found.found is None else found.found.cases
        there = {"run": found.run or ""}
        return {
            "data": found,
            "known": known(run),
            "runs": runs(house.reader),
            "cases": cases[first : first + SHOWN],
            "first": first,
            "all_cases": len(cases),
            "older": f"/data?{urlencode({**there, 'first': first + SHOWN})}" if first + SHOWN < len(cases) else None,
            "newer": f"/data?{urlencode({**there, 'first': max(first - SHOWN, 0)})}" if first else None,
            "grids": GRIDS,
        }

    @router.get("/data", include_in_schema=False)
    def page(
        request: Request,
        run: Annotated[str | None, Query(max_length=80)] = None,
        first: Annotated[int, Query(ge=0, le=10**7)] = 0,
    ) -> Response:
        if known(run) is None:
            return house.look.render(request, "nothing.html", heading="My data", page="/data")
        begin(run)
        return house.look.render(request, "data.html", **context(run, first))

    @router.get("/data/live", include_in_schema=False)
    def part(
        request: Request,
        run: Annotated[str | None, Query(max_length=80)] = None,
        first: Annotated[int, Query(ge=0, le=10**7)] = 0,
    ) -> Response:
        return house.look.render(request, "_data.html", **context(run, first))

    @router.post("/data/look", include_in_schema=False)
    def look_again(run: Annotated[str | None, Query(max_length=80)] = None) -> Response:
        begin(run, anew=True)
        return RedirectResponse(f"/data?{urlencode({'run': run})}" if run else "/data", HTTPStatus.SEE_OTHER)

    @router.get("/data/thumbnail", include_in_schema=False)
    def thumbnail(
        case: Annotated[str, Query(max_length=1000)], run: Annotated[str | None, Query(max_length=80)] = None
    ) -> Response:
        found = shown(run).found
        if found is not None and any(one.case == case for one in found.cases):
            path = thumbnail_file(house.home, found.fingerprint, case)
            if path.is_file():
                return FileResponse(path, media_type="image/png")
        raise HTTPException(HTTPStatus.NOT_FOUND, "There is no picture of this case.")

    @router.get("/api/data")
    def data(run: Annotated[str | None, Query(max_length=80)] = None) -> DataShown:
        """What was found of the site's data; begins to look at it where nobody has."""
        begin(run)
        return shown(run)

    return router

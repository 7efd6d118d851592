"""What programs may ask, and the pages' charts: JSON below /api, described at /api/openapi.json. All of it reads."""

from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.exceptions import HTTPException

from coordinator.batch import compared_in
from coordinator.compare import NotComparable
from coordinator.dashboard import matrices
from coordinator.dashboard.documents import Chart, EventList, Matrix, Queue, RunList, SiteList, StopList, TrafficList
from coordinator.dashboard.overview import Overview, RunName
from coordinator.metrics import Score
from coordinator.summary import RunSummary
from coordinator.tables import Comparison

Status = Literal["pending", "running", "interrupted", "cancelled", "failed", "incomplete", "done"]
Table = Literal["overview", "mas-lr", "ms-er"]
Pool = Literal["orders", "none"]
ScenarioName = Annotated[str, Query(pattern=r"^[a-z0-9-]{1,40}$", description="the scenario's name")]
Place = Annotated[int, Query(ge=0, le=2**31 - 1)]
EventNumber = Annotated[int, Query(ge=0, le=2**53)]
SiteNames = Annotated[
    list[Annotated[str, Field(max_length=64)]], Query(max_length=8, description="of many sites those drawn besides")
]
RunNames = Annotated[list[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,80}$")]], Query(max_length=200)]
MOST = 500


def api_router(overview: Overview) -> APIRouter:
    """The routes below /api."""
    router = APIRouter(prefix="/api")
    queries = overview.queries

    @router.get("/runs")
    def runs(
        scenario: ScenarioName | None = None,
        status: Status | None = None,
        first: Place = 0,
        most: Annotated[int, Query(ge=1, le=MOST)] = 50,
    ) -> RunList:
        """Runs, newest first, as `locum runs` lists them."""
        return queries.runs(scenario, status, first=first, most=most)

    @router.get("/queue")
    def queue() -> Queue:
        """What is carried out and what waits for its turn."""
        return queries.queue()

    @router.get("/sites")
    def sites() -> SiteList:
        """The sites, as `locum sites` lists them."""
        return overview.sites()

    @router.get("/runs/{run}", responses={200: {"description": "the document of a run, see docs/cli.md"}})
    def run(run: RunName) -> dict[str, Any]:
        """A run as far as it has come: what `locum show --json` prints."""
        return overview.summary(run).document()

    @router.get("/runs/{run}/stops")
    def stops(run: RunName, first: Place = 0, most: Annotated[int, Query(ge=1, le=MOST)] = 50) -> StopList:
        """The stops of a run with their artifacts, in order."""
        overview.run(run)
        return queries.stops(run, first=first, most=most)

    @router.get("/runs/{run}/matrix")
    def matrix(
        *,
        run: RunName,
        score: Score = "dsc",
        row: Place = 0,
        column: Place = 0,
        rows: Annotated[int, Query(ge=1, le=MOST)] = 50,
        columns: Annotated[int, Query(ge=1, le=MOST)] = 50,
    ) -> Matrix:
        """A window of the run's score matrix, from a row and a column on, both counted from 0."""
        return window(overview, overview.summary(run), score, range(row, row + rows), range(column, column + columns))

    @router.get("/runs/{run}/curves")
    def curves(run: RunName, score: Score = "dsc", site: SiteNames = []) -> Chart:  # noqa: B006 (FastAPI copies it)
        """The score of every site over the visits; of more than eight sites mean, lowest and highest."""
        return matrices.curves(overview.summary(run), score, site)

    @router.get("/runs/{run}/traffic")
    def traffic(run: RunName) -> TrafficList:
        """The bytes to and from every site by kind of artifact."""
        return matrices.traffic(overview.summary(run))

    @router.get("/runs/{run}/events")
    def events(
        run: RunName,
        before: EventNumber | None = None,
        after: EventNumber | None = None,
        most: Annotated[int, Query(ge=1, le=MOST)] = 50,
    ) -> EventList:
        """What happened in the run, newest first: events below number `before`, or next above number `after`."""
        overview.run(run)
        return queries.events(run, before=before, after=after, most=most)

    @router.get("/comparison")
    def comparison(run: RunNames, table: Table = "overview", pool: Pool | None = None) -> dict[str, Any]:
        """Runs side by side: what `locum compare --json` prints."""
        return compared(overview, run, table, pool).document()

    return router


def window(overview: Overview, summary: RunSummary, score: Score, rows: range, columns: range) -> Matrix:
    """A window of a run's score matrix, refused cells included."""
    stops = matrices.scored_stops(summary)[rows.start : rows.stop]
    refused = overview.queries.refused(summary.run, stops, summary.columns[columns.start : columns.stop])
    return matrices.matrix(summary, score, rows, columns, refused)


def compared(overview: Overview, runs: list[str], table: Table, pool: Pool | None) -> Comparison:
    """The runs in one table, or a refusal that says why they cannot be."""
    try:
        return compared_in([overview.summary(run) for run in dict.fromkeys(runs)], table, pool)
    except NotComparable as error:
        raise HTTPException(HTTPStatus.CONFLICT, str(error)) from error

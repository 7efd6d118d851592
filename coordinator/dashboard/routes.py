"""The pages of the overview, and the parts of them that are loaded anew when something changes."""

import io
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from coordinator.dashboard import matrices
from coordinator.dashboard.api import (
    MOST,
    EventNumber,
    Place,
    Pool,
    RunNames,
    SiteNames,
    Table,
    compared,
    window,
)
from coordinator.dashboard.overview import Overview, RunName
from coordinator.dashboard.pulse import topics_of
from coordinator.dashboard.queries import STATUSES
from coordinator.dashboard.sentences import where_the_model_is
from coordinator.faults import exit_status, told
from coordinator.listing import status_of
from coordinator.metrics import DEFINITIONS
from coordinator.report import plain_words
from coordinator.report import scores_csv as csv_of
from coordinator.reporting import report_of
from coordinator.store import SETTLED, Run
from coordinator.summary import RunSummary
from pages.paging import PAGE
from pages.rendering import Look
from protos.plan import StrategyChoice

PATIENCE_SECONDS = 0.06  # for a summary that is being read; a page is sent without it then, and asks again
WINDOW = 25  # rows and columns of a score matrix on a page
ASKED_AGAIN = ("pending", "running")  # statuses of runs that can be cancelled
GOES_ON = ("failed", "incomplete", "cancelled", "interrupted")  # of those that can be resumed

Number = Annotated[int, Query(ge=1, le=10**6)]
PoolChoice = Literal["", "orders", "none"]  # empty: as is the table's custom
ScenarioFilter = Annotated[str, Query(pattern=r"^[a-z0-9-]{0,40}$")]  # empty: any
StatusFilter = Literal["", "pending", "running", "interrupted", "cancelled", "failed", "incomplete", "done"]


@dataclass(frozen=True)
class Pages:
    """Makes the pages from the overview, with one look."""

    overview: Overview
    look: Look

    def runs(self, request: Request, template: str, scenario: str, status: str, page: int) -> Response:
        """The list of runs, or the part of it that is live."""
        listed = self.overview.queries.runs(scenario or None, status or None, first=(page - 1) * PAGE, most=PAGE)
        chosen = {"scenario": scenario, "status": status}
        return self.look.render(
            request,
            template,
            listed=listed,
            in_words={row.run: StrategyChoice(name=row.strategy, **row.parameters).in_words for row in listed.runs},
            queue=self.overview.queries.queue().queue,
            scenarios=self.overview.queries.scenarios(),
            statuses=STATUSES,
            chosen=chosen,
            query=urlencode({**chosen, "page": page}),
            filters=urlencode(chosen),
            page=page,
            pages=max(1, -(-listed.total // PAGE)),
        )

    def sites(self, request: Request, template: str) -> Response:
        """The list of sites."""
        said = None
        try:
            sites = self.overview.sites().sites
        except Exception as error:
            if exit_status(error) is None:
                raise
            sites, said = [], " ".join(told(error))
        return self.look.render(request, template, sites=sites, said=said, served=self.overview.desk is not None)

    def run(self, request: Request, template: str, run: Run, **context: Any) -> Response:
        """A run's page, or a part of it."""
        everything, scores = topics_of(run.id)
        return self.look.render(request, template, run=run, topic=everything, scores_topic=scores, **context)

    def now(self, run: Run) -> dict[str, Any]:
        """Where the model is."""
        line = self.overview.queries.line(run.id)
        waiting = next((entry for entry in self.overview.queries.queue().queue if entry.run == run.id), None)
        status = self.status(run)
        sentence = where_the_model_is(line, status, waiting.waits_for if waiting else None)
        changes = self.overview.desk is not None
        return {
            "line": line,
            "run_status": status,
            "sentence": sentence,
            "may_cancel": changes and status in ASKED_AGAIN,
            "may_resume": changes and status in GOES_ON and run.data is None,
            "may_skip": changes and line.stop_here is not None,
            "open_stops": [stop for stop in line.stops if stop.status not in SETTLED],
        }

    def status(self, run: Run) -> str:
        """The run's status as people are told."""
        return status_of(run, self.overview.home)

    def scores(self, run: Run, row: int | None, column: int, site: list[str]) -> dict[str, Any]:
        """What the scores come to, as far as they are read."""
        shown = {"column": column, **({} if row is None else {"row": row})}
        sites = urlencode([("site", name) for name in site])
        links = {"window": urlencode(shown), "drawn": sites, "site": site}
        seen = self.overview.summaries.soon(run.id, PATIENCE_SECONDS)
        summary = seen.summary
        if summary is None:
            return {**links, "summary": None, "behind": True, "columns": ()}
        first = max(0, len(summary.visited) - WINDOW) if row is None else row
        rows, columns = range(first, first + WINDOW), range(column, column + WINDOW)
        return {
            **links,
            "summary": summary,
            "behind": seen.behind,
            "columns": summary.columns if len(summary.columns) > matrices.MOST_LINES else (),
            "words": plain_words(summary),
            "matrices": [window(self.overview, summary, score, rows, columns) for score in ("dsc", "asd")],
            "metrics": _metrics(summary),
            "by_kind": matrices.by_kind(summary),
            "by_site": _by_site(summary),
            "view": {"column": column, "window": WINDOW},
        }


def page_router(pages: Pages) -> APIRouter:
    """The routes of everything that is looked at."""
    router = APIRouter(include_in_schema=False)
    overview, queries = pages.overview, pages.overview.queries

    @router.get("/")
    def runs(request: Request, scenario: ScenarioFilter = "", status: StatusFilter = "", page: Number = 1) -> Response:
        return pages.runs(request, "runs.html", scenario, status, page)

    @router.get("/parts/runs")
    def runs_part(
        request: Request, scenario: ScenarioFilter = "", status: StatusFilter = "", page: Number = 1
    ) -> Response:
        return pages.runs(request, "_runs.html", scenario, status, page)

    @router.get("/sites")
    def sites(request: Request) -> Response:
        return pages.sites(request, "sites.html")

    @router.get("/parts/sites")
    def sites_part(request: Request) -> Response:
        return pages.sites(request, "_sites.html")

    @router.get("/compare")
    def compare(
        request: Request,
        run: RunNames = [],  # noqa: B006
        scenario: ScenarioFilter = "",
        table: Table = "overview",
        pool: PoolChoice = "",
    ) -> Response:
        names = list(dict.fromkeys([*run, *(queries.names(scenario)[:MOST] if scenario else [])]))
        found = compared(overview, names, table, pool or None) if names else None
        return pages.look.render(
            request,
            "compare.html",
            comparison=found,
            names=names,
            query=urlencode(
                [*(("run", name) for name in names), ("table", table), *([("pool", pool)] if pool else [])]
            ),
            table=table,
            pool=pool,
            scenarios=queries.scenarios(),
        )

    @router.get("/compare.csv")
    def compare_csv(run: RunNames, table: Table = "overview", pool: Pool | None = None) -> Response:
        out = io.StringIO()
        compared(overview, run, table, pool).write_csv(out)
        return _file(out.getvalue(), "comparison.csv", "text/csv")

    @router.get("/runs/{run}")
    def one_run(
        *,
        request: Request,
        run: RunName,
        row: Place | None = None,
        column: Place = 0,
        stop: Place = 0,
        before: EventNumber | None = None,
        after: EventNumber | None = None,
        site: SiteNames = [],  # noqa: B006
    ) -> Response:
        found = overview.run(run)
        return pages.run(
            request,
            "run.html",
            found,
            **pages.now(found),
            **pages.scores(found, row, column, site),
            stops=queries.stops(run, first=stop, most=PAGE),
            first_stop=stop,
            stops_in_page=PAGE,
            events=queries.events(run, before=before, after=after, most=PAGE),
            newest_events=before is None and after is None,
        )

    @router.get("/runs/{run}/parts/now")
    def now_part(request: Request, run: RunName) -> Response:
        found = overview.run(run)
        return pages.run(request, "_now.html", found, **pages.now(found))

    @router.get("/runs/{run}/parts/scores")
    def scores_part(
        request: Request,
        run: RunName,
        row: Place | None = None,
        column: Place = 0,
        site: SiteNames = [],  # noqa: B006
    ) -> Response:
        found = overview.run(run)
        return pages.run(request, "_scores.html", found, **pages.scores(found, row, column, site))

    @router.get("/runs/{run}/parts/stops")
    def stops_part(request: Request, run: RunName, stop: Place = 0) -> Response:
        stops = queries.stops(run, first=stop, most=PAGE)
        return pages.run(request, "_stops.html", overview.run(run), stops=stops, first_stop=stop, stops_in_page=PAGE)

    @router.get("/runs/{run}/parts/events")
    def events_part(
        request: Request, run: RunName, before: EventNumber | None = None, after: EventNumber | None = None
    ) -> Response:
        events = queries.events(run, before=before, after=after, most=PAGE)
        return pages.run(request, "_events.html", overview.run(run), events=events)

    @router.get("/runs/{run}/report.html")
    def report(run: RunName) -> Response:
        overview.run(run)
        return _file(report_of(run, overview.home), f"{run}.html", "text/html")

    @router.get("/runs/{run}/scores.csv")
    def scores_csv(run: RunName) -> Response:
        return _file(csv_of(overview.summary(run)), f"{run}.csv", "text/csv")

    return router


def _file(content: str | bytes, name: str, kind: str) -> Response:
    """A file to keep; never shown beside the pages, whatever it holds."""
    return Response(content, media_type=kind, headers={"content-disposition": f'attachment; filename="{name}"'})


def _metrics(summary: RunSummary) -> list[dict[str, Any]]:
    return [
        {
            "definition": definition,
            "values": [(score, summary.metrics[score][key], definition.better(score)) for score in summary.metrics],
        }
        for key, definition in DEFINITIONS.items()
    ]


def _by_site(summary: RunSummary) -> list[tuple[str, int, int]]:
    total: dict[str, tuple[int, int]] = {}
    for row in summary.traffic:
        sent, received = total.get(row.site, (0, 0))
        total[row.site] = sent + row.sent, received + row.received
    most = sorted(total.items(), key=lambda entry: -sum(entry[1]))[:WINDOW]
    return [(site, sent, received) for site, (sent, received) in most]

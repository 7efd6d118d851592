"""The page My scores: this site's column of the score matrix, per class and per case, and forgetting in plain words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel
from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from node.dashboard.house import House
from node.dashboard.reading import Reader
from node.dashboard.traffic import AxisShown, ChartShown, SeriesShown
from node.dashboard.visits import SCORE, RunKnown, metrics_of, run_known, runs, visited_stops
from node.records import CaseScoreRow
from node.shown import RUNS, Predictions, drawn_file

CASES = 100  # of one stop, in the page's table
STOPS = 100  # rows of its column, the newest
NOTHING_LOST = 0.005  # of DSC: less is no forgetting to speak of

RunQuery = Annotated[str | None, Query(max_length=80)]
StopQuery = Annotated[int | None, Query(ge=0, lt=2**32)]


class StopScore(BaseModel):
    """This site's scores after one stop, over all its scored cases; `classes` names the structures of the lists."""

    stop: int
    after: str
    learnt_here: bool
    dsc: float
    asd: float
    dsc_per_class: list[float]
    asd_per_class: list[float]


class CaseScoreShown(BaseModel):
    """One case's scores: it stays at the site, as its name does."""

    case: str
    dsc: float
    asd: float
    dsc_per_class: list[float]
    asd_per_class: list[float]


class ColumnShown(BaseModel):
    """This site's column of a run's score matrix."""

    run: str
    classes: list[str]
    stops: list[StopScore]
    forgetting: str


class CasesShown(BaseModel):
    """The cases as scored after a stop, the worst first."""

    run: str
    stop: int
    classes: list[str]
    cases: list[CaseScoreShown]


def column(reader: Reader, known: RunKnown) -> ColumnShown:
    """The column of a run, stop by stop."""
    here = visited_stops(reader, known.run)
    stops = []
    for stop, metrics in sorted(metrics_of(reader, known.run, SCORE).items()):
        if "dsc" not in metrics:
            continue
        numbers = range(1, len(known.classes) + 1)
        stops.append(
            StopScore(
                stop=stop,
                after=_after(known, stop),
                learnt_here=stop in here,
                dsc=metrics["dsc"],
                asd=metrics.get("asd", 0.0),
                dsc_per_class=[metrics.get(f"dsc.{number}", 0.0) for number in numbers],
                asd_per_class=[metrics.get(f"asd.{number}", 0.0) for number in numbers],
            )
        )
    return ColumnShown(
        run=known.run, classes=list(known.classes), stops=stops, forgetting=forgetting(stops, known.unseen)
    )


def _after(known: RunKnown, stop: int) -> str:
    """The site of a stop, where stops follow the order of the sites; else its number alone."""
    sites = known.plan.sites
    if known.at_once:
        return "all sites at once"
    return sites[stop] if stop < len(sites) else "another stop"


def forgetting(stops: Sequence[StopScore], unseen: bool) -> str:
    """What the column says, in words."""
    if not stops:
        return "The model was not scored here yet."
    last = stops[-1]
    now = f"after stop {last.stop} it reaches a DSC of {last.dsc:.3f} on this site's cases"
    own = next((score for score in stops if score.learnt_here), None)
    if unseen:
        return f"The model never learns here; {now}."
    if own is None:
        return f"The model has not learnt here yet; {now}."
    if own is last:
        return (
            f"The model has just learnt here (stop {own.stop}) and reaches a DSC of {own.dsc:.3f} on this site's cases."
        )
    began = f"Right after learning here (stop {own.stop}) the model reached a DSC of {own.dsc:.3f}"
    lost = own.dsc - last.dsc
    if lost > NOTHING_LOST:
        said = f"now, {now}: it has forgotten {lost:.3f}"
    elif lost < -NOTHING_LOST:
        said = f"now, {now}: it has become better by {-lost:.3f} without coming back"
    else:
        said = f"now, {now}: it has forgotten nothing to speak of"
    later = [score for score in stops if score.stop > own.stop]
    worst = min(later, key=lambda score: score.dsc)
    between = ""
    if worst is not last and own.dsc - worst.dsc > max(NOTHING_LOST, lost + NOTHING_LOST):
        between = f" In between it was down to {worst.dsc:.3f} (stop {worst.stop})."
    return f"{began}; {said}.{between}"


def cases_after(reader: Reader, known: RunKnown, stop: int, most: int) -> CasesShown:
    """The scored cases of one stop, worst first, at most so many."""
    query = select(CaseScoreRow.case, CaseScoreRow.dsc, CaseScoreRow.asd).where(
        CaseScoreRow.run == known.run, CaseScoreRow.stop == stop
    )
    found: dict[str, list[tuple[float, float]]] = {}
    for row in reader.rows(query.order_by(CaseScoreRow.case, CaseScoreRow.class_number)):
        found.setdefault(row.case, []).append((row.dsc, row.asd))
    cases = [_case(case, values) for case, values in found.items()]
    cases.sort(key=lambda case: (case.dsc, -case.asd, case.case))
    return CasesShown(run=known.run, stop=stop, classes=list(known.classes), cases=cases[:most])


def _case(case: str, values: Sequence[tuple[float, float]]) -> CaseScoreShown:
    dsc, asd = [value for value, _ in values], [value for _, value in values]
    return CaseScoreShown(
        case=case, dsc=sum(dsc) / len(dsc), asd=sum(asd) / len(asd), dsc_per_class=dsc, asd_per_class=asd
    )


@dataclass(frozen=True)
class Drawn:
    """Pictures of how the worst cases were segmented: of which stop, and of which cases there is one."""

    stop: int | None
    cases: tuple[str, ...]
    drawing: bool


def drawn(house: House, known: RunKnown) -> Drawn:
    """The pictures of a run; those that are missing are begun with."""
    kept = Predictions.of(house.home, known.run)
    if kept is None:
        return Drawn(None, (), False)
    there = tuple(case for case in kept.cases if drawn_file(house.home, known.run, kept.stop, case).exists())
    name = f"draw {known.run}"
    job = house.jobs.get(name)
    tried: Mapping[str, Any] = job.result or {}
    settings = house.settings_json()
    if len(there) < len(kept.cases) and tried.get("stop") != kept.stop and settings is not None and not job.failed:
        order = {
            "what": "draw",
            "home": str(house.home),
            "run": known.run,
            "settings": settings,
            "plan": known.plan.model_dump(mode="json"),
            "unseen": known.unseen,
        }
        house.jobs.start(name, ["node.dashboard.looking"], order)
    return Drawn(kept.stop, there, house.jobs.get(name).running)


def scores_router(house: House) -> APIRouter:
    """The page `/scores` and what it is made of."""
    router = APIRouter()
    reader = house.reader

    def chosen(run: str | None) -> RunKnown:
        found = run_known(reader, run) if run else next(iter(runs(reader, 1)), None)
        if found is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, "No such run has reached this node.")
        return found

    def context(run: str | None, stop: int | None) -> dict[str, Any]:
        known = chosen(run)
        found = column(reader, known)
        scored = [score.stop for score in found.stops]
        at = stop if stop is not None else (scored[-1] if scored else None)
        cases = None if at is None else cases_after(reader, known, at, CASES)
        return {
            "known": known,
            "runs": runs(reader),
            "column": found,
            "stops": found.stops[-STOPS:],
            "at": at,
            "cases": cases,
            "pictures": drawn(house, known),
            "kept_runs": RUNS,
        }

    @router.get("/scores", include_in_schema=False)
    def page(request: Request, run: RunQuery = None, stop: StopQuery = None) -> Response:
        if not run and not runs(reader, 1):
            return house.look.render(request, "nothing.html", heading="My scores", page="/scores")
        return house.look.render(request, "scores.html", **context(run, stop))

    @router.get("/scores/live", include_in_schema=False)
    def part(request: Request, run: RunQuery = None, stop: StopQuery = None) -> Response:
        return house.look.render(request, "_scores.html", **context(run, stop))

    @router.get("/scores/picture", include_in_schema=False)
    def picture(run: Annotated[str, Query(max_length=80)], case: Annotated[str, Query(max_length=1000)]) -> Response:
        kept = Predictions.of(house.home, chosen(run).run)
        path = None if kept is None or case not in kept.cases else drawn_file(house.home, run, kept.stop, case)
        if path is None or not path.is_file():
            raise HTTPException(HTTPStatus.NOT_FOUND, "There is no picture of this case.")
        return FileResponse(path, media_type="image/png")

    @router.get("/api/runs")
    def known_runs() -> list[str]:
        """The names of the runs that reached this node, the newest first, at most 100."""
        return [known.run for known in runs(reader)]

    @router.get("/api/scores")
    def scores(run: RunQuery = None) -> ColumnShown:
        """This site's column of the score matrix of a run, the newest unless one is named."""
        return column(reader, chosen(run))

    @router.get("/api/scores/chart")
    def chart(run: RunQuery = None) -> ChartShown:
        """The DSC after every stop, as a mean and per class."""
        found = column(reader, chosen(run))
        names = ["mean", *found.classes] if len(found.classes) > 1 else ["mean"]
        values: list[list[float | None]] = [[float(score.stop) for score in found.stops]]
        values.append([score.dsc for score in found.stops])
        if len(found.classes) > 1:
            values += [[score.dsc_per_class[number] for score in found.stops] for number in range(len(found.classes))]
        return ChartShown(
            x=AxisShown(label="stop", time=False),
            series=[SeriesShown(label=f"DSC, {name}", unit="") for name in names],
            values=values,
        )

    @router.get("/api/scores/cases")
    def cases(
        stop: Annotated[int, Query(ge=0, lt=2**32)],
        run: RunQuery = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = CASES,
    ) -> CasesShown:
        """The single cases as scored after a stop, the worst first."""
        return cases_after(reader, chosen(run), stop, limit)

    return router

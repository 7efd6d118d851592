"""What may be done in the overview of a service: each action has a page that says what it comes to, and asks again.

Every action is kept among the run's events with the name of who asked for it, and whether they proved it.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from itertools import islice
from urllib.parse import quote

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from coordinator.dashboard.overview import RunName
from coordinator.dashboard.routes import Pages
from coordinator.faults import FAILED, exit_status, told
from coordinator.moments import moment
from coordinator.scenario import Scenario, parse_scenario
from coordinator.service_desk import NotPossible, ServiceDesk
from coordinator.submitting import MOST_RUNS
from pages.access import Session
from pages.gate import form_of, session_of

LONGEST_NAME, LONGEST_REASON = 64, 500
_LISTED = 20  # of the runs that a scenario comes to
_NO_SUCH_ACTION = "This overview only shows what is in a home folder; `locum` on that machine changes it."


@dataclass(frozen=True)
class Asked:
    """A posted form."""

    fields: dict[str, str]
    session: Session

    @property
    def confirmed(self) -> bool:
        """Whether the question was answered."""
        return self.text("confirm") == "yes"

    def text(self, name: str) -> str:
        """A field without the space around it; empty if it is not there."""
        return self.fields.get(name, "").strip()

    def sentence(self, name: str, label: str, most: int) -> str:
        """A field of one printable line; raises NotPossible."""
        found = self.text(name)
        if not found:
            raise NotPossible(f"{label} is missing; fill it in.")
        if len(found) > most or not found.isprintable():
            raise NotPossible(f"{label} has at most {most} printable characters, on one line.")
        return found

    @property
    def who(self) -> str:
        """Who asks: the name they signed in under, or the one they give; marked if only stated. Raises NotPossible."""
        session = self.session
        return session.signed(session.person or self.sentence("asked_by", "Your name", LONGEST_NAME))

    @property
    def answers(self) -> str:
        """Who answers for what is skipped: who asks, if they proved their name; else whom they name, marked as stated.

        Raises NotPossible.
        """
        session = self.session
        named = "" if session.proven else self.sentence("by", "The name of who answers for it", LONGEST_NAME)
        return session.signed(named)


def action_router(pages: Pages) -> APIRouter:
    """The routes of everything that changes something; without a desk they say that nothing can be changed here."""
    router = APIRouter(include_in_schema=False)

    def desk() -> ServiceDesk:
        if pages.overview.desk is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, _NO_SUCH_ACTION)
        return pages.overview.desk

    def answer(request: Request, template: str, do: Callable[[Asked], str | None], **context: object) -> Response:
        """Do what the form asks, and lead to the page it names; without one, or if it cannot be done, show the form."""
        try:
            fields = {
                name: text.replace("\r\n", "\n") for name, text in form_of(request).items()
            }  # as browsers send it
            asked = Asked(fields, session_of(request))
        except ValueError as error:
            raise HTTPException(HTTPStatus.BAD_REQUEST, "The form could not be read.") from error
        status, said = HTTPStatus.OK, []
        try:
            if (target := do(asked)) is not None:
                return RedirectResponse(target, status_code=HTTPStatus.SEE_OTHER)
        except Exception as error:
            expected = exit_status(error)
            if expected is None:
                raise
            status = HTTPStatus.SERVICE_UNAVAILABLE if expected == FAILED else HTTPStatus.CONFLICT
            said = told(error)
        return pages.look.render(request, template, status=status, said=said, fields=asked.fields, **context)

    def confirming(request: Request, run: str, action: str) -> Response:
        context = pages.now(pages.overview.run(run))
        return pages.look.render(request, f"{action}.html", said=[], fields={}, question={}, run=run, **context)

    @router.get("/runs/{run}/cancel")
    def ask_cancel(request: Request, run: RunName) -> Response:
        desk()
        return confirming(request, run, "cancel")

    @router.post("/runs/{run}/cancel")
    def cancel(request: Request, run: RunName) -> Response:
        def do(asked: Asked) -> str:
            name, status = desk().cancel(run, by=asked.who)
            if status != "cancelled":
                raise NotPossible(f"Run {name} is {status}; only a run that is queued or carried out is cancelled.")
            return _page_of(name)

        return answer(request, "cancel.html", do, run=run, **pages.now(pages.overview.run(run)))

    @router.get("/runs/{run}/resume")
    def ask_resume(request: Request, run: RunName) -> Response:
        desk()
        return confirming(request, run, "resume")

    @router.post("/runs/{run}/resume")
    def resume(request: Request, run: RunName) -> Response:
        def do(asked: Asked) -> str:
            return _page_of(desk().resume(run, by=asked.who))

        return answer(request, "resume.html", do, run=run, **pages.now(pages.overview.run(run)))

    @router.get("/runs/{run}/skip")
    def ask_skip(request: Request, run: RunName) -> Response:
        desk()
        return confirming(request, run, "skip")

    @router.post("/runs/{run}/skip")
    def skip(request: Request, run: RunName) -> Response:
        context = pages.now(pages.overview.run(run))
        question: dict[str, object] = {}

        def do(asked: Asked) -> str | None:
            stop, site = asked.text("stop"), asked.text("rehearsal_at") or None
            if not (stop.isascii() and stop.isdecimal() and len(stop) < 10):
                raise NotPossible("It is not said which stop; choose one.")
            by = asked.answers
            why = asked.sentence("why", "The reason", LONGEST_REASON)
            who = asked.who
            if asked.confirmed:
                return _page_of(desk().skip(run, int(stop), site, by=by, why=why, asked_by=who))
            question.update(stop=int(stop), site=site, by=by, why=why)
            return None

        desk()
        return answer(request, "skip.html", do, run=run, question=question, **context)

    @router.get("/schedule")
    def ask_schedule(request: Request) -> Response:
        desk()
        return pages.look.render(request, "schedule.html", said=[], fields={}, question={})

    @router.post("/schedule")
    def schedule(request: Request) -> Response:
        question: dict[str, object] = {}

        def do(asked: Asked) -> str | None:
            overrides = [line.strip() for line in asked.text("overrides").splitlines() if line.strip()]
            source = asked.text("source") or "scenario"
            not_before = moment(asked.text("at")) if asked.text("at") else None
            after = desk().named(asked.text("after")) if asked.text("after") else None
            runs = list(islice(parse_scenario(asked.text("scenario"), source, overrides).runs(), MOST_RUNS + 1))
            who = asked.who
            if asked.confirmed:
                made = desk().submit(
                    asked.text("scenario"), source, overrides, not_before=not_before, after=after, by=who
                )
                return _page_of(made[0]) if len(made) == 1 else f"/?scenario={quote(runs[0].name, safe='')}"
            question.update(
                runs=[_in_words(scenario) for scenario in runs[:_LISTED]],
                count=len(runs),
                not_before=not_before,
                after=after,
                overrides=shlex.join(overrides),
            )
            return None

        desk()
        return answer(request, "schedule.html", do, question=question)

    return router


def _in_words(scenario: Scenario) -> str:
    order = ", ".join(scenario.visiting_order()[:12]) + (", …" if len(scenario.sites) > 12 else "")
    return f"{scenario.strategy.in_words}, seed {scenario.seed}: {order}"


def _page_of(run: str) -> str:
    return f"/runs/{quote(run, safe='')}"

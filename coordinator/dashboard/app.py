"""The overview as an application: of a service, where runs can be scheduled and ended, or of a home folder, to look."""

import importlib.metadata
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from coordinator.dashboard.actions import action_router
from coordinator.dashboard.api import api_router
from coordinator.dashboard.matrices import shade
from coordinator.dashboard.overview import Overview
from coordinator.dashboard.pulse import Pulse
from coordinator.dashboard.routes import Pages, page_router
from coordinator.faults import told
from coordinator.home import Home
from coordinator.reporting import NoReport
from coordinator.service_desk import ServiceDesk
from coordinator.store import StoreUnusable
from coordinator.superlink import NoSuperLink
from pages.access import Access
from pages.application import LOOPBACK, create_app, problem_for, templates_beside
from pages.credentials import People
from pages.live import Live
from pages.rendering import Link, Look

COOKIE = "locum-overview"


def overview_app(
    home: Home,
    desk: ServiceDesk | None,
    token: str | None,
    *,
    people: People | None = None,
    token_file: Path | None = None,
    hosts: frozenset[str] = LOOPBACK,
) -> FastAPI:
    """The application; besides who has the token, `people` sign in with passwords of their own.

    With `token` None everybody is let in, which only loopback may be told to do.
    """
    look = Look(
        name="Locum",
        kind="Overview",
        navigation=tuple(_navigation(desk is not None)),
        templates=templates_beside(__file__),
        hint="" if token_file is None else f"The token is in {token_file} on the coordinator's machine.",
        must_sign_in=token is not None,
        extra={"shade": shade, "serves": desk is not None},
    )
    overview = Overview(home, desk)
    pages = Pages(overview, look)
    routers = [page_router(pages), action_router(pages), api_router(overview)]
    live = Live(Pulse(overview))
    version = importlib.metadata.version("locum")
    app = create_app(look, Access(token, people), routers, cookie=COOKIE, version=version, hosts=hosts, live=live)
    app.state.overview = overview
    for fault in (StoreUnusable, NoSuperLink, NoReport):
        app.add_exception_handler(fault, _unavailable)
    return app


async def _unavailable(request: Request, fault: Exception) -> Response:
    """What is no fault of who asks, in the sentences that commands have for it."""
    return problem_for(request, HTTPStatus.SERVICE_UNAVAILABLE, " ".join(told(fault)), request.app.state.look)


def _navigation(serves: bool) -> Sequence[Link]:
    every = [Link("/", "Runs"), Link("/sites", "Sites"), Link("/compare", "Compare")]
    return [*every, Link("/schedule", "Schedule")] if serves else every

"""A dashboard with two pages, for tests of what every dashboard shares."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.testclient import TestClient

from pages.access import Access
from pages.application import create_app
from pages.credentials import People
from pages.gate import form_of, session_of
from pages.live import Live
from pages.rendering import Link, Look

TOKEN = "t" * 43
COOKIE = "locum-demo"
BASE = "http://127.0.0.1"


def demo_app(
    token: str | None = TOKEN, people: People | None = None, state: Mapping[str, object] | None = None
) -> FastAPI:
    """Pages `/` and `/text`, a part that shows the state, a change, a fault, and an API."""
    shown = {} if state is None else state
    look = Look(
        name="north",
        kind="Demo",
        navigation=(Link("/", "First"), Link("/text", "Text")),
        templates=Path(__file__).parent / "templates",
        hint="It lies in dashboard.token.",
        must_sign_in=token is not None,
    )
    router = APIRouter()
    noted: list[str] = []

    @router.get("/", include_in_schema=False)
    def first(request: Request) -> Response:
        return look.render(request, "first.html", text="", counted=shown.get("counter"))

    @router.get("/counter", include_in_schema=False)
    def counter(request: Request) -> Response:
        return look.render(request, "_counter.html", counted=shown.get("counter"))

    @router.get("/text", include_in_schema=False)
    def text(request: Request, text: str) -> Response:
        return look.render(request, "first.html", text=text, counted=None)

    @router.get("/fault", include_in_schema=False)
    def fault() -> None:
        raise RuntimeError("patient Miller")

    @router.post("/note", include_in_schema=False)
    def note(request: Request) -> Response:
        noted.append(f"{session_of(request).person}: {form_of(request)['text']}")
        return Response("; ".join(noted), media_type="text/plain")

    @router.get("/api/number")
    def number(value: int) -> dict[str, Any]:
        return {"value": value, "label": "value"}

    @router.get("/api/chart")
    def chart() -> dict[str, Any]:
        values = [[0, 1, 2], [3.0, float(len(shown)), 1.0]]
        return {"x": {"label": "step", "time": False}, "series": [{"label": "loss", "unit": ""}], "values": values}

    live = Live(lambda: dict(shown), every=0.02)
    return create_app(look, Access(token, people), [router], cookie=COOKIE, version="1", live=live)


def client(app: FastAPI, **headers: str) -> TestClient:
    return TestClient(app, base_url=BASE, headers=headers, follow_redirects=False)


def signed_in(app: FastAPI, name: str = "Ada", secret: str = TOKEN) -> TestClient:
    found = client(app)
    answer = found.post("/sign-in", data={"name": name, "secret": secret, "next": "/"})
    assert answer.status_code == 303, answer.text
    return found


def csrf(page: str) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', page)
    assert found
    return found[1]

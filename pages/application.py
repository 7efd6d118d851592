"""Makes a dashboard's application: closed by default, without any document that a foreign host would have to serve."""

from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import Scope

from pages.access import Access
from pages.gate import Gate, still_let_in
from pages.live import Live
from pages.rendering import STATIC, Look
from pages.shield import Shield
from pages.signing_in import sign_in_router

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
PROBLEM = "application/problem+json"


def create_app(
    look: Look,
    access: Access,
    routers: Sequence[APIRouter],
    *,
    cookie: str,
    version: str,
    hosts: frozenset[str] = LOOPBACK,
    live: Live | None = None,
) -> FastAPI:
    """The application of a dashboard with these pages.

    `cookie` names the session's cookie: browsers share cookies over all ports of a host, so every dashboard has one of
    its own. `hosts` are the names that requests may be for; any other is taken for DNS rebinding. `routers` hold pages,
    kept out of the schema, and below `/api` what programs may ask, described at `/api/openapi.json`. `live` is listened
    to at `/live`.
    """

    def problem(scope: Scope, status: int, detail: str) -> Response:
        return problem_for(Request(scope), status, detail, look)

    app = FastAPI(title=f"{look.kind} of {look.name}", version=version, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.look, app.state.live = look, live
    app.add_middleware(Gate, access=access, cookie=cookie, problem=problem)
    app.add_middleware(Shield, problem=problem, hosts=hosts)  # the last one added is the outermost
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.mount("/static", _Static(directory=STATIC), name="static")
    for router in (_own_router(), sign_in_router(look, access, cookie), *routers):
        app.include_router(router)
    app.openapi = lambda: _describe(app)  # type: ignore[method-assign]
    return app


def _own_router() -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/health")
    def health() -> dict[str, str]:
        """Whether the server answers at all; says nothing else, since it asks for no token."""
        return {"status": "ok"}

    @router.get("/favicon.ico")
    def icon() -> RedirectResponse:
        """What browsers ask for beside documents that name no icon."""
        return RedirectResponse("/static/icon.svg")

    @router.get("/api/openapi.json")
    def description(request: Request) -> JSONResponse:
        return JSONResponse(request.app.openapi())

    @router.get("/live")
    async def listen(request: Request) -> Response:
        live: Live | None = request.app.state.live
        if live is None:
            raise HTTPException(HTTPStatus.NOT_FOUND, "Nothing here is live.")
        return live.stream(let_in=lambda: still_let_in(request))

    return router


def _describe(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description: what lies below /api, the token it wants, and how it refuses."""
    if app.openapi_schema:
        return app.openapi_schema
    described = get_openapi(title=app.title, version=app.version, routes=app.routes)
    described.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    described["security"] = [{"token": []}]
    shape = {
        "type": "object",
        "properties": {"title": {"type": "string"}, "status": {"type": "integer"}, "detail": {"type": "string"}},
        "required": ["title", "status", "detail"],
    }
    refusal = {"description": "refused, and why", "content": {PROBLEM: {"schema": shape}}}
    for operations in described["paths"].values():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            operation["responses"]["4XX"] = refusal
    app.openapi_schema = described
    return described


def problem_for(request: Request, status: int, detail: str, look: Look) -> Response:
    """A refusal: an object for programs, a page for people."""
    title = HTTPStatus(status).phrase
    accepts = request.headers.get("accept", "")
    path = request.url.path if request.scope.get("path") else "/"
    if path.startswith("/api") or "text/html" not in accepts or "hx-request" in request.headers:
        content = {"title": title, "status": int(status), "detail": detail}
        return JSONResponse(content, status_code=status, media_type=PROBLEM)
    return look.render(request, "problem.html", status=status, title=title, detail=detail)


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = error.detail
    if error.status_code == HTTPStatus.NOT_FOUND and detail == HTTPStatus.NOT_FOUND.phrase:
        detail = "There is nothing at this address."
    answer = problem_for(request, error.status_code, detail, request.app.state.look)
    answer.headers.update(error.headers or {})
    return answer


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])
    sentence = f"{where or 'the request'}: {first['msg'].removeprefix('Value error, ')}."
    return problem_for(request, HTTPStatus.UNPROCESSABLE_ENTITY, sentence, request.app.state.look)


class _Static(StaticFiles):
    """Files of the package; their addresses change with their contents."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        answer = super().file_response(*args, **kwargs)
        answer.headers["cache-control"] = "public, max-age=86400"
        return answer


def hosts_for(host: str, names: Sequence[str] = ()) -> frozenset[str]:
    """The names that a server listening at `host` goes by: its own, those given, and on this machine loopback's."""
    wildcard = {"", "0.0.0.0", "::"}  # noqa: S104 - compared, not bound
    return LOOPBACK | ({host.lower()} - wildcard) | {name.lower() for name in names}


def templates_beside(file: str) -> Path:
    """The folder `templates` beside a module."""
    return Path(file).parent / "templates"

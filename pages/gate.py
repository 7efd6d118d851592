"""Who may pass: everything is closed but signing in, and a change needs the session's own token besides."""

from http import HTTPStatus
from urllib.parse import parse_qs, quote

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from pages.access import Access, Session, TooManyGuesses
from pages.shield import Problem

SIGN_IN = "/sign-in"
_PUBLIC = (SIGN_IN, "/health", "/favicon.ico")
_PUBLIC_FOLDER = "/static/"
CSRF_HEADER, CSRF_FIELD = "x-csrf-token", "csrf"
_WAIT = "Too many attempts to sign in; wait a minute."


class Gate:
    """Finds out who asks, puts their session into `scope["state"]`, and lets nobody else pass.

    Beside it lies how to ask again later whether the session still lets in, for an answer that lasts.
    """

    def __init__(self, app: ASGIApp, access: Access, cookie: str, problem: Problem) -> None:
        self._app, self._access, self._cookie, self._problem = app, access, cookie, problem

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        answer = await self._answer(scope) if scope["type"] == "http" else None
        await (answer or self._app)(scope, receive, send)

    async def _answer(self, scope: Scope) -> Response | None:
        """The answer to a request that may not pass; None if it may."""
        headers, path = Headers(scope=scope), scope["path"]
        changes = scope["method"] == "POST"
        if changes and not _from_here(headers):
            return self._problem(scope, HTTPStatus.FORBIDDEN, "A change must come from the dashboard's own pages.")
        kind, _, token = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and not self._access.is_open:
            try:
                known = await run_in_threadpool(self._access.bearer, address_of(scope), token.strip())
            except TooManyGuesses:
                return self._wait(scope)
            if known:
                shown = Session("", proven=False)
                scope["state"].update(session=shown, still_let_in=lambda: not shown.over)
                return None
            return self._unknown(scope, headers)
        key = Request(scope).cookies.get(self._cookie, "")
        session = self._access.session(key)
        scope["state"].update(session=session, still_let_in=lambda: self._access.session(key) is not None)
        if path in _PUBLIC or path.startswith(_PUBLIC_FOLDER):
            return None
        if session is None:
            return self._unknown(scope, headers)
        if changes and not session.vouches(_token_of(headers, scope["state"]["body"])):
            return self._problem(
                scope, HTTPStatus.FORBIDDEN, "The page was too old for this change; load it again and repeat it."
            )
        return None

    def _unknown(self, scope: Scope, headers: Headers) -> Response:
        path = scope["path"]
        leads_to_sign_in = scope["method"] != "POST" and not path.startswith("/api") and path != "/live"
        if leads_to_sign_in and "hx-request" in headers:
            return Response(status_code=HTTPStatus.UNAUTHORIZED, headers={"HX-Redirect": SIGN_IN})
        if leads_to_sign_in:
            target = SIGN_IN if path == "/" else f"{SIGN_IN}?next={quote(path, safe='/')}"
            return RedirectResponse(target, status_code=HTTPStatus.SEE_OTHER)
        answer = self._problem(scope, HTTPStatus.UNAUTHORIZED, "Sign in, or show the token as `Authorization: Bearer`.")
        answer.headers["www-authenticate"] = "Bearer"
        return answer

    def _wait(self, scope: Scope) -> Response:
        answer = self._problem(scope, HTTPStatus.TOO_MANY_REQUESTS, _WAIT)
        answer.headers["retry-after"] = "60"
        return answer


def session_of(request: Request) -> Session:
    """Who asks; only where the gate let somebody pass."""
    session = request.state.session
    assert isinstance(session, Session)
    return session


def still_let_in(request: Request) -> bool:
    """Whether who asked would still pass now: neither signed out, nor removed, nor their time up."""
    return bool(request.state.still_let_in())


def form_of(request: Request) -> dict[str, str]:
    """The fields of a posted form, the last of each name. Raises ValueError for what is no form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise ValueError("a form is wanted")
    return _fields(request.state.body)


def address_of(scope: Scope) -> str:
    """Where a request comes from."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def _from_here(headers: Headers) -> bool:
    """Whether a browser says that its own page of ours asks; programs say nothing."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2].lower() == headers["host"].lower()


def _token_of(headers: Headers, body: bytes) -> str:
    found = headers.get(CSRF_HEADER)
    if found is None and headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        try:
            found = _fields(body).get(CSRF_FIELD)
        except ValueError:
            found = None
    return found or ""


def _fields(body: bytes) -> dict[str, str]:
    found = parse_qs(body.decode("utf-8"), keep_blank_values=True, strict_parsing=bool(body), max_num_fields=200)
    return {name: values[-1] for name, values in found.items()}

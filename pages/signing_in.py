"""The page for signing in, and signing out."""

import logging
from http import HTTPStatus
from urllib.parse import urlsplit

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from pages.access import Access, TooManyGuesses
from pages.credentials import UnusableSecret
from pages.gate import SIGN_IN, address_of, form_of
from pages.rendering import Look

_log = logging.getLogger("locum.pages")

_LONGEST_NAME = 64


def sign_in_router(look: Look, access: Access, cookie: str) -> APIRouter:
    """The routes `/sign-in` and `/sign-out`."""
    router = APIRouter(include_in_schema=False)

    def form(request: Request, target: str, name: str = "", said: str = "", status: int = HTTPStatus.OK) -> Response:
        return look.render(request, "sign_in.html", status=status, target=target, name=name, said=said)

    @router.get(SIGN_IN)
    def show(request: Request) -> Response:
        target = _local(request.query_params.get("next", "/"))
        if request.state.session is not None:
            return RedirectResponse(target, status_code=HTTPStatus.SEE_OTHER)
        return form(request, target)

    @router.post(SIGN_IN)
    async def sign_in(request: Request) -> Response:
        try:
            given = form_of(request)
        except ValueError:
            return form(request, "/", said="The form could not be read.", status=HTTPStatus.BAD_REQUEST)
        target = _local(given.get("next", "/"))
        name = given.get("name", "").strip()
        if len(name) > _LONGEST_NAME or not name.isprintable():
            said = f"A name has at most {_LONGEST_NAME} printable characters."
            return form(request, target, said=said, status=HTTPStatus.BAD_REQUEST)
        try:
            opened = await run_in_threadpool(access.sign_in, address_of(request.scope), name, given.get("secret", ""))
        except TooManyGuesses:
            said = "Too many attempts; wait a minute."
            return form(request, target, name, said, HTTPStatus.TOO_MANY_REQUESTS)
        except UnusableSecret as fault:
            _log.error("Nobody can sign in under a name: %s", fault)
            said = "Passwords cannot be checked at the moment; the log says why. With the token, leave the name empty."
            return form(request, target, name, said, HTTPStatus.SERVICE_UNAVAILABLE)
        if opened is None:
            said = "That is neither the token nor this person's password."
            return form(request, target, name, said, HTTPStatus.FORBIDDEN)
        answer = RedirectResponse(target, status_code=HTTPStatus.SEE_OTHER)
        secure = request.url.scheme == "https"
        answer.set_cookie(cookie, opened[0], httponly=True, samesite="strict", secure=secure, path="/")
        return answer

    @router.post("/sign-out")
    def sign_out(request: Request) -> Response:
        access.sign_out(request.cookies.get(cookie, ""))
        answer = RedirectResponse(SIGN_IN, status_code=HTTPStatus.SEE_OTHER)
        answer.delete_cookie(cookie, path="/")
        return answer

    return router


def _local(target: str) -> str:
    """A path of this server, or its first page for whatever else it was."""
    parts = urlsplit(target)
    local = target.startswith("/") and not target.startswith(("//", "/\\")) and not parts.scheme and not parts.netloc
    return target if local and target.isprintable() and "\\" not in target else "/"

"""The outermost layer: what no request may be, and what every answer says. Plain ASGI, so that streams pass through."""

import asyncio
import logging
from collections.abc import Callable
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_log = logging.getLogger("locum.pages")

LARGEST_BODY = 64 * 1024
LONGEST_TARGET = 4096  # characters of path and query
BODY_SECONDS = 10.0
METHODS = frozenset({"GET", "HEAD", "POST"})
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "font-src 'self'",
        "connect-src 'self'",
        "frame-ancestors 'none'",
        "form-action 'self'",
        "base-uri 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}

# Makes the answer to a request that is not let through: its scope, a status, one sentence.
Problem = Callable[[Scope, int, str], Response]


class Shield:
    """Lets in small, well-formed requests for names that this server goes by, and puts the headers on every answer.

    The body is read here, whole and bounded, and lies in `scope["state"]["body"]` too. What the application raises ends
    here: the log gets the traceback and the browser a sentence.
    """

    def __init__(self, app: ASGIApp, problem: Problem, hosts: frozenset[str]) -> None:
        self._app, self._problem, self._hosts = app, problem, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # a web socket is refused by not being accepted
        began = False

        async def answer(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        try:
            if (refused := self._objection(scope)) is not None:
                await self._problem(scope, *refused)(scope, receive, answer)
                return
            body = await self._body(scope, receive)
            if isinstance(body, int):
                sentence = f"A request may hold at most {LARGEST_BODY // 1024} KiB, sent within {BODY_SECONDS:g} s."
                await self._problem(scope, body, sentence)(scope, receive, answer)
                return
            scope.setdefault("state", {})["body"] = body
            await self._app(scope, _again(body, receive), answer)
        except Exception:
            _log.exception("A request could not be answered.")
            if not began:
                sentence = "This could not be answered; the log of the dashboard says why."
                await self._problem(scope, HTTPStatus.INTERNAL_SERVER_ERROR, sentence)(scope, receive, answer)

    def _objection(self, scope: Scope) -> tuple[int, str] | None:
        named = Headers(scope=scope).getlist("host")
        if len(named) != 1 or host_of(named[0]) not in self._hosts:
            return HTTPStatus.MISDIRECTED_REQUEST, (
                "This server does not go by that name; use its address, or start it with --name."
            )
        if scope["method"] not in METHODS:
            return HTTPStatus.METHOD_NOT_ALLOWED, "Only GET, HEAD and POST are answered."
        if len(scope.get("raw_path") or b"") + len(scope.get("query_string", b"")) > LONGEST_TARGET:
            return HTTPStatus.REQUEST_URI_TOO_LONG, f"An address may have at most {LONGEST_TARGET} characters."
        return None

    @staticmethod
    async def _body(scope: Scope, receive: Receive) -> bytes | int:
        """The whole body, or the status with which it is refused."""
        told = Headers(scope=scope).get("content-length", "0")
        if not told.isascii() or not told.isdigit() or int(told[:20]) > LARGEST_BODY:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
        parts, length = [], 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return HTTPStatus.REQUEST_TIMEOUT
                    parts.append(message.get("body", b""))
                    length += len(parts[-1])
                    if length > LARGEST_BODY:
                        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            return HTTPStatus.REQUEST_TIMEOUT


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that hands out what was read already, and then whatever comes: that the other end is gone."""
    given = False

    async def receive_again() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return receive_again


def host_of(header: str) -> str:
    """The name in a Host header, without its port, in small letters; empty if it is malformed."""
    try:
        return (urlsplit(f"//{header}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether only this machine itself reaches an address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False

"""Holds the questions of nodes and conductors for messages until there is one, within the SuperLink's own process.

Flower's SuperLink answers "is there a message?" at once, at some milliseconds of a core, so its clients ask again and
again. Here an answer that there is none is kept back for as long as the asker said (protos/holding.py), or until a
message for it has come in; then it goes out, and the asker asks again. A message is thus only ever handed to somebody
who has just asked for it, and an answer is held only after the SuperLink itself has looked at who asks.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any

from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse, PushMessagesRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse, PushAppMessagesRequest
from google.protobuf.message import DecodeError
from google.protobuf.message import Message as Protobuf
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protos.holding import HEADER

LONGEST_SECONDS = 20.0


def _to_node(number: int) -> str:
    return f"to node {number}"


def _replies_to(message: str) -> str:
    return f"replies to {message}"


# Path of a question -> what is waited for, and the type of the answer
_QUESTIONS: dict[str, tuple[Callable[[bytes], Iterable[str]], type[Protobuf]]] = {
    "/v1/fleet/pull-messages": (
        lambda body: [_to_node(PullMessagesRequest.FromString(body).node.node_id)],
        PullMessagesResponse,
    ),
    "/v1/runtime/pull-messages": (
        lambda body: map(_replies_to, PullAppMessagesRequest.FromString(body).message_ids),
        PullAppMessagesResponse,
    ),
}
# Path by which messages come in -> what they are
_NEWS: dict[str, Callable[[bytes], Iterable[str]]] = {
    "/v1/runtime/push-messages": lambda body: [
        _to_node(message.metadata.dst_node_id) for message in PushAppMessagesRequest.FromString(body).messages_list
    ],
    "/v1/fleet/push-messages": lambda body: [
        _replies_to(message.metadata.reply_to_message_id)
        for message in PushMessagesRequest.FromString(body).messages_list
    ],
}


class Holding:
    """ASGI middleware; the outermost, so that what it sees has passed the SuperLink's checks."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on, and hold its answer if it is a question."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # In one piece: SuperLink's own layers would hand an object of 5 MiB through in eighty, each at some cost.
        body = await _body(receive)
        receive = _again(body, receive)
        if scope["path"] in _NEWS:
            await self._tell(scope, body, receive, send)
        elif scope["path"] in _QUESTIONS and (seconds := _seconds(scope)):
            await self._hold(scope, body, receive, send, seconds)
        else:
            await self._app(scope, receive, send)

    async def _tell(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        answer = _Answer()
        await self._app(scope, receive, answer.take)
        if answer.status == 200:
            for news in _NEWS[scope["path"]](body):
                for event in self._waiting.get(news, ()):
                    event.set()
        await answer.give(send)

    async def _hold(self, scope: Scope, body: bytes, receive: Receive, send: Send, seconds: float) -> None:
        wanted, kind = _QUESTIONS[scope["path"]]
        try:
            names = list(wanted(body))
        except DecodeError:
            names = []  # the SuperLink says what is wrong
        answer = _Answer()
        with self._told_of(names) as event:
            await self._app(scope, receive, answer.take)
            if names and answer.status == 200 and not _has_messages(kind.FromString(answer.content)):
                gone = asyncio.ensure_future(receive())  # whoever asks hangs up
                news = asyncio.ensure_future(event.wait())
                await asyncio.wait({gone, news}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                gone.cancel()
                news.cancel()
        await answer.give(send, (HEADER.encode(), b"1"))

    @contextmanager
    def _told_of(self, names: Iterable[str]) -> Any:
        event = asyncio.Event()
        for name in names:
            self._waiting[name].add(event)
        try:
            yield event
        finally:
            for name in names:
                self._waiting[name].discard(event)
                if not self._waiting[name]:
                    del self._waiting[name]


class _Answer:
    """An answer of the SuperLink's, kept back."""

    def __init__(self) -> None:
        self._parts: list[Message] = []

    async def take(self, part: Message) -> None:
        self._parts.append(part)

    @property
    def status(self) -> int:
        return next((int(part["status"]) for part in self._parts if part["type"] == "http.response.start"), 0)

    @property
    def content(self) -> bytes:
        return b"".join(part.get("body", b"") for part in self._parts if part["type"] == "http.response.body")

    async def give(self, send: Send, *headers: tuple[bytes, bytes]) -> None:
        for part in self._parts:
            if part["type"] == "http.response.start":
                part = {**part, "headers": [*part.get("headers", ()), *headers]}
            await send(part)


def _has_messages(answer: Any) -> bool:
    return bool(answer.messages_list)


def _seconds(scope: Scope) -> float:
    """For how long the asker lets its question be held; 0 if it does not say."""
    for name, value in scope["headers"]:
        if name == HEADER.encode():
            try:
                return min(max(float(value), 0.0), LONGEST_SECONDS)
            except ValueError:
                return 0.0
    return 0.0


async def _body(receive: Receive) -> bytes:
    parts = []
    while True:
        part = await receive()
        parts.append(part.get("body", b""))
        if not part.get("more_body"):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """The call's body once more, and after it what else comes."""
    given = False

    async def receive_again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again

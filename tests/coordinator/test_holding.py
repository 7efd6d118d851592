"""Held questions: an answer that there is nothing waits for news, and for nothing else."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse, PushMessagesRequest
from flwr.proto.message_pb2 import Message, Metadata
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse, PushAppMessagesRequest

from coordinator.holding import Holding
from protos.holding import HEADER

FLEET, RUNTIME = "/v1/fleet/pull-messages", "/v1/runtime/pull-messages"
LONG = 15.0  # is never waited for


class SuperLink:
    """What stands behind: answers every question with `answer`, and counts."""

    def __init__(self) -> None:
        self.answer, self.status = b"", 200
        self.bodies: list[list[bytes]] = []
        self.calls = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.calls += 1
        parts = []
        while (part := await receive())["type"] == "http.request":
            parts.append(part["body"])
            if not part["more_body"]:
                break
        self.bodies.append(parts)
        await send({"type": "http.response.start", "status": self.status, "headers": [(b"x", b"y")]})
        await send({"type": "http.response.body", "body": self.answer})


class Asker:
    """Calls the middleware as a server would; `gone` says that the client hangs up."""

    def __init__(self) -> None:
        self.superlink = SuperLink()
        self._holding = Holding(self.superlink)
        self.gone = asyncio.Event()

    async def ask(self, path: str, *body: bytes, hold: str | None = None) -> tuple[int, dict[bytes, bytes], bytes]:
        parts = [{"type": "http.request", "body": part, "more_body": True} for part in body]
        parts.append({"type": "http.request", "body": b"", "more_body": False})
        sent: list[Any] = []

        async def receive() -> Any:
            if parts:
                return parts.pop(0)
            await self.gone.wait()
            return {"type": "http.disconnect"}

        async def send(part: Any) -> None:
            sent.append(part)

        headers = [] if hold is None else [(HEADER.encode(), hold.encode())]
        await self._holding({"type": "http", "path": path, "headers": headers}, receive, send)
        start, end = sent
        return start["status"], dict(start["headers"]), end["body"]

    async def held(self, path: str, body: bytes, hold: float = LONG) -> "asyncio.Task[Any]":
        """A question under way whose answer the SuperLink has given and the middleware holds."""
        calls = self.superlink.calls
        task = asyncio.create_task(self.ask(path, body, hold=str(hold)))
        while self.superlink.calls == calls:
            await asyncio.sleep(0.001)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not task.done()
        return task


def from_node(number: int) -> bytes:
    return PullMessagesRequest(node=Node(node_id=number)).SerializeToString()


def for_replies(*messages: str) -> bytes:
    return PullAppMessagesRequest(message_ids=messages).SerializeToString()


def to_node(number: int) -> bytes:
    return PushAppMessagesRequest(messages_list=[Message(metadata=Metadata(dst_node_id=number))]).SerializeToString()


def reply_to(message: str) -> bytes:
    metadata = Metadata(reply_to_message_id=message)
    return PushMessagesRequest(messages_list=[Message(metadata=metadata)]).SerializeToString()


def run(scene: Callable[[Asker], Awaitable[None]]) -> None:
    async def play() -> None:
        await asyncio.wait_for(scene(Asker()), timeout=LONG * 0.8)

    asyncio.run(play())


@pytest.mark.parametrize(
    ("question", "news", "other"),
    [
        ((FLEET, from_node(7)), ("/v1/runtime/push-messages", to_node(7)), ("/v1/runtime/push-messages", to_node(8))),
        (
            (RUNTIME, for_replies("a", "b")),
            ("/v1/fleet/push-messages", reply_to("b")),
            ("/v1/fleet/push-messages", reply_to("c")),
        ),
    ],
)
def test_a_question_is_held_until_there_is_news_for_it(question: Any, news: Any, other: Any) -> None:
    async def scene(asker: Asker) -> None:
        task = await asker.held(*question)
        await asker.ask(*other)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not task.done()
        await asker.ask(*news)
        status, headers, body = await task
        assert (status, headers, body) == (200, {b"x": b"y", HEADER.encode(): b"1"}, b"")
        assert asker.superlink.calls == 3  # the question was not put a second time in the asker's name

    run(scene)


def test_a_question_is_held_no_longer_than_the_asker_said() -> None:
    async def scene(asker: Asker) -> None:
        began = time.monotonic()
        assert (await asker.ask(FLEET, from_node(7), hold="0.05"))[0] == 200
        assert time.monotonic() - began >= 0.05

    run(scene)


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        (FLEET, from_node(7), PullMessagesResponse(messages_list=[Message()])),
        (RUNTIME, for_replies("a"), PullAppMessagesResponse(messages_list=[Message()])),
    ],
)
def test_an_answer_with_messages_is_not_held(path: str, body: bytes, answer: Any) -> None:
    async def scene(asker: Asker) -> None:
        asker.superlink.answer = answer.SerializeToString()
        assert (await asker.ask(path, body, hold=str(LONG)))[2] == answer.SerializeToString()

    run(scene)


@pytest.mark.parametrize("hold", [None, "0", "-1", "soon"])
def test_whoever_does_not_ask_for_it_is_answered_at_once(hold: str | None) -> None:
    async def scene(asker: Asker) -> None:
        assert HEADER.encode() not in (await asker.ask(FLEET, from_node(7), hold=hold))[1]

    run(scene)


@pytest.mark.parametrize("status", [401, 500])
def test_whoever_is_refused_is_told_at_once(status: int) -> None:
    async def scene(asker: Asker) -> None:
        asker.superlink.status = status
        assert (await asker.ask(FLEET, from_node(7), hold=str(LONG)))[0] == status

    run(scene)


def test_what_is_no_question_is_passed_on_as_it_came() -> None:
    async def scene(asker: Asker) -> None:
        asker.superlink.status = 415
        assert (await asker.ask(FLEET, b"\xff\xff", hold=str(LONG)))[0] == 415
        assert asker.superlink.bodies == [[b"\xff\xff"]]

    run(scene)


def test_refused_news_wake_nobody() -> None:
    async def scene(asker: Asker) -> None:
        task = await asker.held(FLEET, from_node(7))
        asker.superlink.status = 401
        await asker.ask("/v1/runtime/push-messages", to_node(7))
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert not task.done()
        task.cancel()

    run(scene)


def test_a_question_whose_asker_hangs_up_is_not_held_on_and_leaves_nothing() -> None:
    async def scene(asker: Asker) -> None:
        task = await asker.held(FLEET, from_node(7))
        asker.gone.set()
        await task
        assert not asker._holding._waiting

    run(scene)


def test_a_body_reaches_the_superlink_in_one_piece() -> None:
    async def scene(asker: Asker) -> None:
        await asker.ask("/v1/fleet/push-object", b"one ", b"two ", b"three")
        assert asker.superlink.bodies == [[b"one two three"]]

    run(scene)


def test_other_protocols_are_left_alone() -> None:
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    asyncio.run(Holding(app)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]

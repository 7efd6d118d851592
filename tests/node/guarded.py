"""A node with a guarded ClientApp, for tests that talk to it as a ServerApp would."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.supercore.inflatable.inflatable_object import InflatableObject
from flwr.supercore.task_identity import TaskIdentity

from node.database import open_database
from node.guard import Exchange, make_guard
from node.ledger import Direction, Ledger
from node.settings import SiteSettings
from protos.declaration import Bound, Declaration
from protos.handover import Handover, HandoverSchema, Tensor
from protos.messages import VISIT, Request, pack_reply, pack_request, read_handover, read_request
from protos.plan import PhantomSite, Plan, StrategyChoice, Task

SITE = "north"
METRICS = {"loss": Bound(0.0, 100.0), "cases": Bound(0, 1e6)}

Handler = Callable[[Message, Context], Any]


def tensor(values: Any, dtype: str = "float32") -> Tensor:
    array = np.asarray(values, dtype)
    return Tensor(dtype, array.shape, array.tobytes())


def small_handover(scale: float = 1.0) -> Handover:
    """Two tensors of floating-point numbers and one of truth values."""
    rng = np.random.default_rng(1)
    return Handover(
        weights={
            "conv.weight": tensor(scale * rng.standard_normal((8, 4, 3, 3))),
            "conv.bias": tensor(scale * rng.standard_normal(8)),
            "mask": tensor(rng.random(8) < 0.5, "bool"),
        }
    )


def request(**changes: Any) -> Request:
    """A valid request for the site, with fields replaced."""
    plan = Plan(task=Task(classes=("background", "organ")), strategy=StrategyChoice(name="finetune"), sites=(SITE,))
    return Request.model_validate({"run": "run-1", "stop": 2, "site": SITE, "plan": plan} | changes)


def honest(message: Message, context: Context) -> Message:
    """Reply with what was declared."""
    asked = read_request(message.content)
    assert read_handover(message.content) is not None
    return Message(pack_reply(asked, small_handover(0.5), {"loss": 0.25, "cases": 12}), reply_to=message)


def standard_exchange() -> Exchange:
    schema = HandoverSchema.of(small_handover())
    return Exchange(schema, Declaration(schema, METRICS))


@dataclass
class Node:
    """One site's node; `exchange` is what the guard is told may cross."""

    home: Path
    exchange: Exchange = field(default_factory=standard_exchange)

    def context(self) -> Context:
        settings = SiteSettings(name=SITE, home=self.home, phantom=PhantomSite(task="organ"))
        return Context(1, 7, {"site": settings.model_dump_json()}, RecordDict(), {})

    def app(self, handler: Handler, guarded: bool = True) -> ClientApp:
        app = ClientApp(mods=[make_guard(lambda message_type, asked: self.exchange)] if guarded else [])
        for register in (app.train, app.evaluate, app.query):
            for action in ("visit", "score", "describe", "steal"):
                register(action)(handler)
        return app

    def ask(self, handler: Handler = honest, content: RecordDict | None = None, message_type: str = VISIT) -> Message:
        """Send a request and return the reply as the app gives it to Flower."""
        content = pack_request(request(), small_handover()) if content is None else content
        return self.app(handler)(over_the_wire(instruction(content, message_type)), self.context())

    def ask_unguarded(self, handler: Handler) -> Message:
        """The same without the guard, with what Flower itself makes of an exception (supernode/runtime)."""
        message = over_the_wire(instruction(pack_request(request(), small_handover())))
        try:
            reply: Message = self.app(handler, guarded=False)(message, self.context())
        except Exception as error:
            return Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=message)
        return reply

    def ledger(self) -> Ledger:
        return Ledger(open_database(self.home))

    def verdicts(self) -> list[tuple[str, str, str]]:
        """(direction, verdict, code) of every crossing."""
        return [(entry.direction, entry.verdict, entry.code) for entry in self.crossings()]

    def crossings(self) -> list[Any]:
        """The ledger's entries on messages."""
        return [entry for entry in self.ledger().entries() if entry.direction != Direction.HERE]


def instruction(content: RecordDict, message_type: str = VISIT) -> Message:
    """A message as a ServerApp would make it."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    message = Message(content, 7, message_type, group_id="3")
    message.metadata.__dict__["_message_id"] = "message-1"
    return message


def over_the_wire(message: Message) -> Message:
    return message_from_proto(MessageProto.FromString(wire(message)))


def wire(message: Message) -> bytes:
    """The message as Flower serialises it in one piece."""
    return message_to_proto(message).SerializeToString(deterministic=True)


def all_that_crosses(message: Message) -> bytes:
    """The message in one piece, and in the pieces in which Flower's deployment engine sends it."""
    return b"\0".join([wire(message), *_pieces(message)])


def _pieces(piece: InflatableObject) -> Iterator[bytes]:
    yield piece.deflate()
    children = piece.slice_array() if isinstance(piece, Array) else list((piece.children or {}).items())
    for _, child in children:
        yield from _pieces(child)

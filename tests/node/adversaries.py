"""What the guard's tests share: a node with a guarded ClientApp, its requests, and a secret that wants to get out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.supercore.task_identity import TaskIdentity

from node.database import open_database
from node.guard import Exchange, make_guard
from node.ledger import Ledger
from node.settings import PhantomSite, SiteSettings
from protos.declaration import Bound, Declaration
from protos.handover import Handover, HandoverSchema, Tensor
from protos.messages import VISIT, Request, pack_reply, pack_request, read_handover, read_request
from protos.plan import Plan, StrategyChoice, Task

SITE = "north"
METRICS = {"loss": Bound(0.0, 100.0), "cases": Bound(0, 1e6)}

# A 256x256 picture, one byte per pixel; a run of its bytes stands for it, since a leak may carry it in another frame.
PICTURE = np.random.default_rng(0).integers(1, 127, (256, 256), np.uint8)
SECRET = PICTURE.tobytes()
SECRET_TEXT = "patient Ada Byron, 10 December"

Handler = Callable[[Message, Context], Any]


def small_handover(scale: float = 1.0) -> Handover:
    """A handover of three tensors: two of floating-point numbers and one of truth values."""
    rng = np.random.default_rng(1)
    return Handover(
        weights={
            "conv.weight": _tensor((scale * rng.standard_normal((8, 4, 3, 3))).astype(np.float32)),
            "conv.bias": _tensor((scale * rng.standard_normal(8)).astype(np.float32)),
            "mask": _tensor(rng.random(8) < 0.5),
        }
    )


def _tensor(values: np.ndarray) -> Tensor:
    return Tensor(values.dtype.name, values.shape, values.tobytes())


def request(**changes: Any) -> Request:
    """A valid request for the site, with fields replaced."""
    plan = Plan(task=Task(classes=("background", "organ")), strategy=StrategyChoice(name="finetune"), sites=(SITE,))
    return Request.model_validate({"run": "run-1", "stop": 2, "site": SITE, "plan": plan} | changes)


def honest(message: Message, context: Context) -> Message:
    """Learn a little and reply as declared."""
    asked = read_request(message.content)
    arrived = read_handover(message.content)
    assert arrived is not None
    return Message(pack_reply(asked, small_handover(0.5), {"loss": 0.25, "cases": 12}), reply_to=message)


@dataclass
class Node:
    """One site's node. `exchange` is what the guard is told may cross."""

    home: Path
    exchange: Exchange = field(
        default_factory=lambda: Exchange(
            HandoverSchema.of(small_handover()), Declaration(HandoverSchema.of(small_handover()), METRICS)
        )
    )

    def context(self) -> Context:
        settings = SiteSettings(name=SITE, home=self.home, phantom=PhantomSite(task="organ"))
        return Context(1, 7, {"site": settings.model_dump_json()}, RecordDict(), {})

    def app(self, handler: Handler) -> ClientApp:
        app = ClientApp(mods=[make_guard(lambda message_type, asked: self.exchange)])
        for register in (app.train, app.evaluate, app.query):
            for action in ("visit", "score", "describe", "steal"):
                register(action)(handler)
        return app

    def ask(self, handler: Handler = honest, content: RecordDict | None = None, message_type: str = VISIT) -> Message:
        """Send a request through Flower's own serialisation and return the reply, likewise serialised."""
        content = pack_request(request(), small_handover()) if content is None else content
        message = over_the_wire(instruction(content, message_type))
        return over_the_wire(self.app(handler)(message, self.context()))

    def ledger(self) -> Ledger:
        return Ledger(open_database(self.home))

    def verdicts(self) -> list[tuple[str, str, str]]:
        """(direction, verdict, code) of every entry."""
        return [(entry.direction, entry.verdict, entry.code) for entry in self.ledger().entries()]


def instruction(content: RecordDict, message_type: str = VISIT, metadata: Mapping[str, Any] | None = None) -> Message:
    """A message as a ServerApp would make it."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    message = Message(content, 7, message_type, group_id="3")
    message.metadata.__dict__["_message_id"] = "message-1"
    return message


def wire(message: Message) -> bytes:
    """All that crosses, as Flower serialises it."""
    return message_to_proto(message).SerializeToString(deterministic=True)


def over_the_wire(message: Message) -> Message:
    return message_from_proto(MessageProto.FromString(wire(message)))

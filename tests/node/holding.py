"""A node whose policy holds what leaves, and whose visits are easily told apart."""

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message

from node.decisions import held_handovers
from node.policy_file import FILE
from protos.messages import pack_reply, pack_request, read_request
from tests.node.guarded import Node, request, small_handover


class Site(Node):
    """A node whose policy holds what leaves; `scale` is what its next visit makes, `visits` how many it made."""

    scale = 0.5
    visits = 0

    def work(self, message: Message, context: Context) -> Message:
        self.visits += 1
        reply = pack_reply(read_request(message.content), small_handover(self.scale), {"loss": 0.25, "cases": 12})
        return Message(reply, reply_to=message)

    def visit(self, stop: int = 2, **changes: Any) -> Message:
        return self.ask(self.work, pack_request(request(stop=stop, **changes), small_handover()))

    @property
    def waiting(self) -> list[str]:
        return [held.handover for held in held_handovers(self.home)]

    def path(self, name: str) -> Path:
        return self.home / "held" / f"{name}.safetensors"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    (tmp_path / FILE).write_text("hold: true\n")
    return Site(tmp_path)

"""The grid through the SuperLink: in what order a message's objects are handed in."""

from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import PushObjectResponse
from flwr.proto.runtime_pb2 import PushAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from coordinator.events import Listener
from coordinator.flower_grid import FlowerGrid, between_questions
from protos.messages import DESCRIBE


class Client:
    """Takes what is handed in, and wants all of it."""

    def __init__(self) -> None:
        self.roots: list[str] = []
        self.pushed: list[str] = []

    def PushMessages(self, request: Any) -> PushAppMessagesResponse:
        self.roots = [tree.object_id for tree in request.message_object_trees]
        wanted = [part.object_id for tree in request.message_object_trees for part in iterate_object_tree(tree)]
        return PushAppMessagesResponse(message_ids=self.roots, objects_to_push=wanted, session_id="session")

    def PushObject(self, request: Any) -> PushObjectResponse:
        self.pushed.append(request.object_id)
        return PushObjectResponse(stored=True)


def test_the_message_itself_is_handed_in_last() -> None:
    """A node that has the other objects already confirms the message when it has this one, and all of them go."""
    grid = FlowerGrid("127.0.0.1:1", b"", "token", Listener())
    client = Client()
    grid._client = client  # type: ignore[assignment]
    grid.set_run(Run.create_empty(1))
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
    parts = {f"part{number}": ConfigRecord({"data": bytes([number]) * 2**16}) for number in range(8)}
    request = ConfigRecord({"json": "{}"})
    message = Message(RecordDict({"request": request, **parts}), 2, DESCRIBE)
    assert list(grid.push_messages([message])) == client.roots
    assert len(client.pushed) == len(set(client.pushed)) == 1 + 1 + 1 + len(parts)
    assert client.pushed[-1] == client.roots[0]


def test_however_long_a_visit_takes_its_node_is_asked_every_minute_and_soon_if_it_may_have_lost_it() -> None:
    assert [between_questions(elapsed, False) for elapsed in (0, 60, 400, 36_000)] == [5, 5, 20, 60]
    assert between_questions(36_000, True) == 5

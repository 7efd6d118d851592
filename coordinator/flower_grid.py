"""Flower's Grid in a deployment: messages through the SuperLink, looked for often while they are young.

Flower's own HttpGrid waits a second, then two, then four for a reply's objects where they are milliseconds away.
"""

from collections.abc import Iterable

from flwr.app import Message
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import HttpGrid

_FIRST_WAIT = 0.01  # for an object that its sender is still handing in


class FlowerGrid(HttpGrid):
    """The nodes of one of Flower's runs, whose ServerApp's token this process holds."""

    def __init__(self, address: str, authority: bytes, token: str) -> None:
        super().__init__(address, insecure=False, root_certificates=authority, token=token)

    @property
    def client(self) -> RuntimeHttpClient:
        """The connection, for what is not a grid's business."""
        return self._runtime_client

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages that have arrived."""
        found = self.client.PullMessages(PullAppMessagesRequest(message_ids=message_ids))
        return [
            self._inflated(message.metadata.message_id, tree)
            for message, tree in zip(found.messages_list, found.message_object_trees, strict=True)
        ]

    def _inflated(self, identity: str, tree: ObjectTree) -> Message:
        pull = make_pull_object_fn_protobuf(self.client.PullObject, self.node, self.run.run_id)
        parts = [part.object_id for part in iterate_object_tree(tree)]
        contents = pull_objects(parts, pull, initial_backoff=_FIRST_WAIT)
        confirm = ConfirmMessageReceivedRequest(node=self.node, run_id=self.run.run_id, message_object_id=identity)
        self.client.ConfirmMessageReceived(confirm)
        message = inflate_object_from_contents(identity, contents)
        if not isinstance(message, Message):
            raise TypeError(f"A node sent a {type(message).__name__} for a message.")
        message.metadata.__dict__["_message_id"] = identity
        return message

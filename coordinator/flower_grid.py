"""Flower's Grid in a deployment: messages through the SuperLink, looked for often while they are young.

Flower's own HttpGrid waits a second, then two, then four for a reply's objects where they are milliseconds away.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass

from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PushAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import pull_objects, push_objects
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import HttpGrid

from coordinator.events import Listener
from protos.holding import Hold
from protos.inflating import inflated
from protos.messages import PROGRESS, VISIT
from protos.packing import packed, unpacked

_FIRST_WAIT = 0.01  # for an object that its sender is still handing in
HOLD_SECONDS = 2.0  # that the question for replies may be held
_ASK_SECONDS, _ASK_SHARE = 5.0, 0.05  # how far a visit is: asked so often, and less often the longer it lasts
_IDLE_ANSWERS = 2  # in a row: one may have crossed the visit's own reply
_ANSWER_SECONDS = 60.0  # after which a question for progress is worth nothing


@dataclass
class _Visit:
    """A visit under way: what was asked of whom, and the question for its progress that is open.

    `idle` counts the answers in a row by which the node works on nothing of this run.
    """

    request: dict[str, object]
    message: Message  # without its content
    began: float
    asked: float
    question: str | None = None
    idle: int = 0


class FlowerGrid(HttpGrid):
    """The nodes of one of Flower's runs, whose ServerApp's token this process holds.

    While the reply to a visit is waited for, its node is asked now and then how far it is, and `listener` told. A node
    that is there but has forgotten the visit, since the process that worked on it died, is as good as away: the grid
    answers for it, as the SuperLink would for a node that stays away.
    """

    def __init__(self, address: str, authority: bytes, token: str, listener: Listener) -> None:
        super().__init__(address, insecure=False, root_certificates=authority, token=token)
        self._listener = listener
        self._visits: dict[str, _Visit] = {}
        self._hold = Hold(HOLD_SECONDS)

    def _connect(self) -> None:
        super()._connect()
        assert self._client is not None
        self._client._interceptors += (self._hold,)

    @property
    def client(self) -> RuntimeHttpClient:
        """The connection, for what is not a grid's business."""
        return self._runtime_client

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand in messages; returns their names."""
        messages = list(messages)
        requests = [str(message.content.config_records["request"]["json"]) for message in messages]
        for message in messages:
            message.content = packed(message.content)
        names = list(super().push_messages(messages))
        now = time.monotonic()
        for message, name, request in zip(messages, names, requests, strict=True):
            if message.metadata.message_type == VISIT:
                self._visits[name] = _Visit(json.loads(request), remove_content_from_message(message), now, now)
        return names

    def _try_push_messages(self, run_id: int, messages: Iterable[Message]) -> list[str]:
        """As Flower's, but the object that is the message itself goes last.

        A node that has all others from an earlier message would otherwise confirm this one, and so have objects removed
        that are still on their way.
        """
        found, trees = [], []
        objects: dict[str, InflatableObject] = {}
        for message in messages:
            found.append(message_to_proto(remove_content_from_message(message)))
            objects.update(get_all_nested_objects(message))
            trees.append(get_object_tree(message))
        answer = self.client.PushMessages(PushAppMessagesRequest(messages_list=found, message_object_trees=trees))
        push = make_push_object_fn_protobuf(self.client.PushObject, self.node, run_id, answer.session_id)
        wanted, last = set(answer.objects_to_push), {tree.object_id for tree in trees}
        for part in (wanted - last, wanted & last):
            push_objects(objects, push, object_ids_to_push=part)
        return list(answer.message_ids)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to these messages that have arrived; waits for some for a while where the SuperLink does too."""
        waited_for = list(message_ids)
        end = time.monotonic() + HOLD_SECONDS
        while True:
            replies = self._look(waited_for)
            if replies or not self._hold.works or time.monotonic() >= end:
                return replies

    def _look(self, waited_for: list[str]) -> list[Message]:
        questions = {}
        for name in waited_for:
            if (visit := self._visits.get(name)) is not None and (question := self._question(visit)) is not None:
                questions[question] = visit
        found = self.client.PullMessages(PullAppMessagesRequest(message_ids=[*waited_for, *questions]))
        replies = []
        for message, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            reply = self._inflated(message.metadata.message_id, tree)
            if (visit := questions.get(message.metadata.reply_to_message_id)) is not None:
                self._tell(visit, reply)
            else:
                self._visits.pop(message.metadata.reply_to_message_id, None)
                replies.append(reply)
        for name in waited_for:
            if (visit := self._visits.get(name)) is not None and visit.idle >= _IDLE_ANSWERS:
                del self._visits[name]
                reason = "The node came back without the message."
                replies.append(Message(Error(ErrorCode.NODE_UNAVAILABLE, reason), reply_to=visit.message))
        return replies

    def _question(self, visit: _Visit) -> str | None:
        """The name of the open question for a visit's progress, asked now if it is time."""
        now = time.monotonic()
        if visit.question is None and now - visit.asked > max(_ASK_SECONDS, _ASK_SHARE * (now - visit.began)):
            request = ConfigRecord({"json": json.dumps({**visit.request, "args": {}})})
            to = visit.message.metadata.dst_node_id
            message = Message(RecordDict({"request": request}), to, PROGRESS, ttl=_ANSWER_SECONDS)
            (visit.question,) = super().push_messages([message])
            visit.asked = now
        return visit.question

    def _tell(self, visit: _Visit, reply: Message) -> None:
        visit.question = None
        if reply.has_error():
            absent = reply.error.code == ErrorCode.NODE_UNAVAILABLE  # it may come back, and without the visit
            visit.asked = visit.asked if absent else float("inf")  # its site does not say
            return
        metrics = reply.content.get("metrics")
        if isinstance(metrics, MetricRecord):
            visit.idle = visit.idle + 1 if metrics.get("working") == 0 else 0
        if isinstance(metrics, MetricRecord) and "step" in metrics and "steps" in metrics:
            loss = metrics.get("loss")
            step, steps = (int(str(metrics[name])) for name in ("step", "steps"))
            site, stop = str(visit.request["site"]), int(str(visit.request["stop"]))
            self._listener.stepped(stop, site, step, steps, loss if isinstance(loss, float) else None)

    def _inflated(self, identity: str, tree: ObjectTree) -> Message:
        pull = make_pull_object_fn_protobuf(self.client.PullObject, self.node, self.run.run_id)
        parts = [part.object_id for part in iterate_object_tree(tree)]
        contents = pull_objects(parts, pull, initial_backoff=_FIRST_WAIT)
        confirm = ConfirmMessageReceivedRequest(node=self.node, run_id=self.run.run_id, message_object_id=identity)
        self.client.ConfirmMessageReceived(confirm)
        message = inflated(identity, contents)
        if not isinstance(message, Message):
            raise TypeError(f"A node sent a {type(message).__name__} for a message.")
        message.metadata.__dict__["_message_id"] = identity
        if message.has_content():
            message.content = unpacked(message.content)
        return message

"""Flower's Grid in a deployment: messages through the SuperLink, looked for often while they are young.

Flower's own HttpGrid waits a second, then two, then four for a reply's objects where they are milliseconds away, gives
a reply up for lost after some tries, calls a SuperLink that is gone for ever, and ends the process with SIGINT when
the SuperLink has ended the run.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import httpx
from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PushAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_push_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    pull_objects,
    push_objects,
)
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor, RuntimeVersionHttpInterceptor
from flwr.supercore.retry import RetryInvoker, exponential
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.superlink.grid import HttpGrid

from coordinator.events import Listener
from protos.holding import Hold
from protos.inflating import inflated
from protos.messages import PROGRESS, VISIT
from protos.packing import packed, unpacked

RETRY_SECONDS = 60.0  # for a call that the SuperLink does not answer
_FIRST_WAIT, _LONGEST_WAIT = 0.01, 0.1  # for an object that its sender is still handing in
_LINGER_SECONDS = 1.0  # over a reply of which no more comes, before others are looked after
HOLD_SECONDS = 2.0  # that the question for replies may be held
_ASK_SECONDS, _ASK_SHARE, _ASK_MOST = 5.0, 0.05, 60.0  # between questions how far a message is; see between_questions
_REFUSED_SECONDS = 60.0  # until a site that did not say is asked once more
_IDLE_ANSWERS = 2  # in a row: one may have crossed the message's own reply
_ANSWER_SECONDS = 60.0  # after which a question for progress is worth nothing
_PASSING = frozenset({502, 503, 504})


@dataclass
class _Asked:
    """A message that a node is to answer: what was asked, and the question for its progress that is open.

    `idle` counts the answers in a row by which the node works on nothing of this run.
    """

    request: dict[str, object]
    message: Message  # without its content
    began: float
    asked: float
    question: str | None = None
    idle: int = 0

    def lost(self, reason: str) -> Message:
        """The reply in place of one that does not come, as the SuperLink would make it of a node that is away."""
        return Message(Error(ErrorCode.NODE_UNAVAILABLE, reason), reply_to=self.message)


@dataclass
class _Arriving:
    """A reply of which the SuperLink has all or some of the objects."""

    identity: str
    parts: list[str]
    contents: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, identity: str, tree: ObjectTree) -> "_Arriving":
        return cls(identity, [part.object_id for part in iterate_object_tree(tree)])


def between_questions(elapsed: float, doubtful: bool) -> float:
    """Seconds between two questions how far a message is that a node has had for so many seconds.

    They are fewer the longer it takes, but one a minute at least, since they also show that the node has lost it; if
    the last answer said so, the next one is asked for soon.
    """
    return _ASK_SECONDS if doubtful else min(max(_ASK_SECONDS, _ASK_SHARE * elapsed), _ASK_MOST)


def _is_final(error: Exception) -> bool:
    """Whether there is no use in calling again: the SuperLink refused, or is gone, and with it the run."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code not in _PASSING
    return isinstance(error, httpx.ConnectError)


class _Lost(Exception):
    """The SuperLink gave up on a reply of which not all objects had come."""


class FlowerGrid(HttpGrid):
    """The nodes of one of Flower's runs, whose ServerApp's token this process holds.

    While a reply is waited for, its node is asked now and then how far it is, and `listener` told of visits. A node
    that is there but has forgotten the message, since the process that worked on it or was handing in the reply died,
    is as good as away: the grid answers for it, as the SuperLink would for a node that stays away. Calls raise
    httpx.HTTPError when the SuperLink does not answer for a minute, is gone, or has ended the run.
    """

    def __init__(self, address: str, authority: bytes, token: str, listener: Listener) -> None:
        super().__init__(address, insecure=False, root_certificates=authority, token=token)
        self._retry_invoker = RetryInvoker(
            lambda: exponential(base_delay=0.5, max_delay=5),
            (httpx.TransportError, httpx.HTTPStatusError),
            max_tries=None,
            max_time=RETRY_SECONDS,
            should_giveup=_is_final,
        )
        self._listener = listener
        self._asked: dict[str, _Asked] = {}
        self._arriving: dict[str, _Arriving] = {}
        self._hold = Hold(HOLD_SECONDS)

    def _connect(self) -> None:
        super()._connect()
        assert self._client is not None
        self._client._interceptors += (self._hold,)

    @property
    def client(self) -> RuntimeHttpClient:
        """The connection, for what is not a grid's business."""
        return self._runtime_client

    def impatient_client(self) -> RuntimeHttpClient:
        """A connection of its own, of which every call is tried once."""
        return RuntimeHttpClient.from_server_address(
            self._addr,
            insecure=self._insecure,
            root_certificates=self._cert,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="flwr-serverapp"),
                RuntimeTokenHttpInterceptor(token=self._token),
            ],
        )

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Hand in messages; returns their names."""
        messages = list(messages)
        requests = [str(message.content.config_records["request"]["json"]) for message in messages]
        for message in messages:
            message.content = packed(message.content)
        names = list(super().push_messages(messages))
        now = time.monotonic()
        for message, name, request in zip(messages, names, requests, strict=True):
            if message.metadata.message_type != PROGRESS:
                self._asked[name] = _Asked(json.loads(request), remove_content_from_message(message), now, now)
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
        if replies := self._replies(waited_for):
            return replies
        questions = {}
        for name in waited_for:
            if (asked := self._asked.get(name)) is not None and (question := self._question(asked)) is not None:
                questions[question] = asked
        # a reply is told of once: after that the SuperLink knows of its objects alone
        if wanted := [name for name in (*waited_for, *questions) if name not in self._arriving]:
            found = self.client.PullMessages(PullAppMessagesRequest(message_ids=wanted))
            for message, tree in zip(found.messages_list, found.message_object_trees, strict=True):
                arriving = _Arriving.of(message.metadata.message_id, tree)
                self._arriving[message.metadata.reply_to_message_id] = arriving
        for question, asked in questions.items():
            self._tell(asked, question)
        return self._replies(waited_for)

    def _replies(self, waited_for: list[str]) -> list[Message]:
        return [reply for name in waited_for if (reply := self._reply(name)) is not None]

    def _reply(self, name: str) -> Message | None:
        """The reply to a message as far as it is known what becomes of it."""
        asked = self._asked.get(name)
        try:
            reply = self._arrived(name)
        except _Lost:
            if asked is None:  # a question whether the node is there, and it was until just now
                return None
            reply = asked.lost("The node did not hand in all of its reply.")
        if reply is None and asked is not None and asked.idle >= _IDLE_ANSWERS:
            reply = asked.lost("The node came back without the message.")
            self._arriving.pop(name, None)
        if reply is not None:
            self._asked.pop(name, None)
        return reply

    def _question(self, asked: _Asked) -> str | None:
        """The name of the open question for a message's progress, asked now if it is time."""
        now = time.monotonic()
        if asked.question is None and now - asked.asked > between_questions(now - asked.began, asked.idle > 0):
            request = ConfigRecord({"json": json.dumps({**asked.request, "args": {}})})
            to = asked.message.metadata.dst_node_id
            message = Message(RecordDict({"request": request}), to, PROGRESS, ttl=_ANSWER_SECONDS)
            (asked.question,) = super().push_messages([message])
            asked.asked = now
        return asked.question

    def _tell(self, asked: _Asked, question: str) -> None:
        """Take in the answer to a question for progress, if it has arrived."""
        try:
            reply = self._arrived(question)
        except _Lost:
            asked.question = None
            return
        if reply is None:
            return
        asked.question = None
        if reply.has_error():
            if reply.error.code == ErrorCode.NODE_UNAVAILABLE:
                asked.idle += 1  # what it has not handed in it does not hand in now
            elif reply.error.code != ErrorCode.MESSAGE_UNAVAILABLE:  # there was time enough to answer
                asked.asked = time.monotonic() + _REFUSED_SECONDS
            return
        metrics = reply.content.get("metrics")
        if not isinstance(metrics, MetricRecord):
            return
        asked.idle = asked.idle + 1 if metrics.get("working") == 0 else 0
        if asked.message.metadata.message_type == VISIT and "step" in metrics and "steps" in metrics:
            loss = metrics.get("loss")
            step, steps = (int(str(metrics[name])) for name in ("step", "steps"))
            site, stop = str(asked.request["site"]), int(str(asked.request["stop"]))
            self._listener.stepped(stop, site, step, steps, loss if isinstance(loss, float) else None)

    def _arrived(self, name: str) -> Message | None:
        """The reply to a message if all of it is there; raises _Lost when the rest will not come."""
        arriving = self._arriving.get(name)
        if arriving is None:
            return None
        try:
            if not self._fetch(arriving):
                return None
        except _Lost:
            del self._arriving[name]
            raise
        del self._arriving[name]
        confirm = ConfirmMessageReceivedRequest(
            node=self.node, run_id=self.run.run_id, message_object_id=arriving.identity
        )
        self.client.ConfirmMessageReceived(confirm)
        message = inflated(arriving.identity, arriving.contents)
        if not isinstance(message, Message):
            raise TypeError(f"A node sent a {type(message).__name__} for a message.")
        message.metadata.__dict__["_message_id"] = arriving.identity
        if message.has_content():
            message.content = unpacked(message.content)
        return message

    def _fetch(self, arriving: _Arriving) -> bool:
        """Fetch what there is of a reply, for as long as more of it keeps coming; whether that was all of it."""
        while True:
            before = len(arriving.contents)
            try:
                pull_objects(
                    arriving.parts,
                    lambda part: self._pull(arriving, part),
                    max_time=_LINGER_SECONDS,
                    max_tries_per_object=None,
                    initial_backoff=_FIRST_WAIT,
                    backoff_cap=_LONGEST_WAIT,
                )
            except ObjectPullError:
                if len(arriving.contents) == before:
                    return False
            else:
                return True

    def _pull(self, arriving: _Arriving, part: str) -> bytes:
        if part not in arriving.contents:
            request = PullObjectRequest(node=self.node, run_id=self.run.run_id, object_id=part)
            answer = self.client.PullObject(request)
            if not answer.object_found:
                raise _Lost
            if not answer.object_available:
                raise ObjectUnavailableError(part)
            arriving.contents[part] = answer.object_content
        return arriving.contents[part]

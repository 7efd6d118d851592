"""A node's place in Flower's fleet: signs on, shows that it lives, fetches messages, hands in replies, signs off.

The one file at a node that uses Flower's private names, and so the reason for pinning it: its Fleet client, the signing
of requests, and the objects into which it takes messages apart. Flower's own SuperNode is made of the same parts, but
also opens a port for the processes that run apps, installs what apps the SuperLink sends, and sleeps up to 3 s between
two looks. Nothing here imports PyTorch: an idle node is small.
"""

import json
import logging
import ssl
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Error, Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import ActivateNodeRequest, DeactivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from node.objects import Keeper, Loose, Objects
from protos.holding import Hold
from protos.inflating import inflated
from protos.packing import packed, unpacked
from protos.refusals import RefusalCode, explain

_log = logging.getLogger("locum.node.fleet")

BEAT_SECONDS = HEARTBEAT_DEFAULT_INTERVAL / 3  # between two signs of life
HOLD_SECONDS = 10.0  # that the question for a message may be held
# Flower's own numbers of what went wrong, in the body of an HTTP error
_NOT_ACTIVATED = 2004
_OVER = frozenset({2007, 2008, 2009})  # the run ended, or is none of this node's

_NOT_YET_VALID, _EXPIRED = 9, 10  # OpenSSL's numbers of what is wrong with a certificate

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")


class Unreachable(Exception):
    """The coordinator does not answer at the moment; one sentence."""


class NotAdmitted(Exception):
    """The coordinator does not let this node in; one sentence."""


class Ended(Exception):
    """The run that a call belongs to is over at the coordinator."""


@dataclass(frozen=True)
class Arrived:
    """A message that was fetched, without its content: that is the objects of `tree`."""

    message: ProtoMessage
    tree: ObjectTree

    @property
    def run(self) -> int:
        """Flower's number of the run."""
        return int(self.message.metadata.run_id)

    @property
    def kind(self) -> str:
        """The message's type."""
        return str(self.message.metadata.message_type)

    @property
    def question(self) -> str:
        """The name of its content: what is asked a second time has the same."""
        return str(self.tree.children[0].object_id)

    @property
    def parts(self) -> list[str]:
        """The names of all its objects."""
        return [str(part.object_id) for part in iterate_object_tree(self.tree)]


class Fleet:
    """The connection of one node, known by its key, to the SuperLink at `address` (host:port).

    Calls raise Unreachable when the coordinator does not answer, NotAdmitted when it does not know the node, Ended
    when the run is over. They may come from several threads.
    """

    def __init__(self, address: str, authority: Path, key: ec.EllipticCurvePrivateKey) -> None:
        self._address, self._authority = address, authority
        self._key = public_key_to_bytes(key.public_key())
        self._hold = Hold(HOLD_SECONDS)
        self._client = FleetHttpClient.from_server_address(
            address,
            insecure=False,
            root_certificates=authority.read_bytes(),
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(key, key.public_key()),
                self._hold,
            ],
        )
        self._node = Node()
        self._stop = threading.Event()
        self._beating: threading.Thread | None = None

    def sign_on(self, former: int | None) -> int:
        """Become a node that messages are sent to; returns its number.

        `former` is the number of an earlier process of this node, which is signed off first: after an unclean death
        the SuperLink would not let the node in before it has missed the other's signs of life for a minute.
        """
        if former is not None:
            self._sign_off(former)
        request = ActivateNodeRequest(public_key=self._key, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        self._node = Node(node_id=self._call(self._client.ActivateNode, request).node_id)
        self._beating = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._beating.start()
        return int(self._node.node_id)

    @property
    def lost(self) -> bool:
        """Whether the SuperLink no longer takes this node's signs of life; it has to sign on anew."""
        return self._beating is not None and not self._beating.is_alive()

    @property
    def waits(self) -> bool:
        """Whether `fetch`, when it last found nothing, had waited for something for as long as is good."""
        return self._hold.works

    def fetch(self) -> Arrived | None:
        """The next message for this node, if there is one or comes while the SuperLink waits for it."""
        answer = self._call(self._client.PullMessages, PullMessagesRequest(node=self._node))
        if not answer.messages_list:
            return None
        return Arrived(answer.messages_list[0], answer.message_object_trees[0])

    def goes_on(self, run: int) -> bool:
        """Whether the run is still carried out."""
        try:
            status = self._call(self._client.GetRun, GetRunRequest(node=self._node, run_id=run)).run.status.status
        except Ended:
            return False
        return bool(status != "finished")

    def app_of(self, run: int) -> bytes:
        """The bundle (FAB) that the run was begun with."""
        digest = self._call(self._client.GetRun, GetRunRequest(node=self._node, run_id=run)).run.fab_hash
        request = GetFabRequest(node=self._node, hash_str=digest, run_id=run)
        return bytes(self._call(self._client.GetFab, request).fab.content)

    def pull(self, run: int, identity: str) -> bytes | None:
        """The content of one object, or None while the sender is still handing it in."""
        request = PullObjectRequest(node=self._node, run_id=run, object_id=identity)
        answer = self._call(self._client.PullObject, request)
        if not answer.object_found:
            raise Ended
        return bytes(answer.object_content) if answer.object_available else None

    def confirm(self, arrived: Arrived) -> None:
        """Tell the SuperLink that all of a message has arrived."""
        identity = arrived.message.metadata.message_id
        request = ConfirmMessageReceivedRequest(node=self._node, run_id=arrived.run, message_object_id=identity)
        self._call(self._client.ConfirmMessageReceived, request)

    def announce(self, reply: bytes, tree: bytes, seconds: float) -> tuple[list[str], str]:
        """Hand in what `take_apart` returned; returns which objects are wanted, and the session to push them in."""
        request = PushMessagesRequest(
            node=self._node,
            messages_list=[ProtoMessage.FromString(reply)],
            message_object_trees=[ObjectTree.FromString(tree)],
            clientapp_runtime_list=[seconds],
        )
        answer = self._call(self._client.PushMessages, request)
        return list(answer.objects_to_push), answer.session_id

    def push(self, run: int, session: str, objects: Iterable[tuple[str, bytes]]) -> None:
        """Hand in the objects of a reply."""
        for identity, content in objects:
            request = PushObjectRequest(
                node=self._node, run_id=run, object_id=identity, object_content=content, session_id=session
            )
            if not self._call(self._client.PushObject, request).stored:
                raise Unreachable("The coordinator no longer waits for the rest of a reply; it is announced anew.")

    def close(self) -> None:
        """Sign off, so that the SuperLink knows at once; calls after this are not allowed."""
        self._stop.set()
        if self._node.node_id:
            self._sign_off(self._node.node_id)
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _sign_off(self, node: int) -> None:
        try:
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=node))
        except (httpx.HTTPError, OSError):
            _log.debug("Node %d could not be signed off.", node)

    def _beat(self) -> None:
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_DEFAULT_INTERVAL)
        while not self._stop.wait(BEAT_SECONDS):
            try:
                if not self._call(self._client.SendNodeHeartbeat, request).success:
                    return
            except Unreachable:
                continue
            except (NotAdmitted, Ended):
                return

    def _call(self, method: Callable[[_Request], _Response], request: _Request) -> _Response:
        try:
            return method(request)
        except httpx.HTTPStatusError as error:
            status, code = error.response.status_code, _flower_code(error.response)
            if status == httpx.codes.UNAUTHORIZED or code == _NOT_ACTIVATED:
                raise NotAdmitted(
                    f"The coordinator at {self._address} does not let this node in: its key is not registered (there: "
                    "`locum node add`), another process uses it, or the clocks of the two differ."
                ) from error
            if code in _OVER:
                raise Ended from error
            raise Unreachable(f"The coordinator at {self._address} answers with HTTP {status}.") from error
        except (httpx.TransportError, OSError) as error:
            why = _not_trusted(error, self._authority) or f"does not answer ({type(error).__name__})"
            raise Unreachable(f"The coordinator at {self._address} {why}.") from error


def _not_trusted(error: BaseException | None, authority: Path) -> str | None:
    """What is wrong with the certificate that the coordinator shows, if that is what an error comes from."""
    while error is not None and not isinstance(error, ssl.SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    clock = f"by this machine's clock ({datetime.now(UTC):%Y-%m-%d %H:%M} UTC)"
    if error.verify_code == _NOT_YET_VALID:
        return f"shows a certificate that is not valid yet {clock}; set the clock right"
    if error.verify_code == _EXPIRED:
        return f"shows a certificate that has expired {clock}; set the clock right, or let its operator renew it"
    return f"shows a certificate that {authority} did not sign or that is for another name; ask its operator for both"


def _flower_code(response: httpx.Response) -> int | None:
    try:
        code = json.loads(response.text)["code"]
    except (ValueError, KeyError, TypeError):
        return None
    return code if isinstance(code, int) else None


def assemble(tree: bytes, objects: Objects) -> Message:
    """The message whose object tree (serialised) this is, from objects that are all here; raises Damaged.

    From here on this process can make replies: Flower wants to know for which run and node.
    """
    root = ObjectTree.FromString(tree)
    contents = {part.object_id: objects.get(part.object_id) for part in iterate_object_tree(root)}
    message = inflated(root.object_id, contents)
    if not isinstance(message, Message):
        raise TypeError(f"The coordinator sent a {type(message).__name__} for a message.")
    message.metadata.__dict__["_message_id"] = root.object_id
    if message.has_content():
        message.content = unpacked(message.content)
    TaskIdentity.task_id, TaskIdentity.run_id = 1, message.metadata.run_id
    TaskIdentity.node_id = message.metadata.dst_node_id
    return message


def names_in(tree: bytes) -> list[str]:
    """The names of all objects of a serialised object tree."""
    return [str(part.object_id) for part in iterate_object_tree(ObjectTree.FromString(tree))]


def refusal(arrived: Arrived, code: RefusalCode) -> tuple[bytes, bytes, dict[str, bytes]]:
    """The coded answer to a message of which not all has arrived, as `take_apart` returns it, and its objects."""
    metadata = arrived.message.metadata
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, metadata.run_id, metadata.dst_node_id
    reply = Message(Error(int(code), explain(code)), reply_to=message_from_proto(arrived.message))
    loose = Loose()
    return *take_apart(reply, loose), loose.contents


def take_apart(reply: Message, objects: Keeper) -> tuple[bytes, bytes]:
    """Keep a reply's objects; returns the reply without its content and its object tree, both serialised."""
    if reply.has_content():
        reply.content = packed(reply.content)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    with no_object_id_recompute():
        content = message_to_proto(remove_content_from_message(reply)).SerializeToString()
        tree = get_object_tree(reply).SerializeToString()
        for identity, part in get_all_nested_objects(reply).items():
            objects.put(identity, part.deflate())
    return content, tree

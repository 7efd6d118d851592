"""Flower's Grid on one machine: the same ServerApp and ClientApp as in a deployment, without sockets or Ray.

The coordinator's only file that imports the node's room. Messages are serialised both ways, so nothing can cross by
reference that could not cross a network. Two of Flower's private names are used, and only here: `TaskIdentity`, without
which a ServerApp cannot make a message, and the metadata's message id, which otherwise the SuperLink sets.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, TypeAlias

from flwr.app import Context, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run as FlowerRun
from flwr.supercore.task_identity import TaskIdentity
from pydantic import ValidationError

from coordinator.events import Listener
from coordinator.scenario import Scenario, ScenarioError
from node import progress
from node.app import app
from node.declarations import declare
from node.guard import give_again, keeping
from node.phantoms import check_phantom
from node.policy import Policy
from node.replies import SimulatedReplies, question_in
from node.settings import SiteSettings
from protos.messages import VISIT, read_request
from protos.refusals import Refusal

SimulatedSite: TypeAlias = SiteSettings

COORDINATOR = 1  # Flower's own number for the SuperLink's side


def simulated_sites(
    scenario: Scenario, data: Path, home: Path, device: str, *, may_be_gone: Collection[str] = ()
) -> list[SiteSettings]:
    """The settings of every site's node: its own folder below `home`, its data below `data` or a phantom.

    Raises ScenarioError, naming the site, when its folder does not exist or its phantom does not fit the task; a site
    of `may_be_gone` without a folder gets no node instead.
    """
    sites = []
    for entry in (*scenario.sites, *scenario.unseen):
        folder = None if entry.phantom else data / (entry.path or entry.name)
        if folder is not None and not folder.is_dir():
            if entry.name in may_be_gone:
                continue
            raise ScenarioError(
                f"site {entry.name}: there is no folder {folder}; name the data folder with --data, or give the "
                "site a path in the scenario."
            )
        try:
            if entry.phantom is not None:
                check_phantom(entry.phantom, scenario.task)
            settings = SiteSettings(
                name=entry.name,
                home=home / "nodes" / entry.name,
                data=folder,
                labels=entry.labels,
                phantom=entry.phantom,
                durable=False,  # sender and receiver are one machine: a power cut ends both
                device=device,
            )
        except ValidationError as error:
            raise ScenarioError(f"site {entry.name}: {error.errors()[0]['msg']}.") from error
        except ValueError as error:
            raise ScenarioError(f"site {entry.name}: {error}") from error
        sites.append(settings)
    return sites


def policies(scenario: Scenario, home: Path) -> dict[str, dict[str, Any]]:
    """Site -> what of its policy, where it has one, changes the bits of a run.

    A policy that cannot be read lets nothing leave, so it changes nothing.
    """
    found = {}
    for site in scenario.sites:
        with suppress(Refusal):
            found[site.name] = Policy.of(home / "nodes" / site.name).changes
    return {site: changes for site, changes in found.items() if changes}


class InProcessGrid(Grid):
    """One ClientApp per site, called directly. A message is carried out when its reply is pulled."""

    def __init__(self, sites: Iterable[SiteSettings], listener: Listener) -> None:
        self._settings = dict(enumerate(sites, COORDINATOR + 1))
        self._listener = listener
        self._ids = count(1)
        self._waiting: dict[str, bytes] = {}
        self._run = FlowerRun.create_empty(1)
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, self._run.run_id, COORDINATOR

    def set_run(self, run: FlowerRun) -> None:
        """Set the run this grid operates in."""
        self._run = run

    @property
    def run(self) -> FlowerRun:
        """Flower's record of the run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes' ids."""
        return list(self._settings)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """The nodes with their sites' names."""
        return [NodeInfo(node_id=node, name=site.name) for node, site in self._settings.items()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Serialise messages and keep them until their replies are pulled."""
        ids = []
        for message in messages:
            identity = str(next(self._ids))
            message.metadata.__dict__["_message_id"] = identity
            self._waiting[identity] = _serialised(message)
            ids.append(identity)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Carry out the messages and yield their replies."""
        for identity in message_ids:
            if (data := self._waiting.pop(identity, None)) is not None:
                yield self._deliver(data)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Push, then pull; a direct call never times out."""
        return list(self.pull_messages(self.push_messages(messages)))

    def _deliver(self, data: bytes) -> Message:
        message = _message(data)
        del data
        settings = self._settings[message.metadata.dst_node_id]
        context = Context(
            run_id=self._run.run_id,
            node_id=message.metadata.dst_node_id,
            node_config={"site": settings.model_dump_json()},
            state=RecordDict(),
            run_config={},
        )
        answer = _visited if message.metadata.message_type == VISIT else _answered
        with progress.listener(self._step):
            return _message(answer(message, context, settings.home))

    def _step(self, step: progress.Step) -> None:
        self._listener.stepped(step.stop, step.site, step.step, step.steps, step.scalars.get("loss"))


def _answered(message: Message, context: Context, home: Path) -> bytes:
    return _serialised(app(message, context))


def _visited(message: Message, context: Context, home: Path) -> bytes:
    """The reply to a visit, serialised: the one that was given before, if a process died before it was committed."""
    asked, question = read_request(message.content), question_in(message.content)
    replies = SimulatedReplies(home, asked.run)
    if (given := replies.find(question)) is not None:
        return _serialised(give_again(message, context, _message(given).content, declare))
    made: list[bytes] = []

    def keep(reply: Message) -> None:
        made.append(_serialised(reply))
        replies.keep(question, made[0], asked.stop)

    with keeping(keep):
        reply = app(message, context)
    return made[0] if made and not reply.has_error() else _serialised(reply)


def _serialised(message: Message) -> bytes:
    return message_to_proto(message).SerializeToString()


def _message(serialised: bytes) -> Message:
    return message_from_proto(ProtoMessage.FromString(serialised))

"""What the coordinator asks of its SuperLink: who the nodes are, to begin a run, to end one.

A run of Flower's is one go at carrying out a run of Locum's: it does not outlive the process that conducts it, and a
run that is resumed gets a new one. It needs a bundle (FAB); this one describes the apps and holds no code, since nodes
run what their sites installed.
"""

import fcntl
import io
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
from flwr.common.constant import Status, SubStatus
from flwr.common.serde import fab_to_proto, run_from_proto
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListRunsRequest,
    RegisterNodeRequest,
    StartRunRequest,
    StopRunRequest,
    UnregisterNodeRequest,
)
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity

from coordinator.events import Listener
from coordinator.flower_grid import FlowerGrid
from coordinator.superlink import NoSuperLink, SuperLinkConfig

_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
_ACQUIRE_SECONDS = 30.0
_LOOKED_AT = 100  # of the newest runs; those that are not finished are among them
_KEY_KNOWN = 23  # Flower's number for a public key that is registered already

_DESCRIPTION = """[project]
name = "locum"
version = "1.0.0"
description = "Locum's apps, as installed where they run; this bundle holds no code."

[tool.flwr.app]
publisher = "locum"

[tool.flwr.app.components]
serverapp = "coordinator.server:app"
clientapp = "node.app:app"
"""


@dataclass(frozen=True)
class NodeEntry:
    """A registered node. `name` is its site's, as the operator registered it; times are UTC."""

    number: int
    name: str
    online: bool
    last_seen: datetime | None
    public_key: bytes  # PEM


class Link:
    """Calls to the SuperLink; they raise NoSuperLink when it does not answer."""

    def __init__(self, config: SuperLinkConfig) -> None:
        self._config = config
        self._authority = config.keys.authority.read_bytes()
        self._client = ControlHttpClient.from_server_address(
            config.address,
            insecure=False,
            root_certificates=self._authority,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr-cli")],
        )

    def register(self, name: str, public_key: bytes) -> bool:
        """Let the node with this key (PEM) be the site's; False if the key is registered already."""
        try:
            self._client.RegisterNode(RegisterNodeRequest(public_key=public_key, name=name))
        except httpx.HTTPStatusError as error:
            if error.response.json().get("code") == _KEY_KNOWN:
                return False
            raise
        return True

    def remove(self, number: int) -> None:
        """Let a node in no more."""
        self._client.UnregisterNode(UnregisterNodeRequest(node_id=number))

    def nodes(self) -> list[NodeEntry]:
        """Every registered node."""
        found = self._client.ListNodes(ListNodesRequest()).nodes_info
        return [
            NodeEntry(node.node_id, node.name, node.status == "online", _last_seen(node.online_until), node.public_key)
            for node in found
            if node.status != "unregistered"
        ]

    def end_all(self) -> None:
        """End every run that is not finished: for a coordinator whose earlier processes are gone."""
        for number, run in self._client.ListRuns(ListRunsRequest(limit=_LOOKED_AT)).run_dict.items():
            if run.status.status != Status.FINISHED:
                self._end(number)

    @contextmanager
    def run(self, listener: Listener) -> Iterator[FlowerGrid]:
        """A run of Flower's while the block lasts, and the grid that reaches the nodes in it.

        What happens at the nodes meanwhile is told to `listener`. When the SuperLink dies or ends the run, the block
        ends with NoSuperLink at its next call.
        """
        fab = fab_to_proto(Fab("", _bundle(), {}))
        try:
            with _one_at_a_time(self._config.folder):  # or another process could take this run's task
                number = self._client.StartRun(StartRunRequest(fab=fab)).run_id
                token = self._acquire(number)
            try:
                with _Task(FlowerGrid(self._config.address, self._authority, token, listener)) as grid:
                    yield grid
            finally:
                self._end(number)
        except httpx.HTTPError as error:
            raise NoSuperLink(
                f"The SuperLink does not answer any more, or no longer carries out the run; {self._config.log} may say "
                "why."
            ) from error

    def _acquire(self, number: int) -> str:
        """The token of the run's ServerApp task; tasks of runs that nobody conducts any more are passed over."""
        secret = SuperExecAuthHttpInterceptor(
            master_secret=self._config.secret.read_bytes(), protected_methods=frozenset({_ACQUIRE})
        )
        with RuntimeHttpClient.from_server_address(
            self._config.address,
            insecure=False,
            root_certificates=self._authority,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="SuperExec"), secret],
        ) as client:
            end = time.monotonic() + _ACQUIRE_SECONDS
            while time.monotonic() < end:
                found = client.AcquireTask(AcquireTaskRequest(supported_task_types=[TaskType.SERVER_APP]))
                if found.HasField("task") and found.task.run_id == number:
                    return str(found.token)
                time.sleep(0.05)
        raise NoSuperLink("The SuperLink did not hand out the run that was begun; see its log.")

    def _end(self, number: int) -> None:
        with suppress(httpx.HTTPError):  # it has ended, or the SuperLink has
            self._client.StopRun(StopRunRequest(run_id=number))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Task:
    """The ServerApp's task of a run, taken by this process, which conducts the run itself."""

    def __init__(self, grid: FlowerGrid) -> None:
        self._grid = grid

    def __enter__(self) -> FlowerGrid:
        self._client = self._grid.impatient_client()
        self._heart = HeartbeatSender(self._beat)
        self._heart.start()
        found = self._grid.client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id = found.task_id, found.run.run_id
        TaskIdentity.node_id = found.context.node_id
        self._grid.set_run(run_from_proto(found.run))
        return self._grid

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        status = SubStatus.COMPLETED if kind is None else SubStatus.FAILED
        with suppress(httpx.HTTPError):  # the SuperLink finds out by itself
            self._client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=""))
        self._heart.stop()
        self._client.close()
        self._grid.close()

    def _beat(self) -> bool:
        """Show the SuperLink that this process lives; False if it did not hear. What it answers, the grid hears too."""
        try:
            with suppress(httpx.HTTPStatusError):
                self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except httpx.TransportError:
            return False
        return True


def _bundle() -> bytes:
    """A bundle of a description alone, the same bytes every time, since Flower keeps each that it has not seen."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(zipfile.ZipInfo("pyproject.toml"), _DESCRIPTION)
    return content.getvalue()


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    with (folder / "begin.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _last_seen(online_until: float) -> datetime | None:
    if not online_until:
        return None
    return min(datetime.fromtimestamp(online_until, UTC), datetime.now(UTC))

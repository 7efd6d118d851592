"""The control service's calls (protos/locum/v1/control.proto): who may make them, what they do, what faults say."""

import hmac
import json
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import grpc
import httpx
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import select

from coordinator import keys, listing
from coordinator.batch import summary_of
from coordinator.dispatcher import Dispatcher
from coordinator.faults import FAILED, exit_status, told
from coordinator.home import Home, is_busy
from coordinator.journal import Journal
from coordinator.keys import ServerKeys
from coordinator.link import Link, NodeEntry
from coordinator.mending import damaged_ends
from coordinator.record import to_record
from coordinator.skipping import skip, skip_rehearsal
from coordinator.store import QueueRow, SiteRow
from coordinator.submitting import submit
from coordinator.superlink import NoSuperLink, SuperLinkConfig
from coordinator.turns import enqueue
from coordinator.vault import Vault
from protos.locum.v1 import control_pb2 as pb
from protos.locum.v1 import control_pb2_grpc
from protos.plan import SiteName

_log = logging.getLogger("locum.coordinator")

THREADS, WATCHERS = 32, 24  # calls at once; so many of them may be watching
MOST_BYTES = 2**20  # of a request
SAID_BYTES = 2000  # of an error's details, which travel in a header
LOOK_SECONDS = 5.0  # between two looks of a watcher that nobody wakes


class NotPossible(Exception):
    """The call does not fit how things are; one sentence."""


class ControlService(control_pb2_grpc.ControlServicer):  # type: ignore[misc]  # generated, without types
    """The calls; each may come from any thread."""

    def __init__(
        self, home: Home, superlink: SuperLinkConfig, journal: Journal, dispatcher: Dispatcher, stop: threading.Event
    ) -> None:
        self._home, self._superlink, self._journal, self._dispatcher = home, superlink, journal, dispatcher
        self._store = home.store()
        self._stop = stop
        self._submitting = threading.Lock()
        self._watchers = threading.Semaphore(WATCHERS)

    def Submit(self, request: pb.SubmitRequest, context: Any) -> pb.SubmitResponse:
        """Write down a scenario's runs and queue them."""
        with _answering(context):
            after = self._named(request.after) if request.HasField("after") else None
            source = request.source if 0 < len(request.source) <= 200 and request.source.isprintable() else "scenario"
            with self._submitting:
                runs = submit(request.scenario, source, request.overrides, self._home)
            not_before = _time(request.not_before) if request.HasField("not_before") else None
            with self._store.transaction() as session:
                enqueue(session, runs, not_before=not_before, after=after)
            self._store.keep_copy()
            self._dispatcher.wake()
            return pb.SubmitResponse(runs=runs)

    def List(self, request: pb.ListRequest, context: Any) -> pb.ListResponse:
        """All runs, newest first."""
        with _answering(context):
            rows = listing.listed(self._home)
            return pb.ListResponse(
                runs=[pb.ListedRun(**{**row, "parameters": json.dumps(row["parameters"])}) for row in rows]
            )

    def Show(self, request: pb.ShowRequest, context: Any) -> pb.ShowResponse:
        """One run."""
        with _answering(context):
            run = self._named(request.run)
            summary, row = summary_of(run, self._home), self._store.run(run)
            row.status = summary.status
            return pb.ShowResponse(
                document=json.dumps(summary.document(), allow_nan=False), record=json.dumps(to_record(row))
            )

    def Watch(self, request: pb.WatchRequest, context: Any) -> Iterator[pb.Event]:
        """What happens in a run, until it ends."""
        with _answering(context):
            if not self._watchers.acquire(blocking=False):
                raise NotPossible(f"{WATCHERS} others are watching already; try again later.")
            try:
                yield from self._events(self._named(request.run), request.after, context)
            finally:
                self._watchers.release()

    def _events(self, run: str, number: int, context: Any) -> Iterator[pb.Event]:
        while context.is_active():
            if self._stop.is_set():
                context.abort(grpc.StatusCode.UNAVAILABLE, "The coordinator's service is ending.")
            changes = self._journal.changes
            is_queued = self._queued(run)  # before looking, since the last event is committed with this
            ended = False
            for event in self._journal.after(run, number):
                number, ended = event.number, event.WhichOneof("what") == "run_ended"
                yield event
            if not is_queued:
                if not ended:
                    status = listing.status_of(self._store.run(run), self._home)
                    yield pb.Event(number=number, run_ended=pb.RunEnded(status=status))
                return
            self._journal.wait(changes, LOOK_SECONDS)

    def Cancel(self, request: pb.CancelRequest, context: Any) -> pb.CancelResponse:
        """End a run, which may go on later."""
        with _answering(context):
            run = self._named(request.run)
            return pb.CancelResponse(run=run, status=self._dispatcher.cancel(run))

    def Resume(self, request: pb.ResumeRequest, context: Any) -> pb.ResumeResponse:
        """Queue a run again; one that is queued, or done and whole, stays as it is."""
        with _answering(context):
            run = self._named(request.run)
            row = self._store.run(run)
            if row.data is not None:
                raise NotPossible(f"Run {run} is a simulation's; resume it without --coordinator.")
            whole = row.status == "done" and not damaged_ends(row, Vault(self._home.folder / "vault"))
            if not whole and not self._queued(run):
                if is_busy(self._home, run):
                    raise NotPossible(f"Run {run} is being carried out by another process; wait for it or stop it.")
                with self._store.transaction() as session:
                    enqueue(session, [run], not_before=None, after=None)
                self._store.keep_copy()
                self._dispatcher.wake()
            return pb.ResumeResponse(run=run)

    def Skip(self, request: pb.SkipRequest, context: Any) -> pb.SkipResponse:
        """Let a run go on without a stop, or a rehearsal."""
        with _answering(context):
            run = self._named(request.run)
            if request.HasField("rehearsal_at"):
                skip_rehearsal(run, request.stop, request.rehearsal_at, self._home, by=request.by, why=request.why)
            else:
                skip(run, request.stop, self._home, by=request.by, why=request.why)
            return pb.SkipResponse(run=run)

    def Sites(self, request: pb.SitesRequest, context: Any) -> pb.SitesResponse:
        """The registered sites, by name."""
        with _answering(context):
            with self._store.transaction() as session:
                told = {row.name: row for row in session.scalars(select(SiteRow))}
            nodes = sorted(self._nodes(), key=lambda node: node.name)
            return pb.SitesResponse(sites=[_site(node, told.get(node.name)) for node in nodes])

    def AddNode(self, request: pb.AddNodeRequest, context: Any) -> pb.AddNodeResponse:
        """Let the node with a key be a site's."""
        with _answering(context):
            name = _site_name(request.name)
            try:
                key = keys.parse_public_key(request.public_key, f"site {name}")
            except keys.UnusableKey as error:
                raise NotPossible(str(error)) from error
            for node in self._nodes():
                if (node.name == name) != (keys.parse_public_key(node.public_key, name) == key):
                    if node.name == name:
                        raise NotPossible(
                            f"Site {name} has a node with another key; `locum node remove {name}` puts that out first."
                        )
                    raise NotPossible(f"The key is that of site {node.name} already; every node needs one of its own.")
                if node.name == name:
                    return pb.AddNodeResponse(known=True)
            with self._link() as link:
                if not link.register(name, key):
                    raise NotPossible(
                        "The key was put out once and stays so; let the node make a new one, and add that."
                    )
            _log.info("Site %s: a node was added.", name)
            self._dispatcher.wake()
            return pb.AddNodeResponse(known=False)

    def RemoveNode(self, request: pb.RemoveNodeRequest, context: Any) -> pb.RemoveNodeResponse:
        """Let a site's node in no more."""
        with _answering(context):
            found = [node for node in self._nodes() if node.name == request.name]
            if not found:
                raise NotPossible(f"There is no node of a site {request.name!r}; `locum sites` lists them.")
            with self._link() as link:
                for node in found:
                    link.remove(node.number)
            _log.info("Site %s: its node was removed.", request.name)
            return pb.RemoveNodeResponse()

    def _named(self, run: str) -> str:
        if not run:
            raise NotPossible("The request names no run.")  # every name begins with nothing
        return listing.full_name(run, self._home)

    def _queued(self, run: str) -> bool:
        with self._store.transaction() as session:
            return session.scalar(select(QueueRow.number).where(QueueRow.run_id == run)) is not None

    def _nodes(self) -> list[NodeEntry]:
        with self._link() as link:
            return link.nodes()

    @contextmanager
    def _link(self) -> Iterator[Link]:
        try:
            with Link(self._superlink) as link:
                yield link
        except httpx.HTTPError as error:
            raise NoSuperLink("The SuperLink does not answer at the moment; try again in a few seconds.") from error


def _site(node: NodeEntry, told: SiteRow | None) -> pb.Site:
    site = pb.Site(name=node.name, online=node.online)
    if node.last_seen is not None:
        site.last_seen.FromDatetime(node.last_seen)
    if told is not None:
        site.schema_version = told.schema_version
        for name in ("software", "torch", "code_sha256"):
            if (value := getattr(told, name)) is not None:
                setattr(site, name, value)
        site.cases.update(told.cases)
    return site


def _site_name(name: str) -> str:
    try:
        return TypeAdapter[str](SiteName).validate_python(name)
    except ValidationError as error:
        raise NotPossible(
            f"{name[:64]!r} is no site's name; write 1 to 64 letters, digits, spaces, dots, hyphens and underscores, a "
            "letter or digit first."
        ) from error


@contextmanager
def _answering(context: Any) -> Iterator[None]:
    """What goes wrong inside the block is an answer in sentences; what was not foreseen stands in the log alone."""
    try:
        yield
    except Exception as error:
        if not context.is_active() or context.code() is not None:
            raise  # the caller is gone, or was answered
        status = exit_status(error)
        if status is None:
            _log.exception("A call failed.")
            context.abort(grpc.StatusCode.INTERNAL, "The coordinator's service failed at this; its log says why.")
        text = "\n".join(told(error)).encode()[:SAID_BYTES].decode(errors="ignore")
        code = grpc.StatusCode.INTERNAL if status == FAILED else grpc.StatusCode.INVALID_ARGUMENT
        context.abort(code, text)


def _time(stamp: Timestamp) -> datetime:
    try:
        return stamp.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise NotPossible("The time does not exist; write --at 2031-05-17T22:30, or 22:30.") from error


class _Token(grpc.ServerInterceptor):  # type: ignore[misc]  # without types
    """Refuses every call, known or not, whose metadata do not show the token."""

    def __init__(self, token: str) -> None:
        self._wanted = f"Bearer {token}".encode()

    def intercept_service(self, continuation: Callable[[Any], Any], details: Any) -> Any:
        """The call's handler, or one that refuses it."""
        shown = next((value for key, value in details.invocation_metadata if key == "authorization"), "")
        shown = shown if isinstance(shown, bytes) else shown.encode()
        return continuation(details) if hmac.compare_digest(shown, self._wanted) else _REFUSAL


def _refuse(_: Any, context: Any) -> None:
    context.abort(grpc.StatusCode.UNAUTHENTICATED, "The token is not this coordinator's.")


_REFUSAL = grpc.unary_unary_rpc_method_handler(_refuse)


def serving(service: ControlService, server_keys: ServerKeys, token: str, address: str) -> Any:
    """A gRPC server that is up; raises RuntimeError when it cannot listen at `address` (host:port)."""
    server = grpc.server(
        ThreadPoolExecutor(THREADS, "call"),
        interceptors=[_Token(token)],
        options=[
            ("grpc.so_reuseport", 0),  # a second service is refused
            ("grpc.max_receive_message_length", MOST_BYTES),
            ("grpc.http2.min_ping_interval_without_data_ms", 5000),  # watchers ask whether this end is there
        ],
        maximum_concurrent_rpcs=2 * THREADS,
    )
    control_pb2_grpc.add_ControlServicer_to_server(service, server)
    pair = (server_keys.key.read_bytes(), server_keys.certificate.read_bytes())
    server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    server.start()
    return server

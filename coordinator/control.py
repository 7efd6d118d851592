"""The control service's calls (protos/locum/v1/control.proto): who may make them, what they do, what faults say."""

import hmac
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from coordinator import listing
from coordinator.faults import FAILED, exit_status, told
from coordinator.home import Home
from coordinator.journal import Journal
from coordinator.keys import ServerKeys
from coordinator.record import to_record
from coordinator.service_desk import NotPossible, ServiceDesk
from protos.locum.v1 import control_pb2 as pb
from protos.locum.v1 import control_pb2_grpc

_log = logging.getLogger("locum.coordinator")

THREADS, WATCHERS = 32, 24  # calls at once; so many of them may be watching
MOST_BYTES = 2**20  # of a request
SAID_BYTES = 2000  # of an error's details, which travel in a header
LOOK_SECONDS = 5.0  # between two looks of a watcher that nobody wakes


class ControlService(control_pb2_grpc.ControlServicer):  # type: ignore[misc]  # generated, without types
    """The calls; each may come from any thread."""

    def __init__(self, home: Home, desk: ServiceDesk, journal: Journal, stop: threading.Event) -> None:
        self._home, self._desk, self._journal = home, desk, journal
        self._store = home.store()
        self._stop = stop
        self._watchers = threading.Semaphore(WATCHERS)

    def Submit(self, request: pb.SubmitRequest, context: Any) -> pb.SubmitResponse:
        """Write down a scenario's runs and queue them."""
        with _answering(context):
            after = request.after if request.HasField("after") else None
            not_before = _time(request.not_before) if request.HasField("not_before") else None
            runs = self._desk.submit(
                request.scenario, request.source, request.overrides, not_before=not_before, after=after
            )
            return pb.SubmitResponse(runs=runs)

    def List(self, request: pb.ListRequest, context: Any) -> pb.ListResponse:
        """All runs, newest first."""
        with _answering(context):
            rows = self._desk.listed()
            return pb.ListResponse(
                runs=[pb.ListedRun(**{**row, "parameters": json.dumps(row["parameters"])}) for row in rows]
            )

    def Show(self, request: pb.ShowRequest, context: Any) -> pb.ShowResponse:
        """One run."""
        with _answering(context):
            summary = self._desk.summary(self._desk.named(request.run))
            row = self._store.run(summary.run)
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
                yield from self._events(self._desk.named(request.run), request.after, context)
            finally:
                self._watchers.release()

    def _events(self, run: str, number: int, context: Any) -> Iterator[pb.Event]:
        while context.is_active():
            if self._stop.is_set():
                context.abort(grpc.StatusCode.UNAVAILABLE, "The coordinator's service is ending.")
            changes = self._journal.changes
            is_queued = self._desk.queued(run)  # before looking, since the last event is committed with this
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
            run, status = self._desk.cancel(request.run)
            return pb.CancelResponse(run=run, status=status)

    def Resume(self, request: pb.ResumeRequest, context: Any) -> pb.ResumeResponse:
        """Queue a run again; one that is done or queued stays as it is."""
        with _answering(context):
            return pb.ResumeResponse(run=self._desk.resume(request.run))

    def Skip(self, request: pb.SkipRequest, context: Any) -> pb.SkipResponse:
        """Let a run go on without a stop, or a rehearsal."""
        with _answering(context):
            site = request.rehearsal_at if request.HasField("rehearsal_at") else None
            return pb.SkipResponse(run=self._desk.skip(request.run, request.stop, site, by=request.by, why=request.why))

    def Sites(self, request: pb.SitesRequest, context: Any) -> pb.SitesResponse:
        """The registered sites, by name."""
        with _answering(context):
            return pb.SitesResponse(sites=[_site(site) for site in self._desk.sites()])

    def AddNode(self, request: pb.AddNodeRequest, context: Any) -> pb.AddNodeResponse:
        """Let the node with a key be a site's."""
        with _answering(context):
            return pb.AddNodeResponse(known=not self._desk.add_node(request.name, request.public_key))

    def RemoveNode(self, request: pb.RemoveNodeRequest, context: Any) -> pb.RemoveNodeResponse:
        """Let a site's node in no more."""
        with _answering(context):
            self._desk.remove_node(request.name)
            return pb.RemoveNodeResponse()


def _site(site: Mapping[str, Any]) -> pb.Site:
    known = {name: site[name] for name in ("software", "torch", "code_sha256", "schema_version")}
    told = pb.Site(name=site["site"], online=site["online"], **known)
    if site["last_seen"] is not None:
        told.last_seen.FromDatetime(datetime.fromisoformat(site["last_seen"]))
    told.cases.update(site["cases"])
    return told


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

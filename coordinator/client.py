"""The control service from the other end: what the commands ask of a coordinator that runs elsewhere."""

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc

from coordinator.events import Listener
from coordinator.record import from_record
from coordinator.results import summarise
from coordinator.summary import RunSummary
from protos.locum.v1 import control_pb2 as pb
from protos.locum.v1 import control_pb2_grpc

CALL_SECONDS = 60.0
SUBMIT_SECONDS = 180.0  # its scenario is checked meanwhile
RETRY_SECONDS = 2.0
MOST_BYTES = 2**28  # of an answer
_WRONG_TIMES = {"certificate is not yet valid": "is not valid yet", "certificate has expired": "has expired"}
_WRONG_TIME = re.compile("|".join(_WRONG_TIMES))  # in gRPC's words


class Refused(Exception):
    """The coordinator refuses a call; every line is a sentence."""


class ServiceFailed(Exception):
    """The coordinator could not do what it was asked; every line is a sentence."""


class Unreachable(Exception):
    """The coordinator does not answer; one sentence."""


class Coordinator:
    """The control service at `address` (host:port); calls raise Refused, ServiceFailed or Unreachable.

    `token` and `authority` are files: the service's token, and the certificate of who signed the service's own.
    """

    def __init__(self, address: str, token: Path, authority: Path) -> None:
        self._address, self._token, self._authority = address, token, authority
        shown = grpc.access_token_call_credentials(token.read_text(encoding="ascii").strip())
        self._channel = grpc.secure_channel(
            address,
            grpc.composite_channel_credentials(grpc.ssl_channel_credentials(authority.read_bytes()), shown),
            options=[
                ("grpc.enable_http_proxy", 0),
                ("grpc.max_receive_message_length", MOST_BYTES),
                ("grpc.keepalive_time_ms", 20000),  # a connection that was cut is found out
                ("grpc.keepalive_timeout_ms", 10000),
            ],
        )
        self._calls = control_pb2_grpc.ControlStub(self._channel)

    def submit(
        self, scenario: str, source: str, overrides: Sequence[str], *, not_before: datetime | None, after: str | None
    ) -> list[str]:
        """Queue a scenario's runs; returns their names."""
        request = pb.SubmitRequest(scenario=scenario, source=source, overrides=overrides, after=after)
        if not_before is not None:
            request.not_before.FromDatetime(not_before)
        return list(self._call(self._calls.Submit, request, SUBMIT_SECONDS).runs)

    def listed(self) -> list[dict[str, Any]]:
        """Every run, newest first, as coordinator.listing.listed has them."""
        rows = self._call(self._calls.List, pb.ListRequest()).runs
        names = [field.name for field in pb.ListedRun.DESCRIPTOR.fields]
        return [
            {
                **{name: getattr(row, name) for name in names},
                "parameters": json.loads(row.parameters),
                "waits_for": row.waits_for if row.HasField("waits_for") else None,
            }
            for row in rows
        ]

    def summary(self, run: str) -> RunSummary:
        """The run whose name begins so, as far as it has come."""
        return summarise(from_record(json.loads(self._call(self._calls.Show, pb.ShowRequest(run=run)).record)))

    def watch(self, run: str, listener: Listener) -> tuple[str, list[str]]:
        """Tell `listener` what happens in a run from its first event until it ends, across lost connections.

        Returns its status and, if it failed, why, in sentences.
        """
        number, lost = 0, False
        sentences: list[str] = []
        while True:
            try:
                with self._faults():
                    for event in self._calls.Watch(pb.WatchRequest(run=run, after=number)):
                        number, lost = event.number, False
                        if event.WhichOneof("what") == "failed":
                            sentences.append(event.failed.sentence)
                        elif event.WhichOneof("what") == "run_began":
                            sentences = []
                        elif event.WhichOneof("what") == "run_ended":
                            status = event.run_ended.status
                        _tell(listener, run, event)
                listener.run_ended(run, status)
                return status, sentences
            except Unreachable:
                if number == 0:
                    raise
                if not lost:
                    listener.said("The connection to the coordinator was lost; looking for it again.")
                lost = True
                time.sleep(RETRY_SECONDS)

    def cancel(self, run: str) -> tuple[str, str]:
        """End a run; returns its whole name and its status."""
        answer = self._call(self._calls.Cancel, pb.CancelRequest(run=run))
        return answer.run, answer.status

    def resume(self, run: str) -> str:
        """Queue a run again; returns its whole name."""
        return str(self._call(self._calls.Resume, pb.ResumeRequest(run=run)).run)

    def skip(self, run: str, stop: int, site: str | None, *, by: str, why: str) -> str:
        """Let a run go on without a stop, or a site's rehearsal from that stop on; returns its whole name."""
        if not 0 <= stop < 2**32:
            raise Refused(f"Run {run} has no stop {stop}; `locum show {run}` lists its stops, counted from 0.")
        request = pb.SkipRequest(run=run, stop=stop, by=by, why=why, rehearsal_at=site)
        return str(self._call(self._calls.Skip, request).run)

    def sites(self) -> list[dict[str, Any]]:
        """The registered sites, by name."""
        return [_site(site) for site in self._call(self._calls.Sites, pb.SitesRequest()).sites]

    def add_node(self, name: str, public_key: bytes) -> bool:
        """Let the node with this key be a site's; False if it was already."""
        return not self._call(self._calls.AddNode, pb.AddNodeRequest(name=name, public_key=public_key)).known

    def remove_node(self, name: str) -> None:
        """Let a site's node in no more."""
        self._call(self._calls.RemoveNode, pb.RemoveNodeRequest(name=name))

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _call(self, method: Callable[..., Any], request: Any, seconds: float = CALL_SECONDS) -> Any:
        with self._faults():
            return method(request, timeout=seconds)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Faults of a call as sentences."""
        try:
            yield
        except grpc.RpcError as error:
            code, details = error.code(), error.details() or ""
            if code == grpc.StatusCode.INVALID_ARGUMENT:
                raise Refused(details) from error
            if code == grpc.StatusCode.UNAUTHENTICATED:
                raise Refused(
                    f"The coordinator at {self._address} does not know the token in {self._token}; give its own with "
                    "--token."
                ) from error
            if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise Refused("The coordinator does not take in so much at once; submit a smaller scenario.") from error
            if code == grpc.StatusCode.INTERNAL and details.endswith("."):
                raise ServiceFailed(details) from error
            if (when := _WRONG_TIME.search(details)) is not None:
                clock = f"by this machine's clock ({datetime.now(UTC):%Y-%m-%d %H:%M} UTC)"
                raise Refused(
                    f"The coordinator at {self._address} shows a certificate that {_WRONG_TIMES[when[0]]} {clock}; set "
                    "the clock right, or let its operator renew it."
                ) from error
            if "CERTIFICATE_VERIFY_FAILED" in details or "Peer name" in details:
                raise Refused(
                    f"The certificate at {self._address} is not signed by {self._authority}, or is for other names; "
                    "give the coordinator's ca.crt with --authority, and one of its names with --coordinator."
                ) from error
            raise Unreachable(
                f"The coordinator at {self._address} does not answer ({code.name}); is `locum serve` running there?"
            ) from error


def _tell(listener: Listener, run: str, event: pb.Event) -> None:
    match event.WhichOneof("what"):
        case "said":
            listener.said(event.said.sentence)
        case "run_began":
            listener.run_began(run, event.run_began.stops, event.run_began.done)
        case "describing":
            listener.describing(event.describing.site)
        case "stop_began":
            began = event.stop_began
            listener.stop_began(began.stop, tuple(began.sites), began.rounds, began.done, tuple(began.rehearsing))
        case "stepped":
            step = event.stepped
            listener.stepped(step.stop, step.site, step.step, step.steps, step.loss if step.HasField("loss") else None)
        case "stop_ended":
            listener.stop_ended(event.stop_ended.stop, tuple(event.stop_ended.sites), event.stop_ended.seconds)
        case "scoring":
            listener.scoring(event.scoring.stop, event.scoring.site)
        case "scored":
            score = event.scored
            listener.scored(score.stop, score.site, score.dsc if score.HasField("dsc") else None)
        case _:
            pass  # why it failed and how it ended are told at the end


def _site(site: pb.Site) -> dict[str, Any]:
    seen = site.last_seen.ToDatetime(UTC).isoformat(timespec="seconds") if site.HasField("last_seen") else None
    return {
        "site": site.name,
        "online": site.online,
        "last_seen": seen,
        **{
            name: getattr(site, name) if site.HasField(name) else None
            for name in ("software", "code_sha256", "torch", "schema_version")
        },
        "cases": dict(sorted(site.cases.items())),
    }

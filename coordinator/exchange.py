"""Asking sites through a Grid: requests out, checked replies back, in order, a bounded number in flight."""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from flwr.app import Message, MetricRecord
from flwr.serverapp import Grid

from protos.handover import Handover, HandoverSchema, Kind, MalformedHandover, check_manifest
from protos.messages import MalformedMessage, Request, pack_request, read_handover, read_manifest
from protos.refusals import RefusalCode, explain

POLL_SECONDS = 0.05

# site -> "sent" (to the site) or "received" (from it) -> kind -> bytes
Traffic = dict[str, dict[str, dict[str, int]]]


@dataclass(frozen=True)
class Question:
    """One request to one site, with the handover that goes with it; `expects` is what must come back (None: none)."""

    message_type: str
    request: Request
    handover: Handover | None = None
    expects: HandoverSchema | None = None


@dataclass(frozen=True)
class Answer:
    """A site's checked reply."""

    site: str
    handover: Handover | None
    metrics: Mapping[str, int | float]


class SiteFailure(Exception):
    """A site refused, failed or is not there; one sentence that names it and says why."""

    def __init__(self, site: str, code: str, sentence: str) -> None:
        super().__init__(f"Site {site}: {sentence} [{code}]")
        self.site = site
        self.code = code
        self.sentence = sentence


class Exchange:
    """The sites that a grid reaches, by name.

    `in_flight` requests are sent ahead of the reply that is waited for, so that sites work side by side while memory
    stays bounded however many sites there are.
    """

    def __init__(self, grid: Grid, in_flight: int) -> None:
        self._grid = grid
        self._in_flight = in_flight
        self._nodes = {node.name: node.node_id for node in grid.get_nodes()}

    def ask(self, questions: Iterable[Question]) -> Iterator[Answer | SiteFailure]:
        """Send the questions and yield what comes back, in their order; failures are yielded, not raised."""
        waiting: deque[tuple[Question, str | SiteFailure]] = deque()
        source = iter(questions)
        exhausted = False
        while waiting or not exhausted:
            while not exhausted and len(waiting) < self._in_flight:
                question = next(source, None)
                if question is None:
                    exhausted = True
                else:
                    waiting.append((question, self._send(question)))
            if waiting:
                question, sent = waiting.popleft()
                yield sent if isinstance(sent, SiteFailure) else self._receive(question, sent)

    def _send(self, question: Question) -> str | SiteFailure:
        site = question.request.site
        if site not in self._nodes:
            return SiteFailure(site, "NO_NODE", "no node of that name is connected; start it and resume the run.")
        message = Message(
            pack_request(question.request, question.handover),
            dst_node_id=self._nodes[site],
            message_type=question.message_type,
            group_id=str(question.request.stop),
        )
        (identity,) = self._grid.push_messages([message])
        return identity

    def _receive(self, question: Question, identity: str) -> Answer | SiteFailure:
        while True:
            for reply in self._grid.pull_messages([identity]):
                return _read(question, reply)
            time.sleep(POLL_SECONDS)


def _read(question: Question, reply: Message) -> Answer | SiteFailure:
    """The guard at the site has checked the reply already, but this side cannot know that it was its own guard."""
    site = question.request.site
    if reply.has_error():
        return _failure(site, reply.error.code, reply.error.reason or "")
    try:
        handover = read_handover(reply.content)
        if handover is not None:
            check_manifest(read_manifest(reply.content), handover)
        if (handover and HandoverSchema.of(handover)) != question.expects:
            raise MalformedHandover("The reply does not hold exactly the strategy's tensors.")
        metrics = reply.content.get("metrics")
        if not isinstance(metrics, MetricRecord):
            raise MalformedMessage("The reply has no record of metrics.")
    except (MalformedHandover, MalformedMessage) as error:
        return SiteFailure(site, "MALFORMED_REPLY", str(error))
    return Answer(site, handover, {name: value for name, value in metrics.items() if isinstance(value, int | float)})


def _failure(site: str, code: int, reason: str) -> SiteFailure:
    """Locum's codes have a sentence of their own; of an exception, the node tells the type."""
    if code == RefusalCode.EXCEPTION:
        return SiteFailure(site, RefusalCode.EXCEPTION.name, f"{explain(code)} ({reason})")
    if code == RefusalCode.SCHEMA_VERSION:
        return SiteFailure(site, RefusalCode.SCHEMA_VERSION.name, reason)
    if code in set(RefusalCode):
        return SiteFailure(site, RefusalCode(code).name, explain(code))
    return SiteFailure(site, f"FLOWER_{code}", "Flower could not get an answer from the node; is it running?")


def bytes_by_kind(handover: Handover | None) -> dict[str, int]:
    """The bytes of every kind that a handover holds."""
    if handover is None:
        return {}
    return {kind: size for kind in Kind if (size := handover.nbytes(kind))}


def count_traffic(traffic: Traffic, answer: Answer, sent: Mapping[str, int]) -> None:
    """Add one exchange to the traffic; `sent` are the bytes of the question by kind."""
    site = traffic.setdefault(answer.site, {"sent": {}, "received": {}})
    for direction, sizes in (("sent", sent), ("received", bytes_by_kind(answer.handover))):
        for kind, size in sizes.items():
            site[direction][kind] = site[direction].get(kind, 0) + size

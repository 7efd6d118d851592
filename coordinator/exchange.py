"""Asking sites through a Grid: requests out, checked replies back, in order, a bounded number in flight."""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from flwr.app import Message, MetricRecord
from flwr.serverapp import Grid

from protos.handover import Handover, HandoverSchema, Kind, MalformedHandover, check_manifest
from protos.messages import PROGRESS, MalformedMessage, Request, pack_request, read_handover, read_manifest
from protos.refusals import RefusalCode, explain

LONGEST_SECONDS = 30 * 24 * 3600.0  # for a site to answer; Flower's own 12 hours are shorter than some training
POLL_SECONDS = 0.05
PATIENT_POLL_SECONDS = 0.5  # in a deployment whose SuperLink answers at once, which costs it some milliseconds
BACK_SECONDS = 2.0  # between two looks whether a node that was away is back
HEARD_SECONDS = 60.0  # as long as a node may be taken to be there after its last answer
PING_SECONDS = 30.0  # for a node to answer that it is there
FIRST_LOOK, LAST_LOOK = 2.0, 50.0  # seconds between two looks whether a person released it; a node was heard of then

# Flower's codes for a node that is not there, or was not long enough, and Locum's own for one that never was
AWAY = "AWAY"  # a site's code when it was waited for in vain
UNRELEASED = "UNRELEASED"  # and when a person there was
_ABSENT = frozenset({"NO_NODE", "FLOWER_3", "FLOWER_5", "FLOWER_8"})

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
    stays bounded however many sites there are. `patience` is how many seconds a site may be away before that is a
    failure, and a person there may take over what it holds: None where nobody is waited for, since the node is in this
    process. `waiting` is told of every site that is waited for, `held` of every site where a person is, and for how
    long at most. `given_up` were waited for in vain already.
    """

    def __init__(
        self,
        grid: Grid,
        in_flight: int,
        patience: Callable[[str], float] | None = None,
        waiting: Callable[[str, float], None] = lambda site, seconds: None,
        given_up: Collection[str] = (),
        *,
        held: Callable[[str, float], None] = lambda site, seconds: None,
    ) -> None:
        self._grid = grid
        self._in_flight = in_flight
        self._patience, self._waiting, self._held = patience, waiting, held
        self._nodes = self._present()
        self._heard: dict[str, float] = {}
        self._given_up = set(given_up)  # sites that were waited for once, and in vain

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
                yield self._awaited(*waiting.popleft())

    def _send(self, question: Question) -> str | SiteFailure:
        site = question.request.site
        if self._patience is not None:
            self._nodes = self._present()
            heard = time.monotonic() - self._heard.get(site, -HEARD_SECONDS) < HEARD_SECONDS
            if question.handover is not None and not heard and not self._answers(question.request):
                self._nodes.pop(site, None)  # before megabytes are sent to nobody
        if site not in self._nodes:
            return SiteFailure(site, "NO_NODE", "no node of that name is connected; start it and resume the run.")
        message = Message(
            pack_request(question.request, question.handover),
            dst_node_id=self._nodes[site],
            message_type=question.message_type,
            group_id=str(question.request.stop),
            ttl=LONGEST_SECONDS,
        )
        (identity,) = self._grid.push_messages([message])
        return identity

    def _awaited(self, question: Question, sent: str | SiteFailure) -> Answer | SiteFailure:
        """What comes back, as often as the question has to be asked: its site was away, or holds what is to leave."""
        site = question.request.site
        looks = None
        while True:
            answer = sent if isinstance(sent, SiteFailure) else self._receive(question, sent)
            if self._patience is not None and isinstance(answer, SiteFailure) and answer.code == RefusalCode.HELD.name:
                self._heard[site] = time.monotonic()
                looks = looks or self._looks(site, self._patience(site))
                if next(looks):
                    sent = self._send(question)
                    continue
                within = in_words(self._patience(site))
                sentence = f"nobody released what is to leave within {within}; `locum-node held` there, then resume."
                return SiteFailure(site, UNRELEASED, sentence)
            if self._patience is None or not isinstance(answer, SiteFailure) or answer.code not in _ABSENT:
                self._heard[site] = time.monotonic()
                return answer
            patience = self._patience(site)
            seconds = 0.0 if site in self._given_up else patience
            self._waiting(site, seconds)
            if not self._comes_back(question, seconds):
                self._given_up.add(site)
                sentence = f"it was away for more than {in_words(patience)}; resume the run when it is back."
                return SiteFailure(site, AWAY, sentence)
            sent = self._send(question)

    def _looks(self, site: str, patience: float) -> Iterator[bool]:
        """Waits before each look whether a person has decided, longer every time; False once patience has ended."""
        self._held(site, patience)
        end, pause = time.monotonic() + patience, FIRST_LOOK
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, LAST_LOOK)
            yield True
        while True:
            yield False

    def _receive(self, question: Question, identity: str) -> Answer | SiteFailure:
        pause = POLL_SECONDS
        while True:
            looked = time.monotonic()
            for reply in self._grid.pull_messages([identity]):
                return _read(question, reply)
            time.sleep(max(0.0, looked + pause - time.monotonic()))  # the grid may have waited already
            if self._patience is not None:
                pause = min(pause * 1.2, PATIENT_POLL_SECONDS)

    def _present(self) -> dict[str, int]:
        return {node.name: node.node_id for node in self._grid.get_nodes()}

    def _comes_back(self, question: Question, seconds: float) -> bool:
        """Whether the site's node is there within so many seconds: listed, and answering."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._nodes = self._present()
            if self._answers(question.request):
                self._heard[question.request.site] = time.monotonic()
                return True
            time.sleep(min(BACK_SECONDS, max(0.0, end - time.monotonic())))
        return False

    def _answers(self, request: Request) -> bool:
        """Whether the node answers, with a refusal if need be; a dead one is still listed for a minute."""
        if request.site not in self._nodes:
            return False
        content = pack_request(request.model_copy(update={"args": {}}))
        ping = Message(content, dst_node_id=self._nodes[request.site], message_type=PROGRESS, ttl=PING_SECONDS)
        (identity,) = self._grid.push_messages([ping])
        end = time.monotonic() + PING_SECONDS
        while time.monotonic() < end:
            for reply in self._grid.pull_messages([identity]):
                return not (reply.has_error() and f"FLOWER_{reply.error.code}" in _ABSENT)
            time.sleep(POLL_SECONDS)
        return False


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


def in_words(seconds: float, for_ever: str = "until it is back") -> str:
    """How long a site may be away, as it is said."""
    if seconds == float("inf"):
        return for_ever
    for unit, name in ((3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:g} {name}"
    return f"{seconds:g} s"

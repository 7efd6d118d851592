"""The guard: outermost mod of the ClientApp, through which every message enters and leaves a site.

Nothing that came from behind it is passed on. It takes a plain copy of the reply, checks the copy against what the
strategy declared and the site's policy allows, and builds the message that leaves out of the checked values alone; an
error leaves as a code with a fixed sentence. Both ways, the ledger is written first. What a site's policy holds
stays at the node, ready to leave, until a person releases it (node/waiting.py).
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass, field, replace
from typing import cast

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp.typing import ClientAppCallable, Mod
from sqlalchemy import Connection

from node.copies import carries_generator
from node.failures import FAILURES, failure_of_work, refusal_for
from node.files import is_full_disk
from node.held import HeldHandovers
from node.inspection import (
    arrived_handover,
    check_args,
    check_records,
    check_tensors,
    checked_metrics,
    parse_request,
    plain_copy,
    tensors_of,
)
from node.ledger import Crossing, Direction, LedgerUnwritable, Verdict
from node.ledger_head import LedgerBroken, broken_by, open_ledger
from node.policy import Policy
from node.policy_change import note_policy
from node.policy_file import PolicyFile
from node.privacy import Release, Updates, holds_update
from node.settings import SiteSettings
from node.waiting import IsHeld, Leaving, Waiting
from protos.declaration import Bound, Declaration
from protos.handover import Handover, HandoverSchema, Kind
from protos.messages import TYPES, VISIT, Request, pack_reply
from protos.refusals import Refusal, RefusalCode

_log = logging.getLogger("locum.node.guard")


@dataclass(frozen=True)
class Exchange:
    """Exactly the tensors (None: none) and the args that a request brings, and all that its reply may hold."""

    arrives: HandoverSchema | None
    leaves: Declaration
    args: Mapping[str, Bound] = field(default_factory=dict)


# Takes the message type (one of protos.messages) and the request; raises Refusal (UNKNOWN_STRATEGY, PLAN).
Declare = Callable[[str, Request], Exchange]


def make_guard(declare: Declare) -> Mod:
    """Return the guard as a Flower mod, which must be the first of the ClientApp's mods.

    `declare` is trusted: it runs before the site's data are touched and decides what may leave. Work behind the guard
    may raise Refusal with SITE_DATA or MEMORY when the site's own data are at fault, with POLICY when its memory is
    not to be used, and FloatingPointError when training diverges; of any other exception only the type's name leaves,
    and only if it is one of Python's own.
    """

    def guard(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        try:
            return _Passage(message, context).through(declare, call_next, context)
        except KeyboardInterrupt:
            pass
        except BaseException as error:
            return _coded(message, refusal_for(error))
        raise KeyboardInterrupt  # a new one: the one that was caught could carry data

    return guard


def report_failure(message: Message, context: Context, failure: Refusal) -> Message:
    """Answer a message that was let in, whose work came to no end, and write that down as the guard would have."""
    try:
        return _Passage(message, context).given_up(failure)
    except BaseException as error:
        return _coded(message, refusal_for(error))


def give_again(message: Message, context: Context, content: RecordDict, declare: Declare) -> Message:
    """Answer a visit as it was answered before; `content` is that reply's, which was let out or about to be.

    It is checked once more. In the ledger it stands once: had the process died before it was written down, it is now.
    """
    try:
        return _Passage(message, context).again(content, declare)
    except BaseException as error:
        return _coded(message, refusal_for(error))


@contextmanager
def keeping(keep: Callable[[Message], None] | None) -> Iterator[None]:
    """Inside the block a reply that is let out is given to `keep` just before the ledger says that it left."""
    token = _keep.set(keep)
    try:
        yield
    finally:
        _keep.reset(token)


_keep: ContextVar[Callable[[Message], None] | None] = ContextVar("keep", default=None)


Also = Callable[[Connection], None]  # what is written together with an entry


def _nothing(connection: Connection) -> None:
    """Write no more than the entry."""


@dataclass(frozen=True)
class _Admitted:
    """A request that was let in: `message` is a copy for the work behind the guard."""

    message: Message
    request: Request
    leaves: Declaration
    updates: Updates | None  # how the policy had updates protected when it was let in; None: the reply holds none
    waiting: Waiting | None  # of a visit


class _Passage:
    """One request on its way in and its reply on its way out; `_entry` is the crossing that is to be recorded next."""

    def __init__(self, message: Message, context: Context) -> None:
        try:
            self._settings = SiteSettings.of(context.node_config)
            self._ledger = open_ledger(self._settings.home, self._settings.durable)
        except LedgerBroken as error:
            _log.error("Nothing crosses: %s", error)
            raise Refusal(RefusalCode.LEDGER_BROKEN) from error
        except Exception as error:
            _log.exception("The node's settings or database cannot be read.")
            raise Refusal(RefusalCode.SETTINGS) from error
        self._message = message
        self._entry = Crossing(Direction.IN, self._settings.name, message.metadata.message_type, Verdict.ALLOWED)

    def through(self, declare: Declare, call_next: ClientAppCallable, context: Context) -> Message:
        try:
            admitted = self._admit(declare)
            self._record(self._entry)
            self._entry = replace(self._entry, direction=Direction.OUT, kind_bytes={}, manifest=None)
            records = None if admitted.waiting is None else admitted.waiting.released
            if records is None:
                records = _content(_work(call_next, admitted.message, context))
            reply, also = self._release(records, admitted)
            _kept(reply)
            self._record(self._entry, also)
            return reply
        except KeyboardInterrupt:
            raise
        except IsHeld:
            return _coded(self._message, Refusal(RefusalCode.HELD))
        except BaseException as error:
            return self._turn_back(refusal_for(error))

    def again(self, content: RecordDict, declare: Declare) -> Message:
        """The reply with this content; neither it nor the request is written into the ledger a second time."""
        request = self._requested(Direction.OUT)
        try:
            exchange = declare(self._message.metadata.message_type, request)
            assert exchange.arrives is not None  # a visit brings a handover
            arrived, _ = arrived_handover(self._message.content, request, exchange.arrives)
            waiting = Waiting(HeldHandovers(self._settings.home, self._ledger), request, arrived)
            updates = self._narrowed(request, exchange.leaves)
            admitted = _Admitted(self._message, request, exchange.leaves, updates, waiting)
            reply, also = self._release(plain_copy(content), admitted)
            if not self._ledger.holds(self._entry):
                self._record(self._entry, also)
        except IsHeld:
            return _coded(self._message, Refusal(RefusalCode.HELD))
        except BaseException as error:
            return self._turn_back(refusal_for(error))
        return reply

    def given_up(self, failure: Refusal) -> Message:
        """The coded reply in place of one that never came; the request itself stands in the ledger already."""
        self._requested(Direction.OUT)
        return self._turn_back(failure)

    def _requested(self, direction: Direction) -> Request:
        """The message's request, which the entry is about from here on."""
        request = parse_request(self._message.content)
        self._entry = replace(
            self._entry,
            direction=direction,
            run=request.run,
            stop=request.stop,
            round=request.round,
            action=request.action,
            strategy=request.plan.strategy.name,
        )
        return request

    def _admit(self, declare: Declare) -> _Admitted:
        metadata = self._message.metadata
        if metadata.message_type not in TYPES:
            raise Refusal(RefusalCode.MESSAGE_TYPE, "No message of this type is answered.")
        if not self._message.has_content():
            raise Refusal(RefusalCode.LAYOUT, "The message has no content.")
        records = self._message.content
        request = self._requested(Direction.IN)
        if request.site != self._settings.name:
            raise Refusal(RefusalCode.OTHER_SITE, f"The request is meant for {request.site!r}.")
        exchange = declare(metadata.message_type, request)
        check_args(request.args, exchange.args)
        updates = self._narrowed(request, exchange.leaves)
        check_records(records, "request", exchange.arrives, RefusalCode.LAYOUT)
        waiting = None
        if exchange.arrives is not None:
            arrived, manifest = arrived_handover(records, request, exchange.arrives)
            self._load(arrived, manifest)
            if metadata.message_type == VISIT:
                waiting = Waiting(HeldHandovers(self._settings.home, self._ledger), request, arrived)
        if updates is not None and not (waiting and waiting.has_left):
            Release.after(self._ledger.last_release(), updates)  # refuses before any work is done
        # With metadata of its own: a reply is addressed by the original's, which the work must not write to.
        message = Message(content=records, metadata=copy(metadata))  # type: ignore[call-overload]
        return _Admitted(message, request, exchange.leaves, updates, waiting)

    def _release(self, records: RecordDict, admitted: _Admitted) -> tuple[Message, Also]:
        """Check everything and make the message that may leave once its entry, and what goes with that, is written."""
        request, allowed = admitted.request, admitted.leaves
        if self._narrowed(request, allowed) != admitted.updates:  # once more: a policy may have been narrowed meanwhile
            raise Refusal(RefusalCode.POLICY, "The policy's updates were changed while the work was under way.")
        check_records(records, "metrics", allowed.handover, RefusalCode.REPLY)
        metrics = checked_metrics(records, allowed.metrics)
        if carries_generator(allowed):
            self._check_copies(metrics)
        handover = None
        if allowed.handover is not None:
            handover = tensors_of(records, RefusalCode.TENSORS)
            check_tensors(handover, allowed.handover, RefusalCode.TENSORS, RefusalCode.NOT_FINITE)
        checked = pack_reply(request, handover, metrics)
        if handover is not None:
            manifest = checked.config_records["manifest"]
            if records["manifest"] != manifest:
                raise Refusal(RefusalCode.MANIFEST, "The manifest is not that of the tensors.")
            self._load(handover, cast(bytes, manifest["manifest"]))
        self._entry = replace(self._entry, metrics=metrics, updates=admitted.updates)
        also: Also = _nothing
        if handover is not None and admitted.waiting is not None:
            assert self._entry.manifest is not None  # just loaded
            leaving = Leaving(handover, self._entry.manifest, metrics, admitted.updates)
            self._entry, also = admitted.waiting.decide(leaving, self._policy().holds(allowed.handover), self._entry)
        return Message(checked, reply_to=self._message), also

    def _narrowed(self, request: Request, declared: Declaration) -> Updates | None:
        """Hold what is declared against the policy as it is now; how it has updates protected, if there are any."""
        policy = self._policy()
        policy.narrow(request.plan.strategy.name, declared)
        return policy.updates if holds_update(declared) else None

    def _policy(self) -> Policy:
        """The policy as it is now; a change since it was last read is in the ledger before anything else is."""
        file = PolicyFile.of(self._settings.home)
        try:
            note_policy(self._ledger, file, self._settings.name)
        except LedgerUnwritable as error:
            raise self._unwritable(error) from error
        return Policy.said_in(file)

    def _check_copies(self, metrics: Mapping[str, int | float]) -> None:
        if "copies" not in metrics:
            raise Refusal(
                RefusalCode.METRICS, "A generator would leave whose copies of training images were not counted."
            )
        self._policy().limit_copies(metrics["copies"])

    def _load(self, handover: Handover, manifest: bytes) -> None:
        kind_bytes = {kind: handover.nbytes(kind) for kind in Kind if handover.group(kind)}
        self._entry = replace(self._entry, kind_bytes=kind_bytes, manifest=manifest)

    def _turn_back(self, refusal: Refusal) -> Message:
        verdict = Verdict.FAILED if refusal.code in FAILURES else Verdict.REFUSED
        entry = replace(self._entry, verdict=verdict, code=refusal.code.name, detail=refusal.detail)
        try:
            self._record(replace(entry, kind_bytes={}, metrics={}, manifest=None, updates=None, audit=None))
        except Refusal as unwritable:
            refusal = unwritable
        return _coded(self._message, refusal)

    def _record(self, entry: Crossing, also: Also = _nothing) -> None:
        try:
            self._ledger.record(entry, also=also)
        except LedgerUnwritable as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: LedgerUnwritable) -> Refusal:
        if (broken := broken_by(self._settings.home, error)) is not None:
            _log.error("Nothing crosses: %s", broken)
            return Refusal(RefusalCode.LEDGER_BROKEN)
        _log.error("Nothing crosses, since the ledger cannot be written.", exc_info=error)
        return Refusal(RefusalCode.LEDGER, "The ledger could not be written at first.")


def _work(call_next: ClientAppCallable, message: Message, context: Context) -> object:
    """Do the work behind the guard; whatever it raises becomes a Refusal without its text."""
    try:
        return call_next(message, context)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        failure = failure_of_work(error)
    raise failure


def _content(reply: object) -> RecordDict:
    """A plain copy of what a reply holds."""
    if type(reply) is not Message:
        raise Refusal(RefusalCode.REPLY, "The work did not return a message.")
    if reply.has_error():
        raise Refusal(RefusalCode.ERROR_REPLY, "The work answered with an error, whose text was kept back.")
    if not reply.has_content():
        raise Refusal(RefusalCode.REPLY, "The work returned an empty message.")
    return plain_copy(reply.content)


def _kept(reply: Message) -> None:
    """Have a reply that may leave kept, if that is wanted, before the ledger says that it did."""
    if (keep := _keep.get()) is None:
        return
    try:
        keep(reply)
    except OSError as error:
        _log.exception("A reply does not leave, since it cannot be kept.")
        code = RefusalCode.DISK_FULL if is_full_disk(error) else RefusalCode.LEDGER
        raise Refusal(code, "The reply could not be kept on the node's disk.") from error


def _coded(message: Message, refusal: Refusal) -> Message:
    return Message(Error(int(refusal.code), refusal.reason), reply_to=message)

"""The guard's part in hold-and-release: what an asked question meets at the site, and what becomes of its answer."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from flwr.app import RecordDict
from sqlalchemy import Connection

from node.held import Damaged, Held, HeldHandovers, State, name_of, question_of, row_of
from node.leakage import measure
from node.ledger import Crossing, Verdict
from node.privacy import Updates
from protos.handover import Handover
from protos.messages import Request, pack_reply
from protos.refusals import Refusal, RefusalCode

_log = logging.getLogger("locum.node.guard")


@dataclass(frozen=True)
class Leaving:
    """A checked answer that may leave as far as the guard is concerned."""

    handover: Handover
    manifest: bytes
    metrics: Mapping[str, int | float]
    updates: Updates | None


class IsHeld(Exception):
    """The answer does not leave now: it is kept until a person decides, and the ledger says so since that began."""


class Waiting:
    """A visit's question at a site where its answer may have to wait, or did already.

    `released` is that answer, to be checked once more, if a person released it; None if there is none. Raises IsHeld
    while it waits, Refusal (WITHHELD) when a person decided that it stays.
    """

    def __init__(self, handovers: HeldHandovers, request: Request, arrived: Handover) -> None:
        self._handovers, self._request, self._arrived = handovers, request, arrived
        self._question = question_of(request, arrived)
        self._held = handovers.asked(self._question)
        self.released = None if self._held is None else self._given(self._held)

    @property
    def has_left(self) -> bool:
        """Whether the answer has left before: it tells nothing new."""
        return self._held is not None and self._held.state is State.LEFT and self.released is not None

    def decide(
        self, leaving: Leaving, policy_holds: bool, entry: Crossing
    ) -> tuple[Crossing, Callable[[Connection], None]]:
        """The entry of an answer that leaves now, and what is to be written with it.

        Raises IsHeld, once it is kept and that has an entry of its own, when a person has to decide first; Refusal
        (POLICY) when updates are protected otherwise by now.
        """
        held, name = self._held, name_of(self._question, leaving.manifest, leaving.metrics)
        if held is not None and held.handover == name and held.state in (State.RELEASED, State.LEFT):
            if held.updates != leaving.updates:
                raise Refusal(RefusalCode.POLICY, "The policy's updates were changed since it was held.")
            updates = None if held.state is State.LEFT else leaving.updates  # the same bits count once
            return replace(entry, audit=held.decision, updates=updates), self._handovers.leaves(held)
        if held is None and not policy_holds:
            return entry, lambda connection: None
        self._keep(leaving, name, entry)
        raise IsHeld

    def _keep(self, leaving: Leaving, name: str, entry: Crossing) -> None:
        spent = None if leaving.updates is None else self._handovers.epsilon_after(leaving.updates)
        row = row_of(
            self._request,
            self._question,
            leaving.manifest,
            metrics=leaving.metrics,
            updates=leaving.updates,
            facts=measure(leaving.handover, self._arrived),
            epsilon=spent,
        )
        entry = replace(
            entry, verdict=Verdict.HELD, code=RefusalCode.HELD.name, detail=f"It waits for a person's decision: {name}",
            kind_bytes={}, metrics={}, updates=None,
        )  # fmt: skip
        try:
            self._handovers.keep(row, leaving.handover, entry)
        except OSError as error:
            _log.exception("A handover that is to be held cannot be kept.")
            raise Refusal(RefusalCode.LEDGER, "The handover that was to be held could not be kept.") from error

    def _given(self, held: Held) -> RecordDict | None:
        """The reply as it was held, if it was released and is whole."""
        if held.state is State.WITHHELD:
            raise Refusal(RefusalCode.WITHHELD, f"{held.by} withheld it: {held.why}")
        try:
            handover = self._handovers.read(held)
        except Damaged as damaged:
            _log.error("%s The visit is made again.", damaged)
            return None
        if held.state is State.WAITING:
            raise IsHeld
        return pack_reply(self._request, handover, held.metrics)

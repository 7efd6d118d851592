"""A reply is kept before the ledger says that it left, and given again to who asks again, without a second entry."""

import errno
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict

from node.guard import give_again, keeping
from node.ledger import LedgerUnwritable
from protos.messages import pack_reply, pack_request, read_handover
from protos.refusals import RefusalCode
from tests.node.guarded import Node, honest, instruction, over_the_wire, request, small_handover

OUT = ("out", "allowed", "")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "home")


def again(node: Node, content: RecordDict) -> Message:
    message = over_the_wire(instruction(pack_request(request(), small_handover())))
    return give_again(message, node.context(), content, lambda message_type, asked: node.exchange)


def kept_by_one_that_dies(node: Node) -> RecordDict:
    """The content of a reply whose process is killed when it is kept, before the ledger is written."""
    kept = []

    def keep(reply: Message) -> None:
        kept.append(reply.content)
        raise KeyboardInterrupt

    with keeping(keep), pytest.raises(KeyboardInterrupt):
        node.ask(honest)
    assert node.verdicts() == [("in", "allowed", "")]
    return kept[0]


def test_who_died_before_the_entry_is_written_down_when_the_reply_is_given(node: Node) -> None:
    content = kept_by_one_that_dies(node)
    for _ in range(2):
        reply = again(node, content)
        assert read_handover(reply.content) == small_handover(0.5)
        assert node.verdicts() == [("in", "allowed", ""), OUT]
    (_, out) = node.ledger().entries()
    assert out.manifest is not None
    assert node.ledger().verify() == []


def test_what_is_in_the_ledger_is_not_written_again(node: Node) -> None:
    reply = node.ask(honest)
    assert again(node, reply.content).content == reply.content
    assert node.verdicts() == [("in", "allowed", ""), OUT]


def test_another_visit_of_the_same_bytes_is_an_entry_of_its_own(node: Node) -> None:
    reply = node.ask(honest)
    message = over_the_wire(instruction(pack_request(request(stop=3), small_handover())))
    content = pack_reply(request(stop=3), read_handover(reply.content), {"loss": 0.25, "cases": 12})
    give_again(message, node.context(), content, lambda message_type, asked: node.exchange)
    assert node.verdicts() == [("in", "allowed", ""), OUT, OUT]


def test_what_is_given_again_is_checked_again(node: Node) -> None:
    content = kept_by_one_that_dies(node)
    content["handover"] = pack_reply(request(), small_handover(float("nan")), {})["handover"]
    reply = again(node, content)
    assert reply.has_error()
    assert node.verdicts()[1][:2] == ("out", "refused")


def test_a_reply_that_cannot_be_kept_does_not_leave(node: Node) -> None:
    def full(reply: Message) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with keeping(full):
        reply = node.ask(honest)
    assert reply.error.code == RefusalCode.DISK_FULL
    assert node.verdicts() == [("in", "allowed", ""), ("out", "failed", "DISK_FULL")]


def test_nothing_is_given_without_its_entry(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    content = kept_by_one_that_dies(node)

    def unwritable(self: object, *crossing: object, **also: object) -> str:
        raise LedgerUnwritable

    monkeypatch.setattr("node.ledger.Ledger.record", unwritable)
    assert again(node, content).error.code == RefusalCode.LEDGER

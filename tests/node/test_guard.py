"""Nothing but what was declared leaves a site: honest work passes, and every attack is refused or disarmed."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from node.guard import Exchange
from protos.declaration import Bound, Declaration
from protos.handover import Handover, HandoverSchema
from protos.messages import DESCRIBE, SCORE, VISIT, pack_reply, pack_request, read_handover
from protos.refusals import Refusal, RefusalCode, explain
from tests.node.adversaries import ATTACKS, NAME, Attack, leaks
from tests.node.guarded import (
    METRICS,
    Node,
    all_that_crosses,
    honest,
    over_the_wire,
    request,
    small_handover,
    standard_exchange,
    tensor,
    wire,
)

ALLOWED_IN = ("in", "allowed", "")


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path / "home")


@pytest.mark.parametrize("attempt", ATTACKS, ids=lambda attempt: attempt.name)
def test_no_attack_gets_out(node: Node, attempt: Attack) -> None:
    reply = node.ask(attempt.work)
    assert not leaks(all_that_crosses(reply))
    if attempt.code is None:
        assert wire(_undated(reply)) == wire(_undated(node.ask(honest)))
        assert node.verdicts()[:2] == [ALLOWED_IN, ("out", "allowed", "")]
        return
    assert reply.error.code == attempt.code
    assert reply.error.reason == (attempt.reason or explain(attempt.code))
    failed = attempt.code in (RefusalCode.EXCEPTION, RefusalCode.ERROR_REPLY, RefusalCode.SITE_DATA)
    assert node.verdicts() == [ALLOWED_IN, ("out", "failed" if failed else "refused", attempt.code.name)]
    (_, out) = node.ledger().entries()
    assert (out.manifest, out.metrics, out.kind_bytes) == (None, "{}", "{}")
    assert node.ledger().verify() == []


@pytest.mark.parametrize("attempt", [a for a in ATTACKS if a.bare], ids=lambda attempt: attempt.name)
def test_the_attack_works_where_there_is_no_guard(node: Node, attempt: Attack) -> None:
    assert leaks(all_that_crosses(node.ask_unguarded(attempt.work)))


def _undated(message):
    message.metadata.created_at = message.metadata.ttl = 0.0
    return message


@pytest.mark.parametrize(
    ("message_type", "exchange", "handover", "reply", "metrics"),
    [
        (VISIT, standard_exchange(), small_handover(), small_handover(0.5), {"loss": 0.25, "cases": 3}),
        (VISIT, standard_exchange(), small_handover(), small_handover(0.5), {}),
        (SCORE, Exchange(HandoverSchema.of(small_handover()), Declaration(None, METRICS)), small_handover(), None,
         {"loss": 100.0, "cases": 0}),
        (DESCRIBE, Exchange(None, Declaration(None, METRICS)), None, None, {"cases": 1_000_000}),
        (VISIT, Exchange(None, Declaration(HandoverSchema.of(Handover()), {})), None, Handover(), {}),
    ],
    ids=["visit", "visit without metrics", "score", "describe", "empty handover"],
)  # fmt: skip
def test_honest_work_passes_bit_for_bit(tmp_path, message_type, exchange, handover, reply, metrics):
    node = Node(tmp_path / "home", exchange)
    sent = node.ask(
        lambda message, context: type(message)(pack_reply(request(), reply, metrics), reply_to=message),
        pack_request(request(), handover),
        message_type,
    )
    arrived = over_the_wire(sent)
    assert dict(arrived.content.metric_records["metrics"]) == metrics
    assert read_handover(arrived.content) == reply
    assert arrived.metadata.reply_to_message_id == "message-1"
    assert node.verdicts() == [ALLOWED_IN, ("out", "allowed", "")]
    came, went = node.ledger().entries()
    assert (came.manifest is None, went.manifest is None) == (handover is None, reply is None)
    assert (went.run, went.stop, went.strategy, went.message_type) == ("run-1", 2, "finetune", message_type)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 2**63, -(2**63) - 1, True, [0.5]])
def test_a_metric_is_a_finite_scalar_whatever_its_bound(tmp_path: Path, value) -> None:
    boundless = Bound(float("-inf"), float("inf"))
    node = Node(tmp_path / "home", Exchange(None, Declaration(None, {"loss": boundless})))

    def work(message, context):
        records = pack_reply(request(), None, {})
        records.metric_records["metrics"].__dict__["_data"]["loss"] = value
        return type(message)(records, reply_to=message)

    assert node.ask(work, pack_request(request())).error.code == RefusalCode.METRICS


def test_the_ledger_tells_what_crossed(node: Node) -> None:
    node.ask()
    came, went = node.ledger().entries()
    assert came.kind_bytes == went.kind_bytes == f'{{"weights": {small_handover().nbytes()}}}'
    assert (came.metrics, went.metrics) == ("{}", '{"cases": 12, "loss": 0.25}')
    assert came.manifest != went.manifest


def test_the_text_of_an_exception_is_in_the_node_log(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    def broken(message, context):
        raise ValueError("the spacing is zero")

    node.ask(broken)
    assert "the spacing is zero" in caplog.text


def test_memory_that_ran_out_is_named(node: Node) -> None:
    import torch

    def greedy(message, context):
        raise torch.OutOfMemoryError(NAME)

    assert node.ask(greedy).error.reason == "OutOfMemoryError"


def test_an_interrupt_goes_on_without_its_text(node: Node) -> None:
    def interrupted(message, context):
        raise KeyboardInterrupt(NAME)

    with pytest.raises(KeyboardInterrupt) as caught:
        node.ask(interrupted)
    assert caught.value.args == ()
    assert caught.value.__context__ is None


def test_the_work_runs_only_for_what_was_let_in(node: Node) -> None:
    ran = []
    node.ask(lambda message, context: ran.append(1), pack_request(request(site="south"), small_handover()))
    assert not ran


# The way in


def altered_tensor():
    content = pack_request(request(), small_handover())
    array = content.array_records["handover"]["weights/conv.bias"]
    array.data = bytes([array.data[0] ^ 1]) + array.data[1:]
    return content


def with_manifest_of(**changes):
    content = pack_request(request(), small_handover())
    content["manifest"] = pack_request(request(**changes), small_handover())["manifest"]
    return content


def with_json(old: str, new: str):
    content = pack_request(request(), small_handover())
    text = content.config_records["request"]["json"]
    assert old in text
    content.config_records["request"]["json"] = text.replace(old, new)
    return content


def with_manifest_version(version: int):
    from protos.locum.v1 import handover_pb2

    content = pack_request(request(), small_handover())
    manifest = handover_pb2.HandoverManifest.FromString(content.config_records["manifest"]["manifest"])
    manifest.schema_version = version
    content.config_records["manifest"]["manifest"] = manifest.SerializeToString()
    return content


def with_record(name: str, record_of: str):
    content = pack_request(request(), small_handover())
    content[name] = content[record_of]
    return content


def without(name: str):
    content = pack_request(request(), small_handover())
    del content[name]
    return content


def with_tensors(**tensors):
    return pack_request(request(), Handover(weights={**small_handover().weights, **tensors}))


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (altered_tensor(), RefusalCode.HANDOVER),
        (without("handover"), RefusalCode.LAYOUT),
        (without("manifest"), RefusalCode.LAYOUT),
        (without("request"), RefusalCode.REQUEST),
        (pack_request(request()), RefusalCode.LAYOUT),
        (with_record("more", "handover"), RefusalCode.LAYOUT),
        (with_record("metrics", "request"), RefusalCode.LAYOUT),
        (with_record("handover", "manifest"), RefusalCode.HANDOVER),
        (with_record("manifest", "request"), RefusalCode.HANDOVER),
        (with_tensors(extra=tensor([1.0])), RefusalCode.NOT_THE_SCHEMA),
        (with_tensors(mask=tensor(range(8), "uint8")), RefusalCode.NOT_THE_SCHEMA),
        (with_tensors(**{"conv.bias": tensor([float("inf")] * 8)}), RefusalCode.NOT_THE_SCHEMA),
        (with_manifest_of(run="run-2"), RefusalCode.OTHER_HANDOVER),
        (with_manifest_of(stop=3), RefusalCode.OTHER_HANDOVER),
        (with_manifest_of(site="south"), RefusalCode.OTHER_HANDOVER),
        (pack_request(request(site="south"), small_handover()), RefusalCode.OTHER_SITE),
        (with_json('"run":', '"walk":'), RefusalCode.REQUEST),
        (with_json("{", "["), RefusalCode.REQUEST),
        (with_json('"stop":2', f'"stop":{2**70}'), RefusalCode.REQUEST),
        (with_json('"stop":2', f'"stop":{2**32}'), RefusalCode.REQUEST),  # one more than a manifest can hold
        (with_json('"round":0', f'"round":{2**32}'), RefusalCode.REQUEST),
        (with_json('"schema_version":1', '"schema_version":2'), RefusalCode.SCHEMA_VERSION),
        (with_json('"schema_version":1', '"schema_version":"2"'), RefusalCode.SCHEMA_VERSION),
        (with_json('"schema_version":1', '"new_key":{},"schema_version":2'), RefusalCode.SCHEMA_VERSION),
        (with_manifest_version(2), RefusalCode.SCHEMA_VERSION),
    ],
)
def test_a_request_that_is_not_right_is_refused(node: Node, content, code) -> None:
    reply = node.ask(content=content)
    assert reply.error.code == code
    assert node.verdicts() == [("in", "refused", code.name)]
    if code is RefusalCode.SCHEMA_VERSION:
        assert "version 2" in reply.error.reason
        assert "version 1" in reply.error.reason
    else:
        assert reply.error.reason == explain(code)


def test_other_message_types_are_refused(node: Node) -> None:
    assert node.ask(message_type="query.steal").error.code == RefusalCode.MESSAGE_TYPE
    assert node.verdicts() == [("in", "refused", "MESSAGE_TYPE")]


def test_what_declare_refuses_is_refused(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    class Unknown:
        @property
        def arrives(self):
            raise Refusal(RefusalCode.UNKNOWN_STRATEGY, "no strategy 'finetuna'")

        leaves = Declaration(None, {})
        args: Mapping[str, Bound] = {}

    node.exchange = Unknown()
    assert node.ask().error.code == RefusalCode.UNKNOWN_STRATEGY
    assert node.verdicts() == [("in", "refused", "UNKNOWN_STRATEGY")]


# The guard itself


def test_a_fault_in_the_guard_lets_nothing_through(node: Node) -> None:
    node.exchange = None
    reply = node.ask()
    assert (reply.error.code, reply.error.reason) == (RefusalCode.GUARD, explain(RefusalCode.GUARD))
    assert node.verdicts() == [("in", "refused", "GUARD")]


def test_a_node_without_settings_answers_with_a_code(node: Node) -> None:
    context = node.context()
    context.node_config = {}
    reply = node.app(honest)(over_the_wire(_instruction()), context)
    assert reply.error.code == RefusalCode.SETTINGS


def test_nothing_enters_when_the_ledger_cannot_be_written(node: Node) -> None:
    ran = []
    _spoil_ledger(node)
    reply = node.ask(lambda message, context: ran.append(1))
    assert reply.error.code == RefusalCode.LEDGER
    assert not ran


def test_nothing_leaves_when_the_ledger_cannot_be_written(node: Node) -> None:
    def spoiling(message, context):
        _spoil_ledger(node)
        return honest(message, context)

    reply = node.ask(spoiling)
    assert reply.error.code == RefusalCode.LEDGER


def _spoil_ledger(node: Node) -> None:
    from node.database import open_database

    with open_database(node.home).begin() as connection:
        connection.exec_driver_sql("ALTER TABLE ledger RENAME TO mislaid")


def _instruction():
    from tests.node.guarded import instruction

    return instruction(pack_request(request(), small_handover()))


def test_every_code_has_its_sentence() -> None:
    sentences = [explain(code) for code in RefusalCode]
    assert all(sentence.endswith(".") for sentence in sentences)
    assert len(set(sentences)) == len(RefusalCode)
    assert all(code >= 1000 for code in RefusalCode)
    assert "none of Locum's" in explain(3)

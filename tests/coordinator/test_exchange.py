"""Asking sites: in order, a few at a time, and never trusting what comes back."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Error, Message, MetricRecord

from coordinator.events import Listener
from coordinator.exchange import Answer, Exchange, Question, SiteFailure
from coordinator.grid import InProcessGrid
from node.settings import SiteSettings
from protos.handover import Handover, HandoverSchema, Kind, Tensor
from protos.messages import DESCRIBE, RAW, SCORE, VISIT, Request, pack_reply
from protos.plan import NetworkChoice, PhantomSite, Plan, StrategyChoice, Task, Training
from protos.refusals import RefusalCode, explain
from strategies.registry import strategy_for

SITES = ("north", "east", "south")
PLAN = Plan(
    task=Task(size=(16, 16), classes=("background", "organ")),
    strategy=StrategyChoice(name="finetune"),
    network=NetworkChoice(channels=(2, 4)),
    training=Training(steps=1, batch_size=2),
    sites=SITES,
)
STRATEGY = strategy_for(PLAN)


def settings(tmp_path) -> list[SiteSettings]:
    phantom = PhantomSite(task="organ", cases=6, size=16)
    return [SiteSettings(name=site, home=tmp_path / site, phantom=phantom) for site in SITES]


def request(site: str) -> Request:
    return Request(run="run-1", site=site, plan=PLAN)


def describe(site: str, samples: int = 0) -> Question:
    return Question(DESCRIBE, request(site).model_copy(update={"args": {"samples": samples}}))


def visit(site: str) -> Question:
    return Question(VISIT, request(site), STRATEGY.first_handover(), STRATEGY.schema())


class CountingGrid(InProcessGrid):
    """Notes the most requests that were ever sent and not yet answered."""

    outstanding = most = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.outstanding += 1
        self.most = max(self.most, self.outstanding)
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        for reply in super().pull_messages(message_ids):
            self.outstanding -= 1
            yield reply


class TamperingGrid(InProcessGrid):
    """What an altered node, or a man in the middle, may do to an honest reply."""

    tamper: Callable[[Message], Message]

    def _deliver(self, data: bytes) -> Message:
        return self.tamper(super()._deliver(data))


@pytest.mark.parametrize("in_flight", [1, 2, 3, 8])
def test_answers_come_in_the_order_of_the_questions_and_few_are_in_flight(tmp_path, in_flight):
    grid = CountingGrid(settings(tmp_path), Listener())
    asked = ["south", "north", "south", "east", "east", "north"]
    taken = 0

    def questions() -> Iterator[Question]:
        nonlocal taken
        for site in asked:
            taken += 1
            yield describe(site)

    answered = []
    for answer in Exchange(grid, in_flight).ask(questions()):
        assert isinstance(answer, Answer)
        answered.append(answer.site)
        assert taken <= len(answered) - 1 + in_flight  # questions hold handovers: none is made before its time
    assert answered == asked
    assert grid.most == min(in_flight, len(asked))


def test_what_a_site_has_is_counted_in_cases_and_samples(tmp_path):
    exchange = Exchange(InProcessGrid(settings(tmp_path), Listener()), 1)
    (answer,) = exchange.ask([describe("north", samples=1)])
    assert isinstance(answer, Answer)
    assert sum(answer.metrics[part] for part in ("train", "val", "test")) == 6
    assert answer.metrics["samples"] == answer.metrics["train"]


def test_a_site_without_a_node_does_not_stop_the_others(tmp_path):
    exchange = Exchange(InProcessGrid(settings(tmp_path)[:2], Listener()), 2)
    north, south, east = exchange.ask(describe(site) for site in ("north", "south", "east"))
    assert isinstance(north, Answer)
    assert isinstance(east, Answer)
    assert isinstance(south, SiteFailure)
    assert str(south) == "Site south: no node of that name is connected; start it and resume the run. [NO_NODE]"


def first_tensor(reply: Message) -> tuple[str, Array]:
    return next(iter(reply.content.array_records["handover"].items()))


def flip_a_bit(reply: Message) -> Message:
    name, array = first_tensor(reply)
    data = bytes([array.data[0] ^ 1]) + array.data[1:]
    reply.content.array_records["handover"][name] = Array(array.dtype, array.shape, RAW, data)
    return reply


def drop_a_tensor(reply: Message) -> Message:
    del reply.content.array_records["handover"][first_tensor(reply)[0]]
    return reply


def drop_the_manifest(reply: Message) -> Message:
    del reply.content["manifest"]
    return reply


def spoil_the_manifest(reply: Message) -> Message:
    reply.content["manifest"] = ConfigRecord({"manifest": b"\xff\xff"})
    return reply


def drop_the_handover(reply: Message) -> Message:
    del reply.content["handover"], reply.content["manifest"]
    return reply


def drop_the_metrics(reply: Message) -> Message:
    del reply.content["metrics"]
    return reply


def metrics_as_text(reply: Message) -> Message:
    reply.content["metrics"] = ConfigRecord({"loss": "low"})
    return reply


def another_schema(reply: Message) -> Message:
    """Well-formed, with a manifest that fits: only the strategy can tell that it is another network."""
    values = np.zeros((2, 2), np.float32)
    handover = Handover(weights={"other": Tensor("float32", values.shape, values.tobytes())})
    reply.content = pack_reply(request("north"), handover, {})
    return reply


def another_encoding(reply: Message) -> Message:
    name, array = first_tensor(reply)
    reply.content.array_records["handover"][name] = Array(array.dtype, array.shape, "numpy.ndarray", array.data)
    return reply


def an_unknown_kind(reply: Message) -> Message:
    _, array = first_tensor(reply)
    reply.content.array_records["handover"]["images/1"] = array
    return reply


@pytest.mark.parametrize(
    "tamper",
    [
        flip_a_bit,
        drop_a_tensor,
        drop_the_manifest,
        spoil_the_manifest,
        drop_the_handover,
        drop_the_metrics,
        metrics_as_text,
        another_schema,
        another_encoding,
        an_unknown_kind,
    ],
)
def test_a_reply_that_was_tampered_with_is_a_failure_of_its_site(tmp_path, tamper):
    grid = TamperingGrid(settings(tmp_path), Listener())
    grid.tamper = tamper
    (answer,) = Exchange(grid, 1).ask([visit("north")])
    assert isinstance(answer, SiteFailure)
    assert (answer.site, answer.code) == ("north", "MALFORMED_REPLY")
    assert len(str(answer).splitlines()) == 1


def test_an_honest_reply_is_passed_on_whole(tmp_path):
    (answer,) = Exchange(InProcessGrid(settings(tmp_path), Listener()), 1).ask([visit("north")])
    assert isinstance(answer, Answer)
    assert answer.handover is not None
    assert HandoverSchema.of(answer.handover) == STRATEGY.schema()
    assert answer.metrics["steps"] == 1


def test_a_score_that_brings_tensors_is_refused(tmp_path):
    grid = TamperingGrid(settings(tmp_path), Listener())
    handover = STRATEGY.first_handover()

    def smuggle(reply: Message) -> Message:
        reply.content = pack_reply(request("north"), handover, {"dsc": 1.0})
        return reply

    grid.tamper = smuggle
    (answer,) = Exchange(grid, 1).ask([Question(SCORE, request("north"), STRATEGY.for_scoring(handover, "north", 0))])
    assert isinstance(answer, SiteFailure)


def test_only_numbers_are_metrics(tmp_path):
    grid = TamperingGrid(settings(tmp_path), Listener())

    def lists(reply: Message) -> Message:
        reply.content["metrics"] = MetricRecord({"train": [1, 2, 3], "test": 4})
        return reply

    grid.tamper = lists
    (answer,) = Exchange(grid, 1).ask([describe("north")])
    assert isinstance(answer, Answer)
    assert answer.metrics == {"test": 4}


@pytest.mark.parametrize(
    ("code", "reason", "name", "said"),
    [
        (RefusalCode.SITE_DATA, "patient Ada Byron", "SITE_DATA", explain(RefusalCode.SITE_DATA)),
        (RefusalCode.EXCEPTION, "ZeroDivisionError", "EXCEPTION", "(ZeroDivisionError)"),
        (RefusalCode.SCHEMA_VERSION, "The coordinator writes 2.", "SCHEMA_VERSION", "The coordinator writes 2."),
        (4242, "patient Ada Byron", "FLOWER_4242", "Flower could not get an answer from the node; is it running?"),
        (1, "patient Ada Byron", "FLOWER_1", "Flower could not get an answer from the node; is it running?"),
    ],
)
def test_an_error_reply_is_told_in_our_own_words(tmp_path, code, reason, name, said):
    grid = TamperingGrid(settings(tmp_path), Listener())
    grid.tamper = lambda reply: Message(Error(int(code), reason), reply_to=reply)
    (answer,) = Exchange(grid, 1).ask([describe("north")])
    assert isinstance(answer, SiteFailure)
    assert answer.code == name
    assert said in answer.sentence
    assert "Ada Byron" not in str(answer)


def test_a_grid_that_is_slow_to_answer_is_waited_for(tmp_path, monkeypatch):
    """In a deployment a reply is pulled again and again until it is there."""
    monkeypatch.setattr("coordinator.exchange.POLL_SECONDS", 0.001)

    class SlowGrid(InProcessGrid):
        asked = 0

        def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
            self.asked += 1
            return super().pull_messages(message_ids) if self.asked % 5 == 0 else iter(())

    grid = SlowGrid(settings(tmp_path), Listener())
    answers = list(Exchange(grid, 2).ask(describe(site) for site in SITES))
    assert [answer.site for answer in answers] == list(SITES)
    assert grid.asked == 15


def test_bytes_are_counted_by_kind():
    from coordinator.exchange import bytes_by_kind

    handover = STRATEGY.first_handover()
    assert bytes_by_kind(None) == {}
    assert bytes_by_kind(handover) == {Kind.WEIGHTS: STRATEGY.schema().nbytes()}

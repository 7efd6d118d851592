"""Messages: what is packed is read, what is laid out otherwise is refused, and no value is ever quoted."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from protos.handover import Handover, MalformedHandover, check_manifest
from protos.messages import (
    RAW,
    MalformedMessage,
    Request,
    pack_reply,
    pack_request,
    read_handover,
    read_manifest,
    read_request,
)
from protos.plan import GroupByPattern, GroupByTable, Plan, Split, StrategyChoice, Task, Training

PLAN = Plan(
    task=Task(size=(32, 32), classes=("background", "lung")),
    strategy=StrategyChoice.model_validate({"name": "l2", "strength": 0.1}),
    training=Training(lr=0.1 + 0.2, augment=("flip",)),
    split=Split(group=GroupByPattern(pattern="(?P<patient>p[0-9]+)")),
    sites=("north", "south"),
)
REQUEST = Request(run="run-1", stop=1, site="north", plan=PLAN, args={"position": 3, "share": 0.1})
HANDOVER = Handover.of(
    weights={"a": torch.arange(3), "b/c": torch.tensor(1.5, dtype=torch.bfloat16)}, prompts={"p": torch.zeros(0, 2)}
)


def test_a_request_round_trip() -> None:
    records = pack_request(REQUEST, HANDOVER)
    assert set(records) == {"request", "manifest", "handover"}
    assert read_request(records) == REQUEST
    assert read_request(records).plan.digest() == PLAN.digest()
    assert read_handover(records) == HANDOVER
    manifest = read_manifest(records)
    check_manifest(manifest, HANDOVER)
    assert (manifest.run, manifest.stop, manifest.site, manifest.strategy) == ("run-1", 1, "north", "l2")


def test_a_request_without_a_handover() -> None:
    records = pack_request(REQUEST)
    assert set(records) == {"request"}
    assert read_handover(records) is None
    with pytest.raises(MalformedMessage, match="no manifest"):
        read_manifest(records)


def test_a_reply_round_trip() -> None:
    records = pack_reply(REQUEST, HANDOVER, {"samples": 3, "loss": 0.25})
    assert set(records) == {"metrics", "manifest", "handover"}
    assert dict(records.metric_records["metrics"]) == {"samples": 3, "loss": 0.25}
    assert read_handover(records) == HANDOVER
    check_manifest(read_manifest(records), HANDOVER)
    assert set(pack_reply(REQUEST, None, {})) == {"metrics"}


@given(
    st.dictionaries(
        st.text(max_size=5),
        st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False),
        max_size=4,
    )
)
def test_arguments_arrive_exactly(args: dict[str, int | float]) -> None:
    request = REQUEST.model_copy(update={"args": args})
    again = read_request(pack_request(request)).args
    assert again == args
    assert [type(value) for value in again.values()] == [type(value) for value in args.values()]


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path to every value of a JSON document, the whole objects and lists included."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from leaves(inner, (*path, key))


DOCUMENT = json.loads(REQUEST.model_dump_json())
MARKER = "JaneDoe-1961"
POISON = [
    MARKER,
    f"../{MARKER}",
    f"({MARKER}",
    [MARKER, MARKER],
    {"csv": f"/{MARKER}", "column": "c"},
    {"pattern": f"(?P={MARKER})"},
    {"pattern": MARKER},
    19610327,
    -19610327.5,
]


@pytest.mark.parametrize("path", list(leaves(DOCUMENT)), ids=lambda path: ".".join(map(str, path)))
def test_a_wrong_value_is_never_quoted(path: tuple[str | int, ...]) -> None:
    """The key is named, its value is not: what a stranger sends does not come back in an error."""
    for poison in POISON:
        document = copy.deepcopy(DOCUMENT)
        place = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = poison
        try:
            read_request(RecordDict({"request": ConfigRecord({"json": json.dumps(document)})}))
        except MalformedMessage as error:
            text = str(error)
            assert MARKER not in text
            assert "1961" not in text
            assert str(path[0]) in text
            assert "\n" not in text


def test_an_unknown_key_is_named() -> None:
    document = copy.deepcopy(DOCUMENT)
    document["plan"]["training"]["stesp"] = 5
    with pytest.raises(MalformedMessage, match=r"plan\.training\.stesp"):
        read_request(RecordDict({"request": ConfigRecord({"json": json.dumps(document)})}))


@pytest.mark.parametrize(
    "records",
    [
        RecordDict(),
        RecordDict({"request": MetricRecord({"json": 1})}),
        RecordDict({"request": ConfigRecord({})}),
        RecordDict({"request": ConfigRecord({"json": 5})}),
        RecordDict({"request": ConfigRecord({"json": b"{}"})}),
        RecordDict({"request": ConfigRecord({"json": REQUEST.model_dump_json(), "more": "x"})}),
        RecordDict({"request": ConfigRecord({"json": "no JSON"})}),
        RecordDict({"request": ConfigRecord({"json": ""})}),
        RecordDict({"request": ConfigRecord({"json": "[" * 100_000})}),
    ],
)
def test_what_is_no_request(records: RecordDict) -> None:
    with pytest.raises(MalformedMessage, match=r"^[^\n]+\.$"):
        read_request(records)


@given(st.text(max_size=40))
def test_any_text_is_a_request_or_malformed(text: str) -> None:
    with pytest.raises(MalformedMessage):
        read_request(RecordDict({"request": ConfigRecord({"json": text})}))


@pytest.mark.parametrize(
    "record",
    [
        ConfigRecord({"manifest": 5}),
        ConfigRecord({"manifest": "text"}),
        ConfigRecord({"manifest": b"\xff\xff"}),
        ConfigRecord({"manifest": b"", "more": b""}),
        ConfigRecord({}),
        MetricRecord({"manifest": 1}),
    ],
)
def test_what_is_no_manifest(record: ConfigRecord | MetricRecord) -> None:
    with pytest.raises(MalformedMessage, match=r"manifest.*\.$"):
        read_manifest(RecordDict({"manifest": record}))


@pytest.mark.parametrize(
    ("key", "array"),
    [
        ("a", Array("float32", (1,), RAW, bytes(4))),
        ("images/a", Array("float32", (1,), RAW, bytes(4))),
        ("weights/", Array("float32", (1,), RAW, bytes(4))),
        ("weights/a", Array(torch.zeros(1).numpy())),
        ("weights/a", Array("float32", (1,), "numpy.ndarray", bytes(4))),
        ("weights/a", Array("float32", (1,), RAW, bytes(5))),
        ("weights/a", Array("float32", (-1,), RAW, bytes(4))),
        ("weights/a", Array("float8", (4,), RAW, bytes(4))),
    ],
)
def test_what_is_no_handover(key: str, array: Array) -> None:
    with pytest.raises(MalformedHandover, match=r"^[^\n]+\.$"):
        read_handover(RecordDict({"handover": ArrayRecord({key: array})}))


def test_a_handover_in_another_record_is_none() -> None:
    with pytest.raises(MalformedMessage):
        read_handover(RecordDict({"handover": ConfigRecord({"weights/a": b"1234"})}))


def test_the_plan_of_a_table_of_patients_arrives() -> None:
    plan = PLAN.model_copy(update={"split": Split(group=GroupByTable(csv="patients.csv", column="id"))})
    assert read_request(pack_request(REQUEST.model_copy(update={"plan": plan}))).plan == plan

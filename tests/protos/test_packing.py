"""Packing for the way between machines: what comes out is what went in, and what was not packed so is left alone."""

import json
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from hypothesis import given
from hypothesis import strategies as st

from protos.handover import DTYPES
from protos.messages import RAW
from protos.packing import LAYOUT, PACKED, SETTINGS, SMALL, packed, unpacked

ARRAYS = st.dictionaries(
    st.builds("{}/{}".format, st.sampled_from(["weights", "prompts", "generator"]), st.text(max_size=8)),
    st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3)),
    max_size=6,
)


def records(arrays: dict[str, tuple[str, list[int]]]) -> RecordDict:
    made = {}
    for number, (name, (dtype, shape)) in enumerate(arrays.items()):
        size = DTYPES[dtype][0]
        for length in shape:
            size *= length
        made[name] = Array(dtype, tuple(shape), RAW, bytes((number + place) % 256 for place in range(size)))
    return RecordDict({"handover": ArrayRecord(made), "metrics": MetricRecord({"loss": 0.5})})


def told(content: RecordDict) -> dict[str, Any]:
    return {
        name: {key: (a.dtype, tuple(a.shape), a.stype, a.data) for key, a in record.items()}
        if isinstance(record, ArrayRecord)
        else dict(record)
        for name, record in content.items()
    }


@given(ARRAYS)
def test_what_is_packed_comes_out_again(arrays: dict[str, tuple[str, list[int]]]) -> None:
    content = records(arrays)
    before = told(content)
    assert told(unpacked(packed(content))) == before


@pytest.mark.parametrize(("each", "objects"), [(4, 4), (SMALL // 4 // 100 + 1, 7)])
def test_a_message_is_a_few_objects_however_many_tensors_it_has(each: int, objects: int) -> None:
    """The message, its records and, of a kind that one object cannot hold, the array and its pieces."""
    content = records({f"weights/layer{number}": ("float32", [each]) for number in range(100)})
    content["request"], content["manifest"] = ConfigRecord({"json": "{}"}), ConfigRecord({"manifest": b"x"})
    del content["metrics"]
    before = told(content)
    travelling = packed(content)
    assert len(get_all_nested_objects(travelling)) + 1 == objects  # the message itself is one more
    assert told(unpacked(travelling)) == before


def test_messages_without_a_handover_stay_as_they_are() -> None:
    content = RecordDict({"metrics": MetricRecord({"loss": 0.5})})
    assert packed(content) is content
    assert unpacked(content) is content


forms = pytest.mark.parametrize(
    "form",
    [
        {"handover": ArrayRecord({"weights": Array("uint8", (11,), PACKED, bytes(11))})},
        {"kind weights": ConfigRecord({"data": bytes(11)})},
    ],
    ids=["array", "record"],
)
GOOD = [["weights/a", "float32", [2], RAW], ["weights/b", "uint8", [3], RAW]]


@pytest.mark.parametrize(
    "layout",
    [
        [],
        GOOD[:1],
        [*GOOD, GOOD[0]],
        [*GOOD, ["prompts/c", "uint8", [1], RAW]],
        [["weights/a", "float32", [3], RAW], GOOD[1]],
        [["weights/a", "float32", [-2], RAW], GOOD[1]],
        [["weights/a", "float32", [True, 2], RAW], GOOD[1]],
        [["weights/a", "object", [2], RAW], GOOD[1]],
        [["weights/a", "float32", 2, RAW], GOOD[1]],
        [["weights/a", "float32"], GOOD[1]],
        [[["weights/a"], "float32", [2], RAW], GOOD[1]],
        {"weights/a": 1},
        None,
    ],
    ids=repr,
)
@forms
def test_a_layout_that_does_not_fit_is_left_for_the_guard_to_refuse(layout: Any, form: dict[str, Any]) -> None:
    content = RecordDict({**form, SETTINGS: ConfigRecord({LAYOUT: json.dumps(layout)})})
    assert unpacked(content) is content


@given(st.text(max_size=40))
def test_any_text_for_a_layout_is_left_alone(text: str) -> None:
    content = RecordDict({"kind weights": ConfigRecord({"data": bytes(11)}), SETTINGS: ConfigRecord({LAYOUT: text})})
    assert unpacked(content) is content


@pytest.mark.parametrize(
    "other",
    [
        {"kind weights": ConfigRecord({})},
        {"kind weights": ConfigRecord({"data": bytes(11), "more": b""})},
        {"kind weights": ConfigRecord({"data": "text"})},
        {"kind weights": MetricRecord({"data": 11})},
        {"kind weights": ArrayRecord({"weights": Array("uint8", (11,), PACKED, bytes(11))})},
        {"handover": ArrayRecord({"weights": Array("uint8", (11,), RAW, bytes(11))})},
        {"handover": ConfigRecord({"weights": bytes(11)})},
        {},
    ],
)
def test_records_of_another_form_are_left_alone(other: dict[str, Any]) -> None:
    content = RecordDict({**other, SETTINGS: ConfigRecord({LAYOUT: json.dumps(GOOD)})})
    assert unpacked(content) is content

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
from protos.packing import PACKED, packed, unpacked

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


def test_a_kind_is_one_array_however_many_tensors_it_has() -> None:
    content = packed(records({f"weights/layer{number}": ("float32", [4]) for number in range(100)}))
    assert list(content.array_records["handover"]) == ["weights"]
    assert len(get_all_nested_objects(content)) < 10


def test_messages_without_a_handover_stay_as_they_are() -> None:
    content = RecordDict({"metrics": MetricRecord({"loss": 0.5})})
    assert packed(content) is content
    assert unpacked(content) is content


LAYOUT = [["weights/a", "float32", [2], RAW], ["weights/b", "uint8", [3], RAW]]


@pytest.mark.parametrize(
    "layout",
    [
        [],
        LAYOUT[:1],
        [*LAYOUT, LAYOUT[0]],
        [*LAYOUT, ["prompts/c", "uint8", [1], RAW]],
        [["weights/a", "float32", [3], RAW], LAYOUT[1]],
        [["weights/a", "float32", [-2], RAW], LAYOUT[1]],
        [["weights/a", "float32", [True, 2], RAW], LAYOUT[1]],
        [["weights/a", "object", [2], RAW], LAYOUT[1]],
        [["weights/a", "float32", 2, RAW], LAYOUT[1]],
        [["weights/a", "float32"], LAYOUT[1]],
        [[["weights/a"], "float32", [2], RAW], LAYOUT[1]],
        {"weights/a": 1},
        None,
    ],
    ids=repr,
)
def test_a_layout_that_does_not_fit_is_left_for_the_guard_to_refuse(layout: Any) -> None:
    content = RecordDict(
        {
            "handover": ArrayRecord({"weights": Array("uint8", (11,), PACKED, bytes(11))}),
            "layout": ConfigRecord({"json": json.dumps(layout)}),
        }
    )
    assert unpacked(content) is content


@given(st.text(max_size=40))
def test_any_text_for_a_layout_is_left_alone(text: str) -> None:
    content = RecordDict(
        {
            "handover": ArrayRecord({"weights": Array("uint8", (11,), PACKED, bytes(11))}),
            "layout": ConfigRecord({"json": text}),
        }
    )
    assert unpacked(content) is content

"""Messages put together from their objects: as Flower would, and what is malformed is left to Flower to refuse."""

import json
from collections.abc import Callable

import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.app.message.arraychunk import ArrayChunk
from flwr.supercore.inflatable.inflatable_object import add_header_to_object_body, get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from protos import inflating
from protos.inflating import inflated

CHUNK = 5 * 2**20  # Flower's own


def parts(content: RecordDict) -> tuple[str, dict[str, bytes]]:
    return content.object_id, {name: part.deflate() for name, part in get_all_nested_objects(content).items()}


@pytest.mark.parametrize("size", [0, 1, CHUNK, 2 * CHUNK, 2 * CHUNK + 7])
@pytest.mark.parametrize("pattern", [bytes(range(251)), b"\0"], ids=["all different", "all the same"])
def test_an_array_comes_out_as_it_went_in(size: int, pattern: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (pattern * (size // len(pattern) + 1))[:size]
    sent = RecordDict({"handover": ArrayRecord({"weights": Array("uint8", (size,), "locum.packed", data)})})
    identity, contents = parts(sent)
    monkeypatch.setattr(Array, "inflate", lambda *_: pytest.fail("it was left to Flower"))
    found = inflated(identity, contents)
    assert isinstance(found, RecordDict)
    array = found.array_records["handover"]["weights"]
    assert (array.dtype, array.shape, array.stype, array.data) == ("uint8", (size,), "locum.packed", data)
    assert found.object_id == identity
    assert type(array.data) is bytes


def test_other_records_come_out_too() -> None:
    sent = RecordDict({"metrics": MetricRecord({"loss": 0.5})})
    assert inflated(*parts(sent)) == sent


def told(order: list[int]) -> bytes:
    body = {"dtype": "uint8", "shape": [3], "stype": "locum.packed", "arraychunk_ids": order}
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    "alter",
    [
        lambda array: b"Array  5\0hello",
        lambda array: b"Array  3\0{}{",
        lambda array: array.split(b"\0")[0] + b"\0" + told([0, 1]),
        lambda array: array.split(b"\0")[0] + b"\0" + told([-1]),
        lambda array: array.split(b"\0")[0] + b"\0" + told([]),
        lambda array: b"Array " + b"0" * 64 + b" 2\0{}",
    ],
)
def test_what_is_malformed_is_refused_as_by_flower(alter: Callable[[bytes], bytes]) -> None:
    sent = Array("uint8", (3,), "locum.packed", b"abc")
    whole = get_all_nested_objects(sent)
    contents = {name: part.deflate() for name, part in whole.items()}
    contents[sent.object_id] = alter(contents[sent.object_id])
    outcomes = []
    for inflate in (inflate_object_from_contents, inflated):
        try:
            found = inflate(sent.object_id, dict(contents))
            assert isinstance(found, Array)
            outcomes.append((found.dtype, tuple(found.shape), found.data))
        except Exception as error:
            outcomes.append(type(error))
    assert outcomes[0] == outcomes[1]


def test_a_chunk_of_another_sort_is_left_to_flower() -> None:
    chunk = add_header_to_object_body(b"abc", MetricRecord({}))
    assert inflating._array(b"", {}) is None
    contents = {"c" * 64: chunk}
    array = b"Array " + b"c" * 64 + b" %d\0" % len(told([0])) + told([0])
    assert inflating._array(array, contents) is None
    assert inflating._array(array, {"c" * 64: ArrayChunk(memoryview(b"abc")).deflate()}) is not None

"""The handover: what goes in comes out, nothing else comes in, and its digest notices everything."""

import json
import struct
from operator import setitem
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from protos.handover import DTYPES, Handover, HandoverSchema, Kind, MalformedHandover, Tensor, TensorSpec

NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    size = TensorSpec(dtype, shape).nbytes
    data = draw(st.binary(min_size=size, max_size=size))
    return Tensor(dtype, shape, bytes(byte & 1 for byte in data) if dtype == "bool" else data)


GROUPS = st.dictionaries(NAMES, tensors(), max_size=4)
HANDOVERS = st.builds(Handover, weights=GROUPS, importance=GROUPS, prompts=GROUPS, generator=GROUPS)


def tensor(*values: float) -> Tensor:
    return Tensor.of(torch.tensor(values, dtype=torch.float32))


TWO = Handover(weights={"a": tensor(1, 2), "b": tensor(3)}, prompts={"p": tensor(4)})


def file_of(header: bytes | dict[str, Any], body: bytes = b"") -> bytes:
    """A safetensors file with this header, well formed or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


# What goes in comes out


@settings(max_examples=150)
@given(HANDOVERS)
@example(Handover())
@example(Handover(weights={"empty": Tensor("float32", (0, 3), b""), "scalar": Tensor("bool", (), b"\1")}))
def test_bytes_round_trip(handover: Handover) -> None:
    again = Handover.from_bytes(handover.to_bytes())
    assert again == handover
    assert again.digest() == handover.digest()
    assert again.to_bytes() == handover.to_bytes()
    assert HandoverSchema.of(again) == HandoverSchema.of(handover)
    assert handover.nbytes() == sum(handover.nbytes(kind) for kind in Kind) == HandoverSchema.of(handover).nbytes()


@settings(max_examples=150)
@given(tensors())
def test_torch_round_trip(value: Tensor) -> None:
    as_torch = value.torch()
    assert str(as_torch.dtype) == f"torch.{value.dtype}"
    assert tuple(as_torch.shape) == value.shape
    assert Tensor.of(as_torch) == value
    assert value.finite() == bool(torch.isfinite(as_torch.float() if value.dtype == "float16" else as_torch).all())


def test_any_strides_and_a_graph_are_copied_as_values() -> None:
    values = torch.arange(24.0, requires_grad=True).reshape(2, 3, 4)
    turned = values.permute(2, 0, 1)[::2]
    assert Tensor.of(turned) == Tensor.of(turned.detach().clone(memory_format=torch.contiguous_format))
    assert torch.equal(Tensor.of(turned).torch(), turned.detach())


def test_another_reader_of_the_format_reads_it() -> None:
    found = safetensors.torch.load(TWO.to_bytes())
    assert {name: value.tolist() for name, value in found.items()} == {
        "weights/a": [1, 2],
        "weights/b": [3],
        "prompts/p": [4],
    }


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_single_value_that_is_not_finite_is_found(dtype: str, value: float) -> None:
    clean = torch.ones(7, dtype=getattr(torch, dtype))
    assert Tensor.of(clean).finite()
    clean[4] = value
    assert not Tensor.of(clean).finite()


def test_finite_extremes_are_finite() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        info = torch.finfo(dtype)
        extremes = torch.tensor([info.max, info.min, info.tiny, info.smallest_normal / 2, 0.0, -0.0], dtype=dtype)
        assert Tensor.of(extremes).finite()


# The digest


@settings(max_examples=60)
@given(HANDOVERS, st.randoms(use_true_random=False))
def test_order_of_insertion_does_not_matter(handover: Handover, random: Any) -> None:
    shuffled = {}
    for kind in random.sample(list(Kind), len(Kind)):
        group = list(handover.group(kind).items())
        random.shuffle(group)
        shuffled[str(kind)] = dict(group)
    again = Handover(**shuffled)
    assert again == handover
    assert again.digest() == handover.digest()
    assert again.to_bytes() == handover.to_bytes()


@settings(max_examples=200)
@given(HANDOVERS, HANDOVERS)
def test_digests_differ_where_handovers_differ(one: Handover, other: Handover) -> None:
    assert (one.digest() == other.digest()) == (one == other)
    assert (one.to_bytes() == other.to_bytes()) == (one == other)
    for kind in Kind:
        assert (one.digest(kind) == other.digest(kind)) == (one.group(kind) == other.group(kind))


@pytest.mark.parametrize("place", range(8))
def test_every_byte_counts(place: int) -> None:
    data = bytearray(TWO.weights["a"].data)
    data[place] ^= 1
    changed = Handover(weights=dict(TWO.weights) | {"a": Tensor("float32", (2,), bytes(data))}, prompts=TWO.prompts)
    assert changed.digest() != TWO.digest()


def test_name_dtype_shape_and_kind_count() -> None:
    data = bytes(8)
    same_bytes = [
        Handover(weights={"a": Tensor("float32", (2,), data)}),
        Handover(weights={"b": Tensor("float32", (2,), data)}),
        Handover(weights={"a": Tensor("int32", (2,), data)}),
        Handover(weights={"a": Tensor("float32", (2, 1), data)}),
        Handover(weights={"a": Tensor("float32", (1, 2), data)}),
        Handover(weights={"a": Tensor("float64", (), data)}),
        Handover(importance={"a": Tensor("float32", (2,), data)}),
        Handover(weights={"a": Tensor("float32", (1,), data[:4]), "b": Tensor("float32", (1,), data[4:])}),
        Handover(),
    ]
    assert len({handover.digest() for handover in same_bytes}) == len(same_bytes)


def test_known_digests() -> None:
    """The vault, the manifests and the ledgers of earlier runs hold digests of this form."""
    assert TWO.digest().hex() == "b69ea56e7020858ed880564ebe8066e93131fef3258d841a120966aea449182d"
    assert TWO.digest(Kind.WEIGHTS).hex() == "9b7929784c74206bd9cef8474ff5f1c097b3b0fe5544b1f96abe77dbd328b39e"


# Immutability


def test_a_handover_cannot_be_changed() -> None:
    source = {"a": tensor(1)}
    handover = Handover(weights=source)
    digest = handover.digest()
    source["b"] = tensor(2)
    loose: Any = handover  # the type checker knows already
    for attempt in (
        lambda: loose.weights.update({"c": tensor(3)}),
        lambda: setitem(loose.weights, "a", tensor(3)),
        lambda: setattr(loose, "weights", {}),
        lambda: setattr(loose.weights["a"], "data", b"1234"),
        lambda: loose.group(Kind.WEIGHTS).pop("a"),
    ):
        with pytest.raises((AttributeError, TypeError)):
            attempt()
    handover.state(Kind.WEIGHTS)["a"].zero_()  # a copy
    assert handover.digest() == digest
    assert list(handover.weights) == ["a"]


def test_a_handover_keeps_no_tie_to_the_tensors_it_was_made_of() -> None:
    values = torch.ones(3)
    handover = Handover.of(weights={"a": values})
    values.zero_()
    assert handover.state(Kind.WEIGHTS)["a"].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("dtype", "shape", "data"),
    [
        ("complex64", (1,), bytes(8)),
        ("object", (1,), bytes(8)),
        ("", (), b""),
        ("float32", (2,), bytes(7)),
        ("float32", (2,), bytes(9)),
        ("float32", (), b""),
        ("float32", (-1, -1), bytes(4)),
        ("float32", (0, -1), b""),
        ("float32", (0, 2**63), b""),
    ],
)
def test_a_tensor_that_does_not_fit_its_description_is_none(dtype: str, shape: tuple[int, ...], data: bytes) -> None:
    with pytest.raises(MalformedHandover, match=r"^[^\n]+\.$"):
        Tensor(dtype, shape, data)


def test_what_is_no_tensor_cannot_travel() -> None:
    with pytest.raises(MalformedHandover, match="weights/image is a ndarray"):
        Handover(weights={"image": np.zeros(3)})  # type: ignore[dict-item]


# Malformed bytes


VALID: dict[str, Any] = {
    "__metadata__": {"schema_version": "1"},
    "weights/a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
}


def test_the_pattern_for_what_follows_is_well_formed() -> None:
    assert Handover.from_bytes(file_of(VALID, bytes(4))) == Handover(weights={"a": tensor(0)})


@pytest.mark.parametrize(
    "data",
    {
        "nothing": b"",
        "short": b"\1\2\3",
        "a length alone": struct.pack("<Q", 0),
        "a huge length": struct.pack("<Q", 2**63) + b"{}",
        "the largest length": struct.pack("<Q", 2**64 - 1) + b"{}",
        "text": b"To whom it may concern",
        "a pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94\x8c\x01a\x94K\x01s.",
        "a zip": b"PK\x03\x04" + bytes(60),
        "no metadata": file_of({key: value for key, value in VALID.items() if key != "__metadata__"}, bytes(4)),
        "another version": file_of(VALID | {"__metadata__": {"schema_version": "2"}}, bytes(4)),
        "a version as a number": file_of(VALID | {"__metadata__": {"schema_version": 1}}, bytes(4)),
        "metadata as a list": file_of(VALID | {"__metadata__": ["schema_version", "1"]}, bytes(4)),
        "a list as header": file_of(b"[1, 2]"),
        "nesting without end": file_of(b"[" * 200_000),
        "nesting within": file_of(b'{"__metadata__":{"schema_version":"1"},"weights/a":' + b'{"a":' * 100_000),
        "no UTF-8": file_of(b'{"\xff": 1}'),
        "half a surrogate": file_of(b'{"__metadata__":{"schema_version":"1","\\ud800":""}}'),
        "a number without end": file_of(b'{"__metadata__":' + b"9" * 5000 + b"}"),
        "a body too short": file_of(VALID, bytes(3)),
        "a body too long": file_of(VALID, bytes(5)),
        "a hole": file_of(VALID | {"weights/b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}}, bytes(12)),
        "an overlap": file_of(VALID | {"weights/b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]}}, bytes(6)),
        "a size below zero": file_of(VALID | {"weights/a": VALID["weights/a"] | {"shape": [-1]}}, bytes(4)),
        "a shape that overflows": file_of(VALID | {"weights/a": VALID["weights/a"] | {"shape": [2**63, 2]}}, bytes(4)),
        "an outsize nothing": file_of(
            VALID | {"weights/a": {"dtype": "F32", "shape": [0, 2**64 - 1], "data_offsets": [0, 0]}}
        ),
        "a dtype that cannot travel": file_of(
            VALID | {"weights/a": {"dtype": "U32", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)
        ),
        "a dtype of nobody": file_of(VALID | {"weights/a": VALID["weights/a"] | {"dtype": "F1"}}, bytes(4)),
        "no kind": file_of({"__metadata__": VALID["__metadata__"], "a": VALID["weights/a"]}, bytes(4)),
        "another kind": file_of({"__metadata__": VALID["__metadata__"], "images/a": VALID["weights/a"]}, bytes(4)),
        "no name": file_of({"__metadata__": VALID["__metadata__"], "weights/": VALID["weights/a"]}, bytes(4)),
        "a name twice": file_of(
            b'{"__metadata__":{"schema_version":"1"},'
            b'"weights/a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"weights/\\u0061":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            bytes(4),
        ),
        "metadata twice": file_of(
            b'{"__metadata__":{"schema_version":"2"},"__metadata__":{"schema_version":"1"}}',
        ),
        "somebody's safetensors": safetensors.torch.save({"weights/a": torch.zeros(1)}),
        "somebody's safetensors with metadata": safetensors.torch.save({"a": torch.zeros(1)}, {"format": "pt"}),
    }.items(),
    ids=lambda item: item[0],
)
def test_malformed_bytes_are_told_in_a_sentence(data: tuple[str, bytes]) -> None:
    with pytest.raises(MalformedHandover) as caught:
        Handover.from_bytes(data[1])
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")
    assert len(str(caught.value)) < 500


def test_another_version_is_told_with_a_remedy() -> None:
    with pytest.raises(MalformedHandover, match=r"version 2, .* reads version 1; install the same Locum release"):
        Handover.from_bytes(file_of(VALID | {"__metadata__": {"schema_version": "2"}}, bytes(4)))


@pytest.mark.parametrize("length", range(0, len(TWO.to_bytes()), 3))
def test_every_truncation_is_malformed(length: int) -> None:
    with pytest.raises(MalformedHandover):
        Handover.from_bytes(TWO.to_bytes()[:length])


def test_no_single_flipped_bit_passes_unnoticed() -> None:
    """It is malformed, or another handover with another digest; there is no third."""
    data = TWO.to_bytes()
    for place in range(len(data)):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            try:
                found = Handover.from_bytes(bytes(damaged))
            except MalformedHandover:
                continue
            assert found.digest() != TWO.digest(), (place, bit)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
SIZES = st.integers(-2, 2**64) | st.integers(0, 9)
ENTRIES = st.fixed_dictionaries(
    {"dtype": st.sampled_from(["F32", "BF16", "BOOL", "F8_E4M3", "C64", "U64"]), "shape": st.lists(SIZES, max_size=3)},
    optional={"data_offsets": st.lists(SIZES, min_size=2, max_size=2) | st.just([0, 4]), "more": JSON},
)
HEADERS = st.dictionaries(st.sampled_from(["weights/a", "prompts/b", "images/c", ""]), ENTRIES | JSON, max_size=3)


@settings(max_examples=400)
@given(header=HEADERS, metadata=st.just({"schema_version": "1"}) | JSON, body=st.binary(max_size=12))
def test_an_invented_header_gives_a_handover_or_malformed(header: Any, metadata: Any, body: bytes) -> None:
    data = file_of({"__metadata__": metadata} | header, body)
    try:
        handover = Handover.from_bytes(data)
    except MalformedHandover:
        return
    assert Handover.from_bytes(handover.to_bytes()) == handover


@settings(max_examples=300)
@given(HANDOVERS, st.data())
def test_damage_of_any_size_gives_a_handover_or_malformed(handover: Handover, data: st.DataObject) -> None:
    whole = handover.to_bytes()
    first = data.draw(st.integers(0, len(whole)))
    last = data.draw(st.integers(first, len(whole)))
    damaged = whole[:first] + data.draw(st.binary(max_size=9)) + whole[last:]
    try:
        found = Handover.from_bytes(damaged)
    except MalformedHandover:
        return
    assert (found == handover) == (found.digest() == handover.digest())


# The schema


def test_the_schema_says_what_travels_and_how_much() -> None:
    schema = HandoverSchema.of(TWO)
    assert schema.kinds == {Kind.WEIGHTS, Kind.PROMPTS}
    assert (schema.nbytes(), schema.nbytes(Kind.WEIGHTS), schema.nbytes(Kind.GENERATOR)) == (16, 12, 0)
    assert schema == HandoverSchema(
        {
            Kind.PROMPTS: {"p": TensorSpec("float32", (1,))},
            Kind.WEIGHTS: {"b": TensorSpec("float32", (1,)), "a": TensorSpec("float32", (2,))},
        }
    )
    assert schema != HandoverSchema.of(Handover(weights=TWO.weights))
    with pytest.raises(TypeError):
        schema.tensors[Kind.WEIGHTS]["c"] = TensorSpec("float32", (1,))  # type: ignore[index]

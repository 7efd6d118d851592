"""The manifest: it lists exactly the handover's tensors, and every difference is named."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.handover import SCHEMA_VERSION, Handover, Kind, MalformedHandover, check_manifest, manifest_of
from protos.locum.v1 import handover_pb2

HANDOVER = Handover.of(
    weights={"conv": torch.ones(2, 3), "bias": torch.zeros(2)}, importance={"conv": torch.ones(2, 3)}
)


def manifest() -> handover_pb2.HandoverManifest:
    return manifest_of(HANDOVER, run="run-1", stop=2, site="north", strategy="ewc")


def test_it_says_what_is_there() -> None:
    listed = manifest()
    assert (listed.schema_version, listed.run, listed.stop, listed.site, listed.strategy) == (
        SCHEMA_VERSION,
        "run-1",
        2,
        "north",
        "ewc",
    )
    assert listed.digest == HANDOVER.digest()
    assert [(t.kind, t.name, t.dtype, list(t.shape), t.nbytes) for t in listed.tensors] == [
        (handover_pb2.WEIGHTS, "bias", "float32", [2], 8),
        (handover_pb2.WEIGHTS, "conv", "float32", [2, 3], 24),
        (handover_pb2.IMPORTANCE, "conv", "float32", [2, 3], 24),
    ]
    check_manifest(listed, HANDOVER)
    check_manifest(handover_pb2.HandoverManifest.FromString(listed.SerializeToString()), HANDOVER)


def test_the_kinds_of_both_languages_are_the_same() -> None:
    assert {kind.name for kind in Kind} | {"KIND_UNSPECIFIED"} == set(handover_pb2.Kind.keys())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda m: setattr(m, "schema_version", 2), "schema version 2"),
        (lambda m: m.tensors.pop(), "importance/conv arrived but is not in the manifest"),
        (lambda m: m.tensors.add(kind=handover_pb2.PROMPTS, name="text"), "lists prompts/text, which did not arrive"),
        (lambda m: m.tensors.add(kind=77, name="a"), "which did not arrive"),
        (lambda m: setattr(m.tensors[0], "kind", 77), "conv|bias"),
        (lambda m: setattr(m.tensors[0], "kind", 0), "conv|bias"),
        (lambda m: setattr(m.tensors[0], "name", "Bias"), "weights/Bias, which did not arrive"),
        (lambda m: setattr(m.tensors[0], "dtype", "int32"), "weights/bias differs"),
        (lambda m: m.tensors[1].shape.reverse(), "weights/conv differs"),
        (lambda m: setattr(m.tensors[1], "nbytes", 25), "weights/conv differs"),
        (lambda m: setattr(m.tensors[1], "sha256", bytes(32)), "weights/conv differs"),
        (lambda m: m.tensors.reverse(), "order or digest"),
        (lambda m: m.tensors.add().CopyFrom(m.tensors[0]), "order or digest"),
        (lambda m: setattr(m, "digest", bytes(32)), "order or digest"),
        (lambda m: m.MergeFromString(b"\xfa\x7f\x05smile"), "order or digest"),  # a field that the .proto lacks
    ],
)
def test_every_difference_is_found(change: Callable[[handover_pb2.HandoverManifest], object], said: str) -> None:
    altered = manifest()
    change(altered)
    with pytest.raises(MalformedHandover, match=rf"{said}.*\.$"):
        check_manifest(altered, HANDOVER)


@pytest.mark.parametrize(
    "other",
    [
        Handover(),
        Handover(weights=HANDOVER.weights),
        Handover(weights=HANDOVER.weights, prompts=HANDOVER.importance),
        Handover.of(
            weights={"conv": torch.ones(2, 3), "bias": torch.full((2,), -0.0)}, importance={"conv": torch.ones(2, 3)}
        ),
    ],
)
def test_another_handover_is_found(other: Handover) -> None:
    with pytest.raises(MalformedHandover):
        check_manifest(manifest(), other)


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_manifest_is_no_manifest_of_this_handover(data: st.DataObject) -> None:
    """Unless the damage fell on run, stop, site or strategy, which the guard compares with the request."""
    whole = bytearray(manifest().SerializeToString(deterministic=True))
    whole[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        damaged = handover_pb2.HandoverManifest.FromString(bytes(whole))
    except Exception as error:
        assert type(error).__name__ == "DecodeError"  # noqa: PT017
        return
    try:
        check_manifest(damaged, HANDOVER)
    except MalformedHandover:
        return
    origin = [(m.run, m.stop, m.site, m.strategy) for m in (damaged, manifest())]
    assert origin[0] != origin[1] or damaged == manifest()

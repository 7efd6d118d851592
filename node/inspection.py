"""What the guard checks a message with. Every function raises Refusal, whose detail may name records and tensors."""

import json
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from protos.declaration import Bound
from protos.handover import (
    SCHEMA_VERSION,
    Handover,
    HandoverSchema,
    Kind,
    MalformedHandover,
    Tensor,
    check_manifest,
)
from protos.messages import MalformedMessage, Request, read_handover, read_manifest, read_request
from protos.refusals import OtherVersion, Refusal, RefusalCode

# Record in a reply -> its class, the classes of its values, and the code when it is not like that.
_REPLY: Mapping[str, tuple[Any, tuple[type, ...], RefusalCode]] = MappingProxyType(
    {
        "manifest": (ConfigRecord, (bytes,), RefusalCode.MANIFEST),
        "handover": (ArrayRecord, (Array,), RefusalCode.TENSORS),
        "metrics": (MetricRecord, (int, float), RefusalCode.METRICS),
    }
)
_LARGEST_INT = 2**63 - 1  # that a metric is serialised to


def plain_copy(content: object) -> RecordDict:
    """Copy a reply's records, item by item, into new ones, so that what is checked is what is used later.

    Only the layout's records pass, and only values of exactly the expected classes: a subclass could say one thing
    when it is checked and another when it is serialised. Classes are compared by identity, since a class may have a
    metaclass that claims to equal any other.
    """
    if type(content) is not RecordDict:
        raise Refusal(RefusalCode.REPLY, "The content is no RecordDict.")
    records = RecordDict()
    for name, record in _snapshot(content, RefusalCode.REPLY).items():
        if name not in _REPLY or type(record) is not _REPLY[name][0]:
            raise Refusal(RefusalCode.REPLY, f"Record {name!r} is none of the layout's.")
        record_class, value_classes, fault = _REPLY[name]
        items = _snapshot(record, fault)
        for key, value in items.items():
            if not any(type(value) is allowed for allowed in value_classes):
                raise Refusal(fault, f"{name}: the value of {key!r} is of a class that cannot travel.")
            if isinstance(value, Array):
                items[key] = _plain_array(value, fault, key)
        records[name] = record_class(items)
    return records


def _snapshot(record: object, fault: RefusalCode) -> dict[str, object]:
    """A record's items, whatever it does when it is asked for them."""
    try:
        items = [(key, value) for key, value in record.items()]  # type: ignore[attr-defined]
    except Exception as error:
        raise Refusal(fault, "A record cannot be read.") from error
    if any(type(key) is not str for key, _ in items):
        raise Refusal(fault, "A record has a key that is no plain text.")
    return dict(items)


def _plain_array(array: Array, fault: RefusalCode, key: str) -> Array:
    fields = (array.dtype, array.shape, array.stype, array.data)
    plain = all(type(value) is wanted for value, wanted in zip(fields, (str, tuple, str, bytes), strict=True))
    if not plain or not all(type(size) is int for size in array.shape):
        raise Refusal(fault, f"handover: {key!r} is described by something of a class that cannot travel.")
    return Array(*fields)


def check_records(records: RecordDict, own: str, schema: HandoverSchema | None, code: RefusalCode) -> None:
    """Refuse with `code` unless there are exactly the record `own` and, with a schema, manifest and handover."""
    expected = {own} if schema is None else {own, "manifest", "handover"}
    if set(records) != expected:
        raise Refusal(code, f"The records are {sorted(records)}, but should be {sorted(expected)}.")


def parse_request(records: RecordDict) -> Request:
    """The request; its schema version is looked at first, since another version's request may not parse at all."""
    try:
        version = json.loads(str(records.config_records["request"]["json"]))["schema_version"]
    except (KeyError, TypeError, ValueError, RecursionError):
        version = SCHEMA_VERSION  # no version to be found: let the parser say what is wrong
    if type(version) is int and version != SCHEMA_VERSION:
        raise OtherVersion(version)
    try:
        request = read_request(records)
    except MalformedMessage as error:
        raise Refusal(RefusalCode.REQUEST, str(error)) from error
    if request.schema_version != SCHEMA_VERSION:  # a version in another spelling, such as "2"
        raise OtherVersion(request.schema_version)
    return request


def check_args(args: Mapping[str, int | float], declared: Mapping[str, Bound]) -> None:
    """Refuse unless the request's numbers are exactly the declared ones, each within its bounds."""
    if args.keys() != declared.keys():
        raise Refusal(RefusalCode.ARGS, f"The args are {sorted(args)}, but should be {sorted(declared)}.")
    for name, bound in declared.items():
        if not bound.holds(args[name]):
            kind = "a whole number in " if bound.whole else "in "
            raise Refusal(RefusalCode.ARGS, f"The arg {name!r} is not {kind}[{bound.low}, {bound.high}].")


def arrived_handover(records: RecordDict, request: Request, schema: HandoverSchema) -> tuple[Handover, bytes]:
    """The handover of a request and its manifest, once manifest, digests, origin and schema are right."""
    handover = tensors_of(records, RefusalCode.HANDOVER)
    try:
        manifest = read_manifest(records)
        if manifest.schema_version != SCHEMA_VERSION:
            raise OtherVersion(manifest.schema_version)
        origin = (manifest.run, manifest.stop, manifest.site, manifest.strategy)
        if origin != (request.run, request.stop, request.site, request.plan.strategy.name):
            raise Refusal(
                RefusalCode.OTHER_HANDOVER,
                "The manifest is for run {!r}, stop {}, site {!r}, strategy {!r}.".format(*origin),
            )
        check_manifest(manifest, handover)
    except (MalformedMessage, MalformedHandover) as error:
        raise Refusal(RefusalCode.HANDOVER, str(error)) from error
    check_tensors(handover, schema, RefusalCode.NOT_THE_SCHEMA, RefusalCode.NOT_THE_SCHEMA)
    return handover, manifest.SerializeToString(deterministic=True)


def tensors_of(records: RecordDict, code: RefusalCode) -> Handover:
    """The handover in `records`, which must hold one; refuses with `code` what is not encoded as raw values."""
    try:
        handover = read_handover(records)
    except (MalformedMessage, MalformedHandover) as error:
        raise Refusal(code, str(error)) from error
    if handover is None:
        raise Refusal(code, "There is no handover.")
    return handover


def check_tensors(handover: Handover, schema: HandoverSchema, mismatch: RefusalCode, not_finite: RefusalCode) -> None:
    """Refuse unless `handover` has exactly the schema's tensors and all their values are numbers."""
    for kind in Kind:
        declared, present = schema.tensors[kind], handover.group(kind)
        for name in sorted(declared.keys() | present.keys()):
            if name not in present:
                raise Refusal(mismatch, f"{kind}/{name} is declared but not there.")
            if name not in declared:
                raise Refusal(mismatch, f"{kind}/{name} is not declared.")
            found, wanted = present[name].spec, declared[name]
            if found != wanted:
                raise Refusal(
                    mismatch,
                    f"{kind}/{name} is {found.dtype}{list(found.shape)}, declared as "
                    f"{wanted.dtype}{list(wanted.shape)}.",
                )
    for kind, name, tensor in handover.items():
        if not _is_clean(tensor):
            raise Refusal(not_finite, f"{kind}/{name} holds values that are no finite numbers.")


def _is_clean(tensor: Tensor) -> bool:
    """Finite, and no truth value but 0 and 1: the unused patterns of a byte or a NaN could carry data."""
    if tensor.dtype == "bool":
        return bool((np.frombuffer(tensor.data, np.uint8) <= 1).all())
    return tensor.finite()


def checked_metrics(records: RecordDict, declared: Mapping[str, Bound]) -> dict[str, int | float]:
    """The reply's metrics by name, in sorted order: an order of the sender's own choice could carry data."""
    metrics = cast(dict[str, int | float], dict(sorted(records.metric_records["metrics"].items())))
    for name, value in metrics.items():
        if name not in declared:
            raise Refusal(RefusalCode.METRICS, f"The metric {name!r} is not declared.")
        bound = declared[name]
        can_travel = abs(value) <= _LARGEST_INT if isinstance(value, int) else math.isfinite(value)
        if not can_travel or not bound.holds(value):
            raise Refusal(RefusalCode.METRICS, f"The metric {name!r} is outside [{bound.low}, {bound.high}].")
    return metrics

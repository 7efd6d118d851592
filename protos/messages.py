"""The layout of every Flower message: one request record, one manifest, one handover, one record of metrics.

| record     | type         | in a request       | in a reply             |
|------------|--------------|--------------------|------------------------|
| `request`  | ConfigRecord | always, key `json` | never                  |
| `manifest` | ConfigRecord | with a handover, key `manifest` | with a handover |
| `handover` | ArrayRecord  | with a handover, keys `<kind>/<name>` | on a visit |
| `metrics`  | MetricRecord | never              | always, declared scalars only |
"""

from collections.abc import Mapping
from typing import Annotated

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from google.protobuf.message import DecodeError
from pydantic import Field, ValidationError

from protos.handover import SCHEMA_VERSION, Handover, Kind, MalformedHandover, Tensor, manifest_of
from protos.locum.v1 import handover_pb2
from protos.plan import Plan, Record, SiteName

# Flower's message types: category and action of the ClientApp's handlers (node/app.py).
VISIT = "train.visit"
SCORE = "evaluate.score"
DESCRIBE = "query.describe"
PROGRESS = "query.progress"
INTRODUCE = "query.introduce"
TYPES = frozenset({VISIT, SCORE, DESCRIBE, PROGRESS, INTRODUCE})

RAW = "locum.raw"  # Array.stype: raw little-endian values in C order, so no byte is left over to hide in


class Request(Record):
    """What the coordinator asks of one site."""

    schema_version: int = SCHEMA_VERSION
    run: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,79}$")]
    stop: Annotated[int, Field(ge=0, lt=2**32)] = 0
    round: Annotated[int, Field(ge=0, lt=2**32)] = 0  # within the stop; 0 for a plain visit
    action: Annotated[str, Field(pattern=r"^[a-z_]{1,32}$")] = "visit"  # one of the strategy's stops', see Stop.action
    site: SiteName
    first: bool = False  # no visit came before: what arrives is the first handover
    unseen: bool = False  # the site is scored but never visited, so all its cases are test cases
    plan: Plan
    args: dict[str, int | float] = Field(default_factory=dict)  # the strategy's own, see Ask.args


class MalformedMessage(ValueError):
    """A message whose records are not laid out as this module says."""


def pack_request(request: Request, handover: Handover | None = None) -> RecordDict:
    """Lay out a request, with the handover that goes with it."""
    records = RecordDict({"request": ConfigRecord({"json": request.model_dump_json()})})
    if handover is not None:
        _pack_handover(records, handover, request)
    return records


def pack_reply(request: Request, handover: Handover | None, metrics: Mapping[str, int | float]) -> RecordDict:
    """Lay out the reply to `request`."""
    records = RecordDict({"metrics": MetricRecord(dict(metrics))})
    if handover is not None:
        _pack_handover(records, handover, request)
    return records


def read_request(records: RecordDict) -> Request:
    """Parse the request record; raises MalformedMessage naming the key at fault, never its value."""
    record = records.get("request")
    if not isinstance(record, ConfigRecord) or set(record) != {"json"} or not isinstance(record["json"], str):
        raise MalformedMessage("The message has no request record.")
    try:
        return Request.model_validate_json(record["json"])
    except ValidationError as error:
        where = "; ".join(
            # the plan's own sentences, which are of type value_error, may quote what they find wrong
            f"{'.'.join(map(str, e['loc']))}: {'is not valid' if e['type'] == 'value_error' else e['msg']}"
            for e in error.errors(include_input=False)
        )
        raise MalformedMessage(f"The request is not understood ({where}).") from error


def read_handover(records: RecordDict) -> Handover | None:
    """The handover in a message, or None; raises MalformedMessage or MalformedHandover."""
    record = records.get("handover")
    if record is None:
        return None
    if not isinstance(record, ArrayRecord):
        raise MalformedMessage("The handover is no ArrayRecord.")
    groups: dict[str, dict[str, Tensor]] = {kind: {} for kind in Kind}
    for key, array in record.items():
        kind, _, name = key.partition("/")
        if kind not in groups or not name:
            raise MalformedHandover("A tensor's name does not begin with one of the four kinds.")
        if array.stype != RAW:
            raise MalformedHandover("A tensor is not encoded as raw values.")
        groups[kind][name] = Tensor(array.dtype, tuple(array.shape), array.data)
    return Handover(**groups)


def read_manifest(records: RecordDict) -> handover_pb2.HandoverManifest:
    """The manifest in a message; raises MalformedMessage when there is none or it cannot be parsed."""
    record = records.get("manifest")
    if not isinstance(record, ConfigRecord) or set(record) != {"manifest"}:
        raise MalformedMessage("The message has no manifest record.")
    data = record["manifest"]
    if not isinstance(data, bytes):
        raise MalformedMessage("The manifest is not bytes.")
    try:
        return handover_pb2.HandoverManifest.FromString(data)
    except DecodeError as error:
        raise MalformedMessage("The manifest cannot be parsed.") from error


def _pack_handover(records: RecordDict, handover: Handover, request: Request) -> None:
    manifest = manifest_of(
        handover, run=request.run, stop=request.stop, site=request.site, strategy=request.plan.strategy.name
    )
    records["manifest"] = ConfigRecord({"manifest": manifest.SerializeToString(deterministic=True)})
    records["handover"] = ArrayRecord(
        {
            f"{kind}/{name}": Array(tensor.dtype, tensor.shape, RAW, tensor.data)
            for kind, name, tensor in handover.items()
        }
    )

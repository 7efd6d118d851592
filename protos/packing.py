"""How a handover travels between machines: the tensors of a kind end to end in one array, and a record to cut it by.

Flower takes a message apart into objects, two or more per array, and hands each over in a call of its own. A network
has dozens of tensors, so that a model of 2 MB would take two hundred calls; packed it takes about ten. Whoever reads
messages, the guard above all, never sees this form.
"""

import json
import math
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from protos.handover import DTYPES

PACKED = "locum.packed"  # Array.stype
_LAYOUT = "layout"  # the record that says how to cut


def packed(content: RecordDict) -> RecordDict:
    """The same records with the arrays of `handover` packed by kind, the first part of their names."""
    record = content.get("handover")
    if not isinstance(record, ArrayRecord):
        return content
    kinds: dict[str, list[bytes]] = {}
    layout = []
    for name, array in record.items():
        kinds.setdefault(name.partition("/")[0], []).append(array.data)
        layout.append([name, array.dtype, list(array.shape), array.stype])
    arrays = {}
    for kind, parts in kinds.items():
        data = b"".join(parts)
        arrays[kind] = Array("uint8", (len(data),), PACKED, data)
    others = {name: value for name, value in content.items() if name != "handover"}
    return RecordDict({**others, _LAYOUT: ConfigRecord({"json": json.dumps(layout)}), "handover": ArrayRecord(arrays)})


def unpacked(content: RecordDict) -> RecordDict:
    """The records that `packed` was given. What is not packed as it should be is returned as it came: it is refused."""
    record, layout = content.get("handover"), content.get(_LAYOUT)
    if not isinstance(record, ArrayRecord) or not isinstance(layout, ConfigRecord):
        return content
    try:
        arrays = _cut(record, json.loads(str(layout["json"])))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return content
    others = {name: value for name, value in content.items() if name not in ("handover", _LAYOUT)}
    return RecordDict({**others, "handover": ArrayRecord(arrays)})


def _cut(record: ArrayRecord, layout: Any) -> dict[str, Array]:
    places = dict.fromkeys(record, 0)
    arrays = {}
    for name, dtype, shape, stype in layout:
        kind = name.partition("/")[0]
        if name in arrays or any(type(length) is not int or length < 0 for length in shape):
            raise ValueError("the layout names a tensor twice, or with a shape that is none")
        begin = places[kind]
        places[kind] = begin + DTYPES[dtype][0] * math.prod(shape)
        data = record[kind].data
        if places[kind] > len(data):
            raise ValueError("the layout asks for more than there is")
        arrays[name] = Array(dtype, tuple(shape), stype, data[begin : places[kind]])
    if any(places[kind] != len(array.data) or array.stype != PACKED for kind, array in record.items()):
        raise ValueError("the layout leaves something over")
    return arrays

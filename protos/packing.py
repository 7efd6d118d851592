"""How a handover travels between machines: the tensors of a kind end to end, and a record to cut them by.

Flower takes a message apart into objects, one per record and two or more per array, and hands each over in a call of
its own. A network has dozens of tensors, so that a model of 2 MB would take two hundred calls; packed it takes about
ten. A kind of up to 5 MiB, as much as Flower lets one object hold, is one record, a larger one an array; all other
records of settings are one. Whoever reads messages, the guard above all, never sees this form.
"""

import json
import math
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from protos.handover import DTYPES

PACKED = "locum.packed"  # Array.stype
SMALL = 5 * 2**20  # bytes
SETTINGS, LAYOUT = "settings", "layout"  # the record that holds others, and the key in it that says how to cut
_KIND = "kind "  # begins the name of a small kind's record


def packed(content: RecordDict) -> RecordDict:
    """The same records in the form in which they travel; without a handover they travel as they are."""
    record = content.get("handover")
    if not isinstance(record, ArrayRecord):
        return content
    kinds: dict[str, list[bytes]] = {}
    layout = []
    for name, array in record.items():
        kinds.setdefault(name.partition("/")[0], []).append(array.data)
        layout.append([name, array.dtype, list(array.shape), array.stype])
    settings = ConfigRecord({LAYOUT: json.dumps(layout)})
    others = RecordDict()
    for name, value in content.items():
        if isinstance(value, ConfigRecord):
            settings.update({f"{name}/{key}": one for key, one in value.items()})
        elif name != "handover":
            others[name] = value
    others[SETTINGS] = settings
    arrays = {}
    for kind, parts in kinds.items():
        data = b"".join(parts)
        if len(data) <= SMALL:
            others[_KIND + kind] = ConfigRecord({"data": data})
        else:
            arrays[kind] = Array("uint8", (len(data),), PACKED, data)
    if arrays:
        others["handover"] = ArrayRecord(arrays)
    return others


def unpacked(content: RecordDict) -> RecordDict:
    """The records that `packed` was given. What is not packed as it should be is returned as it came: it is refused."""
    settings = content.get(SETTINGS)
    if not isinstance(settings, ConfigRecord):
        return content
    try:
        kinds, others = _kinds(content)
        for key, value in settings.items():
            if key != LAYOUT:
                name, _, key = key.partition("/")
                others.setdefault(name, ConfigRecord())[key] = value
        return RecordDict({**others, "handover": ArrayRecord(_cut(kinds, json.loads(str(settings[LAYOUT]))))})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return content


def _kinds(content: RecordDict) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The bytes of every kind, and the records that travelled as they are."""
    kinds: dict[str, bytes] = {}
    others: dict[str, Any] = {}
    for name, record in content.items():
        if name == "handover" and isinstance(record, ArrayRecord):
            for kind, array in record.items():
                if array.stype != PACKED:
                    raise ValueError("an array is not packed")
                kinds[kind] = array.data
        elif name.startswith(_KIND) and isinstance(record, ConfigRecord):
            (data,) = record.values()
            if not isinstance(data, bytes):
                raise ValueError("a kind is no bytes")
            kinds[name.removeprefix(_KIND)] = data
        elif name == "handover" or name.startswith(_KIND):
            raise ValueError("a kind is in a record of another sort")
        elif name != SETTINGS:
            others[name] = record
    return kinds, others


def _cut(kinds: dict[str, bytes], layout: Any) -> dict[str, Array]:
    places = dict.fromkeys(kinds, 0)
    arrays = {}
    for name, dtype, shape, stype in layout:
        kind = name.partition("/")[0]
        if name in arrays or any(type(length) is not int or length < 0 for length in shape):
            raise ValueError("the layout names a tensor twice, or with a shape that is none")
        begin = places[kind]
        places[kind] = begin + DTYPES[dtype][0] * math.prod(shape)
        data = kinds[kind]
        if places[kind] > len(data):
            raise ValueError("the layout asks for more than there is")
        arrays[name] = Array(dtype, tuple(shape), stype, data[begin : places[kind]])
    if any(places[kind] != len(data) for kind, data in kinds.items()):
        raise ValueError("the layout leaves something over")
    return arrays

"""A message put together from the objects into which Flower takes it apart, with its large arrays in one go.

Flower itself grows an array's bytes chunk by chunk and then copies them, which takes longer than to send them.
"""

import json

from flwr.app import Array
from flwr.supercore.inflatable.inflatable_object import InflatableObject, get_object_head_values_from_object_content
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

_ARRAY, _CHUNK = "Array", "ArrayChunk"


def inflated(identity: str, contents: dict[str, bytes]) -> InflatableObject:
    """The object of that name, of which `contents` holds all parts by name; raises what Flower does."""
    arrays: dict[str, InflatableObject] = {}
    for name, content in contents.items():
        if content.startswith(b"Array ") and (array := _array(content, contents)) is not None:
            arrays[name] = array
    return inflate_object_from_contents(identity, contents, objects=arrays)


def _array(content: bytes, contents: dict[str, bytes]) -> Array | None:
    """The array, or None where something is not as it should be: what, Flower says."""
    try:
        kind, children, length = get_object_head_values_from_object_content(content)
        told = json.loads(content[-length:])
        order = told["arraychunk_ids"]
        if kind != _ARRAY or set(order) != set(range(len(children))):
            return None
        data = b"".join([_body(contents[children[place]]) for place in order])
        return Array(dtype=told["dtype"], shape=tuple(told["shape"]), stype=told["stype"], data=data)
    except (ValueError, KeyError, TypeError):
        return None


def _body(content: bytes) -> memoryview:
    kind, _, length = get_object_head_values_from_object_content(content)
    if kind != _CHUNK:
        raise ValueError(kind)
    return memoryview(content)[len(content) - length :]

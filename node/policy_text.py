"""A policy's file edited by key: what is not changed stays as its people wrote it, comments included."""

from collections.abc import Collection, Mapping
from typing import Any

import yaml

from protos import strict_yaml

_NOTHING = "{}\n"  # a file that narrows nothing, and says so


def edited(text: str, changes: Mapping[str, Any]) -> str:
    """`text`, a YAML mapping, with top-level keys set, or removed where the value is None.

    Raises yaml.YAMLError when `text` is no YAML, and ValueError when it is no mapping.
    """
    there = strict_yaml.load(text)
    if there is None:  # nothing but comments
        there = {}
    if not isinstance(there, dict):
        raise ValueError("holds no keys")
    wanted = {key: value for key, value in {**there, **changes}.items() if value is not None}
    try:
        kept = _in_place(text, wanted, {key for key in changes if there.get(key) != changes[key]})
        if strict_yaml.load(kept) == wanted:
            return kept
    except yaml.YAMLError:  # written in a way that cannot be cut
        pass
    return "".join(_line(key, value) for key, value in wanted.items()) or _NOTHING


def _in_place(text: str, wanted: Mapping[str, Any], changed: Collection[str]) -> str:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    places: list[tuple[str, int, yaml.Node]] = []
    if isinstance(root, yaml.MappingNode) and root.flow_style:
        text = text[: root.start_mark.index] + text[root.end_mark.index :].lstrip("\n")
    elif isinstance(root, yaml.MappingNode):
        places = [(key.value, key.start_mark.index, value) for key, value in root.value]
    for name, start, node in reversed(places):
        if name not in changed:
            continue
        end = _end(node)
        if name in wanted:
            text = text[:start] + _line(name, wanted[name]).rstrip("\n") + text[end:]
        else:
            line_end = text.find("\n", end)
            text = text[:start] + ("" if line_end < 0 else text[line_end + 1 :])
    if text.strip() and not text.endswith("\n"):
        text += "\n"
    known = {name for name, _, _ in places}
    text += "".join(_line(name, value) for name, value in wanted.items() if name not in known)
    return text if wanted else text + _NOTHING


def _end(node: yaml.Node) -> int:
    """Where a value ends; PyYAML lets a block end where the next key begins, after comments that are not its own."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _line(key: str, value: Any) -> str:
    return f"{one_line(key)}: {one_line(value)}\n"


def one_line(value: Any) -> str:
    """A value as YAML in one line."""
    text = str(yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf")))
    return text.removesuffix("\n").removesuffix("\n...")

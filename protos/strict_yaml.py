"""YAML as `yaml.safe_load` reads it, but a key that stands twice is an error."""

from collections import deque
from typing import Any

import yaml

MOST_VALUES = 100_000  # in one document, every alias counted as what it stands for


def load(text: str) -> Any:
    """What `text` says; raises yaml.YAMLError, and nothing else, for text that says nothing clear."""
    try:
        found = yaml.load(text, _UniqueKeys)  # noqa: S506  a SafeLoader
        _check_size(found)
    except RecursionError as error:
        raise yaml.YAMLError("it is nested too deeply") from error
    except (ValueError, LookupError, ArithmeticError, AttributeError, TypeError) as error:
        raise yaml.YAMLError(str(error)) from error  # PyYAML lets these out for values like 2001-99-99
    return found


def _check_size(document: Any) -> None:
    """Raise yaml.YAMLError for aliases that stand for so much, or for themselves, that nobody could write it out."""
    left = deque([document])
    for _ in range(MOST_VALUES):
        if not left:
            return
        value = left.pop()
        left.extend(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())
    raise yaml.YAMLError(f"it comes to more than {MOST_VALUES} values")


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice, of which plain YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: list[Any] = []
        for key, _ in node.value:
            merged = key.tag == "tag:yaml.org,2002:merge"  # `<<`, whose keys the mapping's own may override
            name = key.value if merged else self.construct_object(key, deep=True)
            # as text too, since 1 and "1" may become one key when the mapping is validated
            if name in keys or str(name) in map(str, keys):
                raise yaml.constructor.ConstructorError(None, None, f"the key {name!r} stands twice", key.start_mark)
            keys.append(name)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found

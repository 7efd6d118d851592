"""pydantic's findings in the user's words: one sentence each, with the file, the key path and the remedy."""

import difflib
import types
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from protos.plan import Record

_NAME = "should be 1 to 40 lower-case letters, digits and hyphens, beginning with a letter or digit"
_SITE_NAME = (
    "should be 1 to 64 letters, digits, spaces, dots, hyphens and underscores, beginning with a letter or digit"
)
_WORDS = {  # pydantic's own words name Python's types
    "bool_parsing": "should be true or false",
    "dict_type": "should be a mapping of keys to values",
    "float_parsing": "should be a number",
    "float_type": "should be a number",
    "int_from_float": "should be a whole number",
    "int_parsing": "should be a whole number",
    "int_type": "should be a whole number",
    "invalid_key": "keys should be text; put it in quotes",
    "model_type": "should be a mapping of keys to values",
    "path_type": "should be a path",
    "string_type": "should be text; put it in quotes",
    "tuple_type": "should be a list",
}


def sentences(error: ValidationError, model: type[BaseModel], raw: Any, source: str) -> list[str]:
    """Every fault that `model` found in `raw`, which stands in the file `source`."""
    # a list whose entries have faults is called too short as well
    faults = [fault for fault in error.errors() if not (fault["type"] == "too_short" and fault["input"])]
    return list(dict.fromkeys(_sentence(source, model, raw, fault) for fault in faults))


def _sentence(source: str, model: Any, raw: Any, fault: Any) -> str:
    """One fault: the file, the key path as the user wrote it, the remedy."""
    path: list[str] = []
    place = raw
    known: list[str] = []
    for depth, part in enumerate(fault["loc"], 1):
        inside = (isinstance(place, dict) and part in place) or (
            isinstance(place, list | tuple) and isinstance(part, int)
        )
        if inside and place is not None:
            place = place[part] if not isinstance(place, dict) else place.get(part)
            path.append(_key(part))
        elif fault["type"] == "missing" and depth == len(fault["loc"]):
            path.append(_key(part))
        # whatever else stands in `loc` names a branch of a union, which the user never wrote
        known = list(model.model_fields) if model is not None else known
        model = _model_at(model, part)
    where = ": ".join((source, *([".".join(path)] if path else [])))
    if fault["type"] == "extra_forbidden":
        close = difflib.get_close_matches(path[-1], known, n=1)
        remedy = f"did you mean {close[0]}?" if close else f"remove it; known here: {', '.join(known)}."
        return f"{where}: unknown key; {remedy}"
    if fault["type"] == "missing":
        return f"{where}: is missing; add it."
    if fault["type"] == "too_short":
        return f"{where}: is empty; it needs at least one entry."
    if fault["type"] == "value_error":
        return f"{where}: {fault['msg'].removeprefix('Value error, ')}."
    if fault["type"] == "string_pattern_mismatch":
        message = _NAME if path == ["name"] else _SITE_NAME
    else:
        message = _WORDS.get(fault["type"], fault["msg"].replace("Input should be", "should be"))
    given = "" if isinstance(fault["input"], dict | list | BaseModel) else f", not {fault['input']!r}"
    return f"{where}: {message}{given}."


def _key(part: Any) -> str:
    return str(part) if str(part).isprintable() else repr(part)


def _model_at(model: Any, part: Any) -> Any:
    """The pydantic model that stands at `part` of `model`, through tuples and unions; None where there is none."""
    if model is None or not isinstance(part, str) or part not in model.model_fields:
        return model if isinstance(part, int) else _only_model(part) or model
    return _first_model(model.model_fields[part].annotation)


def _only_model(name: str) -> Any:
    """A union branch in `loc` is named like its class."""
    return next((m for m in Record.__subclasses__() if m.__name__ == name), None)


def _first_model(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, tuple, list, Annotated):
        return next((m for a in get_args(annotation) if (m := _first_model(a)) is not None), None)
    return None

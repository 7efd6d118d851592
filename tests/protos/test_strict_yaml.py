"""YAML in which a key that stands twice is an error, and every error is a YAMLError."""

from contextlib import suppress

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from protos.strict_yaml import load

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(plain)
def test_what_has_no_key_twice_is_read_as_by_safe_load(value) -> None:
    assert load(yaml.safe_dump(value)) == value


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a: 1\nb: 2\na: 3", 3),
        ("{a: {b: 1,\n b: 1}}", 2),
        ("- {1: x, 0x1: y}", 1),
        ("1: organ\n'1': lesion", 2),  # one key, once it is read as a number
        ("a: {<<: {b: 1},\n    <<: {b: 2}}", 2),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_line(text, line) -> None:
    with pytest.raises(yaml.MarkedYAMLError, match="stands twice") as refused:
        load(text)
    assert refused.value.problem_mark.line + 1 == line


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: *a}"], ids=["list", "mapping"])
def test_what_holds_itself_is_refused(text) -> None:
    with pytest.raises(yaml.YAMLError, match="more than"):
        load(text)


def test_aliases_that_multiply_are_refused_before_anything_is_made_of_them() -> None:
    doubled = "\n".join(f"k{n + 1}: &k{n + 1} [*k{n}, *k{n}]" for n in range(60))
    with pytest.raises(yaml.YAMLError, match="more than"):
        load(f"k0: &k0 [x, x]\n{doubled}")


def test_an_own_key_may_override_a_merged_one() -> None:
    assert load("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}")["b"] == {"x": 1, "y": 3}


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "? [a]\n: b",
        "day: 2001-99-99",
        "!!int ''",
        "!!bool perhaps",
        "!!timestamp soon",
        "0x_",
        "9" * 5000,
        "[" * 5000,
        "\x00",
        "!!python/object/apply:os.getcwd []",
    ],
)
def test_nothing_but_a_yaml_error_comes_out(text) -> None:
    with pytest.raises(yaml.YAMLError):
        load(text)


@given(st.text(alphabet="!&*:{}[]<>-?,'\"#|% \nab01=_.~sintfloboledyrmp", max_size=40))
def test_no_text_raises_anything_else(text) -> None:
    with suppress(yaml.YAMLError):
        load(text)

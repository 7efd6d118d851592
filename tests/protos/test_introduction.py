"""What a node says of itself survives being numbers, and nothing else is taken for an introduction."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.introduction import INTRODUCTION, Introduction
from protos.software import Software, installed

numbers = st.builds("{}.{}.{}".format, *[st.integers(0, 99_999)] * 3)
policies = st.fixed_dictionaries(
    {},
    optional={
        "updates": st.fixed_dictionaries({"clip": st.floats(1e-6, 1e6), "noise": st.floats(0, 1000)}),
        "memory": st.fixed_dictionaries({"cases": st.integers(0, 2**32)}),
    },
)
digests = st.binary(min_size=32, max_size=32).map(bytes.hex)


@given(locum=numbers, torch=numbers, code=digests, policy=policies)
def test_what_is_said_is_what_is_understood(locum: str, torch: str, code: str, policy: dict) -> None:
    said = Introduction(Software(locum, torch, code), policy)
    scalars = said.scalars()
    assert all(INTRODUCTION[name].holds(value) for name, value in scalars.items())
    assert Introduction.of(scalars) == said


@pytest.mark.parametrize(("version", "told"), [("2.13.0+cpu", "2.13.0"), ("1.2rc3", "1.2.0"), ("dev", "0.0.0")])
def test_of_a_version_the_numbers_are_told(version: str, told: str) -> None:
    scalars = Introduction(Software("0.1.0", version, "0" * 64), {}).scalars()
    assert Introduction.of(scalars).software.torch == told


@pytest.mark.parametrize(
    "change",
    [
        {"code.3": None}, {"code.3": -1}, {"code.3": 2**32}, {"code.3": 0.5}, {"code.3": True}, {"code.3": "7"},
        {"locum.0": float("nan")}, {"torch.2": 10**6}, {"policy.clip": -1.0}, {"policy.cases": 0.5},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_as_declared_is_no_introduction(change: dict) -> None:
    scalars = Introduction(installed(), {}).scalars() | change
    with pytest.raises(ValueError, match=next(iter(change))):
        Introduction.of({name: value for name, value in scalars.items() if value is not None})

"""What a node says of itself when a run begins: its software, and what its site's policy changes in a run.

All of it are numbers, since nothing else may leave a site: of a version the three that it begins with, of the code's
digest its 32-bit words.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from protos.declaration import Bound
from protos.software import Software

_WORDS = 8  # of a SHA-256
_PART = Bound(0, 99_999, whole=True)

INTRODUCTION: Mapping[str, Bound] = MappingProxyType(
    {f"{name}.{place}": _PART for name in ("locum", "torch") for place in range(3)}
    | {f"code.{place}": Bound(0, 2**32 - 1, whole=True) for place in range(_WORDS)}
    | {"policy.clip": Bound(0, 1e6), "policy.noise": Bound(0, 1000), "policy.cases": Bound(0, 2**32, whole=True)}
)


@dataclass(frozen=True)
class Introduction:
    """`policy` is what of the site's policy changes a run's bits, in its own words: updates.clip, memory.cases, ..."""

    software: Software
    policy: Mapping[str, Mapping[str, int | float]]

    def scalars(self) -> dict[str, int | float]:
        """As declared scalars."""
        code = {f"code.{place}": int(self.software.code[8 * place : 8 * place + 8], 16) for place in range(_WORDS)}
        updates, memory = self.policy.get("updates", {}), self.policy.get("memory", {})
        policy = {f"policy.{name}": value for name, value in {**updates, **memory}.items()}
        return {**_release("locum", self.software.locum), **_release("torch", self.software.torch), **code, **policy}

    @classmethod
    def of(cls, scalars: Mapping[str, Any]) -> "Introduction":
        """What the scalars say; raises ValueError when they are not within INTRODUCTION, or not all there."""
        told = {name: scalars.get(name, 0 if name.startswith("policy.") else None) for name in INTRODUCTION}
        for name, value in told.items():
            if type(value) not in (int, float) or not INTRODUCTION[name].holds(value):
                raise ValueError(f"{name} of a node's introduction is not as declared")
        locum, torch = (".".join(str(told[f"{name}.{place}"]) for place in range(3)) for name in ("locum", "torch"))
        code = "".join(f"{told[f'code.{place}']:08x}" for place in range(_WORDS))
        policy = {}
        if "policy.clip" in scalars:
            policy["updates"] = {name: told[f"policy.{name}"] for name in ("clip", "noise")}
        if "policy.cases" in scalars:
            policy["memory"] = {"cases": told["policy.cases"]}
        return cls(Software(locum, torch, code), policy)


def _release(name: str, version: str) -> dict[str, int]:
    return {f"{name}.{place}": part for place, part in enumerate(_parts(version))}


def _parts(version: str) -> list[int]:
    found = re.match(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?", version)
    return [int(part or 0) for part in found.groups()] if found else [0, 0, 0]

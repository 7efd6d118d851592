"""The site's own policy: `policy.yaml` in the node's home folder. It can only narrow what a strategy declares.

    kinds: [weights]                  # kinds of artifact that may leave
    tensors: ["*", "!prompts/masks"]  # names, or patterns, of tensors that may leave; after a !, that may not
    strategies: [finetune, joint]     # strategies that may be asked for
    max_bytes: {weights: 5MB}         # per kind, or one number for all kinds together
    # names, or patterns, of metrics that may leave; whoever declares another one is refused
    metrics: [samples, steps, "loss*", "dsc*", "asd*", cases, both_empty, penalised, train, val, test]
    updates: {clip: 1.0, noise: 1.1, delta: 1.0e-5, epsilon: 8.0}  # how gradients are protected, see node/privacy.py
    memory: {cases: 10}               # training cases that a run may keep for rehearsal; 0: no rehearsal
    copies: {most: 0.05}              # share of a generator's images that may be near-copies, see node/copies.py
    hold: [generator, prompts]        # a handover with one of these kinds waits until a person releases it; true: any

A key that is left out does not narrow; without the file everything goes as declared; a file that cannot be read or
understood refuses everything.
"""

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import ByteSize, Field, ValidationError

from node.policy_file import PolicyFile, unreadable
from node.privacy import Updates, beside_updates
from protos import strict_yaml
from protos.declaration import Declaration
from protos.handover import HandoverSchema, Kind
from protos.plan import Record
from protos.refusals import Refusal, RefusalCode


class MemoryLimit(Record):
    """`cases`: the most that one run may keep at the site for rehearsal; 0 refuses rehearsal."""

    cases: Annotated[int, Field(ge=0)]


class CopiesLimit(Record):
    """`most`: the share of near-copies up to which a generator may leave, in [0, 1]."""

    most: Annotated[float, Field(ge=0, le=1)]


class Policy(Record):
    """What a site allows; None narrows nothing."""

    kinds: frozenset[Kind] | None = None
    tensors: tuple[str, ...] | None = None
    strategies: frozenset[str] | None = None
    max_bytes: ByteSize | dict[Kind, ByteSize] | None = Field(default=None, union_mode="left_to_right")
    metrics: tuple[str, ...] | None = None
    updates: Updates | None = None
    memory: MemoryLimit | None = None
    copies: CopiesLimit | None = None
    hold: bool | frozenset[Kind] | None = None

    @classmethod
    def of(cls, home: Path) -> "Policy":
        """Read `home/policy.yaml`; raises Refusal when it is there but does not say clearly what is allowed."""
        return cls.said_in(PolicyFile.of(home))

    @classmethod
    def said_in(cls, file: PolicyFile) -> "Policy":
        """What a file says; raises Refusal when it does not say clearly what is allowed."""
        if file.text is None:
            return cls()
        try:
            keys = strict_yaml.load(file.text)
            if not isinstance(keys, dict):
                raise unreadable(file.path, "holds no keys; delete the file if nothing is to be narrowed")
            if empty := [key for key, value in keys.items() if value is None]:
                raise unreadable(file.path, f"has nothing after {empty[0]!r}; write [] if nothing of it may leave")
            return cls.model_validate(keys)
        except yaml.YAMLError as error:
            raise unreadable(file.path, f"is no YAML ({' '.join(str(error).split())})") from error
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}"
                for e in error.errors(include_input=False)
            )
            raise unreadable(file.path, f"is not understood ({faults})") from error

    @property
    def changes(self) -> dict[str, dict[str, int | float]]:
        """What changes the bits of a run instead of refusing it: `updates` (clip, noise) and `memory` (cases)."""
        wanted = {"updates": {"clip", "noise"}, "memory": {"cases"}}
        return self.model_dump(mode="json", include=wanted, exclude_none=True)

    def narrow(self, strategy: str, declared: Declaration) -> Declaration:
        """`declared`, if this policy lets all of it out.

        Raises Refusal when the strategy, any tensor or any metric may not leave. A reply must hold every declared
        tensor and may hold every declared metric, so the site is spared work whose result could not leave.
        """
        if self.strategies is not None and strategy not in self.strategies:
            raise Refusal(RefusalCode.POLICY, f"The policy's strategies do not include {strategy!r}.")
        if declared.handover is not None:
            self._check(declared.handover)
            if self.updates is not None and self.updates.only and (others := beside_updates(declared)):
                raise Refusal(
                    RefusalCode.POLICY,
                    f"The policy's updates allow nothing but protected updates, and {others[0]} is none; "
                    "updates.only: false would let it leave, unprotected.",
                )
        if kept := [name for name in sorted(declared.metrics) if not _fits(name, self.metrics)]:
            raise Refusal(RefusalCode.POLICY, f"The policy's metrics do not include {', '.join(kept)}.")
        return declared

    def limit_copies(self, share: float) -> None:
        """Raise Refusal (COPIES) if a generator with this share of near-copies may not leave."""
        if self.copies is not None and share > self.copies.most:
            raise Refusal(
                RefusalCode.COPIES,
                f"Of the generator's images {share:.1%} are near-copies of training images, but the policy's "
                f"copies.most is {self.copies.most:g}.",
            )

    def holds(self, schema: HandoverSchema | None) -> bool:
        """Whether a handover of this schema waits at the site until a person releases it."""
        if schema is None or not self.hold:
            return False
        return self.hold is True or bool(schema.kinds & self.hold)

    def _check(self, schema: HandoverSchema) -> None:
        if self.kinds is not None and not schema.kinds <= self.kinds:
            raise Refusal(RefusalCode.POLICY, f"The policy's kinds do not include {_list(schema.kinds - self.kinds)}.")
        names = [f"{kind}/{name}" for kind in Kind for name in schema.tensors[kind]]
        if kept := [name for name in names if not _fits(name, self.tensors)]:
            raise Refusal(RefusalCode.POLICY, f"The policy's tensors do not include {', '.join(kept)}.")
        limits: list[tuple[Kind | None, ByteSize]] = []
        if isinstance(self.max_bytes, dict):
            limits.extend(self.max_bytes.items())
        elif self.max_bytes is not None:
            limits.append((None, self.max_bytes))
        for kind, limit in limits:
            if schema.nbytes(kind) > limit:
                raise Refusal(
                    RefusalCode.POLICY,
                    f"The strategy takes out {schema.nbytes(kind)} bytes of {kind or 'all kinds together'}, "
                    f"but the policy's max_bytes is {int(limit)}.",
                )


def _fits(name: str, patterns: tuple[str, ...] | None) -> bool:
    """Whether a pattern has the name, and none after a `!` takes it out again."""
    if patterns is None:
        return True
    out = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    return any(fnmatchcase(name, pattern) for pattern in patterns) and not any(
        fnmatchcase(name, pattern) for pattern in out
    )


def _list(kinds: frozenset[Kind]) -> str:
    return ", ".join(sorted(kinds))

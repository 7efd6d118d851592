"""Changing a site's policy: the file and an entry in the ledger that says who, when, what before and what after.

Whatever wrote the file, the ledger hears of it: a change by hand is noted, without a name, when the file is next read.
"""

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy import Connection, delete, insert, select
from sqlalchemy.orm import Mapped, mapped_column

from node.audit import PolicyChange, signature
from node.database import Base
from node.files import replace_file, sync_folder
from node.ledger import Crossing, Direction, Ledger, Verdict
from node.ledger_head import open_ledger
from node.policy import Policy
from node.policy_file import PolicyFile
from node.policy_text import edited, one_line
from protos.refusals import Refusal

POLICY = "policy"  # the message type of an entry on the policy itself
LONGEST_TEXT = 20_000  # characters of a file that an entry holds


class PolicyFault(ValueError):
    """A policy that cannot be changed so; one sentence."""


class PolicyMoved(PolicyFault):
    """The policy's file is no longer the one that was shown."""


class PolicyKnown(Base):
    """The policy's text as the ledger knows it: one row, or none where there never was a file."""

    __tablename__ = "policy_known"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str | None]  # None: no file, or one that is too long
    sha256: Mapped[str]


@dataclass(frozen=True)
class _State:
    text: str | None
    sha256: str

    @classmethod
    def of(cls, text: str | None) -> "_State":
        digest = "" if text is None else hashlib.sha256(text.encode()).hexdigest()
        return cls(None if text is not None and len(text) > LONGEST_TEXT else text, digest)


def note_policy(ledger: Ledger, file: PolicyFile, site: str) -> None:
    """Write down that the policy's file is not the one that the ledger knows; raises node.ledger.LedgerUnwritable."""
    now = _State.of(file.text)
    with ledger.reading() as connection:
        if _known(connection).sha256 == now.sha256:
            return
    with suppress(_NotedMeanwhile):
        _record(ledger, site, now, "The policy's file was changed by hand.")


def change_policy(
    home: Path, changes: Mapping[str, Any], *, by: str, why: str = "", seen: str | None = None
) -> PolicyChange:
    """Set top-level keys of the policy at `home`, or remove those whose value is None; values as YAML reads them.

    `by` is the person, `seen` the digest (`PolicyFile.digest`) of the file that person looked at: it must still be the
    same. The file keeps its other lines and its mode. File and entry come together: when the process dies in between,
    the change is noted as one by hand.
    Raises PolicyFault, PolicyMoved, node.audit.Unsigned, node.ledger.LedgerUnwritable or node.ledger_head.LedgerBroken.
    """
    by, why = signature(by, why or None)
    ledger = open_ledger(home)
    site = ledger.site()
    try:
        before = PolicyFile.of(home)
    except Refusal as refusal:
        raise PolicyFault(refusal.detail) from refusal
    note_policy(ledger, before, site)
    try:
        text = edited(before.text or "", changes)
    except (yaml.YAMLError, ValueError) as error:
        raise PolicyFault(f"{before.path}: {' '.join(str(error).split())}; mend it by hand first.") from error
    after = PolicyFile(before.path, text)
    try:
        Policy.said_in(after)
    except Refusal as refusal:
        raise PolicyFault(f"Changed so, the policy {refusal.detail.removeprefix(f'{before.path}: ')}") from refusal
    if seen is not None and before.digest != seen:
        raise PolicyMoved(f"{before.path} has changed since it was shown; look at it again.")
    if len(text) > LONGEST_TEXT:
        raise PolicyFault(f"{before.path} would have {len(text)} characters; {LONGEST_TEXT} are enough.")
    was, now = _State.of(before.text), _State.of(text)
    if was == now:
        raise PolicyFault(f"{before.path} says that already.")
    said = ", ".join(
        f"{key} taken away" if value is None else f"{key}: {one_line(value)}" for key, value in changes.items()
    )
    detail = f"{by} changed the policy ({said})." + (f" Why: {why}" if why else "")
    return _record(ledger, site, now, detail, by=by, why=why, write=after)


class _NotedMeanwhile(Exception):
    """Another process was first."""


def _record(
    ledger: Ledger, site: str, now: _State, detail: str, *, by: str = "", why: str = "", write: PolicyFile | None = None
) -> PolicyChange:
    """Write the entry, and the file, if it is to be written, as the last thing before the entry stands."""
    with ledger.reading() as connection:
        was = _known(connection)
    change = PolicyChange(
        by=by, why=why, before=was.text, after=now.text, before_sha256=was.sha256, after_sha256=now.sha256
    )

    def also(connection: Connection) -> None:
        if _known(connection) != was:
            if write is None:
                raise _NotedMeanwhile
            raise PolicyMoved(f"{write.path} was changed by somebody else just now; look at it again.")
        connection.execute(delete(PolicyKnown))
        connection.execute(insert(PolicyKnown), {"id": 1, "text": now.text, "sha256": now.sha256})
        if write is not None:
            _write(write, was.sha256)

    ledger.record(Crossing(Direction.HERE, site, POLICY, Verdict.CHANGED, detail=detail, audit=change), also=also)
    return change


def _write(file: PolicyFile, was: str) -> None:
    """Replace the file by one with this text, unless it changed at the last moment; a link stays one."""
    try:
        now = PolicyFile.of(file.path.parent)
        if now.digest != was:
            raise PolicyMoved(f"{file.path} was changed by somebody else just now; look at it again.")
        target = file.path.resolve()
        mode = target.stat().st_mode & 0o777 if target.exists() else None
        replace_file(target, (file.text or "").encode())
        if mode is not None:
            os.chmod(target, mode)  # noqa: PTH101
        sync_folder(target.parent)
    except Refusal as refusal:
        raise PolicyFault(refusal.detail) from refusal
    except OSError as error:
        raise PolicyFault(
            f"{file.path} cannot be written ({error.strerror}); change it where it comes from."
        ) from error


def _known(connection: Connection) -> _State:
    row = connection.execute(select(PolicyKnown.text, PolicyKnown.sha256)).first()
    return _State(None, "") if row is None else _State(row.text, row.sha256)

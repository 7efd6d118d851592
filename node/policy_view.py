"""The site's policy for its own people: what it comes to in words, and changed key by key in somebody's name."""

import json as jsons
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy.exc import SQLAlchemyError

from node.audit import Unsigned
from node.ledger import LedgerUnwritable
from node.ledger_head import LedgerBroken
from node.ledger_view import clean
from node.policy import Policy
from node.policy_change import PolicyFault, change_policy
from node.policy_file import PolicyFile
from node.policy_words import policy_in_words
from protos import strict_yaml
from protos.refusals import Refusal

DONE, REFUSED, WRONG = 0, 1, 2  # exit statuses


def show_policy(home: Path, *, json: bool = False) -> int:
    """Print what the policy of the node at `home` lets out; 1 when it is not understood, and so lets out nothing."""
    try:
        file = PolicyFile.of(home)
        policy = Policy.said_in(file)
    except Refusal as refusal:
        _complain(f"{refusal.detail} Nothing crosses until it is mended.")
        return REFUSED
    words = policy_in_words(policy)
    if json:
        document = {
            "file": str(file.path),
            "sha256": file.digest,
            "policy": policy.model_dump(mode="json", exclude_none=True),
            "words": words,
        }
        sys.stdout.write(jsons.dumps(document, indent=1) + "\n")
        return DONE
    where = f"{file.path}, SHA-256 {file.digest}" if file.digest else f"There is no {file.path}; nothing is narrowed"
    for line in (*words, f"{where}."):
        sys.stdout.write(clean(line) + "\n")
    return DONE


def set_policy(home: Path, pairs: Sequence[str], *, by: str, why: str, seen: str | None) -> int:
    """Change keys of the policy at `home`, given as KEY=VALUE, and say what it lets out then.

    Returns 0; 1 when the ledger cannot be written; 2 when the policy cannot be changed so.
    """
    try:
        changes = _changes(pairs, home)
        change_policy(home, changes, by=by, why=why, seen=seen)
    except (PolicyFault, Unsigned) as fault:
        _complain(str(fault))
        return WRONG
    except LedgerBroken as broken:
        _complain(str(broken))
        return REFUSED
    except (LedgerUnwritable, SQLAlchemyError, OSError) as error:
        _complain(
            f"Nothing was changed, since the ledger in {home} cannot be written ({getattr(error, 'orig', error)})."
        )
        return REFUSED
    return show_policy(home)


def _changes(pairs: Sequence[str], home: Path) -> dict[str, Any]:
    """The top-level keys that these pairs come to; `a.b=c` changes one key of a mapping, `a=` takes the key away."""
    try:
        there = strict_yaml.load(PolicyFile.of(home).text or "")
    except (Refusal, yaml.YAMLError):
        there = None  # change_policy says what is wrong
    changes: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise PolicyFault(f"{pair}: give KEY=VALUE, for example copies.most=0.05; nothing after = takes KEY away.")
        try:
            value = strict_yaml.load(text)
        except yaml.YAMLError as error:
            raise PolicyFault(f"{name}: the value is no YAML ({' '.join(str(error).split())}).") from error
        key, dot, inner = name.partition(".")
        if dot:
            now = changes.get(key, there.get(key) if isinstance(there, dict) else None)
            mapping = dict(now) if isinstance(now, Mapping) else {}
            value = {k: v for k, v in {**mapping, inner: value}.items() if v is not None} or None
        changes[key] = value
    return changes


def _complain(sentence: str) -> None:
    sys.stderr.write(f"locum-node: {clean(sentence)}\n")

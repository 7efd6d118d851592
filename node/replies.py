"""Replies to visits, kept for a while from just before they are let out: who asks again gets the same.

So a visit is made once, and stands once in the ledger as having left, whatever dies between the node's work and the
coordinator's commit. What the question was is told by the SHA-256 of its content; a reply is not given again once the
site's policy has changed, since it would not be the guard of today that let it out.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from node.files import clear_leftovers, replace_file
from node.policy_file import FILE

MOST = 8  # the newest so many


@dataclass(frozen=True)
class KeptReply:
    """The object tree of a reply, serialised, as hexadecimal digits, and the names of all its objects."""

    tree: str
    parts: list[str]
    policy: str  # digest of the site's policy when it was let out


class Replies:
    """Files below `folder`, one per question."""

    def __init__(self, folder: Path, home: Path) -> None:
        self._folder, self._policy = folder, home / FILE

    @classmethod
    def of(cls, home: Path) -> "Replies":
        """Those of the node whose folder this is."""
        return cls(home / "replies", home)

    def prepare(self) -> None:
        """Make the folder and clear what a process that died left half written; nobody may be writing now."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        clear_leftovers(self._folder)

    def keep(self, question: str, tree: bytes, parts: list[str]) -> None:
        """Keep the reply to a question, and of older ones only so many."""
        reply = KeptReply(tree.hex(), parts, self._policy_digest())
        replace_file(self._folder / question, json.dumps(asdict(reply)).encode())
        others = [path for path in self._folder.iterdir() if path.name != question]
        others.sort(key=lambda path: path.stat().st_mtime_ns)  # which a clock that was set back does not order
        for path in others[: max(0, len(others) + 1 - MOST)]:
            path.unlink(missing_ok=True)

    def find(self, question: str) -> KeptReply | None:
        """The reply that was given to the same question under the same policy, if it is still here."""
        try:
            reply = KeptReply(**json.loads((self._folder / question).read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return reply if reply.policy == self._policy_digest() else None

    def parts(self) -> set[str]:
        """The objects that kept replies are made of."""
        found = (self.find(path.name) for path in self._folder.iterdir())
        return {part for reply in found if reply is not None for part in reply.parts}

    def _policy_digest(self) -> str:
        try:
            return hashlib.sha256(self._policy.read_bytes()).hexdigest()
        except FileNotFoundError:
            return ""

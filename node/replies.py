"""Replies to visits, kept for a while from just before they are let out: who asks again gets the same.

So a visit is made once, and stands once in the ledger as having left, whatever dies between the node's work and the
coordinator's commit. What the question was is told by the SHA-256 of its content; a reply is not given again once the
site's policy has changed, since it would not be the guard of today that let it out.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from flwr.app import RecordDict

from node.files import clear_leftovers, replace_file, swap_file
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
        reply = KeptReply(tree.hex(), parts, _digest_of(self._policy))
        replace_file(self._folder / question, json.dumps(asdict(reply)).encode())
        _trim(self._folder, question)

    def find(self, question: str) -> KeptReply | None:
        """The reply that was given to the same question under the same policy, if it is still here."""
        try:
            reply = KeptReply(**json.loads((self._folder / question).read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return reply if reply.policy == _digest_of(self._policy) else None

    def parts(self) -> set[str]:
        """The objects that kept replies are made of."""
        found = (self.find(path.name) for path in self._folder.iterdir())
        return {part for reply in found if reply is not None for part in reply.parts}


class SimulatedReplies:
    """The same in a simulation, where messages are not taken apart: the newest reply of a run, serialised, in one file.

    A simulation's home need not survive a power cut, so nothing waits for the disk.
    """

    def __init__(self, home: Path, run: str) -> None:
        self._file, self._policy = home / "replies" / run, home / FILE

    def keep(self, question: str, reply: bytes) -> None:
        """Keep the reply to a question in place of the one before, and the newest of other runs. Raises OSError."""
        head = f"{question} {_digest_of(self._policy)}\n".encode()
        swap_file(self._file, head + reply)
        _trim(self._file.parent, self._file.name)

    def find(self, question: str) -> bytes | None:
        """The reply that was given to the same question under the same policy, if it is still here."""
        try:
            with self._file.open("rb") as file:
                if file.readline() != f"{question} {_digest_of(self._policy)}\n".encode():
                    return None
                return file.read()
        except FileNotFoundError:
            return None


def question_in(content: RecordDict) -> str:
    """The SHA-256 of a question: of its request, and of the manifest, which has the digests of all its tensors.

    Whether the tensors are those of the manifest is for the guard to say.
    """
    parts = [f"{name} {record.object_id}" for name, record in sorted(content.config_records.items())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _trim(folder: Path, newest: str) -> None:
    """Remove all but the newest files of a folder, where other processes of a simulation may do the same."""
    others = [path for path in folder.iterdir() if path.name != newest]
    others.sort(key=_changed)  # which a clock that was set back does not order
    for path in others[: max(0, len(others) + 1 - MOST)]:
        path.unlink(missing_ok=True)


def _changed(path: Path) -> int:
    """When it was changed, in ns; 0 if it is gone meanwhile."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _digest_of(policy: Path) -> str:
    try:
        return hashlib.sha256(policy.read_bytes()).hexdigest()
    except FileNotFoundError:
        return ""

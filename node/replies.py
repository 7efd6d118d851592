"""Replies to visits, kept for a while from just before they are let out: who asks again gets the same.

So a visit is made once, and stands once in the ledger as having left, whatever dies between the node's work and the
coordinator's commit. What the question was is told by the SHA-256 of its content; a reply is not given again once the
site's policy has changed, since it would not be the guard of today that let it out.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from flwr.app import RecordDict

from node.files import clear_leftovers, replace_file, swap_file
from node.policy_file import FILE
from protos.messages import SCORE, VISIT

MOST = 8  # the newest so many
MOST_OPEN = 64  # and of those before them, as long as the coordinator has not shown that it has what left


@dataclass(frozen=True)
class KeptReply:
    """The object tree of a reply, serialised, as hexadecimal digits, and the names of all its objects."""

    tree: str
    parts: list[str]
    policy: str  # digest of the site's policy when it was let out
    run: str
    stop: int


class Replies:
    """Files below `folder`, one per question."""

    def __init__(self, folder: Path, home: Path) -> None:
        self._folder, self._home, self._policy = folder, home, home / FILE

    @classmethod
    def of(cls, home: Path) -> "Replies":
        """Those of the node whose folder this is."""
        return cls(home / "replies", home)

    def prepare(self) -> None:
        """Make the folder and clear what a process that died left half written; nobody may be writing now."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        clear_leftovers(self._folder)

    def keep(self, question: str, tree: bytes, parts: list[str], run: str, stop: int) -> None:
        """Keep the reply to a question about a stop of a run, and of older ones only so many."""
        reply = KeptReply(tree.hex(), parts, _digest_of(self._policy), run, stop)
        replace_file(self._folder / question, json.dumps(asdict(reply)).encode())
        newer = {run}

        def over(path: Path) -> bool:
            """Whether it will hardly be asked for again; of a run only the newest may be."""
            found = self._read(path.name)
            if found is None or found.run in newer:
                return True
            newer.add(found.run)
            return _is_committed(found.run, found.stop, self._home)

        _trim(self._folder, question, over)

    def find(self, question: str) -> KeptReply | None:
        """The reply that was given to the same question under the same policy, if it is still here."""
        reply = self._read(question)
        return reply if reply is not None and reply.policy == _digest_of(self._policy) else None

    def parts(self) -> set[str]:
        """The objects that kept replies are made of."""
        found = (self.find(path.name) for path in self._folder.iterdir())
        return {part for reply in found if reply is not None for part in reply.parts}

    def _read(self, question: str) -> KeptReply | None:
        try:
            return KeptReply(**json.loads((self._folder / question).read_text()))
        except (OSError, ValueError, TypeError):
            return None


class SimulatedReplies:
    """The same in a simulation, where messages are not taken apart: the newest reply of a run, serialised, in one file.

    A simulation's home need not survive a power cut, so nothing waits for the disk.
    """

    def __init__(self, home: Path, run: str) -> None:
        self._file, self._home, self._policy = home / "replies" / run, home, home / FILE

    def keep(self, question: str, reply: bytes, stop: int) -> None:
        """Keep the reply to a question about a stop in place of the one before, and the newest of other runs.

        Raises OSError.
        """
        head = f"{question} {_digest_of(self._policy)} {stop}\n".encode()
        swap_file(self._file, head + reply)
        _trim(self._file.parent, self._file.name, self._is_over)

    def find(self, question: str) -> bytes | None:
        """The reply that was given to the same question under the same policy, if it is still here."""
        try:
            with self._file.open("rb") as file:
                if _words_of(file)[:2] != [question, _digest_of(self._policy)]:
                    return None
                return file.read()
        except FileNotFoundError:
            return None

    def _is_over(self, file: Path) -> bool:
        try:
            with file.open("rb") as opened:
                stop = int(_words_of(opened)[-1])
        except (OSError, ValueError):
            return True
        return _is_committed(file.name, stop, self._home)


def _words_of(file: BinaryIO) -> list[str]:
    """Question, digest of the policy, and stop."""
    return file.readline().rstrip(b"\n").decode("ascii", "replace").split(" ")


def question_in(content: RecordDict) -> str:
    """The SHA-256 of a question: of its request, and of the manifest, which has the digests of all its tensors.

    Whether the tensors are those of the manifest is for the guard to say.
    """
    parts = [f"{name} {record.object_id}" for name, record in sorted(content.config_records.items())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _trim(folder: Path, newest: str, over: Callable[[Path], bool]) -> None:
    """Remove all but the newest files of a folder and, of older ones, the newest that are not over.

    Other processes of a simulation may do the same.
    """
    others = [path for path in folder.iterdir() if path.name != newest]
    others.sort(key=_changed, reverse=True)  # which a clock that was set back does not order
    older = others[MOST - 1 :]
    open_ones = [path for path in older if not over(path)]
    for path in set(older).difference(open_ones[:MOST_OPEN]):
        path.unlink(missing_ok=True)


def _is_committed(run: str, stop: int, home: Path) -> bool:
    """Whether the coordinator has asked since for what it asks for only once it has what left at a stop of a run.

    That are scores of the model after that stop, and a visit at a later one. No, where the ledger cannot be asked.
    """
    from sqlalchemy import and_, or_, select  # not needed while a node is idle, and would stay in its memory
    from sqlalchemy.exc import SQLAlchemyError

    from node.database import open_database
    from node.ledger import Direction, Entry, Verdict

    later = or_(
        and_(Entry.message_type == SCORE, Entry.stop >= stop), and_(Entry.message_type == VISIT, Entry.stop > stop)
    )
    asked = select(Entry.seq).where(
        Entry.run == run, Entry.direction == str(Direction.IN), Entry.verdict == str(Verdict.ALLOWED), later
    )
    try:
        with open_database(home).connect() as connection:
            return connection.execute(asked.limit(1)).first() is not None
    except (SQLAlchemyError, OSError):
        return False


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

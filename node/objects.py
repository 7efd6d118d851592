"""The pieces that messages are taken apart into, on the node's disk: each a file under the SHA-256 of its content.

They are parts of handovers, not data of patients. What has arrived or left once is not sent again: the model that a
site has just returned is there when it comes back to be scored.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from node.files import clear_leftovers, replace_file

_IDENTITY = re.compile(r"[0-9a-f]{64}")


class Damaged(Exception):
    """An object's content is not what its name says; one sentence."""


class Keeper(Protocol):
    """What takes objects in."""

    def put(self, identity: str, content: bytes) -> None:
        """Keep an object."""


class Loose:
    """Objects that the disk has no room for, in memory: those of a reply that is an error, which are small."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}

    def put(self, identity: str, content: bytes) -> None:
        """Keep an object."""
        self.contents[identity] = content


class Objects:
    """Files below `folder`, at most `budget` bytes of them once a message has been dealt with."""

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder = folder
        self._budget = budget

    def prepare(self) -> None:
        """Make the folder and clear what a process that died left half written; nobody may be writing now."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        clear_leftovers(self.folder)

    def holds(self, identity: str) -> bool:
        """Whether the object is here already; it then counts as used just now."""
        path = self._path(identity)
        if not path.exists():
            return False
        path.touch()
        return True

    def put(self, identity: str, content: bytes) -> None:
        """Keep an object; raises Damaged when it is not what its name says."""
        if hashlib.sha256(content).hexdigest() != identity:
            raise Damaged("An object that arrived differs from its name: it was damaged or altered on the way.")
        if not self._path(identity).exists():
            replace_file(self._path(identity), content)

    def get(self, identity: str) -> bytes:
        """The object's content; raises Damaged when the file is missing or was changed."""
        try:
            content = self._path(identity).read_bytes()
        except FileNotFoundError as error:
            raise Damaged("An object that arrived is no longer on the node's disk.") from error
        if hashlib.sha256(content).hexdigest() != identity:
            self._path(identity).unlink(missing_ok=True)
            raise Damaged("An object on the node's disk was changed; it will be fetched anew.")
        return content

    def trim(self, needed: Iterable[str] = ()) -> None:
        """Remove what was used longest ago until the rest is within the budget, but nothing that is needed now."""
        spared = set(needed)
        found = sorted((entry.stat().st_mtime_ns, entry.stat().st_size, entry) for entry in self.folder.iterdir())
        total = sum(size for _, size, _ in found)
        for _, size, path in found:
            if total <= self._budget:
                break
            if path.name not in spared:
                path.unlink(missing_ok=True)
                total -= size

    def _path(self, identity: str) -> Path:
        if not _IDENTITY.fullmatch(identity):
            raise Damaged("An object's name is no SHA-256.")
        return self.folder / identity

"""Where a site's memory lies: copies of cases below `memory/` in the node's home, so that they outlast the archive.

A case is one safetensors file under the SHA-256 of its bytes, shared by all runs that keep it. What one run keeps
stands in an index, which is written last, and changed only where the site's own people have a case forgotten.
"""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from node.files import clear_leftovers, replace_file, sync_folder
from protos.plan import Record, Split
from protos.refusals import Refusal, RefusalCode


class Kept(Record):
    """A case that a run keeps, or kept until `forgotten`."""

    case: str  # its name, for the site's own people; empty once it is forgotten
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    forgotten: datetime | None = None


class Index(Record):
    """What one run keeps, in the order of its samples, since when, and by which split these were training cases.

    `tables` is node.data.splits.tables_digest at that time.
    """

    kept: datetime
    split: Split
    tables: str
    cases: tuple[Kept, ...]


class MemoryStore:
    """The memory of the node at `home`; a Refusal (MEMORY) says for the site's own log what is wrong with it."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._folder = home / "memory"
        self._cases = self._folder / "cases"

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold off other processes that write; what one that died left half written is cleared away."""
        for made in (self._folder, self._cases):  # the mode is that of the last one made
            made.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            clear_leftovers(self._folder)
            clear_leftovers(self._cases)
            yield
        finally:
            os.close(handle)

    def runs(self) -> list[str]:
        """The runs that keep cases, sorted."""
        return sorted(path.stem for path in self._folder.glob("*.json"))

    def keeps(self, run: str) -> bool:
        """Whether the run has an index."""
        return self._path(run).exists()

    def index(self, run: str) -> Index:
        """What the run keeps; raises Refusal (MEMORY) when that is not known."""
        path = self._path(run)
        try:
            return Index.model_validate_json(path.read_bytes())
        except FileNotFoundError as error:
            raise unusable(path, "is missing") from error
        except (ValidationError, OSError) as error:
            raise unusable(path, "is damaged") from error

    def write(self, run: str, index: Index) -> None:
        """Write what the run keeps, once its cases are there; on the disk when this returns."""
        sync_folder(self._cases)
        replace_file(self._path(run), index.model_dump_json().encode())
        sync_folder(self._folder)
        sync_folder(self._home)

    def put(self, data: bytes) -> str:
        """Keep a case's bytes and return their SHA-256."""
        digest = hashlib.sha256(data).hexdigest()
        if not (path := self._case(digest)).exists():
            replace_file(path, data)
        return digest

    def check_there(self, index: Index) -> None:
        """Raise Refusal (MEMORY) if the file of a kept case is gone; cheap, so that a removal holds at once."""
        for kept in index.cases:
            if kept.forgotten is not None:
                raise unusable(self._case(kept.sha256), f"was forgotten on {kept.forgotten:%Y-%m-%d}", remedy="")
            if not self._case(kept.sha256).is_file():
                raise unusable(self._case(kept.sha256), "is missing")

    def read(self, kept: Kept) -> bytes:
        """A kept case's bytes; raises Refusal (MEMORY) when they are not those that were kept."""
        path = self._case(kept.sha256)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise unusable(path, f"cannot be read ({type(error).__name__})") from error
        if hashlib.sha256(data).hexdigest() != kept.sha256:
            raise unusable(path, "is damaged")
        return data

    def forget(self, case: str) -> tuple[list[str], list[Refusal]]:
        """Remove a case's files for all runs; return the runs that kept it, and the indexes that could not be read.

        Its name leaves the indexes, where the day stays. Done again after a crash, it ends what was begun.
        """
        with self.writing():
            indexes, unread = {}, []
            for run in self.runs():
                try:
                    indexes[run] = self.index(run)
                except Refusal as refusal:
                    unread.append(refusal)
            files = {kept.sha256 for index in indexes.values() for kept in index.cases if kept.case == case}
            for digest in files:
                self._case(digest).unlink(missing_ok=True)
            now = datetime.now(UTC)
            runs = [run for run, index in indexes.items() if any(kept.sha256 in files for kept in index.cases)]
            for run in runs:
                cases = (
                    kept.model_copy(update={"case": "", "forgotten": now}) if kept.sha256 in files else kept
                    for kept in indexes[run].cases
                )
                self.write(run, indexes[run].model_copy(update={"cases": tuple(cases)}))
        return runs, unread

    def _path(self, run: str) -> Path:
        return self._folder / f"{run}.json"

    def _case(self, digest: str) -> Path:
        return self._cases / f"{digest}.safetensors"


def unusable(path: Path, why: str, remedy: str = "restore it from a backup, or ") -> Refusal:
    """The refusal of a memory that may not be rehearsed on, in one sentence."""
    otherwise = "let the coordinator begin the run anew or skip this site's rehearsal."
    return Refusal(RefusalCode.MEMORY, f"The site's memory {path} {why}; {remedy}{otherwise}")

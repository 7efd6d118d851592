"""Files of a node's own that are whole whatever dies: written, synced, renamed."""

import errno
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_NEW = ".new-"  # begins the name of a file that is being written


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` to `path`, for its owner only, in a folder that is made if need be.

    A crash leaves the old file or the new one; the rename itself is on the disk after `sync_folder`. Raises OSError,
    which names `path`; half a file is not left behind then.
    """
    with _in_place_of(path) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def swap_file(path: Path, data: bytes) -> None:
    """As `replace_file`, but whole only as long as the machine runs: nothing waits for the disk."""
    with _in_place_of(path) as file:
        file.write(data)


@contextmanager
def _in_place_of(path: Path) -> Iterator[IO[bytes]]:
    new = None
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=_NEW, delete=False) as file:
            new = Path(file.name)
            yield file
        new.replace(path)
    except OSError as error:
        if new is not None:
            new.unlink(missing_ok=True)  # on a full disk, half a file would keep it full
        raise OSError(error.errno, error.strerror, str(path)) from error


def is_full_disk(error: BaseException) -> bool:
    """Whether an error is that a disk is full, or a database's."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    code: int = getattr(getattr(error, "orig", error), "sqlite_errorcode", None) or 0
    return code & 0xFF == sqlite3.SQLITE_FULL


def clear_leftovers(folder: Path) -> None:
    """Remove what processes that died left half written in `folder`, where nobody may be writing now."""
    for path in folder.glob(f"{_NEW}*"):
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until what was made or renamed in `folder` would survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Files of a node's own that are whole whatever dies: written, synced, renamed."""

import os
import tempfile
from pathlib import Path

_NEW = ".new-"  # begins the name of a file that is being written


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` to `path`, for its owner only, in a folder that is made if need be.

    A crash leaves the old file or the new one; the rename itself is on the disk after `sync_folder`.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=_NEW, delete=False) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(path)


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

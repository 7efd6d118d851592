"""Files of a node's own that are whole whatever dies: written, synced, renamed."""

import os
import tempfile
from pathlib import Path


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` to `path`, for its owner only, in a folder that is made if need be.

    A crash leaves the old file or the new one; the rename itself is on the disk after `sync_folder`.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    Path(file.name).replace(path)


def sync_folder(folder: Path) -> None:
    """Wait until what was made or renamed in `folder` would survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""A disk that is really full: a small tmpfs, mounted where something is to be written."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PAGE = 4096


@dataclass(frozen=True)
class Disk:
    """A tmpfs at `folder`."""

    folder: Path

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"

    def fill(self, spare: int = 0) -> None:
        """Leave no more than so many bytes."""
        self.free()
        found = os.statvfs(self.folder)
        with self._ballast.open("wb") as file:
            for _ in range(max(0, found.f_bavail - spare // PAGE)):
                file.write(bytes(PAGE))
        assert os.statvfs(self.folder).f_bavail <= spare // PAGE

    def free(self) -> None:
        """Give back what was taken."""
        self._ballast.unlink(missing_ok=True)


@contextmanager
def small_disk(folder: Path, megabytes: int = 8) -> Iterator[Disk]:
    """A disk of so many MB at `folder` while the block lasts; skips the test where nothing may be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs mount, to make a disk that can be full")
    if done.returncode != 0:
        pytest.skip(f"needs to mount a tmpfs as a disk that can be full, as root: {done.stderr.strip()}")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)

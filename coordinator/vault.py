"""The artifact vault: a folder of files addressed by the SHA-256 of their content. Written once, synced, renamed."""

import hashlib
import os
import tempfile
from pathlib import Path


class MissingArtifact(Exception):
    """An artifact that is not in the vault, or is no longer what its address says; one sentence."""


_REMEDY = "restore it from a backup, or resume its run, which makes it again."


def address_of(data: bytes) -> str:
    """Where an artifact of these bytes lies: 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


class Vault:
    """Content-addressed storage of safetensors files below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, address: str) -> Path:
        """Where the artifact of that address (64 hexadecimal digits) lies."""
        return self.folder / address[:2] / f"{address}.safetensors"

    def put(self, data: bytes) -> str:
        """Store `data` durably and return its address; a file that holds these bytes already is left as it is.

        Raises OSError, which names the artifact's file; a half of it is not left behind.
        """
        address = address_of(data)
        if self.holds(address):
            return address
        path, new = self.path(address), None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
                new = Path(file.name)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except OSError as error:
            if new is not None:
                new.unlink(missing_ok=True)  # on a full disk, half a file would keep it full
            raise OSError(error.errno, error.strerror, str(path)) from error
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself must survive a power cut
        finally:
            os.close(folder)
        return address

    def holds(self, address: str) -> bool:
        """Whether the artifact is there, and is what its address says."""
        try:
            self.get(address)
        except MissingArtifact:
            return False
        return True

    def get(self, address: str) -> bytes:
        """The artifact's bytes, checked against its address; raises MissingArtifact."""
        try:
            data = self.path(address).read_bytes()
        except FileNotFoundError as error:
            raise MissingArtifact(f"{self.path(address)}: the artifact is missing; {_REMEDY}") from error
        if address_of(data) != address:
            raise MissingArtifact(f"{self.path(address)}: the artifact is damaged; {_REMEDY}")
        return data

    def discard(self, address: str) -> None:
        """Remove an artifact that nothing refers to any more."""
        self.path(address).unlink(missing_ok=True)

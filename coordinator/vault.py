"""The artifact vault: a folder of files addressed by the SHA-256 of their content. Written once, synced, renamed."""

import hashlib
import os
import tempfile
from pathlib import Path


class MissingArtifact(Exception):
    """An artifact that is not in the vault, or is no longer what its address says; one sentence."""


class Vault:
    """Content-addressed storage of safetensors files below `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, address: str) -> Path:
        """Where the artifact of that address (64 hexadecimal digits) lies."""
        return self.folder / address[:2] / f"{address}.safetensors"

    def put(self, data: bytes) -> str:
        """Store `data` durably and return its address; storing the same bytes again changes nothing."""
        address = hashlib.sha256(data).hexdigest()
        path = self.path(address)
        if path.exists():
            return address
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself must survive a power cut
        finally:
            os.close(folder)
        return address

    def get(self, address: str) -> bytes:
        """The artifact's bytes, checked against its address; raises MissingArtifact."""
        try:
            data = self.path(address).read_bytes()
        except FileNotFoundError as error:
            raise MissingArtifact(f"{self.path(address)}: the artifact is missing; restore it.") from error
        if hashlib.sha256(data).hexdigest() != address:
            raise MissingArtifact(f"{self.path(address)}: the file was changed; restore it from a backup.")
        return data

    def discard(self, address: str) -> None:
        """Remove an artifact that nothing refers to any more."""
        self.path(address).unlink(missing_ok=True)

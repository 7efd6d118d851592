"""Which Locum is installed: its version, and one digest of all the code that a node runs.

Nothing here imports what it looks at, so that a process without PyTorch can say what it would run.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

PACKAGES = ("node", "protos", "strategies")  # the rooms whose code a node runs


@dataclass(frozen=True)
class Software:
    """Versions of Locum and PyTorch, and the SHA-256 (hexadecimal) of a node's code, see `code_digest`."""

    locum: str
    torch: str
    code: str

    @property
    def name(self) -> str:
        """Name and version."""
        return f"locum {self.locum}"


@cache
def installed() -> Software:
    """The software of this process; looked at once, so before anybody can have replaced the files it runs."""
    return Software(version("locum"), version("torch"), code_digest())


def code_digest() -> str:
    """The SHA-256 of the list, as `sha256sum` writes it, of all Python files of PACKAGES as installed, by name.

    In the folder that holds the packages, be that an installation or a clone, the same comes out of
    `find node protos strategies -name '*.py' | LC_ALL=C sort | xargs sha256sum | sha256sum`.
    """
    total = hashlib.sha256()
    for package in PACKAGES:
        spec = find_spec(package)
        assert spec is not None  # this file is in one of them, and they are installed together
        assert spec.origin is not None
        folder = Path(spec.origin).parent
        files = {f"{package}/{path.relative_to(folder).as_posix()}": path for path in folder.rglob("*.py")}
        for name in sorted(files):
            total.update(f"{hashlib.sha256(files[name].read_bytes()).hexdigest()}  {name}\n".encode())
    return total.hexdigest()

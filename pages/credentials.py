"""What people sign in with: a token that is made for the dashboard, and passwords of named persons."""

import base64
import hashlib
import hmac
import json
import os
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path

TOKEN_FILE, PEOPLE_FILE = "dashboard.token", "dashboard.people.json"  # in a home folder, unless told otherwise

_COST = {"n": 2**15, "r": 8, "p": 1, "maxmem": 2**26}  # scrypt: 32 MiB and some 50 ms per attempt
_NOBODY = (b"\0" * 16, b"\0" * 32)
SHORTEST = 10  # characters of a password


class UnusableSecret(Exception):
    """A file of secrets that cannot be used, or a password that may not be; one sentence with the remedy."""


def token_at(path: Path) -> str:
    """The token in the file at `path`, for its owner only; made if it is not there. Raises UnusableSecret."""
    try:
        if not path.exists():
            _write(path, secrets.token_urlsafe(32) + "\n")
        if path.stat().st_mode & 0o077:
            raise UnusableSecret(f"{path}: others than its owner may read it; remove it, and a new token is made.")
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableSecret(f"{path}: no token can be read from it ({error}); remove it.") from error
    if len(token) < 32:
        raise UnusableSecret(f"{path}: the token has fewer than 32 characters; remove it, and a new one is made.")
    return token


@dataclass(frozen=True)
class People:
    """Who may sign in under a name of their own: a file of salted scrypt hashes, read anew for every attempt."""

    path: Path

    def names(self) -> list[str]:
        """All of them, sorted. Raises UnusableSecret."""
        return sorted(self._read())

    def set_password(self, name: str, password: str) -> None:
        """Let `name` in with this password from now on. Raises UnusableSecret."""
        if not (name == name.strip() and 0 < len(name) <= 64 and name.isprintable()):
            raise UnusableSecret("A person's name has 1 to 64 printable characters and no space at its ends.")
        if len(password) < SHORTEST:
            raise UnusableSecret(f"A password has at least {SHORTEST} characters.")
        salt = secrets.token_bytes(16)
        self._save(self._read() | {name: (salt, _scrypt(password, salt))})

    def remove(self, name: str) -> None:
        """Let `name` in no more. Raises UnusableSecret if there is no such person."""
        people = self._read()
        if people.pop(name, None) is None:
            raise UnusableSecret(f"There is no {name!r} in {self.path}; it names {', '.join(people) or 'nobody'}.")
        self._save(people)

    def stamp(self, name: str) -> bytes | None:
        """Bytes that are others with every password that the person is given; None for a name that is not there.

        Raises UnusableSecret.
        """
        salt, key = self._read().get(name, _NOBODY)
        return salt if key != _NOBODY[1] else None

    def check(self, name: str, password: str) -> bool:
        """Whether this is the person's password; takes as long for a name that is not there."""
        salt, wanted = self._read().get(name, _NOBODY)
        return hmac.compare_digest(_scrypt(password, salt), wanted) and wanted != _NOBODY[1]

    def _read(self) -> dict[str, tuple[bytes, bytes]]:
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
            return {name: (base64.b64decode(salt), base64.b64decode(key)) for name, (salt, key) in stored.items()}
        except OSError as error:
            raise UnusableSecret(
                f"{self.path}: cannot be read ({error.strerror}); see to its owner and mode."
            ) from error
        except (ValueError, AttributeError, TypeError) as error:
            raise UnusableSecret(f"{self.path}: cannot be read ({type(error).__name__}); remove it.") from error

    def _save(self, people: dict[str, tuple[bytes, bytes]]) -> None:
        stored = {name: [base64.b64encode(part).decode() for part in pair] for name, pair in people.items()}
        try:
            _write(self.path, json.dumps(stored, indent=2) + "\n")
        except OSError as error:
            raise UnusableSecret(f"{self.path}: cannot be written ({error.strerror}); see to its folder.") from error


def _scrypt(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode("utf-8", "surrogatepass"), salt=salt, dklen=32, **_COST)


def _write(path: Path, text: str) -> None:
    """A file that is whole whatever dies, and its owner's alone from its first byte.

    Written by root it is that of the folder's owner, as whom a service runs that is to read it.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")  # mode 0600
    folder = path.parent.stat()
    if os.geteuid() == 0 and folder.st_uid != 0:
        os.chown(name, folder.st_uid, folder.st_gid)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(name).replace(path)

"""The file of a site's own policy: which it is, what it says, and by which digest what it says is known."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from protos.refusals import Refusal, RefusalCode

FILE = "policy.yaml"


@dataclass(frozen=True)
class PolicyFile:
    """A policy as it stands in the file; `text` is None where there is none, and nothing is narrowed."""

    path: Path
    text: str | None

    @classmethod
    def of(cls, home: Path) -> "PolicyFile":
        """Read `home/policy.yaml`; raises Refusal (POLICY_UNREADABLE) when it is there but no text."""
        path = home / FILE
        try:
            return cls(path, path.read_bytes().decode("utf-8"))
        except FileNotFoundError:
            if not path.is_symlink():
                return cls(path, None)
            raise unreadable(path, "is a link that leads nowhere") from None
        except (OSError, UnicodeDecodeError) as error:
            raise unreadable(path, f"cannot be read ({type(error).__name__})") from error

    @property
    def digest(self) -> str:
        """SHA-256 of the file in hexadecimal digits; nothing where there is no file."""
        return "" if self.text is None else hashlib.sha256(self.text.encode()).hexdigest()


def unreadable(path: Path, what: str) -> Refusal:
    """The refusal of everything, until the file is mended."""
    return Refusal(RefusalCode.POLICY_UNREADABLE, f"{path}: {what}.")

"""What the coordinator sends as the app of a run (Flower's FAB): it may describe an app, but hold no code.

A node runs what its site installed and nothing else, so code in a bundle would not run anyway; that somebody tries to
send it is worth a refusal and an entry in the ledger.
"""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from protos.refusals import Refusal, RefusalCode

_ALLOWED = frozenset({"pyproject.toml", ".info/CONTENT"})  # the description, and the list of files of Flower's builder
_LARGEST = 64 * 2**10

_bundle: ContextVar[bytes | None] = ContextVar("bundle", default=None)


@contextmanager
def brought(content: bytes) -> Iterator[None]:
    """Inside the block a message belongs to a run that was begun with this bundle."""
    token = _bundle.set(content)
    try:
        yield
    finally:
        _bundle.reset(token)


def check_bundle() -> None:
    """Raise Refusal (CODE) if the run's bundle holds more than a description; in process there is none."""
    content = _bundle.get()
    if content is None:
        return
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            foreign = sorted(set(archive.namelist()) - _ALLOWED)
    except zipfile.BadZipFile as error:
        raise Refusal(RefusalCode.CODE, "The run's bundle is no zip file.") from error
    if foreign or len(content) > _LARGEST:
        what = foreign[0][:80] if foreign else f"{len(content)} bytes"
        raise Refusal(RefusalCode.CODE, f"The run's bundle holds more than a description: {what!r}.")

"""What all decoders share: which files are read, how a file is named in a sentence, and that nothing but a sentence
comes out of a bad one."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from node.data.source import Unreadable

JPEGS = frozenset({".jpg", ".jpeg"})
TIFFS = frozenset({".tif", ".tiff"})
PICTURES = frozenset({".png"}) | JPEGS | TIFFS
VOLUMES = frozenset({".nii", ".nii.gz"})
READ = PICTURES | VOLUMES

# A header can claim any size; beyond these a file is refused before memory is asked for.
MAX_PIXELS = 2**27
MAX_VOXELS = 2**30

# Both libraries log what they think of a file's header; what matters of it is in our own sentences.
for _chatty in ("nibabel.global", "tifffile"):
    logging.getLogger(_chatty).setLevel(logging.CRITICAL + 1)


def base_and_suffix(name: str) -> tuple[str, str]:
    """Split a file name; the suffix is in small letters and `.nii.gz` is one suffix."""
    path = Path(name)
    if path.suffix.lower() == ".gz":
        inner = Path(path.stem)
        return inner.stem, (inner.suffix + path.suffix).lower()
    return path.stem, path.suffix.lower()


def shown(path: Path) -> str:
    """The file with its folder, as sentences name it."""
    return f"{path.parent.name}/{path.name}"


def is_dicom(path: Path) -> bool:
    """Whether a regular file is DICOM, by its suffix or its signature."""
    if path.suffix.lower() in {".dcm", ".dicom", ".ima"}:
        return True
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Decode `path` in silence: whatever a library raises comes out as Unreadable, in one sentence.

    Decoders meet files nobody foresaw, so every Exception is caught here, not only those they are known to raise.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if path.stat().st_size == 0:
                raise Unreadable(f"{shown(path)} is empty; copy it again from where it came from.")
            yield
        except Unreadable:
            raise
        except Exception as error:
            raise Unreadable(f"{shown(path)} {_reason(path, error)}.") from error


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be opened ({error.strerror}); check that it is there and that this user may read it"
    if is_dicom(path):
        return "is a DICOM file, which Locum does not read; convert the series to NIfTI, for example with dcm2niix"
    if isinstance(error, MemoryError):
        return "needs more memory than there is; crop it or reduce its resolution"
    if isinstance(error, EOFError):
        return "ends too early, so it was cut off; copy it again from where it came from"
    said = " ".join(str(error).replace(str(path), path.name).split()).rstrip(".")
    detail = type(error).__name__ + (f": {said[:120]}" if said else "")
    return f"cannot be decoded as {base_and_suffix(path.name)[1]} ({detail}); export or copy it again"

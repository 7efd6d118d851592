"""Updates under the site's policy: the noise that only this site can compute, and the checks on what leaves.

strategies/privacy.py clips and adds the noise; node/privacy.py says what was asked and what all releases come to.
"""

import hashlib
import hmac
import os
import secrets
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from node.files import sync_folder
from protos.handover import UPDATE, Handover
from protos.messages import Request
from protos.refusals import Refusal, RefusalCode

KEY_FILE = "noise.key"
_KEY_BYTES = 32


def check_protected(handover: Handover, metrics: Mapping[str, int | float], released: Handover | None) -> None:
    """Raise Refusal (UNPROTECTED) if an update leaves otherwise than as it was released, or beside what it hides.

    `released` is strategies.privacy.Privacy's. Metrics but the number of samples would tell of the same samples.
    """
    if not any(name.startswith(UPDATE) for _, name, _ in handover.items()):
        return
    made = {} if released is None else {f"{UPDATE}{name}": tensor for name, tensor in released.weights.items()}
    if handover != Handover(weights=made):
        raise Refusal(RefusalCode.UNPROTECTED, "The update is not as it was clipped and noised.")
    if others := sorted(metrics.keys() - {"samples"}):
        raise Refusal(RefusalCode.UNPROTECTED, f"With the update would leave {', '.join(others)}, unprotected.")


class SiteNoise:
    """The noise of one request, which only this site can compute; see strategies.privacy.Normal.

    It follows from a key that never leaves the site, the request with its handover, and what is to be hidden, so that
    an update computed again, after a crash or in another run of the same scenario, is the same bits and tells nothing
    new.
    """

    def __init__(self, home: Path, request: Request, handover: Handover) -> None:
        self._home = home
        asked = request.model_dump_json(exclude={"run"})  # whose name is chance
        self._asked = hashlib.sha256(asked.encode() + handover.digest()).digest()

    def __call__(self, digest: bytes, length: int) -> NDArray[np.float64]:
        """Standard normal numbers [length]: SHAKE-256, a cryptographic stream, through the inverse normal."""
        seed = hmac.digest(noise_key(self._home), self._asked + digest, "sha256")
        words = np.frombuffer(hashlib.shake_256(seed).digest(8 * length), "<u8")
        # the middles of 2**52 equal parts of (0, 1): neither end is among them
        normal: NDArray[np.float64] = ndtri(((words >> np.uint64(12)) + 0.5) / 2.0**52)
        return normal


def noise_key(home: Path) -> bytes:
    """The site's key, made on first use, for its owner only: whoever has it can take the noise off again.

    Not in the database, which people may hand on so that somebody else verifies the ledger. Raises ValueError when the
    file holds no key.
    """
    path = home / KEY_FILE
    if not path.exists():
        with tempfile.NamedTemporaryFile(dir=home, prefix=".new-") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
            with suppress(FileExistsError):  # another process of this node was first
                path.hardlink_to(file.name)
        sync_folder(home)
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise ValueError(f"{path} holds no key; delete it, and the node makes a new one.")
    return key

"""A node's own key, by which the coordinator knows its site: made here, and the private half never leaves."""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from node.files import replace_file


class UnusableKey(ValueError):
    """The node's key file cannot be read; one sentence."""


def make_key(path: Path) -> Path:
    """A new key (EC P-384, OpenSSH) at `path`, for its owner's eyes only, unless there is one; returns its public half.

    The public half lies beside it, its name ending in `.pub`. Raises OSError and UnusableKey.
    """
    if not path.exists():
        key = ec.generate_private_key(ec.SECP384R1())
        replace_file(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = path.with_name(f"{path.name}.pub")
    if not public.exists():
        half = read_key(path).public_key()
        replace_file(public, half.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n")
        public.chmod(0o644)
    return public


def read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The private key at `path`; raises UnusableKey."""
    try:
        key = load_ssh_private_key(path.read_bytes(), None)
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        raise UnusableKey(
            f"{path}: no private key can be read there; make one with `locum-node key {path}`."
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UnusableKey(f"{path}: not an elliptic curve key; make one with `locum-node key` under another name.")
    return key

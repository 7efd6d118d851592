"""Certificates of a deployment: an authority of its own and the server's certificate; nodes make their keys themselves.

What is there already is kept, so that a second call changes nothing. Private keys are readable by their owner alone.
"""

import ipaddress
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_AUTHORITY_DAYS = 3650
_SERVER_DAYS = 825  # what browsers and TLS libraries accept at most
_RENEW_DAYS = 30  # a certificate that ends sooner is made anew
_CLOCKS_DIFFER = timedelta(days=2)  # so far behind, or set back, a clock may be that is shown a new certificate


class UnusableKey(ValueError):
    """A file that should hold a key or a certificate does not; one sentence."""


@dataclass(frozen=True)
class ServerKeys:
    """The files that a server of the deployment needs."""

    authority: Path
    certificate: Path
    key: Path


def server_keys(folder: Path, names: Sequence[str], authority: Path | None = None) -> ServerKeys:
    """The certificate of a server that answers to `names` (host names and addresses), signed by an authority.

    Files: `ca.crt`, which every node gets, and `ca.key`, which nobody gets, in the folder `authority` (default:
    `folder`), where they are made if need be; `server.crt` and `server.key` in `folder`. The certificate is made anew
    when it soon ends or does not hold all the names. Raises UnusableKey and OSError.
    """
    authority = authority or folder
    for place in (authority, folder):
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    keys = ServerKeys(authority / "ca.crt", folder / "server.crt", folder / "server.key")
    authority_key = _authority(authority)
    if not (keys.key.exists() and _serves(keys, names)):
        key = ec.generate_private_key(ec.SECP256R1())
        issuer = _certificate(keys.authority).subject
        builder = (
            _builder("locum coordinator", issuer, key, _SERVER_DAYS)
            .add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), False)
        )
        write_private(keys.key, _pem(key))
        _write(keys.certificate, builder.sign(authority_key, hashes.SHA256()).public_bytes(Encoding.PEM))
    return keys


def public_key(path: Path) -> bytes:
    """A node's public key, from an OpenSSH file or a PEM one, as Flower takes it (PEM). Raises UnusableKey."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UnusableKey(_no_key(str(path))) from error
    return parse_public_key(content, str(path))


def parse_public_key(content: bytes, source: str) -> bytes:
    """Like `public_key`, from a file's content; `source` names it in what UnusableKey says."""
    try:
        key = load_pem_public_key(content) if content.startswith(b"-----BEGIN") else load_ssh_public_key(content)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UnusableKey(_no_key(source)) from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise UnusableKey(f"{source}: a node's key is an elliptic curve key; make one with `locum-node key FILE`.")
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _no_key(source: str) -> str:
    return f"{source}: no public key can be read there; give the node's file that ends in .pub."


def secret(path: Path) -> Path:
    """A file of chance that only its owner can read: what the executor shows the SuperLink."""
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, secrets.token_urlsafe(48).encode())
    return path


def write_private(path: Path, content: bytes) -> None:
    """Write a file that nobody but its owner can read, whole or not at all."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
    temporary.replace(path)


def _authority(folder: Path) -> ec.EllipticCurvePrivateKey:
    path = folder / "ca.key"
    if path.exists():
        try:
            found = load_pem_private_key(path.read_bytes(), None)
        except (OSError, ValueError) as error:
            raise UnusableKey(
                f"{path}: the authority's key cannot be read; restore it, or remove the folder."
            ) from error
        if not isinstance(found, ec.EllipticCurvePrivateKey):
            raise UnusableKey(f"{path}: the authority's key is of another kind; restore it, or remove the folder.")
        _check_clock(folder / "ca.crt")
        return found
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "locum authority")])
    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    builder = (
        _builder("locum authority", subject, key, _AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    _write(folder / "ca.crt", builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    write_private(path, _pem(key))
    return key


def _check_clock(path: Path) -> None:
    """By a clock that is years off no connection comes about, and nothing would say why."""
    authority, now = _certificate(path), datetime.now(UTC)
    if not authority.not_valid_before_utc <= now <= authority.not_valid_after_utc:
        when = "is not valid yet" if now < authority.not_valid_before_utc else "has expired"
        raise UnusableKey(
            f"{path}: by this machine's clock ({now:%Y-%m-%d %H:%M} UTC) the authority's certificate {when}; set the "
            "clock right, or remove the folder, after which every node needs the new ca.crt."
        )


def _builder(name: str, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCKS_DIFFER)
        .not_valid_after(now + timedelta(days=days))
    )


def _serves(keys: ServerKeys, names: Sequence[str]) -> bool:
    """Whether the certificate holds all the names, is this authority's and lasts."""
    if not keys.certificate.exists():
        return False
    certificate = _certificate(keys.certificate)
    held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    lasts = certificate.not_valid_after_utc > datetime.now(UTC) + timedelta(days=_RENEW_DAYS)
    try:
        certificate.verify_directly_issued_by(_certificate(keys.authority))
    except Exception:  # cryptography raises by kind of signature
        return False
    return lasts and all(_name(name) in held for name in names)


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UnusableKey(f"{path}: no certificate can be read there; restore it, or remove the folder.") from error


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o644)

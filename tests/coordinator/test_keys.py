"""A deployment's certificates: an authority of its own, kept, and a server's certificate made anew when it must be."""

import ssl
from pathlib import Path

import pytest
from cryptography import x509

from coordinator.keys import UnusableKey, public_key, secret, server_keys
from node.keys import make_key

NAMES = ("127.0.0.1", "localhost", "gateway")


def test_the_certificate_is_the_authoritys_and_holds_the_names(tmp_path: Path) -> None:
    keys = server_keys(tmp_path, NAMES)
    ssl.create_default_context(cafile=str(keys.authority))
    certificate = x509.load_pem_x509_certificate(keys.certificate.read_bytes())
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(keys.authority.read_bytes()))
    held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert held.get_values_for_type(x509.DNSName) == ["localhost", "gateway"]
    assert [str(address) for address in held.get_values_for_type(x509.IPAddress)] == ["127.0.0.1"]


def test_private_keys_are_their_owners_alone(tmp_path: Path) -> None:
    server_keys(tmp_path, NAMES)
    secret(tmp_path / "executor.secret")
    for name in ("ca.key", "server.key", "executor.secret"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0


def test_what_is_there_is_kept_and_another_name_makes_the_certificate_anew(tmp_path: Path) -> None:
    keys = server_keys(tmp_path, NAMES)
    first = keys.authority.read_bytes(), keys.certificate.read_bytes(), secret(tmp_path / "s").read_bytes()
    assert server_keys(tmp_path, NAMES[:2]) == keys
    assert (keys.authority.read_bytes(), keys.certificate.read_bytes(), secret(tmp_path / "s").read_bytes()) == first
    server_keys(tmp_path, (*NAMES, "coordinator.example"))
    assert keys.authority.read_bytes() == first[0]
    assert keys.certificate.read_bytes() != first[1]


def test_a_certificate_of_another_authority_is_replaced(tmp_path: Path) -> None:
    keys, others = server_keys(tmp_path / "a", NAMES), server_keys(tmp_path / "b", NAMES)
    keys.certificate.write_bytes(others.certificate.read_bytes())
    server_keys(tmp_path / "a", NAMES)
    assert keys.certificate.read_bytes() != others.certificate.read_bytes()


def test_damaged_files_are_told_in_a_sentence(tmp_path: Path) -> None:
    server_keys(tmp_path, NAMES)
    (tmp_path / "ca.key").write_text("none")
    with pytest.raises(UnusableKey, match=r"^\S+ca\.key: the authority's key cannot be read; .*\.$"):
        server_keys(tmp_path, NAMES)


def test_a_nodes_public_key_is_read_and_nothing_else_for_one(tmp_path: Path) -> None:
    public = make_key(tmp_path / "node.key")
    assert public_key(public).startswith(b"-----BEGIN PUBLIC KEY-----")
    for path in (tmp_path / "node.key", tmp_path / "missing"):
        with pytest.raises(UnusableKey, match=r"no public key can be read there"):
            public_key(path)

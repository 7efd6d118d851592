"""The gateway's certificate: trusted by who trusts the authority, and worth nothing beyond the gateway's names."""

import ssl
from pathlib import Path

import pytest

from coordinator.gateway import gateway_keys
from coordinator.keys import ServerKeys, server_keys


def shake_hands(server: ServerKeys, authority: Path, name: str) -> None:
    """A TLS handshake in memory, by which the client knows the server as `name`; raises ssl.SSLError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server.certificate, server.key)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    trusting = ssl.create_default_context(cafile=str(authority))
    client = trusting.wrap_bio(to_client, to_server, server_hostname=name)
    other = context.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, other, client, other):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    server_keys(tmp_path / "keys", ["coordinator", "localhost"])
    return tmp_path / "keys"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_nodes_that_trust_the_authority_trust_the_gateway_by_its_names_alone(keys: Path, tmp_path: Path) -> None:
    gateway = gateway_keys(keys, tmp_path / "gateway", ["gateway", "192.0.2.7"])
    for name in ("gateway", "192.0.2.7"):
        shake_hands(gateway, keys / "ca.crt", name)
    for name in ("coordinator", "localhost"):
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(gateway, keys / "ca.crt", name)


def test_the_gateway_gets_a_key_of_its_own_and_never_the_authoritys(keys: Path, tmp_path: Path) -> None:
    before = contents(keys)
    gateway = gateway_keys(keys, tmp_path / "gateway", ["gateway"])
    found = contents(tmp_path / "gateway")
    assert found.keys() == {"ca.crt", "server.crt", "server.key"}
    assert not {before["ca.key"], before["server.key"]} & set(found.values())
    assert gateway.key.stat().st_mode & 0o777 == 0o600
    assert contents(keys) == before


def test_what_is_there_is_kept_until_another_name_is_wanted(keys: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gateway"
    gateway_keys(keys, folder, ["gateway"])
    before = contents(folder)
    gateway_keys(keys, folder, ["gateway"])
    assert contents(folder) == before
    renewed = gateway_keys(keys, folder, ["gateway", "locum.example.org"])
    assert contents(folder) != before
    shake_hands(renewed, keys / "ca.crt", "locum.example.org")


def test_the_authority_is_made_where_there_is_none(tmp_path: Path) -> None:
    gateway = gateway_keys(tmp_path / "keys", tmp_path / "gateway", ["gateway"])
    shake_hands(gateway, server_keys(tmp_path / "keys", ["coordinator"]).authority, "gateway")

"""The vault: an artifact is there whole or not at all, and is what its address says."""

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.vault import MissingArtifact, Vault


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "vault")


def artifacts(vault: Vault) -> list[Path]:
    return sorted(vault.folder.rglob("*.safetensors"))


@given(st.lists(st.binary(max_size=200), max_size=6))
@settings(max_examples=30)
def test_everything_put_comes_back_and_equal_bytes_are_one_file(tmp_path_factory, contents):
    vault = Vault(tmp_path_factory.mktemp("vault"))
    addresses = [vault.put(data) for data in contents]
    assert [vault.get(address) for address in addresses] == contents
    assert addresses == [hashlib.sha256(data).hexdigest() for data in contents]
    assert len(artifacts(vault)) == len(set(contents))


def test_storing_the_same_bytes_again_leaves_the_file_untouched(vault):
    address = vault.put(b"weights")
    before = vault.path(address).stat()
    assert vault.put(b"weights") == address
    after = vault.path(address).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_crash_before_the_rename_leaves_no_artifact(vault, monkeypatch, call):
    """The process may die at either call; whatever it leaves does not count as an artifact."""

    class Killed(BaseException):
        pass

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, call, die)
        with pytest.raises(Killed):
            vault.put(b"weights")
    address = hashlib.sha256(b"weights").hexdigest()
    assert artifacts(vault) == []
    with pytest.raises(MissingArtifact):
        vault.get(address)
    assert vault.put(b"weights") == address
    assert vault.get(address) == b"weights"


def test_the_file_and_its_folder_are_synced_around_the_rename(vault, monkeypatch):
    calls: list[str] = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, real=real, name=name, **kw: (calls.append(name), real(*args, **kw)))
    vault.put(b"weights")
    assert calls == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"W" + data[1:], lambda data: b""])
def test_a_changed_file_is_never_handed_out(vault, damage):
    address = vault.put(b"weights")
    path = vault.path(address)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(MissingArtifact, match="is damaged; restore it") as caught:
        vault.get(address)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(vault):
    address = "0" * 64
    with pytest.raises(MissingArtifact, match="is missing") as caught:
        vault.get(address)
    assert str(vault.path(address)) in str(caught.value)


def test_discarding_twice_is_no_fault(vault):
    address = vault.put(b"state of a round")
    vault.discard(address)
    vault.discard(address)
    assert artifacts(vault) == []

import os
import stat
from pathlib import Path

import pytest

from pages import access
from pages.access import MOST_IN_ALL, MOST_SESSIONS, Access, Guesses, TooManyGuesses
from pages.credentials import People, UnusableSecret, token_at

TOKEN = "t" * 43


def test_a_token_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "home" / "dashboard.token"
    token = token_at(path)
    assert len(token) >= 43
    assert token_at(path) == token != token_at(tmp_path / "other")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    with pytest.raises(UnusableSecret, match="others than its owner may read it"):
        token_at(path)


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 40])
def test_a_token_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(UnusableSecret, match=r"remove it"):
        token_at(path)


def test_passwords_are_kept_as_hashes(tmp_path: Path) -> None:
    people = People(tmp_path / "people.json")
    people.set_password("Ada", "correct horse")
    people.set_password("Eve", "correct horse")
    kept = people.path.read_text()
    assert "correct" not in kept
    assert len(set(kept.split('"'))) > 6  # equal passwords, unequal hashes
    assert stat.S_IMODE(people.path.stat().st_mode) == 0o600
    assert people.check("Ada", "correct horse")
    assert not people.check("Ada", "Correct horse")
    assert not people.check("Bob", "correct horse")
    assert not people.check("Bob", "")
    people.remove("Ada")
    assert people.names() == ["Eve"]
    assert not people.check("Ada", "correct horse")
    with pytest.raises(UnusableSecret, match="Eve"):
        people.remove("Ada")


def test_what_root_writes_is_for_who_the_folder_belongs_to(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path, 4242, 4343)
    token_at(tmp_path / "dashboard.token")
    People(tmp_path / "people.json").set_password("Ada", "correct horse")
    for path in tmp_path.iterdir():
        assert (path.stat().st_uid, path.stat().st_gid) == (tmp_path.stat().st_uid, tmp_path.stat().st_gid)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("name", "password"), [("", "long enough"), (" a", "long enough"), ("a\n", "long enough"), ("a", "short")]
)
def test_bad_names_and_passwords_are_refused(tmp_path: Path, name: str, password: str) -> None:
    with pytest.raises(UnusableSecret):
        People(tmp_path / "people.json").set_password(name, password)


def test_a_place_that_cannot_be_written_is_said_to_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UnusableSecret, match="cannot be written"):
        People(tmp_path / "file" / "people.json").set_password("Ada", "correct horse")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}', '{"a": ["!", "?", "x"]}'])
def test_a_damaged_file_of_people_lets_nobody_in(tmp_path: Path, content: str) -> None:
    (tmp_path / "people.json").write_text(content)
    with pytest.raises(UnusableSecret, match="remove it"):
        People(tmp_path / "people.json").check("a", "b")


def test_sessions_end_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Access(TOKEN)
    opened = door.sign_in("here", "Ada", TOKEN)
    assert opened is not None
    key, session = opened
    assert door.session(key) == session
    assert door.session(key + "x") is None
    assert key not in repr(door.__dict__)
    now = access.time.monotonic()
    monkeypatch.setattr(access.time, "monotonic", lambda: now + access.LASTS_SECONDS + 1)
    assert session.over
    assert door.session(key) is None
    monkeypatch.undo()
    first = door.sign_in("here", "", TOKEN)
    for _ in range(MOST_SESSIONS):
        door.sign_in("here", "", TOKEN)
    assert first is not None
    assert door.session(first[0]) is None


def test_a_persons_sessions_end_with_their_password(tmp_path: Path) -> None:
    people = People(tmp_path / "people.json")
    people.set_password("Ada", "correct horse")
    people.set_password("Eve", "correct horse")
    door = Access(TOKEN, people)

    def opened(name: str, secret: str) -> str:
        found = door.sign_in("here", name, secret)
        assert found is not None
        return found[0]

    ada, eve, token = opened("Ada", "correct horse"), opened("Eve", "correct horse"), opened("Ada", TOKEN)
    session = door.session(ada)
    assert session is not None
    assert (session.signed("Bob"), session.signed("")) == ("Ada", "Ada")
    stated = door.session(token)
    assert stated is not None
    assert (stated.signed("Bob"), stated.signed("")) == ("Bob (name stated)", "")
    people.set_password("Ada", "another horse")
    assert (door.session(ada), door.session(token)) == (None, stated)
    ada = opened("Ada", "another horse")
    people.remove("Ada")
    assert door.session(ada) is None
    people.set_password("Ada", "another horse")
    assert door.session(ada) is None
    assert door.session(eve) is not None
    people.path.write_text("{")
    assert door.session(eve) is None
    assert door.session(token) == stated


def test_all_addresses_together_are_slowed_down_too(monkeypatch: pytest.MonkeyPatch) -> None:
    door = Access(TOKEN)
    for number in range(MOST_IN_ALL):
        assert not door.bearer(f"10.0.0.{number}", "wrong")
    with pytest.raises(TooManyGuesses):
        door.bearer("10.0.1.1", TOKEN)
    now = access.time.monotonic()
    monkeypatch.setattr(access.time, "monotonic", lambda: now + access.WINDOW_SECONDS + 1)
    assert door.bearer("10.0.1.1", TOKEN)


def test_addresses_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "_MOST_ADDRESSES", 3)
    guesses = Guesses()
    for number in range(9):
        guesses.failed(str(number))
    assert len(guesses._by_address) == 3

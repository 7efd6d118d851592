"""A real server on a real port: what is live, where it may listen, and that it ends."""

import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from pages import live
from pages.credentials import People
from pages.serving import Address, CannotListen, Server
from tests.pages.demo import TOKEN, csrf, demo_app

STATE = {"counter": 1, "other": 1}
SHOWN = {"authorization": f"Bearer {TOKEN}"}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = Server(demo_app(state=STATE), Address())
    yield server.start()
    server.stop()


@pytest.fixture
def asked(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, headers=SHOWN, timeout=60) as found:
        yield found


def until(lines: Iterator[str], wanted: str) -> list[str]:
    """The lines up to the wanted one, without blank ones."""
    seen: list[str] = []
    while wanted not in seen:
        if line := next(lines):
            seen.append(line)
    return seen


def test_listeners_hear_which_topic_changed_and_no_other(asked: httpx.Client) -> None:
    with asked.stream("GET", "/live") as first, asked.stream("GET", "/live") as second:
        assert first.headers["content-type"].startswith("text/event-stream")
        assert first.headers["cache-control"] == "no-store"
        streams = [first.iter_lines(), second.iter_lines()]
        for lines in streams:
            assert until(lines, "event: other")[:2] == [f"retry: {live.RETRY_MILLISECONDS}", "event: counter"]
            until(lines, "data: changed")
        for number in range(2, 4):
            STATE["counter"] = number
            for lines in streams:
                assert until(lines, "event: counter") == ["event: counter"]
                assert until(lines, "data: changed") == ["data: changed"]


def test_quiet_streams_show_that_they_live(asked: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "HEARTBEAT_SECONDS", 0.05)
    with asked.stream("GET", "/live") as stream:
        lines = stream.iter_lines()
        until(lines, ": still here")
        until(lines, ": still here")


def test_listeners_are_bounded_and_those_who_left_do_not_count(
    asked: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "MOST_LISTENERS", 1)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # until those of the tests before are seen to be gone
        with asked.stream("GET", "/live") as stream:
            if stream.status_code == 200:
                assert asked.get("/live").status_code == 503
                return
        time.sleep(0.05)
    pytest.fail("those who left still count")


@pytest.mark.parametrize("way", ["removed", "signed out"])
def test_the_stream_of_somebody_who_is_let_in_no_more_ends_and_tells_nothing_more(way: str, tmp_path: Path) -> None:
    people, state = People(tmp_path / "people.json"), {"counter": 1}
    people.set_password("Ada", "a good password")
    server = Server(demo_app(state=state, people=people), Address())
    try:
        with httpx.Client(base_url=server.start(), timeout=60) as asked:
            assert asked.post("/sign-in", data={"name": "Ada", "secret": "a good password"}).status_code == 303
            page = asked.get("/").text
            with asked.stream("GET", "/live") as stream:
                lines = stream.iter_lines()
                until(lines, "data: changed")
                if way == "removed":
                    people.remove("Ada")
                else:
                    assert asked.post("/sign-out", data={"csrf": csrf(page)}).status_code == 303
                state["counter"] = 2
                assert not any(lines)  # and so it comes to an end
    finally:
        server.stop()


def test_a_server_ends_although_somebody_listens() -> None:
    server = Server(demo_app(state=STATE), Address())
    address = server.start()
    with httpx.stream("GET", f"{address}/live", headers=SHOWN, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        server.stop()
        for _ in lines:
            pass


def test_a_port_in_use_is_said(address: str) -> None:
    port = int(address.rpartition(":")[2])
    with pytest.raises(CannotListen, match=f"127.0.0.1:{port} cannot be listened at"):
        Server(demo_app(), Address(port=port)).start()


def test_only_loopback_goes_without_token_and_without_tls(tmp_path: Path) -> None:
    file = tmp_path / "file.pem"
    file.touch()
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        Address(host).check(signs_in=False)
    for host in ("0.0.0.0", "::", "10.0.0.1", "locum.example"):
        with pytest.raises(CannotListen, match="--no-token"):
            Address(host, certificate=file, key=file).check(signs_in=False)
        with pytest.raises(CannotListen, match="--certificate and --key"):
            Address(host).check(signs_in=True)
        Address(host, certificate=file, key=file).check(signs_in=True)
        Address(host, plain=True).check(signs_in=True)
    with pytest.raises(CannotListen, match="give both"):
        Address(certificate=file).check(signs_in=True)
    with pytest.raises(CannotListen, match="there is no file"):
        Address(certificate=file, key=tmp_path / "none").check(signs_in=True)


def test_with_a_certificate_it_speaks_tls(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    server = Server(demo_app(), Address(certificate=certificate, key=key))
    address = server.start()
    try:
        trust = ssl.create_default_context(cafile=str(certificate))
        assert address.startswith("https://")
        assert httpx.get(f"{address}/health", verify=trust).json() == {"status": "ok"}
    finally:
        server.stop()

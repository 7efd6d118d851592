"""A dashboard is closed by default: what is refused, what every answer carries, and that nothing inside shows."""

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from pages.access import MOST_PER_ADDRESS
from pages.credentials import People
from tests.pages.demo import COOKIE, TOKEN, client, csrf, demo_app, signed_in

HTML = {"accept": "text/html"}


@pytest.fixture
def app() -> FastAPI:
    return demo_app()


@pytest.mark.parametrize("path", ["/", "/text?text=a", "/fault", "/nothing", "/counter"])
def test_pages_lead_to_signing_in(app: FastAPI, path: str) -> None:
    answer = client(app).get(path, headers=HTML)
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/sign-in")


@pytest.mark.parametrize("path", ["/api/number?value=1", "/api/openapi.json", "/live", "/api/nothing"])
def test_programs_are_told_to_show_the_token(app: FastAPI, path: str) -> None:
    answer = client(app).get(path)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert client(app, authorization="Bearer " + TOKEN[:-1]).get(path).status_code == 401
    if path != "/live":
        assert client(app, authorization=f"Bearer {TOKEN}").get(path).status_code in (200, 404)


def test_a_part_asked_for_without_a_session_leads_the_page_away(app: FastAPI) -> None:
    answer = client(app).get("/counter", headers={"HX-Request": "true"})
    assert (answer.status_code, answer.headers["hx-redirect"]) == (401, "/sign-in")


@pytest.mark.parametrize("path", ["/", "/sign-in", "/health", "/static/locum.css", "/nothing", "/fault", "/api/number"])
def test_every_answer_carries_the_headers(app: FastAPI, path: str) -> None:
    for asked in (client(app), signed_in(app)):
        answer = asked.get(path, headers=HTML)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert path.startswith("/static") or answer.headers["cache-control"] == "no-store"
        assert "server" not in answer.headers


@pytest.mark.parametrize("path", ["/", "/sign-in", "/nothing"])
def test_pages_hold_nothing_inline_and_nothing_from_elsewhere(app: FastAPI, path: str) -> None:
    page = signed_in(app).get(path, headers=HTML).text + client(app).get("/sign-in").text
    assert not re.search(r"<style|style=|<script(?![^>]*\bsrc=)|\son\w+=|javascript:", page)
    assert set(re.findall(r'(?:src|href|action)="(?!/[^/]|#)([^"]*)"', page)) <= {"/"}


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "[", "localhost@evil.example", "10.0.0.1:80"]
)
def test_names_of_others_are_refused(app: FastAPI, host: str) -> None:
    assert client(app).get("/health", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8101", "[::1]:1", "LOCALHOST:80"])
def test_own_names_are_answered(app: FastAPI, host: str) -> None:
    assert client(app).get("/health", headers={"host": host}).status_code == 200


def test_oversized_and_odd_requests_are_refused(app: FastAPI) -> None:
    asked = signed_in(app)
    assert asked.post("/note", content=b"x" * 70_000).status_code == 413
    assert asked.post("/note", content=iter([b"x" * 40_000, b"y" * 40_000])).status_code == 413
    assert asked.post("/note", content=b"", headers={"content-length": "1e3"}).status_code == 413
    assert asked.get("/text?text=" + "x" * 5000).status_code == 414
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert asked.request(method, "/").status_code == 405
    assert asked.post("/sign-in", content=b"\xff\xfe=%zz", headers={"content-type": "text/plain"}).status_code == 400
    assert asked.get("/api/number?value=" + "9" * 400).status_code == 200
    refused = asked.get("/api/number?value=<script>")
    assert refused.status_code == 422
    assert "script" not in refused.text


def test_faults_show_nothing_of_themselves(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    for headers in (HTML, {}):
        answer = signed_in(app).get("/fault", headers=headers)
        assert answer.status_code == 500
        assert not {"Miller", "Traceback", "RuntimeError"} & set(re.findall(r"\w+", answer.text))
    assert "patient Miller" in caplog.text


# Signing in and changes


def test_the_cookie_is_kept_from_scripts_and_other_sites(app: FastAPI) -> None:
    asked = client(app)
    told = asked.post("/sign-in", data={"name": "", "secret": TOKEN}).headers["set-cookie"]
    assert {part.strip().lower() for part in told.split(";")[1:]} == {"httponly", "path=/", "samesite=strict"}
    secure = TestClient(app, base_url="https://127.0.0.1", follow_redirects=False)
    assert "secure" in secure.post("/sign-in", data={"name": "", "secret": TOKEN}).headers["set-cookie"].lower()


def test_signing_out_ends_the_session(app: FastAPI) -> None:
    asked = signed_in(app)
    kept = asked.cookies[COOKIE]
    page = asked.get("/").text
    assert asked.post("/sign-out").status_code == 403
    assert asked.post("/sign-out", data={"csrf": csrf(page)}).status_code == 303
    assert client(app).get("/", headers={"cookie": f"{COOKIE}={kept}"}).status_code == 303


def test_changes_need_the_sessions_own_token(app: FastAPI) -> None:
    ada, eve = signed_in(app, "Ada"), signed_in(app, "Eve")
    token = csrf(ada.get("/").text)
    assert ada.post("/note", data={"text": "a"}).status_code == 403
    assert ada.post("/note", data={"text": "a", "csrf": csrf(eve.get("/").text)}).status_code == 403
    assert client(app).post("/note", data={"text": "a", "csrf": token}).status_code == 401
    assert ada.post("/note", data={"text": "a", "csrf": token}).text == "Ada: a"
    assert ada.post("/note", data={"text": "b"}, headers={"X-CSRF-Token": token}).text == "Ada: a; Ada: b"
    for header in ({"sec-fetch-site": "cross-site"}, {"origin": "http://evil.example"}, {"origin": "null"}):
        assert ada.post("/note", data={"text": "c", "csrf": token}, headers=header).status_code == 403
        assert ada.post("/sign-in", data={"secret": TOKEN}, headers=header).status_code == 403


def test_programs_with_the_token_change_without_a_session(app: FastAPI) -> None:
    asked = client(app, authorization=f"Bearer {TOKEN}")
    assert asked.post("/note", data={"text": "a"}).status_code == 200


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example", "/\\evil.example", "evil", "/a\nb", "javascript:1"]
)
def test_signing_in_leads_nowhere_else(app: FastAPI, target: str) -> None:
    answer = client(app).post("/sign-in", data={"name": "", "secret": TOKEN, "next": target})
    assert answer.headers["location"] == "/"
    answer = client(app).post("/sign-in", data={"name": "", "secret": TOKEN, "next": "/text?text=a"})
    assert answer.headers["location"] == "/text?text=a"


def test_guessing_is_slowed_down(app: FastAPI) -> None:
    asked, before = client(app), signed_in(app)
    statuses = [
        asked.post("/sign-in", data={"name": "", "secret": f"{i}"}).status_code for i in range(MOST_PER_ADDRESS)
    ]
    assert set(statuses) == {403}
    for guess in ("x", TOKEN):
        assert asked.post("/sign-in", data={"name": "", "secret": guess}).status_code == 429
        assert asked.get("/api/number?value=1", headers={"authorization": f"Bearer {guess}"}).status_code == 429
    assert before.get("/").status_code == 200  # who is signed in already is not kept out


def test_persons_sign_in_under_their_own_names(tmp_path_factory: pytest.TempPathFactory) -> None:
    people = People(tmp_path_factory.mktemp("home") / "people.json")
    people.set_password("Dr. Ada", "correct horse")
    app = demo_app(people=people)
    assert "Signed in as Dr. Ada" in (page := signed_in(app, "Dr. Ada", "correct horse").get("/").text)
    assert "by the token" not in page
    assert "(by the token)" in signed_in(app, "Dr. Ada", TOKEN).get("/").text
    for name, password in (("Dr. Ada", "wrong horse"), ("Eve", "correct horse"), ("", "correct horse")):
        assert client(app).post("/sign-in", data={"name": name, "secret": password}).status_code == 403


def test_passwords_that_cannot_be_checked_are_said_to_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    people = People(tmp_path / "people.json")
    people.path.write_text("{")
    asked = client(demo_app(people=people))
    answer = asked.post("/sign-in", data={"name": "Ada", "secret": TOKEN}, headers=HTML)
    assert (answer.status_code, "Passwords cannot be checked at the moment" in answer.text) == (503, True)
    assert f"{people.path}: cannot be read" in caplog.text
    assert asked.post("/sign-in", data={"name": "", "secret": TOKEN}).status_code == 303


def test_without_a_token_all_may_look_but_other_sites_may_change_nothing() -> None:
    app = demo_app(token=None)
    asked = client(app)
    page = asked.get("/").text
    assert asked.get("/api/number?value=1").status_code == 200
    assert asked.post("/note", data={"text": "a"}).status_code == 403
    assert asked.post("/note", data={"text": "a", "csrf": csrf(page)}).status_code == 200


def test_the_description_names_what_programs_may_ask(app: FastAPI) -> None:
    told = signed_in(app).get("/api/openapi.json").json()
    assert set(told["paths"]) == {"/api/number", "/api/chart"}
    assert told["security"] == [{"token": []}]
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert signed_in(app).get(path).status_code == 404

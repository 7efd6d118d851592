"""The page Policy: what it says is what holds, changes stand in the ledger, and a person releases what waits."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message
from playwright.sync_api import Browser, expect
from starlette.testclient import TestClient

from node.database import open_database
from node.decisions import held_handovers
from node.ledger import Ledger
from node.policy import Policy
from pages.credentials import PEOPLE_FILE, TOKEN_FILE, People
from pages.serving import Address, Server
from protos.messages import pack_reply, pack_request, read_handover, read_request
from tests.browser import visiting
from tests.node.dashboard.houses import HOSTILE, Opened
from tests.node.guarded import Node, request, small_handover

FILE = "policy.yaml"


def work(message: Message, context: Context) -> Message:
    return Message(
        pack_reply(read_request(message.content), small_handover(0.5), {"loss": 0.25, "cases": 12}), reply_to=message
    )


def visited(node: Node) -> Message:
    return node.ask(work, pack_request(request(), small_handover()))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    open_database(tmp_path)
    return Node(tmp_path)


def asked(node: Node) -> TestClient:
    return Opened.of(node.home).client()


def field(page: str, name: str) -> str:
    found = re.search(rf'name="{name}" value="([^"]*)"', page)
    assert found, name
    return found[1]


def post(client: TestClient, path: str = "/policy", **fields: str) -> Any:
    page = client.get("/policy").text
    form = {"csrf": field(page, "csrf"), "kinds": "all", "hold": "none", "by": "Ada", "why": "because"}
    if path == "/policy":
        form["seen"] = field(page, "seen")
    return client.post(path, data=form | fields)


def entries(node: Node) -> list[Any]:
    return list(Ledger(open_database(node.home)).entries())


@pytest.mark.parametrize(
    ("fields", "policy"),
    [
        ({"kinds": "some", "kinds.weights": "on", "kinds.prompts": "on"}, {"kinds": {"weights", "prompts"}}),
        ({"kinds": "some"}, {"kinds": set()}),
        ({"max_bytes": "5MB"}, {"max_bytes": 5_000_000}),
        (
            {"max_bytes.weights": "1 MB", "max_bytes.prompts": "2048"},
            {"max_bytes": {"weights": 1_000_000, "prompts": 2048}},
        ),
        ({"copies": "2.5 %"}, {"copies": {"most": 0.025}}),
        ({"hold": "all"}, {"hold": True}),
        ({"hold": "some", "hold.generator": "on"}, {"hold": {"generator"}}),
    ],
)
def test_a_change_is_what_the_guard_reads(node: Node, fields: dict[str, str], policy: dict[str, Any]) -> None:
    visited(node)
    client = asked(node)
    (node.home / FILE).write_text("# of our board\nstrategies: [finetune]  # no other\n")
    answer = post(client, **fields)
    assert answer.status_code == 303, answer.text
    found = Policy.of(node.home).model_dump(exclude_none=True)
    assert found == {"strategies": {"finetune"}, **policy}
    assert (node.home / FILE).read_text().startswith("# of our board\nstrategies: [finetune]  # no other\n")
    entry = entries(node)[-1]
    assert (entry.direction, entry.verdict) == ("here", "changed")
    assert entry.detail.startswith("Ada (name stated) changed the policy (")
    assert entry.detail.endswith("Why: because")
    page = client.get("/policy").text
    assert "Ada (name stated) changed the policy" in page
    same = re.sub(r"\s+", " ", page)
    for name in fields:
        if name.startswith(("kinds.", "hold.")):
            assert re.search(rf'name="{re.escape(name)}" checked', same)
    assert post(client, **fields).status_code == 422  # nothing is changed by it any more
    assert post(client).status_code == 303
    assert Policy.of(node.home).model_dump(exclude_none=True) == {"strategies": {"finetune"}}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "Nothing was changed."),
        ({"max_bytes": "many"}, "is no number of bytes"),
        ({"max_bytes": "-5"}, ""),
        ({"max_bytes": "5MB", "max_bytes.weights": "5MB"}, "and not both"),
        ({"copies": "a few"}, "is no share"),
        ({"copies": "nan"}, "between 0 and 100"),
        ({"copies": "101"}, "between 0 and 100"),
        ({"hold": "some"}, "Choose the kinds that wait"),
        ({"hold": "all", "by": ""}, "in the name of a person"),
        ({"hold": "all", "why": " "}, "for a reason"),
        ({"hold": "all", "why": "x" * 501}, "501 characters"),
        ({"hold": "all", "by": "Ada\u202e"}, "control or formatting"),
        ({"hold": "all", "seen": "0" * 64}, "has changed since it was shown"),
    ],
)
def test_what_is_no_change_is_said_and_nothing_is_written(node: Node, fields: dict[str, str], said: str) -> None:
    visited(node)
    before = len(entries(node))
    answer = post(asked(node), **fields)
    assert answer.status_code == 422
    assert said in answer.text
    assert not (node.home / FILE).exists()
    assert len(entries(node)) == before
    assert HOSTILE not in answer.text


def test_a_policy_that_is_not_understood_is_shown_as_one_that_lets_nothing_out(node: Node) -> None:
    (node.home / FILE).write_text("kinds: [images]\n")
    page = asked(node).get("/policy").text
    assert "Nothing crosses until it is mended." in page
    assert asked(node).get("/api/policy").json()["understood"] is False
    assert 'name="seen"' not in page


def test_what_waits_is_released_in_somebodys_name_and_leaves_once(node: Node) -> None:
    client = asked(node)
    assert post(client, hold="all").status_code == 303
    assert visited(node).has_error()
    (held,) = held_handovers(node.home)
    page = client.get("/policy").text
    assert held.handover in page
    assert "Release: let it leave" in page
    first = client.get("/").text
    assert "the handover of stop 2 of run-1 waits until a named person decides" in first
    assert re.search(r"At [\d:]+ the model was ready to leave, and began to wait for a named person to decide", first)
    (waiting,) = client.get("/api/now").json()["waiting"]
    assert (waiting["run"], waiting["stop"], waiting["released_by"]) == ("run-1", 2, None)
    shown = client.get("/api/policy").json()["waiting"][0]
    assert (shown["handover"], shown["tensors"], shown["finite"]) == (held.handover, 3, True)
    for fields in ({"what": "burn"}, {"what": "release", "by": ""}, {"what": "release", "handover": "0" * 64}):
        assert post(client, "/policy/held", **({"handover": held.handover} | fields)).status_code == 422
    assert visited(node).has_error()
    assert post(client, "/policy/held", handover=held.handover, what="release").status_code == 303
    assert "Ada (name stated) released" in client.get("/policy").text
    assert held.handover not in client.get("/policy/waiting").text
    assert "Ada (name stated) released the handover of stop 2 of run-1 at " in client.get("/now/happened").text
    left = visited(node)
    assert client.get("/api/now").json()["waiting"] == []
    assert not left.has_error()
    assert read_handover(left.content) == small_handover(0.5)


def test_what_is_withheld_stays(node: Node) -> None:
    client = asked(node)
    post(client, hold="all")
    visited(node)
    (held,) = held_handovers(node.home)
    assert (
        post(client, "/policy/held", handover=held.handover, what="withhold", why="no <b>trust</b>").status_code == 303
    )
    page = client.get("/policy").text
    assert "no &lt;b&gt;trust&lt;/b&gt;" in page
    assert visited(node).has_error()


def test_changes_need_the_pages_own_token(node: Node) -> None:
    client = asked(node)
    for path in ("/policy", "/policy/held"):
        assert client.post(path, data={"hold": "all", "by": "Eve", "why": "x"}).status_code == 403
        assert client.post(path, json={"hold": "all"}).status_code == 403
    assert not (node.home / FILE).exists()


# With a person at the browser


@pytest.fixture
def address(node: Node) -> Iterator[str]:
    (node.home / FILE).write_text("hold: true\n")
    People(node.home / PEOPLE_FILE).set_password("Dr. Roe", "correct horse")
    opened = Opened.of(node.home, token=True)
    server = Server(opened.app, Address())
    yield server.start()
    server.stop()
    assert (node.home / TOKEN_FILE).exists()


def test_a_person_releases_what_arrives_meanwhile(chromium: Browser, address: str, node: Node) -> None:
    with visiting(chromium, address) as visitor:
        visitor.sign_in("correct horse", "Dr. Roe")
        page = visitor.page
        page.get_by_role("link", name="Policy", exact=True).click()
        expect(page.locator("#waiting")).not_to_contain_text("Waiting for a decision")
        visited(node)
        expect(page.locator("#waiting")).to_contain_text("Waiting for a decision")
        visitor.look("node-policy")
        page.locator("#waiting").get_by_label("Reason").fill("looked at it")
        page.get_by_role("button", name="Release: let it leave").click()
        expect(page.locator("main")).to_contain_text("Dr. Roe released the handover of stop 2")
        assert not visited(node).has_error()
        page.get_by_label("nothing waits: what is allowed leaves").check()
        page.locator("form[action='/policy']").get_by_label("Reason").fill("trusted now")
        page.get_by_role("button", name="Change the policy").click()
        expect(page.locator("main")).to_contain_text("What is allowed leaves without a person's decision.")
    assert not Policy.of(node.home).hold
    assert entries(node)[-1].detail.startswith("Dr. Roe changed the policy")

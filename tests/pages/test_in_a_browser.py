"""What both dashboards share, in a real browser: signing in, what is live, what is hostile, keyboard, contrast."""

import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect

from pages.serving import Address, Server
from tests.browser import visiting
from tests.pages.demo import TOKEN, demo_app

STATE = {"counter": 1}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = Server(demo_app(state=STATE), Address())
    yield server.start()
    server.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "dashboard"]


def test_signing_in_with_the_keyboard_and_what_is_live(chromium: Browser, address: str) -> None:
    with visiting(chromium, address) as visitor:
        visitor.go("/")
        page = visitor.page
        expect(page).to_have_title("Sign in · north")
        visitor.look("sign-in")
        visitor.tab_to("Token, or your password", most=10)
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_contain_text("neither the token")
        visitor.complaints.clear()  # the browser names the refusal's status
        page.get_by_label("Token, or your password").fill(TOKEN)
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("First")
        expect(page.locator("figure[data-drawn] canvas")).to_be_visible()
        visitor.look("first")

        page.keyboard.press("Tab")
        expect(page.locator(".skip")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#main")).to_be_focused()

        for counted in (2, 3):
            STATE["counter"] = counted
            expect(page.locator("#counter")).to_have_text(f"Counted: {counted}")

        visitor.tab_to("Note")
        page.keyboard.type("kept")
        page.keyboard.press("Enter")
        expect(page.locator("body")).to_contain_text(": kept")
        visitor.go("/")
        visitor.sign_out()
        expect(page).to_have_title("Sign in · north")


def test_a_part_that_changes_under_a_pressed_pointer_waits_for_the_click(chromium: Browser, address: str) -> None:
    with visiting(chromium, address) as visitor:
        visitor.sign_in(TOKEN, "Ada")
        page = visitor.page
        link = page.locator("#counter a")
        expect(page.locator("figure[data-drawn]")).to_have_count(1)  # so nothing moves any more
        for counted, there in ((4, False), (5, True)):
            link.hover()
            page.mouse.down()
            with page.expect_response("**/counter") as asked:
                STATE["counter"] = counted
            asked.value.finished()
            page.evaluate("new Promise(done => setTimeout(done, 200))")  # a swap would have been made by now
            expect(link).not_to_have_text(str(counted))
            if not there:
                page.mouse.move(0, 0)
            page.mouse.up()
            if not there:
                expect(link).to_have_text(str(counted))
        expect(page).to_have_url(f"{address}/text?text=counted")


def test_hostile_text_is_text(chromium: Browser, address: str) -> None:
    with visiting(chromium, address) as visitor:
        visitor.sign_in(TOKEN, "Ada")
        hostile = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script>\u202eabc\x07" + "m" * 400
        visitor.page.goto(f"{address}/text?text=" + "".join(f"%{byte:02x}" for byte in hostile.encode()))
        shown = visitor.page.locator("#text").text_content()
        assert shown == hostile.replace("\u202e", "\\u202e").replace("\x07", "\u2407")
        assert visitor.page.locator("main img, main script").count() == 0
        visitor.look("hostile")

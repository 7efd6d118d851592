"""The dashboard in a real browser, beside a run that goes on: pages change by themselves, are read without a mouse."""

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from pages.credentials import TOKEN_FILE
from pages.serving import Address, Server
from tests.browser import visiting
from tests.conftest import TINY, Desk
from tests.node.dashboard.houses import Opened, copy_of

PAGES = {
    "/": "Now",
    "/crossed": "What crossed",
    "/data": "My data",
    "/scores": "My scores",
    "/replay": "Replay",
    "/policy": "Policy",
}


@pytest.fixture(scope="module")
def address(lived_in: Path) -> Iterator[str]:
    opened = Opened.of(lived_in, token=True)
    server = Server(opened.app, Address())
    yield server.start()
    opened.house.jobs.close()
    server.stop()


def test_every_page_is_well_made(chromium: Browser, address: str, lived_in: Path) -> None:
    with visiting(chromium, address) as visitor:
        visitor.sign_in((lived_in / TOKEN_FILE).read_text().strip(), "Ada")
        page = visitor.page
        for path, heading in PAGES.items():
            page.get_by_role("link", name=heading, exact=True).click()
            expect(page.get_by_role("heading", level=1)).to_have_text(heading)
            assert page.url == f"{address}{path}"
            if path == "/data":
                expect(page.locator("#data img").first).to_be_visible()
            if path == "/scores":
                expect(page.locator("#scores img").first).to_be_visible()
            visitor.look(f"node-{heading.lower().replace(' ', '-')}")
        visitor.go("/crossed?refused=true")
        page.locator("tbody tr").last.get_by_role("link").click()
        expect(page.get_by_role("heading", level=1)).to_have_text(re.compile(r"Entry \d+ of the ledger"))
        visitor.look("node-entry")


def test_the_ledger_without_a_mouse(chromium: Browser, address: str, lived_in: Path) -> None:
    with visiting(chromium, address) as visitor:
        visitor.sign_in((lived_in / TOKEN_FILE).read_text().strip())
        page = visitor.page
        visitor.tab_to("What crossed")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("What crossed")
        visitor.tab_to("Only what did not pass")
        page.keyboard.press("Space")
        visitor.tab_to("Show")
        page.keyboard.press("Enter")
        expect(page).to_have_url(re.compile("refused=true"))
        expect(page.locator("tbody tr.bad")).to_have_count(2)
        visitor.tab_to(page.locator("tbody th a").first.inner_text())
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text(re.compile("^Entry"))


def test_pages_change_while_a_run_goes_on(chromium: Browser, lived_in: Path, tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    home = desk.home.folder / "nodes" / "north"
    copy_of(lived_in, home)
    opened = Opened.of(home)
    server = Server(opened.app, Address())
    try:
        with visiting(chromium, server.start()) as visitor:
            page = visitor.page
            visitor.go("/")
            expect(page.locator("#work")).to_contain_text("Nothing is under way")
            run = desk.begin("training.steps=400")
            going = threading.Thread(target=desk.carry_out, args=(run,))
            going.start()
            expect(page.locator("#happened")).to_contain_text("the model arrived with")
            expect(page.locator("#happened")).to_contain_text(run)
            expect(page.locator("#happened")).to_contain_text(re.compile(rf"the model left with .* \({run}, stop 0\)"))
            visitor.go("/scores")
            going.join()
            visitor.go(f"/scores?run={run}")
            expect(page.locator("#scores")).to_contain_text("stop 2")
            visitor.go("/")
            expect(page.locator("figure[data-drawn] canvas")).to_be_visible()
            visitor.look()
    finally:
        opened.house.jobs.close()
        server.stop()
    assert TINY

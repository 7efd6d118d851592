"""A real browser for the tests of pages: Debian's chromium, driven by Playwright.

A `Visitor` notes every request and every complaint of the browser. `look` checks the page that is shown: that nothing
was asked of another host, that the Content-Security-Policy was not violated, and that axe-core finds nothing serious,
in light and in dark. With a name it keeps pictures at the width of a desk and of a phone in `artefacts/`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
PICTURES = Path(__file__).parents[1] / "artefacts" / "screenshots"
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PATIENCE = 60_000.0  # milliseconds, on a loaded machine
_QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
    "--disable-dev-shm-usage",
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for a module. Not for longer: Playwright keeps an event loop running meanwhile."""
    if not CHROMIUM.exists():
        sentence = f"there is no browser at {CHROMIUM}: apt-get install chromium"
        if os.environ.get("CI"):
            pytest.fail(sentence)
        pytest.skip(sentence)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_QUIET), headless=True)
        expect.set_options(timeout=PATIENCE)
        yield browser
        browser.close()


@dataclass
class Visitor:
    """Somebody at a page of the dashboard at `address`."""

    page: Page
    address: str
    hosts: set[str] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)

    def go(self, path: str) -> None:
        self.page.goto(self.address + path)

    def sign_in(self, secret: str, name: str = "") -> None:
        self.go("/sign-in")
        self.page.get_by_label("Your name").fill(name)
        self.page.get_by_label("Token, or your password").fill(secret)
        self.page.get_by_role("button", name="Sign in").click()

    def sign_out(self) -> None:
        """Sign out; the browser may complain that what is live was refused just then."""
        self.well_behaved()
        self.page.get_by_role("button", name="Sign out").click()
        expect(self.page.get_by_role("heading", level=1)).to_have_text("Sign in")
        refused = ("401 (Unauthorized)", "[object Event]")  # a part, and the stream
        self.complaints[:] = [said for said in self.complaints if not any(one in said for one in refused)]

    def look(self, picture: str = "", whole: bool = True) -> None:
        """Check the page that is shown; see the module."""
        for scheme in ("light", "dark"):
            self.page.emulate_media(color_scheme=scheme)
            self._no_serious_findings(scheme)
            if picture:
                PICTURES.mkdir(parents=True, exist_ok=True)
                for name, size in (("desk", DESK), ("phone", PHONE)):
                    self.page.set_viewport_size(size)
                    self._fits(name)
                    self.page.screenshot(path=PICTURES / f"{picture}-{name}-{scheme}.png", full_page=whole)
                self.page.set_viewport_size(DESK)
        self.page.emulate_media(color_scheme="light")
        self.well_behaved()

    def well_behaved(self) -> None:
        assert self.hosts <= {urlsplit(self.address).netloc}
        assert self.complaints == []

    def tab_to(self, name: str, most: int = 80) -> None:
        """Press the tabulator until the element whose text or label is `name` has the focus, and is seen to have it."""
        for _ in range(most):
            self.page.keyboard.press("Tab")
            told = self.page.evaluate(
                "() => { const e = document.activeElement;"
                " return [(e.labels && e.labels.length ? e.labels[0].textContent : e.textContent || '').trim(),"
                " getComputedStyle(e).outlineStyle]; }"
            )
            if told[0] == name:
                assert told[1] != "none", f"{name} does not show that it has the focus"
                return
        raise AssertionError(f"{name} cannot be reached with the tabulator")

    def _no_serious_findings(self, scheme: str) -> None:
        found = Axe().run(self.page).response["violations"]
        serious = [
            f"{finding['id']}: {node['html'][:200]} ({node.get('failureSummary', '')})"
            for finding in found
            if finding["impact"] in ("serious", "critical")
            for node in finding["nodes"]
        ]
        assert serious == [], f"{self.page.url}, {scheme}"

    def _fits(self, width: str) -> None:
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")  # redrawn
        wider = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wider <= 0, f"{self.page.url} is {wider} pixels wider than a {width}"


@contextmanager
def visiting(browser: Browser, address: str) -> Iterator[Visitor]:
    """A fresh visitor, without cookies, who does not let a complaint pass."""
    context = browser.new_context(viewport=DESK, service_workers="block")
    context.set_default_timeout(PATIENCE)
    visitor = Visitor(context.new_page(), address)
    context.on("request", lambda request: visitor.hosts.add(urlsplit(request.url).netloc))
    context.on(
        "console",
        lambda said: visitor.complaints.append(said.text) if said.type in ("error", "warning") else None,
    )
    context.on("weberror", lambda error: visitor.complaints.append(str(error.error)))
    try:
        yield visitor
        visitor.well_behaved()
    finally:
        context.close()

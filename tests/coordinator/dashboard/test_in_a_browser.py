"""A coordinator that serves, its nodes, and a browser that sees a run go on, and ends one."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from playwright.sync_api import Browser, Page, expect

from coordinator.dashboard.serving import overview_at
from pages.credentials import PEOPLE_FILE, People
from pages.serving import Address
from tests.browser import PATIENCE, visiting
from tests.coordinator.dashboard.conftest import HOSTILE, Asking, Made
from tests.coordinator.serving import TINY, Served, two_sites, wait_for

MINUTES = 4 * PATIENCE  # for what a run has to come to first


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with two_sites(tmp_path_factory.mktemp("served")) as served:
        yield served


def schedule(page: Page, overrides: str) -> str:
    """Schedule the tiny scenario in the form that is shown; returns the run's name, whose page is shown then."""
    page.get_by_label("Scenario (YAML)").fill(TINY)
    page.get_by_label("Overrides").fill(overrides)
    page.get_by_role("button", name="Go on").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Schedule 1 run?")
    page.get_by_role("button", name="Schedule").click()
    expect(page.get_by_role("heading", level=1)).to_contain_text("tiny: finetune", timeout=MINUTES)
    return page.url.rpartition("/")[2]


@pytest.mark.timeout(900)
def test_a_run_is_scheduled_seen_and_another_cancelled(chromium: Browser, served: Served) -> None:
    address, home = f"http://127.0.0.1:{served.dashboard}", served.home.folder
    with visiting(chromium, address) as visitor:
        page = visitor.page
        visitor.sign_in((home / "dashboard.token").read_text().strip(), "Dr Grey")
        expect(page.get_by_role("heading", level=1)).to_have_text("Runs")
        page.get_by_role("link", name="schedule a scenario").click()
        page.get_by_label("A file").set_input_files(served.folder / "tiny.yaml")
        expect(page.get_by_label("Scenario (YAML)")).to_have_value(TINY)
        visitor.look("overview-schedule")

        run = schedule(page, "training.steps=300\ntraining.checkpoint_every=20")
        expect(page.locator("#line-0[aria-current]")).to_contain_text("the model is here", timeout=MINUTES)
        expect(page.locator("#now")).to_contain_text("The model is at north")
        visitor.look("overview-visit")
        rows = page.locator("#matrix-dsc tbody tr")
        expect(page.locator("#line-1[aria-current]")).to_contain_text("the model is here", timeout=MINUTES)
        expect(rows).to_have_count(1)  # without loading the page anew
        expect(page.locator("#line-0")).to_contain_text("done")
        expect(rows).to_have_count(2, timeout=MINUTES)
        expect(page.locator("#now")).to_contain_text("The run is done", timeout=MINUTES)
        expect(rows.nth(1).locator("td.own")).to_have_count(1)
        summary = served.client().summary(run)
        shown = [cell.inner_text() for cell in rows.nth(1).locator("td").all()]
        assert shown == [f"{value:.3f}" for value in summary.matrix("dsc")[1]]
        expect(page.locator("figure[data-drawn]")).to_have_count(2)
        expect(page.locator("#events")).to_contain_text("Dr Grey (name stated) scheduled this run in the overview.")
        visitor.look("overview-run")

        visitor.go("/sites")
        expect(page.locator("#sites .badge.good")).to_have_count(2)
        visitor.look("overview-sites")

        visitor.go("/schedule")
        long = schedule(page, "training.steps=100000\nseed=1")
        expect(page.locator("#line-0[aria-current]")).to_be_visible(timeout=MINUTES)
        visitor.tab_to("Cancel")
        page.keyboard.press("Enter")
        expect(page.get_by_role("heading", level=1)).to_have_text("Cancel this run?")
        visitor.look("overview-cancel")
        visitor.tab_to("Cancel the run")
        page.keyboard.press("Enter")
        expect(page.locator("#now .badge").first).to_have_text("cancelled")
        wait_for(lambda: served.children("coordinator.worker") == [])

        cancelled = page.url
        visitor.sign_out()
        People(home / PEOPLE_FILE).set_password("Dr Bailey", "correct horse")
        visitor.sign_in("correct horse", "Dr Bailey")
        page.goto(cancelled)
        page.get_by_role("link", name="Skip a stop").click()
        expect(page.get_by_text("Dr Bailey answers for it.")).to_be_visible()
        page.get_by_label("Why").fill("closed <b>for good</b>")
        visitor.look()
        page.get_by_role("button", name="Go on").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Skip this stop?")
        page.get_by_role("button", name="Skip it").click()
        expect(page.locator("#line-0")).to_contain_text("by Dr Bailey: closed <b>for good</b>")

        visitor.go("/")
        expect(page.locator("#runs")).to_contain_text(long)
        visitor.look("overview-runs")
    loaded = Path(f"/proc/{served.service.pid}/maps").read_text()
    assert "libtorch" not in loaded
    token = (home / "dashboard.token").read_text().strip()
    assert token not in served.log
    assert token not in " ".join(psutil.Process(served.service.pid).cmdline())


def test_runs_are_compared_and_hostile_texts_are_shown(chromium: Browser, made: Made, hostile: Asking) -> None:
    with overview_at(Address(), made.home, None, None) as place, visiting(chromium, place) as visitor:
        page = visitor.page
        visitor.go("/")
        for run in (made.finetune, made.joint):
            page.get_by_label(f"Compare {run}").check()
        page.get_by_role("button", name="Compare the chosen").click()
        expect(page.get_by_role("heading", name="DSC (%)")).to_be_visible()
        visitor.look("overview-compare")
        visitor.go(f"/runs/{made.joint}")
        expect(page.locator("#line-0")).to_contain_text("north, east, south")
        with page.expect_download() as kept:
            page.get_by_role("link", name="The scores as CSV").click()
        assert kept.value.path().read_text().startswith("visit,")
    with overview_at(Address(), hostile.overview.home, None, None) as place, visiting(chromium, place) as visitor:
        visitor.go("/runs/hostile-1")
        expect(visitor.page.locator("#events li").first).to_contain_text("another")
        assert visitor.page.locator("main img, main script").count() == 0
        assert HOSTILE[:27] in visitor.page.locator("#events").inner_text()
        visitor.look("overview-hostile")

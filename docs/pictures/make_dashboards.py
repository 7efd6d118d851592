"""Draw the pictures of a node's dashboard: `python docs/pictures/make_dashboards.py NODE_FOLDER`, after `make demo`."""

import io
import sys
import time
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from node.dashboard.application import dashboard_for
from node.dashboard.reading import open_reader
from node.dashboard.visits import runs
from pages.serving import Address, Server

HERE = Path(__file__).parent
DESK, PHONE = {"width": 1000, "height": 720}, {"width": 390, "height": 720}


def main() -> None:
    """Show the dashboard to a browser, page by page, and keep what it shows in few colours."""
    reader = open_reader(Path(sys.argv[1]))
    app, house = dashboard_for(reader, token=False)
    server = Server(app, Address())
    address = server.start()
    finetuned = next(run.run for run in runs(reader) if run.plan.strategy.name == "finetune")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport=DESK)
        for path, name, size in (
            (f"/crossed?run={finetuned}", "node-crossed", DESK),
            (f"/scores?run={finetuned}", "node-scores", DESK),
            ("/", "node-now", PHONE),
        ):
            page.set_viewport_size(size)
            page.emulate_media(color_scheme="dark" if size is PHONE else "light")
            page.goto(address + path)
            page.wait_for_selector("figure[data-drawn] canvas")
            while any(house.jobs.get(job).running for job in list(house.jobs._jobs)):
                time.sleep(0.1)
            page.reload()
            page.wait_for_selector("figure[data-drawn] canvas")
            keep(page, name)
        browser.close()
    house.jobs.close()
    server.stop()


def keep(page: Page, name: str) -> None:
    """Write what the page shows, in few colours, as NAME.png."""
    shown = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    shown.quantize(64, dither=Image.Dither.NONE).save(HERE / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()

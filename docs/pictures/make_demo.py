"""Draw `matrix.png` and `replays.png`, the demo's in README.md: `python docs/pictures/make_demo.py` runs it."""

import io
import tempfile
from pathlib import Path

from PIL import Image
from rich.progress import track

from coordinator import scenario as scenarios
from coordinator.events import Listener
from coordinator.figures import heat_map, png
from coordinator.home import Home
from coordinator.results import replays, summarise
from coordinator.scenario import load_scenario
from coordinator.simulate import begin, carry_out
from coordinator.store import sqlite_url

DEMO = Path(scenarios.__file__).with_name("demo.yaml")
HERE = Path(__file__).parent


def main() -> None:
    """Carry out the demo but for joint training, in a folder that is thrown away, and draw as the report does."""
    singles = [run for run in load_scenario(DEMO).runs() if run.strategy.name != "joint"]
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder), sqlite_url(Path(folder)))
        for single in track(singles, "carrying out the demo"):
            run = begin(single, home, Path(folder), "locum simulate")
            carry_out(run, home, device="cpu", listener=Listener())
            summary = summarise(home.store().run(run))
            if single.strategy.name == "finetune":
                (HERE / "matrix.png").write_bytes(png(heat_map(summary, "dsc")))
            else:
                last = [picture for site, _, picture in replays(summary, home.folder) if site == "south"][-1]
                small = Image.open(io.BytesIO(last))
                small.resize((small.width * 4, small.height * 4), Image.Resampling.NEAREST).save(HERE / "replays.png")


if __name__ == "__main__":
    main()

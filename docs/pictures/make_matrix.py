"""Draw `matrix.png`, the score matrix in README.md: `python docs/pictures/make_matrix.py` runs the demo."""

import tempfile
from pathlib import Path

from coordinator import scenario as scenarios
from coordinator.events import Listener
from coordinator.figures import heat_map, png
from coordinator.home import Home
from coordinator.results import summarise
from coordinator.scenario import load_scenario
from coordinator.simulate import begin, carry_out
from coordinator.store import sqlite_url

DEMO = Path(scenarios.__file__).with_name("demo.yaml")


def main() -> None:
    """Carry out the first run of the demo in a folder that is thrown away, and draw its matrix as the report does."""
    single = next(load_scenario(DEMO).runs())
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder), sqlite_url(Path(folder)))
        run = begin(single, home, Path(folder), "locum simulate")
        carry_out(run, home, device="cpu", listener=Listener())
        picture = png(heat_map(summarise(home.store().run(run)), "dsc"))
    Path(__file__).with_name("matrix.png").write_bytes(picture)


if __name__ == "__main__":
    main()

"""Does the coordinator stay small? A run over hundreds of tiny sites: memory and cost of every stop, in one process.

Every site is visited once and scores the model after every visit, so N sites make N visits and N * N scores. Printed
are, for every ten stops: resident memory, and the median CPU time of a stop without its scores and of one score.

Usage: python benchmarks/many_sites.py [--sites 500] [--out FILE.json]
"""

import argparse
import json
import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psutil

from coordinator.events import Listener
from coordinator.home import Home
from coordinator.scenario import Scenario
from coordinator.simulate import begin, carry_out
from coordinator.store import sqlite_url

logging.disable(logging.WARNING)


class Clock(Listener):
    """Cost and memory, stop by stop."""

    def __init__(self, sites: int) -> None:
        self.sites = sites
        self.rows: list[tuple[float, float, float]] = []  # MiB, seconds per stop, seconds per score
        self._process = psutil.Process()
        self._began = self._ended = 0.0
        self._scored = 0

    def stop_began(
        self, stop: int, sites: tuple[str, ...], rounds: int, done: int, rehearsing: tuple[str, ...] = ()
    ) -> None:
        self._began = time.process_time()

    def stop_ended(self, stop: int, sites: tuple[str, ...], seconds: float) -> None:
        self._ended = time.process_time()

    def scored(self, stop: int, site: str, dsc: float | None) -> None:
        self._scored += 1
        if self._scored % self.sites == 0:
            cost = self._ended - self._began, (time.process_time() - self._ended) / self.sites
            self.rows.append((self._process.memory_info().rss / 2**20, *cost))
            if len(self.rows) % 10 == 0:
                self.say()

    def say(self) -> None:
        """What the last ten stops took, so that a long run can be watched, or cut off and still be worth something."""
        memory, stop, score = zip(*self.rows[-10:], strict=True)
        row = {"stops": len(self.rows), "rss_mib": memory[-1]}
        row |= {"stop_ms": statistics.median(stop) * 1000, "score_ms": statistics.median(score) * 1000}
        sys.stdout.write(json.dumps(row) + "\n")
        sys.stdout.flush()


def scenario(sites: int) -> Scenario:
    """Phantoms of 16 pixels and a network of a few hundred parameters; two parts of the split are enough."""
    tiny = {"task": "organ", "cases": 6, "size": 16}
    return Scenario.model_validate(
        {
            "name": "many-sites",
            "task": {"size": [16, 16], "classes": ["background", "organ"]},
            "sites": [
                {"name": f"site-{n:03}", "phantom": tiny | {"appearance": n % 8, "seed": n}} for n in range(sites)
            ],
            "network": {"channels": [4, 8]},
            "training": {"steps": 1, "batch_size": 2},
            "split": {"train": 0.5, "val": 0.0, "test": 0.5, "seed": 0},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, default=500)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    clock = Clock(options.sites)
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder), sqlite_url(Path(folder)))
        carry_out(begin(scenario(options.sites), home, Path(), "benchmark"), home, device="cpu", listener=clock)
    if options.out:
        options.out.write_text(json.dumps(clock.rows) + "\n")


if __name__ == "__main__":
    main()

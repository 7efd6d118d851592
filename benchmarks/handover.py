"""What does a handover cost? A model of 2, 50 and 200 MB there and back through Flower's deployment engine on loopback.

SuperLink and two nodes as `locum simulate --engine flower` starts them: TLS, keys, guard, ledger, vault. The nodes have
PyTorch and MONAI imported when a visit begins, since they were asked for their cases before it. A handover is all that
lies between the conductor's beginning a stop and its commit: the model is read from the vault and sent, the node learns
from it for one step of one image of 8 by 8 pixels, and what comes back, all of it new and as good as random, is checked
and put into the vault. What of that is the step itself (the network made, filled, moved and copied out) is measured in
runs in one process and shown beside. Then bytes and memory, in a process of their own, so that they cost no time: what
crossed between the SuperLink and a node for a visit, and for scoring a model that this node has just handed in.

Usage: python benchmarks/handover.py [--sizes 2 50 200] [--runs 5] [--out FILE.json]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from relay import Relay

from coordinator import deployment
from coordinator.engine import Deployed, Engine, InProcess
from coordinator.events import Listener
from coordinator.grid import SimulatedSite, simulated_sites
from coordinator.home import Home
from coordinator.scenario import Scenario
from coordinator.simulate import begin, carry_out
from coordinator.store import sqlite_url
from coordinator.superlink import SuperLinkConfig
from strategies.baselines.finetune import FineTune
from strategies.visit import Departure, Visit

SITES = ("north", "east")
CHANNELS = {2: (64, 128, 256), 50: (300, 590, 1180), 200: (512, 1024, 2934)}  # MB of weights -> of a U-Net
LOOK_SECONDS = 0.05  # between two looks at memory


class Clock(Listener):
    """How long each stop took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0

    def stop_began(
        self, stop: int, sites: tuple[str, ...], rounds: int, done: int, rehearsing: tuple[str, ...] = ()
    ) -> None:
        self._began = time.perf_counter()

    def stop_ended(self, stop: int, sites: tuple[str, ...], seconds: float) -> None:
        self.seconds.append(time.perf_counter() - self._began)


class Counter(Listener):
    """What crossed at every node during the first stop's visit, and during its scoring."""

    def __init__(self, relays: dict[str, Relay]) -> None:
        self._relays = relays
        self._last: dict[str, tuple[int, int]] = {}
        self.crossed: dict[str, dict[str, tuple[int, int]]] = {}

    def _look(self, name: str) -> None:
        now = {site: (relay.down, relay.up) for site, relay in self._relays.items()}
        if name and name not in self.crossed:
            before = self._last
            self.crossed[name] = {
                site: (now[site][0] - before[site][0], now[site][1] - before[site][1]) for site in now
            }
        self._last = now

    def stop_began(
        self, stop: int, sites: tuple[str, ...], rounds: int, done: int, rehearsing: tuple[str, ...] = ()
    ) -> None:
        self._look("scores" if stop else "")

    def stop_ended(self, stop: int, sites: tuple[str, ...], seconds: float) -> None:
        self._look("visit")


class Memory:
    """The most memory that this process, the SuperLink and the first node (each with its children) ever had, in MiB.

    Proportional set size: what processes share counts once.
    """

    def __init__(self) -> None:
        self.peak: dict[str, float] = {}
        self._stop = threading.Event()
        self._looking = threading.Thread(target=self._look)
        self._looking.start()

    def _look(self) -> None:
        own = psutil.Process()
        while not self._stop.wait(LOOK_SECONDS):
            trees = {"coordinator": [own]}
            for child in own.children():
                words = child.cmdline()
                name = "superlink" if "coordinator.superlink" in words else "node" if "serve" in words else ""
                if name:
                    trees.setdefault(name, [child, *child.children(recursive=True)])
            for name, processes in trees.items():
                self.peak[name] = max(self.peak.get(name, 0.0), sum(map(_pss, processes)) / 2**20)

    def close(self) -> None:
        self._stop.set()
        self._looking.join()


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0  # it has just ended


def scenario(size: int, seed: int) -> Scenario:
    return Scenario.model_validate(
        {
            "name": f"handover-{size}",
            "task": {"size": [8, 8], "classes": ["background", "organ"]},
            "sites": [
                {"name": name, "phantom": {"task": "organ", "cases": 6, "size": 16, "appearance": number}}
                for number, name in enumerate(SITES)
            ],
            "network": {"channels": CHANNELS[size]},
            "training": {"steps": 1, "batch_size": 1, "optimizer": "sgd", "lr": 0.1},
            "split": {"train": 0.5, "val": 0.0, "test": 0.5},
            "seed": seed,
        }
    )


@contextmanager
def place(size: int) -> Iterator[tuple[Home, list[SimulatedSite]]]:
    with tempfile.TemporaryDirectory() as name:
        home = Home(Path(name) / "home", sqlite_url(Path(name) / "home"))
        yield home, simulated_sites(scenario(size, 0), Path(name), home.folder, "cpu")


def make(size: int, seed: int, home: Home, engine: Engine, listener: Listener) -> None:
    run = begin(scenario(size, seed), home, Path(), "benchmark")
    carry_out(run, home, device="cpu", listener=listener, engine=engine)
    if (status := home.store().run(run).status) != "done":
        raise SystemExit(f"The run of {size} MB is {status}.")


def timed(size: int, runs: int) -> dict[str, Any]:
    """Seconds of every handover through the deployment engine."""
    clock = Clock()
    with place(size) as (home, sites), deployment.local_deployment(sites, home.folder / "flower") as config:
        for seed in range(runs):
            make(size, seed, home, Deployed(config), clock)
    return {"handovers_s": clock.seconds}


def counted(size: int) -> dict[str, Any]:
    """Bytes that crossed, and peaks of memory."""
    relays: dict[str, Relay] = {}
    node = deployment.Node

    def relayed(site: SimulatedSite, config: SuperLinkConfig) -> Any:
        relays[site.name] = Relay(config.port)
        return node(site, replace(config, port=relays[site.name].port))

    deployment.Node = relayed  # type: ignore[assignment, misc]
    counter = Counter(relays)
    with ExitStack() as stack:
        home, sites = stack.enter_context(place(size))
        config = stack.enter_context(deployment.local_deployment(sites, home.folder / "flower"))
        memory = Memory()
        stack.callback(memory.close)
        make(size, 0, home, Deployed(config), counter)
    (visit, again, other) = (counter.crossed["visit"]["north"], *(counter.crossed["scores"][site] for site in SITES))
    return {
        "visit_to_node_mb": visit[0] / 1e6,
        "visit_from_node_mb": visit[1] / 1e6,
        "score_known_model_to_node_mb": again[0] / 1e6,
        "score_new_model_to_node_mb": other[0] / 1e6,
        "peak_mib": memory.peak,
    }


def work(size: int, runs: int) -> dict[str, Any]:
    """Seconds of what the strategy does in a visit, and of the whole stop, in one process."""
    seconds: list[float] = []
    visit = FineTune.visit

    def clocked(self: FineTune, stay: Visit) -> Departure:
        began = time.perf_counter()
        departure = visit(self, stay)
        seconds.append(time.perf_counter() - began)
        return departure

    FineTune.visit = clocked  # type: ignore[method-assign, assignment]
    clock = Clock()
    with place(size) as (home, _):
        for seed in range(runs):
            make(size, seed, home, InProcess(), clock)
    return {"step_s": statistics.median(seconds), "in_process_s": statistics.median(clock.seconds)}


def measured(size: int, runs: int) -> dict[str, Any]:
    """All about one size, each part in a process of its own."""
    row: dict[str, Any] = {"mb": size}
    for part in ("timed", "work", "counted"):
        command = [sys.executable, __file__, "--part", part, "--sizes", str(size), "--runs", str(runs)]
        row |= json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    times = row.pop("handovers_s")
    quartiles = statistics.quantiles(times, n=4)
    return row | {"handovers": len(times), "median_s": statistics.median(times), "quartiles_s": quartiles[::2]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[2, 50, 200], choices=CHANNELS)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--part", choices=["timed", "work", "counted"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.part:
        (size,) = options.sizes
        parts = {"timed": lambda: timed(size, options.runs), "work": lambda: work(size, options.runs)}
        sys.stdout.write(json.dumps(parts.get(options.part, lambda: counted(size))()) + "\n")
        return
    rows = []
    for size in options.sizes:
        rows.append(measured(size, options.runs))
        sys.stdout.write(json.dumps(rows[-1]) + "\n")
        sys.stdout.flush()
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""How quick is the overview? Pages over a store of some hundred runs, one of 500 visits to 500 sites, 100,000 events.

The store is filled, a server started over it, and every page asked for several times through a socket on loopback.
Printed are, for each, in milliseconds: the time to the first byte of the answer when the page is asked for the first
time, the median and the largest of the later ones, and the processor's time that one of these takes, the asking
included, which is what other programs on the machine do not change. A home that was filled is kept and used again.

Usage: python benchmarks/overview_pages.py HOME [--runs 300] [--visits 500] [--events 100000] [--repeats 20]
"""

import argparse
import http.client
import json
import statistics
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import insert

from coordinator.dashboard.serving import overview_at
from coordinator.home import Home
from coordinator.scenario import parse_scenario
from coordinator.store import EventRow, Run, ScoreRow, StopRow, sqlite_url
from pages.serving import Address

LARGE = "large-finetune-s0-00000000"
AT_ONCE = 10_000  # rows


def fill(home: Home, runs: int, visits: int, events: int) -> None:
    """Write runs of four visits, and one of many, with the rows that a conductor would have written."""
    store = home.store()
    for number in range(runs):
        name = f"study-{number % 7}"
        write(store, f"{name}-finetune-s{number}-{number:08x}", name, 4, number)
    write(store, LARGE, "large", visits, runs)
    rows = (
        {"run_id": LARGE, "kind": "scored", "stop": n * visits // events,
         "fields": {"stop": n * visits // events, "site": "site-001", "dsc": 0.5}}
        for n in range(events)
    )  # fmt: skip
    with store.transaction() as session:
        for some in chunks(rows):
            session.execute(insert(EventRow), some)


def write(store: Any, run: str, name: str, visits: int, number: int) -> None:
    """One run with its stops and scores."""
    rng = np.random.default_rng(number)
    sites = [f"site-{n:03d}" for n in range(visits)]
    text = json.dumps({"name": name, "task": {"classes": ["background", "organ"]}, "sites": sites, "seed": number})
    scenario = parse_scenario(text, "benchmark").model_dump(mode="json")
    weights = {"weights": 1_900_000, "importance": 100_000}
    scalars = {"steps": 300, "loss": 0.3, **{f"loss.{part:02d}": 0.3 for part in range(20)}}
    with store.transaction() as session:
        session.add(
            Run(id=run, name=name, scenario=scenario, data=None, status="done", seconds=900.0, software="locum 0.1.0",
                created=datetime(2031, 1, 1, tzinfo=UTC) + timedelta(minutes=number), command="locum schedule x.yaml")
        )  # fmt: skip
        session.flush()
        session.add_all(
            StopRow(run_id=run, index=n, sites=[site], action="visit", follows=n - 1 if n else None, status="done",
                    artifact=f"{n:064x}", weights_sha256=f"{n + 7:064x}", seconds=1.5, metrics={site: scalars},
                    traffic={site: {"sent": weights, "received": weights}})
            for n, site in enumerate(sites)
        )  # fmt: skip
        session.flush()
        cells = (
            {"run_id": run, "stop": n, "site": site, "traffic": {"sent": weights, "received": {}}, "error": None,
             "metrics": {"dsc.1": dsc, "asd.1": 9 * (1 - dsc), "cases": 20, "both_empty": 0, "penalised": 0}}
            for n in range(visits)
            for site, dsc in zip(sites, rng.random(visits).tolist(), strict=True)
        )  # fmt: skip
        for some in chunks(cells):
            session.execute(insert(ScoreRow), some)


def chunks(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """The rows, so many at once."""
    some: list[dict[str, Any]] = []
    for row in rows:
        some.append(row)
        if len(some) == AT_ONCE:
            yield some
            some = []
    if some:
        yield some


def first_byte(port: int, path: str) -> float:
    """Milliseconds from asking until the answer's first byte; the rest is read too."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.connect()
    began = time.perf_counter()
    connection.request("GET", path, headers={"accept": "text/html"})
    answer = connection.getresponse()
    took = time.perf_counter() - began
    answer.read()
    connection.close()
    if answer.status != 200:
        raise SystemExit(f"{path}: {answer.status}")
    return 1000 * took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path)
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--visits", type=int, default=500)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=20)
    told = parser.parse_args()
    home = Home(told.home.absolute(), sqlite_url(told.home))
    if home.is_new():
        fill(home, told.runs, told.visits, told.events)
    small = "study-0-finetune-s0-00000000"
    paths = [
        "/", "/?scenario=study-3", "/sites", f"/runs/{small}", f"/runs/{LARGE}", f"/runs/{LARGE}?row=200&column=100",
        f"/runs/{LARGE}/parts/now", f"/runs/{LARGE}/parts/scores", f"/runs/{LARGE}/parts/stops",
        f"/runs/{LARGE}/parts/events", f"/api/runs/{LARGE}/matrix", f"/api/runs/{LARGE}/curves",
        f"/api/runs/{LARGE}/events?before=50000", "/compare?scenario=study-3",
    ]  # fmt: skip
    sys.stdout.write("   first   median  largest     work  page\n")
    with overview_at(Address(), home, None, None) as place:
        port = int(place.rpartition(":")[2])
        first = {path: first_byte(port, path) for path in paths}
        for path in paths:
            worked = time.process_time()
            later = [first_byte(port, path) for _ in range(told.repeats)]
            worked = 1000 * (time.process_time() - worked) / told.repeats
            times = (first[path], statistics.median(later), max(later), worked)
            sys.stdout.write(f"{' '.join(f'{took:8.1f}' for took in times)}  {path}\n")


if __name__ == "__main__":
    main()

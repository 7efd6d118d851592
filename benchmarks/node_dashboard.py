"""How soon the pages of a node's dashboard answer with a long ledger: the first byte, over a real socket.

    python benchmarks/node_dashboard.py [ENTRIES] [STOPS]

makes a node with so many entries (100,000 unless told) and one run of so many stops that was scored after each (500),
and prints for every page the median and the longest of 20 requests, and the CPU time of one, in milliseconds.
"""

import json
import statistics
import sys
import tempfile
import time
import zlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from sqlalchemy import insert

from node.asked import AskedRun
from node.dashboard.application import dashboard_for
from node.dashboard.reading import open_reader
from node.database import open_database
from node.ledger import Crossing, Direction, Entry, Ledger, Verdict
from node.progress_store import LossNote
from node.records import CaseScoreRow
from node.settings import SiteSettings
from pages.serving import Address, Server
from protos.handover import Handover, Kind, Tensor, manifest_of
from protos.plan import PhantomSite, Plan, StrategyChoice, Task

RUN = "long-smg-s0-00000000"
PAGES = (
    "/", "/crossed", "/crossed?refused=true", "/crossed?kind=prompts", "/crossed?before=50000", "/crossed/50000",
    "/data", "/scores", "/replay", "/policy", "/api/now", "/api/ledger?limit=500", "/api/ledger/traffic", "/api/scores",
)  # fmt: skip
REQUESTS = 20
CASES = 30


def main() -> None:
    entries, stops = (
        int(sys.argv[place]) if len(sys.argv) > place else known for place, known in ((1, 100_000), (2, 500))
    )
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "north"
        fill(home, entries, stops)
        app, house = dashboard_for(open_reader(home), token=False)
        server = Server(app, Address())
        address = server.start()
        print(f"{entries} entries, {stops} stops, {(home / 'node.db').stat().st_size / 1e6:.0f} MB")
        with httpx.Client(base_url=address, timeout=60) as client:
            for page in PAGES:
                first = wait(client, page)
                while any(house.jobs.get(name).running for name in list(house.jobs._jobs)):
                    time.sleep(0.1)  # the chain and the pictures are made in processes of their own
                before = time.process_time()
                waited = [wait(client, page) for _ in range(REQUESTS)]
                worked = (time.process_time() - before) * 1000 / REQUESTS  # of a core, here and at the client
                median, longest = statistics.median(waited), max(waited)
                print(f"{page:28} median {median:6.1f}  longest {longest:6.1f}  first {first:6.1f}  CPU {worked:6.1f}")
        house.jobs.close()
        server.stop()


def wait(client: httpx.Client, page: str) -> float:
    began = time.perf_counter()
    with client.stream("GET", page) as answer:
        next(answer.iter_raw(1), b"")
        waited = (time.perf_counter() - began) * 1000
        answer.read() if not answer.is_stream_consumed else None
        assert answer.status_code in (200, 404), (page, answer.status_code)
    return waited


def fill(home: Path, entries: int, stops: int) -> None:
    """Rows as runs make them, but without a sound chain, which would take minutes."""
    engine = open_database(home, durable=False)
    ledger = Ledger(engine)
    ledger.record(Crossing(Direction.IN, "north", "query.describe", Verdict.ALLOWED, run=RUN, stop=0, round=0))
    weights = {f"layer.{number}": Tensor("float32", (8,), bytes(32)) for number in range(60)}
    manifest = manifest_of(Handover(weights=weights), run=RUN, stop=0, site="north", strategy="smg")
    packed = zlib.compress(manifest.SerializeToString(deterministic=True))
    began = datetime.now(UTC) - timedelta(days=200)
    scores = {"dsc": 0.8, "asd": 1.0, "dsc.1": 0.8, "asd.1": 1.0, "cases": CASES, "drift_mean": 0.1, "drift_std": 0.1,
              "drift_edge": 0.1, "both_empty": 0, "penalised": 0}  # fmt: skip
    visited = {"loss": 0.1, "copies": 0.0, "copy_similarity": 0.2, "held_out_similarity": 0.2}
    rows = []
    for number in range(2, entries + 1):
        stop = number * stops // (entries + 1)
        visit, way = number % 4 < 2, "in" if number % 2 == 0 else "out"
        refused = number % 1000 == 0
        carried = {} if refused else {Kind.WEIGHTS: 1_900_000} if number % 4 != 3 else {}
        rows.append(
            {
                "seq": number, "time": (began + timedelta(seconds=150 * number)).isoformat(timespec="microseconds"),
                "direction": way, "site": "north", "message_type": "train.visit" if visit else "evaluate.score",
                "verdict": "refused" if refused else "allowed", "code": "POLICY" if refused else "",
                "detail": "The policy's kinds do not include prompts." if refused else "", "run": RUN, "stop": stop,
                "round": number % 200, "action": "visit", "strategy": "smg", "kind_bytes": json.dumps(carried),
                "metrics": json.dumps({} if refused or way == "in" else visited if visit else scores),
                "manifest": packed if carried else None, "hash": f"{number:064x}",
            }
        )  # fmt: skip
    cases = [
        {"run": RUN, "stop": stop, "case": f"case-{case:03d}", "class_number": 1, "dsc": 0.8, "asd": 1.0}
        for stop in range(stops)
        for case in range(CASES)
    ]
    losses = [
        {"run": RUN, "stop": stops - 1, "step": step, "loss": 1 / step, "time": began.isoformat()}
        for step in range(1, 500)
    ]
    plan = Plan(
        task=Task(classes=("background", "organ")), strategy=StrategyChoice(name="smg"), sites=("north", "east")
    )
    settings = SiteSettings(name="north", home=home, phantom=PhantomSite(task="organ", cases=CASES))
    known = {
        "run": RUN,
        "first": began.isoformat(),
        "unseen": False,
        "plan": plan.model_dump_json(),
        "settings": settings.model_dump_json(),
    }
    with engine.execution_options(write=True).begin() as connection:
        connection.execute(insert(Entry), rows)
        connection.execute(insert(CaseScoreRow), cases)
        connection.execute(insert(LossNote), losses)
        connection.execute(insert(AskedRun), known)


if __name__ == "__main__":
    main()

"""Kill whatever there is to kill, every few seconds, over and over: every run ends as if nothing had happened.

LOCUM_STORM_SEED and LOCUM_STORM_KILLS say which storm, and how long it is. What an operator's supervisor would start
again (deploy/*.service: Restart=always) is started again, and what a person would resume is resumed.
"""

import os
import random
import time
from collections import Counter
from collections.abc import Callable

import psutil
import pytest

from coordinator.client import Refused, ServiceFailed, Unreachable
from coordinator.listing import listed
from node.database import open_database
from node.ledger import Ledger
from tests.conftest import Desk, outcome
from tests.coordinator.serving import SECONDS
from tests.faults.deployment import SITES, SLOW, VISITS, Deployment

pytestmark = [pytest.mark.faults, pytest.mark.timeout(5400)]

SEED = int(os.environ.get("LOCUM_STORM_SEED", "0"))
KILLS = int(os.environ.get("LOCUM_STORM_KILLS", "50"))
PAUSES = 1.0, 8.0  # seconds between two kills
OFF = 1.0, 8.0  # seconds that the network is cut for


class Storm:
    """What may be hit, drawn by chance; `hits` counts them by kind."""

    def __init__(self, deployment: Deployment, seed: int) -> None:
        self._deployment, self._draw = deployment, random.Random(seed)
        self.hits: Counter[str] = Counter()
        self._mend: list[tuple[float, Callable[[], None]]] = []

    def pause(self) -> float:
        return self._draw.uniform(*PAUSES)

    def strike(self) -> None:
        """Kill one thing, or cut the network of one site for a while; nothing if it is not there at the moment."""
        targets = {
            "process of a run": lambda: self._child("coordinator.worker"),
            "SuperLink": lambda: self._child("coordinator.superlink"),
            "service": lambda: self._deployment.service.pid,
            "node": lambda: self._deployment.node(site).pid,
            "work of a node": lambda: self._work(site),
            "network": lambda: site,
        }
        kind, site = self._draw.choice(list(targets)), self._draw.choice(SITES)
        how, seconds = self._draw.choice(("stall", "reset")), self._draw.uniform(*OFF)
        try:
            target = targets[kind]()
            if kind == "network":
                proxy = self._deployment.proxies[site]
                proxy.cut(how)
                self._mend.append((time.monotonic() + seconds, proxy.mend))
            else:
                psutil.Process(target).kill()
        except (psutil.NoSuchProcess, IndexError):
            return
        self.hits[kind] += 1

    def look_after(self) -> None:
        """Do what supervisors do, and let the network come back."""
        now = time.monotonic()
        for due, mend in self._mend:
            if due <= now:
                mend()
        self._mend = [entry for entry in self._mend if entry[0] > now]
        if self._deployment.service.poll() is not None:
            self._deployment.begin()
        for site in SITES:
            if self._deployment.node(site).poll() is not None:
                self._deployment.start_node_again(site)

    def calm(self) -> None:
        """Let all of the network come back."""
        for _, mend in self._mend:
            mend()
        self._mend = []

    def _child(self, module: str) -> int:
        return int(self._draw.choice(self._deployment.children(module)).pid)

    def _work(self, site: str) -> int:
        return int(self._draw.choice(self._deployment.work(site)).pid)


def statuses(deployment: Deployment, runs: list[str]) -> dict[str, tuple[str, int]]:
    """Of every run that has begun its status, and how many of its stops are made."""
    rows = [deployment.home.store().run(run) for run in runs]
    return {row.id: (row.status, sum(stop.status == "done" for stop in row.stops)) for row in rows if row.stops}


def resumed(deployment: Deployment, run: str) -> bool:
    """Whether the service was there to be told."""
    try:
        with deployment.client() as client:
            client.resume(run)
    except (Unreachable, ServiceFailed, Refused):
        return False
    return True


def ride_out(storm: Storm, deployment: Deployment, runs: list[str]) -> int:
    """Strike until there were enough hits, then wait until what has begun is done; how often a run was resumed."""
    resumes, standing = 0, {}
    now = moved = time.monotonic()
    due = now + storm.pause()
    while storm.hits.total() < KILLS or any(status != "done" for status, _ in standing.values()):
        storm.look_after()
        before, standing = standing, statuses(deployment, runs)
        moved = now if standing != before else moved
        assert now - moved < 5 * SECONDS, f"it stands still: {storm.hits}, {standing}"
        for run, (status, _) in standing.items():
            resumes += status in ("failed", "incomplete") and resumed(deployment, run)
        assert resumes < KILLS
        if storm.hits.total() < KILLS and now >= due:
            storm.strike()
            due = time.monotonic() + storm.pause()
            if storm.hits.total() == KILLS:
                runs = list(statuses(deployment, runs))  # those that come after it do not count
        time.sleep(0.1)
        now = time.monotonic()
    return resumes


def test_nothing_is_lost_in_a_storm(deployment: Deployment, slow: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    many = ", ".join(["finetune"] * (KILLS // 2 + 2))
    runs = deployment.schedule(*(f"--set={key}" for key in SLOW), f"--set=study={{strategies: [{many}]}}")
    storm, began = Storm(deployment, SEED), time.monotonic()
    resumes = ride_out(storm, deployment, runs)
    seconds = time.monotonic() - began
    storm.calm()
    deployment.whole()
    for run in runs:
        deployment.ask("cancel", run)  # one that is done stays as it is
    (known,) = listed(slow.home)
    expected = outcome(slow.row(str(known["run"])))
    ended = [run for run, (status, _) in statuses(deployment, runs).items() if status == "done"]
    made = [deployment.made(run) for run in ended]
    losses = sum(found != VISITS for found in made)
    losses += sum(outcome(deployment.home.store().run(run)) != expected for run in ended)
    by_kind = ", ".join(f"{kind} {count}" for kind, count in sorted(storm.hits.items()))
    with capsys.disabled():
        print(
            f"\nstorm {SEED}: {storm.hits.total()} hits ({by_kind}) in {seconds:.0f} s, {len(ended)} runs, "
            f"{sum(found.total() for found in made)} visits, {resumes} resumed by hand, {losses} losses"
        )
    assert losses == 0
    assert ended
    for site in SITES:
        assert Ledger(open_database(deployment.folder / site)).verify() == []

"""Both engines, one contract: the same scenario comes to the same bits, scores, ledgers and refusals."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from coordinator.conductor import VisitFailed
from coordinator.deployment import local_deployment
from coordinator.engine import Deployed
from coordinator.grid import SimulatedSite, simulated_sites
from coordinator.simulate import carry_out
from coordinator.superlink import SuperLinkConfig
from node.decisions import held_handovers, release
from protos.messages import PROGRESS, VISIT
from tests.conftest import Desk, Recorder, outcome

SITES = ("north", "east", "south")
STRATEGIES = (
    "finetune",
    "{name: ewc, strength: 10}",
    "joint",
    "{name: replay, mode: interleaved, cases: 3, local_steps: 2}",
    "{name: replay, mode: exact, cases: 3}",
    "{name: smg, generator: {channels: [8]}, generator_steps: 2, generator_batch: 2, evaluations: 2, replays: 2}",
)


@dataclass(frozen=True)
class Deployment:
    """Nodes of the tiny hospitals as processes of their own, which serve every test of this module."""

    desk: Desk
    sites: dict[str, SimulatedSite]
    config: SuperLinkConfig

    def carry_out(self, run: str, on: Callable[[tuple[Any, ...]], None] = lambda event: None) -> Recorder:
        recorder = Recorder(on=on)
        carry_out(run, self.desk.home, device="cpu", listener=recorder, engine=Deployed(self.config))
        return recorder


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    desk = Desk(tmp_path_factory.mktemp("deployed"))
    sites = simulated_sites(desk.scenario(), desk.folder, desk.home.folder, "cpu")
    with local_deployment(sites, desk.folder / "flower") as config:
        yield Deployment(desk, {site.name: site for site in sites}, config)


def crossings(desk: Desk, site: str, run: str) -> list[Any]:
    """What crossed for the run, but for questions of progress, which the clock decides on."""
    return [
        (
            *(entry.direction, entry.message_type, entry.verdict, entry.stop, entry.round, entry.kind_bytes),
            *(entry.metrics, entry.software, entry.code_sha256),
        )
        for entry in desk.ledger(site).entries()
        if entry.run == run and entry.message_type != PROGRESS
    ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_same_bits_scores_and_ledgers(strategy: str, deployed: Deployment, desk: Desk) -> None:
    plain = desk.simulate(f"strategy={strategy}")
    run = deployed.desk.begin(f"strategy={strategy}")
    deployed.carry_out(run)
    assert outcome(deployed.desk.row(run)) == outcome(desk.row(plain))
    for site in (*SITES, "island"):
        assert crossings(deployed.desk, site, run) == crossings(desk, site, plain)
        assert deployed.desk.ledger(site).verify() == []


@dataclass
class Person(Recorder):
    """Releases what waits when a run waits for a person; `told` are the sites."""

    home: Path = Path()
    told: list[str] = field(default_factory=list)

    def held(self, site: str, seconds: float) -> None:
        self.told.append(site)
        (held,) = held_handovers(self.home)
        release(self.home, held.handover, by="Dr. Roe", why="looked at it")


def test_what_a_person_has_to_release_waits_and_leaves_once(deployed: Deployment, desk: Desk) -> None:
    east, policy = desk.home.folder / "nodes" / "east", "hold: [weights]\n"
    east.mkdir(parents=True)
    (east / "policy.yaml").write_text(policy)
    plain = desk.begin()
    with pytest.raises(VisitFailed, match=r"\[HELD\]$"):
        desk.carry_out(plain)
    release(east, held_handovers(east)[0].handover, by="Dr. Roe", why="looked at it")
    desk.carry_out(plain)

    node_of_east = deployed.sites["east"].home
    (node_of_east / "policy.yaml").write_text(policy)
    try:
        run, person = deployed.desk.begin(), Person(home=node_of_east)
        carry_out(run, deployed.desk.home, device="cpu", listener=person, engine=Deployed(deployed.config))
    finally:
        (node_of_east / "policy.yaml").unlink()
    assert person.told == ["east"]
    assert outcome(deployed.desk.row(run)) == outcome(desk.row(plain))

    def visits(desk: Desk, run: str) -> list[Any]:
        """What became of the visit, however often the coordinator asked meanwhile."""
        return [entry for entry in crossings(desk, "east", run) if entry[1] == VISIT]

    assert visits(deployed.desk, run) == visits(desk, plain)
    assert [entry[2] for entry in visits(desk, plain)] == ["allowed", "held", "released", "allowed", "allowed"]
    assert deployed.desk.ledger("east").verify() == []

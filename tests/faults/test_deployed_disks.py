"""Disks of a deployment's nodes: full, or damaged. The nodes are processes of their own, one on a small disk."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from coordinator.conductor import VisitFailed
from coordinator.deployment import local_deployment
from coordinator.engine import Deployed
from coordinator.grid import SimulatedSite, simulated_sites
from coordinator.simulate import carry_out
from coordinator.superlink import SuperLinkConfig
from node.database import open_database
from node.ledger import Ledger
from protos.refusals import RefusalCode, explain
from tests.conftest import Desk, Recorder, outcome
from tests.coordinator.serving import wait_for
from tests.faults.damaging import cut, flip, left_with_visits, stops_made
from tests.faults.deployment import under_way
from tests.faults.disks import Disk, small_disk

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

LONG = ("training.steps=300", "training.checkpoint_every=50")


@dataclass(frozen=True)
class Deployment:
    """Nodes of the tiny hospitals as processes of their own; that of east has its home on `disk`."""

    desk: Desk
    east: SimulatedSite
    config: SuperLinkConfig
    disk: Disk

    def carry_out(self, run: str, on: Callable[[tuple[Any, ...]], None] = lambda event: None) -> Recorder:
        recorder = Recorder(on=on)
        carry_out(run, self.desk.home, device="cpu", listener=recorder, engine=Deployed(self.config))
        return recorder

    def fails(self, run: str, code: RefusalCode, on: Callable[[tuple[Any, ...]], None]) -> None:
        with pytest.raises(VisitFailed) as failed:
            self.carry_out(run, on)
        assert str(failed.value) == f"Run {run} failed at stop 1: Site east: {explain(code)} [{code.name}]"

    @property
    def log(self) -> str:
        return (self.east.home / "node.log").read_text()

    def assert_whole(self, run: str, expected: dict[str, Any]) -> None:
        assert outcome(self.desk.row(run)) == expected
        for site in ("north", "east", "south"):
            assert [entry.verdict for entry in left_with_visits(self.desk, site, run)].count("allowed") == 1
            assert self.desk.ledger(site).verify() == []


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    desk = Desk(tmp_path_factory.mktemp("deployed"))
    sites = {site.name: site for site in simulated_sites(desk.scenario(), desk.folder, desk.home.folder, "cpu")}
    east = sites["east"]
    with (
        small_disk(east.home, megabytes=32) as disk,
        local_deployment([*sites.values()], desk.folder / "flower") as config,
    ):
        yield Deployment(desk, east, config, disk)
        open_database(east.home).dispose()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    desk = Desk(tmp_path_factory.mktemp("undisturbed"))
    return outcome(desk.row(desk.simulate(*LONG)))


@pytest.mark.parametrize(
    ("learning", "code"),
    [(False, RefusalCode.DISK_FULL), (True, RefusalCode.LEDGER)],
    ids=["while the model arrives", "while it learns"],
)
def test_a_full_disk_at_a_node_on_a_mounted_tmpfs(
    learning: bool, code: RefusalCode, deployed: Deployment, undisturbed: dict[str, Any]
) -> None:
    """One sentence at the coordinator, the place in the node's log; the node itself stays, and goes on when told to."""
    run = deployed.desk.begin(*LONG)

    def fill() -> None:
        if learning:
            wait_for(lambda: under_way(deployed.east.home, run, 1))
        deployed.disk.fill()

    with ThreadPoolExecutor(1) as pool:
        filling: list[Future[None]] = []

        def begin(seen: tuple[object, ...]) -> None:
            if seen[:2] == ("stop began", 1):
                filling.append(pool.submit(fill))
                if not learning:
                    filling[0].result()

        deployed.fails(run, code, begin)
        filling[0].result()
    assert "No space left on device" in deployed.log or "database or disk is full" in deployed.log
    deployed.disk.free()
    deployed.carry_out(run)
    deployed.assert_whole(run, undisturbed)


def test_a_reply_that_a_node_has_kept_makes_an_artifact_again(
    deployed: Deployment, undisturbed: dict[str, Any]
) -> None:
    """So the visit is not made twice, and stands in the ledger once."""
    run = deployed.desk.begin(*LONG)

    def damage(seen: tuple[object, ...]) -> None:
        if seen[:2] == ("scored", 1):
            path = deployed.desk.vault.path(str(deployed.desk.row(run).stops[1].artifact))
            if path not in damaged:
                damaged.add(path)
                flip(path)

    damaged: set[Path] = set()
    assert stops_made(deployed.carry_out(run, damage).events) == [0, 1, 1, 2]
    deployed.assert_whole(run, undisturbed)


def test_a_node_whose_ledger_is_damaged_works_for_nobody(deployed: Deployment, undisturbed: dict[str, Any]) -> None:
    """Until it is restored, or renewed in a person's name (test_ledger_broken.py); it need not be stopped."""
    run = deployed.desk.begin(*LONG)
    file = deployed.east.home / "node.db"
    whole: list[bytes] = []

    def damage(seen: tuple[object, ...]) -> None:
        if seen[:2] == ("stop began", 1):
            with closing(open_database(deployed.east.home).raw_connection()) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            open_database(deployed.east.home).dispose()
            whole.append(file.read_bytes())
            cut(file)

    deployed.fails(run, RefusalCode.LEDGER_BROKEN, damage)
    assert f"The ledger in {file} is damaged (" in deployed.log
    assert "`locum-node renew --home " in deployed.log
    for part in file.parent.glob("node.db-*"):
        part.unlink()
    new = file.with_name("restored")
    new.write_bytes(whole[0])
    new.replace(file)
    deployed.carry_out(run)
    deployed.assert_whole(run, undisturbed)
    assert Ledger(open_database(deployed.east.home)).verify() == []

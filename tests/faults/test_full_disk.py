"""A disk that is full, for real: said in one sentence, nothing half is left, and when it is free again all goes on."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from coordinator.store import close_store
from protos.refusals import RefusalCode, explain
from tests.conftest import Desk, outcome
from tests.coordinator.test_cli import Said, Terminal
from tests.faults.damaging import Undisturbed, interrupted, left_with_visits
from tests.faults.disks import Disk, small_disk

Mount = Callable[[str], Disk]
SITES = ("north", "east", "south")


@pytest.fixture
def mount(desk: Desk) -> Iterator[Mount]:
    """Mounts a disk at a folder of the home; what is in the home besides lies on the ordinary one."""
    with ExitStack() as stack:
        yield lambda folder: stack.enter_context(small_disk(desk.home.folder / folder))
        close_store(desk.home.database)


def resumed(locum: Terminal, run: str) -> Said:
    return locum("resume", run, "--no-report")


def assert_whole(desk: Desk, run: str, expected: dict[str, Any]) -> None:
    """As undisturbed, nothing half is left anywhere, and every visit stands in the ledgers as having left once."""
    assert outcome(desk.row(run)) == expected
    assert not list(desk.home.folder.rglob(".new-*"))
    for site in SITES:
        assert [entry.verdict for entry in left_with_visits(desk, site, run)].count("allowed") == 1
        assert desk.ledger(site).verify() == []


def test_of_the_vault_on_a_mounted_tmpfs(desk: Desk, locum: Terminal, mount: Mount, undisturbed: Undisturbed) -> None:
    """The handover has left the site when it cannot be kept: asked again, the site gives the same, and it left once."""
    disk = mount("vault")
    run = interrupted(desk, "stop began", 1)
    disk.fill()
    said = resumed(locum, run)
    assert said.status == 1
    first, then = said.err.splitlines()[-2:]
    assert first.startswith(f"locum: {disk.folder}/")
    assert first.endswith(": No space left on device; free or mend the disk, or name another place with --home.")
    assert then == (
        f"locum: when that is mended, `locum resume {run} --home={desk.home.folder}` goes on where it stopped."
    )
    assert not list(disk.folder.rglob(".new-*"))
    disk.free()
    assert resumed(locum, run).status == 0
    assert_whole(desk, run, undisturbed("finetune"))


@pytest.mark.parametrize("spare", [0, 4096, 40 * 4096], ids=["all of it", "but for a page", "but for the copy"])
def test_of_the_database_on_a_mounted_tmpfs(
    spare: int, desk: Desk, locum: Terminal, mount: Mount, tmp_path: Path, undisturbed: Undisturbed
) -> None:
    disk = mount(".")
    for name in ("nodes", "vault", "runs"):
        (tmp_path / name).mkdir()
        (desk.home.folder / name).symlink_to(tmp_path / name)
    run = interrupted(desk, "stop began", 1)
    disk.fill(spare)
    said = resumed(locum, run)
    assert said.status == 1
    path = desk.home.folder / "coordinator.db"
    assert f"locum: The database {path} could not be used (" in said.err
    assert "; free or mend its disk, or name another with --database.\n" in said.err
    assert not list(disk.folder.glob(".new-*"))
    disk.free()
    assert resumed(locum, run).status == 0
    assert outcome(desk.row(run)) == undisturbed("finetune")
    close_store(desk.home.database)


def test_of_the_report_on_a_mounted_tmpfs(desk: Desk, locum: Terminal, mount: Mount, undisturbed: Undisturbed) -> None:
    """The run is done, and its figures are shown; only the report is missing, and none is there in half."""
    disk = mount("runs")
    run = interrupted(desk, "stop began", 1)
    disk.fill(2 * 4096)
    said = locum("resume", run)
    assert said.status == 1
    assert "after visiting" in said.out
    assert f"locum: {desk.home.report(run)}" in said.err
    assert "No space left on device" in said.err
    assert said.err.endswith(f"locum: when that is mended, `locum report {run}` writes the report.\n")
    assert not (desk.home.report(run) / "report.html").exists()
    disk.free()
    assert_whole(desk, run, undisturbed("finetune"))
    assert locum("report", run).status == 0
    assert (desk.home.report(run) / "report.html").read_text().rstrip().endswith("</html>")


def test_of_a_node_s_checkpoints_on_a_mounted_tmpfs(
    desk: Desk, mount: Mount, undisturbed: Undisturbed, capsys: pytest.CaptureFixture[str]
) -> None:
    """A visit can do without its checkpoint: it goes on, and says so."""
    disk = mount("nodes/east/checkpoints")
    disk.fill()
    run = desk.simulate()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "checkpoint" in line]
    assert line.startswith(f"{disk.folder}/{run}")
    assert line.endswith("No space left on device; the visit goes on without a checkpoint.")
    assert_whole(desk, run, undisturbed("finetune"))


@pytest.mark.parametrize("event", [("stop began", 1), ("stepped", 1, "east", 3)], ids=["request", "reply"])
def test_of_a_node_s_ledger_on_a_mounted_tmpfs(
    event: tuple[object, ...], desk: Desk, locum: Terminal, mount: Mount, undisturbed: Undisturbed
) -> None:
    """What cannot be written down does not cross, neither in nor out."""
    disk = mount("nodes/east")
    run = desk.begin()

    def fill(seen: tuple[object, ...]) -> None:
        if seen[: len(event)] == event:
            disk.fill()

    with pytest.raises(Exception, match=r"\[LEDGER\]$") as failed:
        desk.carry_out(run, fill)
    assert str(failed.value) == f"Run {run} failed at stop 1: Site east: {explain(RefusalCode.LEDGER)} [LEDGER]"
    disk.free()
    assert resumed(locum, run).status == 0
    assert_whole(desk, run, undisturbed("finetune"))


def test_of_a_node_s_scores_on_a_mounted_tmpfs(desk: Desk, mount: Mount, undisturbed: Undisturbed) -> None:
    """A score that could not be written down is missing, and asked for again."""
    disk = mount("nodes/island")
    run = desk.begin()
    desk.carry_out(run, lambda event: disk.fill() if event[:2] == ("stop ended", 2) else None)
    row = desk.row(run)
    assert row.status == "incomplete"
    (error,) = [score.error for score in row.scores if score.error]
    assert error["code"] == "LEDGER"
    disk.free()
    desk.carry_out(run)
    assert_whole(desk, run, undisturbed("finetune"))


def test_of_a_node_s_memory_on_a_mounted_tmpfs(desk: Desk, mount: Mount, undisturbed: Undisturbed) -> None:
    """Work that needs the disk ends with a code of its own."""
    strategy = "{name: replay, mode: interleaved, cases: 2, local_steps: 2}"
    disk = mount("nodes/east/memory")
    disk.fill()
    run = desk.begin(f"strategy={strategy}")
    with pytest.raises(Exception, match=r"\[DISK_FULL\]$") as failed:
        desk.carry_out(run)
    assert str(failed.value) == f"Run {run} failed at stop 1: Site east: {explain(RefusalCode.DISK_FULL)} [DISK_FULL]"
    disk.free()
    desk.carry_out(run)
    assert outcome(desk.row(run)) == undisturbed(strategy)
    assert not list(desk.home.folder.rglob(".new-*"))

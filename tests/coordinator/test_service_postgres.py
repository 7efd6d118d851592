"""The control service on PostgreSQL: queue, events, watching and resuming, across the death of the service."""

import json
from pathlib import Path

import psutil
import pytest

from tests.coordinator.postgres import PASSWORD, postgres
from tests.coordinator.serving import assert_as_in_process, in_process, two_sites

pytestmark = pytest.mark.timeout(900)  # many processes, which a busy machine keeps waiting


def test_a_run_is_queued_watched_killed_cancelled_and_resumed_as_on_sqlite(tmp_path: Path) -> None:
    expected = in_process(tmp_path / "in-process")
    with postgres() as url, two_sites(tmp_path / "served", database=url) as served:
        (run,) = served.schedule()
        (late,) = served.schedule("--at=2099-01-01T00:00:00+00:00")
        watcher = served.process("watch.log", "watch", run, *served.options)
        served.wait_for_event(run, "stop_ended")
        served.kill()
        served.start()
        served.wait_for_event(run, "run_began", 2)
        assert served.ask("cancel", run).status == 0
        assert watcher.wait(240) == 1
        said = (served.folder / "watch.log").read_text()
        assert "The connection to the coordinator was lost; looking for it again." in said
        assert f"run {run}: cancelled" in said

        resumed = served.ask("resume", run, "--no-report")
        assert resumed.status == 0, resumed.err
        assert resumed.err.count("stop 0 at north: done") == resumed.err.count("stop 1 at east: done") == 1
        assert_as_in_process(served, run, expected)
        rows = {row["run"]: row for row in json.loads(served.ask("runs", "--json").out)["runs"]}
        assert (rows[run]["status"], rows[late]["status"]) == ("done", "pending")
        assert rows[late]["waits_for"] == "its time, 2099-01-01T00:00:00+00:00"
        assert [site["cases"]["train"] for site in json.loads(served.ask("sites", "--json").out)["sites"]] == [4, 3]

        assert not (served.home.folder / "coordinator.db").exists()
        shown = [
            said,
            served.log,
            *(" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)),
        ]
        assert PASSWORD not in "".join(shown)

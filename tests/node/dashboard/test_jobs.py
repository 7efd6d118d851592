"""The dashboard's processes: what they say is heard, however they come to their end."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.dashboard.jobs import Job, Jobs

LEDGER = ["node", "ledger", "--verify", "--json", "--home"]


@pytest.fixture
def jobs() -> Iterator[Jobs]:
    jobs = Jobs()
    yield jobs
    jobs.close()


def ended(jobs: Jobs, name: str) -> Job:
    deadline = time.monotonic() + 200
    while (job := jobs.get(name)).running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not job.running
    return job


def test_a_result_is_heard_of_a_process_that_ends_before_its_order_is_read(jobs: Jobs, lived_in: Path) -> None:
    more_than_a_pipe_holds = {"unread": "x" * 1_000_000}
    jobs.start("chain", [*LEDGER, str(lived_in)], more_than_a_pipe_holds)
    job = ended(jobs, "chain")
    assert not job.failed
    assert job.result is not None
    assert job.result["sound"] is True


def test_a_failure_is_shown_in_words_and_its_reason_is_in_the_log(
    jobs: Jobs, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs.start("chain", [*LEDGER, str(tmp_path / "nowhere")], {})
    job = ended(jobs, "chain")
    assert job.result is None
    assert job.failed == "It could not be done; the dashboard's log says more."
    assert "chain ended with status 2" in caplog.text
    assert "nowhere" in caplog.text


def test_no_module_beside_the_user_stands_in_for_the_node_s(
    jobs: Jobs, lived_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "node.py").write_text("raise SystemExit('another one')\n")
    monkeypatch.chdir(tmp_path)
    jobs.start("chain", [*LEDGER, str(lived_in)], {})
    assert ended(jobs, "chain").result


def test_nothing_is_taken_after_the_end(jobs: Jobs, lived_in: Path) -> None:
    jobs.start("chain", [*LEDGER, str(lived_in)], {})
    jobs.close()
    jobs.start("other", [*LEDGER, str(lived_in)], {})
    assert jobs.get("other") == Job()

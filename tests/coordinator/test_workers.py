"""The processes that carry out runs, when they die at once."""

from pathlib import Path
from queue import SimpleQueue

from coordinator.home import Home
from coordinator.store import sqlite_url
from coordinator.workers import Message, Worker


def test_one_that_died_before_it_read_its_order_is_heard_of_and_stopped(tmp_path: Path) -> None:
    heard: SimpleQueue[tuple[Worker, Message | None]] = SimpleQueue()
    worker = Worker(Home(tmp_path, sqlite_url(tmp_path)), lambda *said: heard.put(said))
    worker._process.kill()
    worker._process.wait()
    worker.give("run", "cpu")
    assert heard.get(timeout=60) == (worker, None)
    worker.stop()
    assert worker.how_it_ended() == "by SIGKILL"


def test_half_a_line_does_not_hide_that_a_process_died(tmp_path: Path) -> None:
    heard: SimpleQueue[tuple[Worker, Message | None]] = SimpleQueue()
    worker = Worker(Home(tmp_path, sqlite_url(tmp_path)), lambda *said: heard.put(said))
    with Path(f"/proc/{worker._process.pid}/fd/1").open("w") as its_output:
        its_output.write('{"event": "stop_en')
    worker._process.kill()
    assert heard.get(timeout=60) == (worker, None)
    worker.stop()

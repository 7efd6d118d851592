"""Work that takes longer than a page may: in processes of their own, one at a time; the results stay in memory."""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

_log = logging.getLogger("locum.node.dashboard")

NICER = 10  # than what the node works on


@dataclass(frozen=True)
class Job:
    """The state of one piece of work. `result` is what it printed last; None while there is none."""

    running: bool = False
    done: int = 0
    total: int = 0
    result: Mapping[str, Any] | None = None
    failed: str = ""
    ended: datetime | None = None


class Jobs:
    """Starts processes that print JSON objects, one a line: `{"done": n, "total": m}` on the way, the result last."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "dashboard-job")
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._running: subprocess.Popen[str] | None = None
        self._closed = False
        self.version = 0  # changes with every change of a job

    def get(self, name: str) -> Job:
        """A job's state; an untouched one if it was never started."""
        with self._lock:
            return self._jobs.get(name, Job())

    def start(self, name: str, module: Sequence[str], order: Mapping[str, Any]) -> None:
        """Run `python -m MODULE...` with the order on its standard input, unless this job is running already."""
        with self._lock:
            if self._closed or self._jobs.get(name, Job()).running:
                return
            self._jobs[name] = replace(self._jobs.get(name, Job()), running=True, done=0, total=0, failed="")
            self.version += 1
        self._pool.submit(self._carry_out, name, module, json.dumps(order))

    def close(self) -> None:
        """End what is running, and take nothing more."""
        with self._lock:
            self._closed = True
            running = self._running
        if running is not None:
            running.kill()
        self._pool.shutdown(cancel_futures=True)

    def _carry_out(self, name: str, module: Sequence[str], order: str) -> None:
        last: Mapping[str, Any] | None = None
        try:
            with subprocess.Popen(
                [sys.executable, "-P", "-m", *module],  # -P: no folder of the user's can stand in for a module
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            ) as process:
                with self._lock:
                    self._running = process
                    closed = self._closed
                if closed:
                    process.kill()
                assert process.stdin is not None
                assert process.stdout is not None
                with suppress(BrokenPipeError), process.stdin as stdin:  # who needs no order may end before it comes
                    stdin.write(order)
                complaints: list[str] = []
                with suppress(OSError):  # a service may be forbidden to
                    os.setpriority(os.PRIO_PROCESS, process.pid, NICER)
                reading = threading.Thread(target=lambda: complaints.extend(process.stderr or ()), daemon=True)
                reading.start()
                for line in process.stdout:
                    last = json.loads(line)
                    if "done" in last and "total" in last:
                        self._change(name, done=last["done"], total=last["total"])
                status = process.wait()
                reading.join()
            if self._closed:
                return  # it was ended with the dashboard
            if status not in (0, 1) or last is None or "done" in last:
                _log.error("%s ended with status %d: %s", name, status, "".join(complaints)[-2000:])
                self._change(name, running=False, failed="It could not be done; the dashboard's log says more.")
            else:
                self._change(name, running=False, result=last, ended=datetime.now(UTC))
        except (OSError, ValueError):
            _log.exception("%s could not be done.", name)
            self._change(name, running=False, failed="It could not be done; the dashboard's log says more.")
        finally:
            with self._lock:
                self._running = None

    def _change(self, name: str, **values: Any) -> None:
        with self._lock:
            self._jobs[name] = replace(self._jobs.get(name, Job()), **values)
            self.version += 1

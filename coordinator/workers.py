"""Several runs at once, each in a process of its own; coordinator/worker.py is the other end."""

import json
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import IO, Any

from coordinator.home import Home
from coordinator.overview import Overview

TICK_SECONDS = 1.0
STOP_SECONDS = 10.0

Message = dict[str, Any]


class Worker:
    """One process, which reaches the nodes through `superlink` if that is given.

    What it says comes to `hear` with the worker itself, and None once it has ended.
    """

    def __init__(
        self,
        home: Home,
        hear: "Callable[[Worker, Message | None], None]",
        superlink: Mapping[str, str | int] | None = None,
    ) -> None:
        self.run = ""  # that it carries out
        self._hear = hear
        self._process = subprocess.Popen(
            # -P: no folder of the user's can stand in for a module
            [sys.executable, "-P", "-m", "coordinator.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._readers = [Thread(target=self._read_errors, daemon=True), Thread(target=self._read, daemon=True)]
        for reader in self._readers:
            reader.start()
        place: Message = {"home": str(home.folder), "database": home.database}
        self._write(place if superlink is None else {**place, "superlink": superlink})

    def give(self, run: str, device: str, given_up: Sequence[str] = ()) -> None:
        """Have it carry out a run; `given_up` are sites that were waited for already, and in vain."""
        self.run = run
        self._write({"run": run, "device": device, "given_up": given_up})

    def how_it_ended(self) -> str:
        """How the process ended, in words."""
        return how_it_ended(self._process.wait())

    def end(self) -> None:
        """Have the process end its run at the SuperLink as well, so that no node works on for nobody; then `stop`."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        self.stop()

    def stop(self) -> None:
        """End the process, which loses nothing, and wait for it."""
        with suppress(BrokenPipeError):  # what it did not read any more
            self._pipe(self._process.stdin).close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for reader in self._readers:
            reader.join()
        for pipe in (self._process.stdout, self._process.stderr):
            self._pipe(pipe).close()

    def _write(self, message: Message) -> None:
        pipe = self._pipe(self._process.stdin)
        try:
            pipe.write(json.dumps(message) + "\n")
            pipe.flush()
        except BrokenPipeError:
            pass  # it has ended, which its reader says

    def _read(self) -> None:
        for line in self._pipe(self._process.stdout):
            with suppress(ValueError):  # half a line: its process was killed over it
                self._hear(self, json.loads(line))
        self._readers[0].join()  # its last words come before its end
        self._hear(self, None)

    def _read_errors(self) -> None:
        for line in self._pipe(self._process.stderr):
            self._hear(self, {"said": line.rstrip()})

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def how_it_ended(status: int) -> str:
    """The exit status of a process, or minus its signal, in words."""
    return f"with status {status}" if status >= 0 else f"by {signal.Signals(-status).name}"


def carry_out_at_once(runs: Sequence[str], home: Home, device: str, workers: int, overview: Overview) -> list[str]:
    """Carry out runs, at most `workers` at once; return those that failed, after a sentence about each.

    A run that fails, or whose process is killed, keeps none of the others from its turn. Results are bit for bit those
    of runs that are carried out one after another.
    """
    left = deque(runs)
    heard: SimpleQueue[tuple[Worker, Message | None]] = SimpleQueue()
    idle: list[Worker] = []
    busy: set[Worker] = set()
    failed: list[str] = []

    def ended(worker: Worker, status: str, sentences: Sequence[str]) -> None:
        busy.remove(worker)
        overview.ended(worker.run, status)
        for sentence in sentences:
            overview.say(f"locum: {sentence}")
        if sentences:
            failed.append(worker.run)

    try:
        while left or busy:
            while left and len(busy) < workers:
                worker = idle.pop() if idle else Worker(home, lambda *said: heard.put(said))
                busy.add(worker)
                run = left.popleft()
                overview.began(run)
                worker.give(run, device)
            try:
                worker, message = heard.get(timeout=TICK_SECONDS)
            except Empty:
                overview.tick()
                continue
            if message is None:
                if worker in busy:
                    why = f"its process ended {worker.how_it_ended()}"
                    ended(worker, "failed", [f"Run {worker.run} failed: {why}; make the study again."])
                else:
                    idle.remove(worker)
                worker.stop()
            elif "share" in message:
                overview.moved(worker.run, message["share"], message["text"])
            elif "said" in message:
                overview.say(f"{worker.run}: {message['said']}")
            else:
                ended(worker, message["status"], message["failed"])
                idle.append(worker)
    finally:
        for worker in (*busy, *idle):
            worker.stop()
    return failed

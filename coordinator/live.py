"""What a person sees while a run goes on: progress bars on a terminal, plain lines elsewhere. Always on stderr."""

import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from coordinator.events import Listener

LINE_SECONDS = 10.0  # on no terminal, a long visit or wait says so often how far it is


@dataclass(frozen=True)
class _Wait:
    """For a site's answer; `line` is said when it takes long. Times are those of the monotonic clock, in seconds."""

    line: str
    began: float


class Live(Listener):
    """One bar for the stops of the run and one for the visit in progress; use as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._run: TaskID | None = None
        self._visit: TaskID | None = None
        self._rounds = 1
        self._line_due = 0.0
        self._wait: _Wait | None = None
        self._ended = threading.Event()
        self._watch = threading.Thread(target=self._tell_of_waits, daemon=True)

    def __enter__(self) -> Self:
        self._bars.start()
        if not self._console.is_terminal:
            self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._watch.is_alive():
            self._watch.join()
        self._bars.stop()

    def run_began(self, run: str, stops: int, done: int) -> None:
        """Open the run's bar."""
        goes_on = f", {done} of its {stops} stops are done" if done else f", {stops} stop{'s' * (stops > 1)}"
        self._say(f"run {run}{goes_on}")
        for task in self._bars.task_ids:  # of a process that carried it out before
            self._bars.remove_task(task)
        self._visit = None
        self._run = self._bars.add_task("stops", total=stops, completed=done, note="")

    def describing(self, site: str) -> None:
        """Note beside the run's bar whose cases are being read."""
        self._wait_for(f"reading {site}", f"reading {site}")

    def stop_began(
        self, stop: int, sites: tuple[str, ...], rounds: int, done: int, rehearsing: tuple[str, ...] = ()
    ) -> None:
        """Open the visit's bar."""
        # a wait's note has had its time, a score's stays
        self._wait_for(None if self._wait is None else "", f"stop {stop} at {_where(sites)}: reading its cases")
        self._rounds = rounds
        self._line_due = time.monotonic() + LINE_SECONDS
        where = f"stop {stop} at {_where(sites)}"
        if rehearsing:
            where += f", rehearsing at {', '.join(rehearsing) if len(rehearsing) <= 3 else _where(rehearsing)}"
            self._say(where)
        self._visit = self._bars.add_task(escape(where), total=rounds if rounds > 1 else None, completed=done, note="")

    def stepped(self, stop: int, site: str, step: int, steps: int, loss: float | None) -> None:
        """Move the visit's bar; within a stop of many rounds only whole rounds count."""
        self._wait = None
        if self._visit is None or (self._rounds > 1 and site):
            return
        note = "" if loss is None else f"loss {loss:.3f}"
        self._bars.update(self._visit, completed=step, total=steps, note=note)
        if not self._console.is_terminal and time.monotonic() > self._line_due:
            self._line_due = time.monotonic() + LINE_SECONDS
            self._say(f"stop {stop}{f' at {site}' if site else ''}: step {step} of {steps}{note and f', {note}'}")

    def waiting(self, site: str, seconds: float) -> None:
        """Say that a site is away."""
        self._wait_for(f"waiting for {site}", f"waiting for {site}")
        self._say(f"site {site} is away; waiting {_long(seconds)}" if seconds else f"site {site} is still away")

    def held(self, site: str, seconds: float) -> None:
        """Say that a person at a site has to decide."""
        sentence = f"waits at {site}: a person there must release what leaves"
        self._wait_for(f"waiting for a person at {site}", f"waiting for a person's decision at {site}")
        self._say(f"{sentence}; waiting {_long(seconds, 'until that is decided')}")

    def skipped(self, stop: int, sites: tuple[str, ...], by: str) -> None:
        """Say that a stop is gone on without."""
        self._wait = None
        if self._visit is not None:
            self._bars.remove_task(self._visit)
            self._visit = None
        self._say(f"stop {stop} at {_where(sites)}: skipped in the name of {by}; the run will be incomplete")

    def stop_ended(self, stop: int, sites: tuple[str, ...], seconds: float) -> None:
        """Close the visit's bar."""
        self._wait = None
        if self._visit is not None:
            self._bars.remove_task(self._visit)
            self._visit = None
        if self._run is not None:
            self._bars.advance(self._run)
        self._say(f"stop {stop} at {_where(sites)}: done in {seconds:.1f} s")

    def scoring(self, stop: int, site: str) -> None:
        """Note beside the run's bar who is scoring."""
        self._wait_for(f"scoring at {site}", f"stop {stop}: scoring at {site}")

    def scored(self, stop: int, site: str, dsc: float | None) -> None:
        """Note the newest score beside the run's bar."""
        self._wait = None
        if dsc is None:
            self._say(f"stop {stop}: {site} could not be scored; the run will be incomplete")
        if self._run is not None:
            self._bars.update(self._run, note=f"{escape(site)} {'failed' if dsc is None else f'DSC {dsc:.3f}'}")

    def said(self, sentence: str) -> None:
        """Say it."""
        self._say(sentence)

    def run_ended(self, run: str, status: str) -> None:
        """Say how the run ended."""
        self._wait = None
        self._say(f"run {run}: {status}")

    def _wait_for(self, note: str | None, line: str) -> None:
        self._wait = _Wait(line, time.monotonic())
        if self._run is not None and note is not None:
            self._bars.update(self._run, note=escape(note))

    def _tell_of_waits(self) -> None:
        """In a thread of its own, since the thread that waits cannot speak."""
        told = None
        while not self._ended.wait(LINE_SECONDS / 10):
            wait = self._wait
            if wait is not None and wait is not told and time.monotonic() - wait.began > LINE_SECONDS:
                told = wait
                self._say(f"{wait.line} for more than {LINE_SECONDS:.0f} s")

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def _long(seconds: float, for_ever: str = "until it is back") -> str:
    return for_ever if seconds == float("inf") else f"for at most {timedelta(seconds=round(seconds))}"


def _where(sites: tuple[str, ...]) -> str:
    return sites[0] if len(sites) == 1 else f"{len(sites)} sites"

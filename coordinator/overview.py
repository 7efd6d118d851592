"""What a person sees while a study goes on: a bar over all runs and one per run at work, or plain lines; on stderr."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

LINE_SECONDS = 30.0  # on no terminal, so often it is said where the runs are


class Overview:
    """Progress over the `total` runs of a study, `done` of which need no work; use as a context manager."""

    def __init__(self, total: int, done: int, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._total, self._done = total, done
        self._all = self._bars.add_task("runs", total=total, completed=done, note=self._counted())
        self._tasks: dict[str, TaskID] = {}
        self._shares: dict[str, float] = {}  # of the runs at work, how much of each is done
        self._arrived: dict[str, float] = {}  # how much of a run was done when it was taken up
        self._texts: dict[str, str] = {}
        self._worked = 0.0  # runs' worth of work in this command, of those that ended
        self._began = time.monotonic()
        self._line_due = self._began + LINE_SECONDS

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bars.stop()

    def began(self, run: str) -> None:
        """A run is given to a worker."""
        self._shares[run], self._texts[run] = 0.0, "starting"
        self._tasks[run] = self._bars.add_task(escape(run), total=1.0, note="starting")
        self.say(f"run {run} begins")

    def moved(self, run: str, share: float, text: str) -> None:
        """A run came to `share` of its stops, and is at what `text` says."""
        self._arrived.setdefault(run, share)
        self._shares[run], self._texts[run] = share, text
        self._bars.update(self._tasks[run], completed=share, note=escape(text))
        self.tick()

    def ended(self, run: str, status: str) -> None:
        """A run ended, well or not."""
        self._worked += 1.0 - self._arrived.get(run, 0.0)
        del self._shares[run], self._texts[run]
        self._done += 1
        self._bars.remove_task(self._tasks.pop(run))
        self.say(f"run {run}: {status}; {self._counted()}{self._remaining()}")
        self.tick()

    def tick(self) -> None:
        """Show the time that is left; off the terminal, now and then, where the runs are."""
        completed = self._done + sum(self._shares.values())
        self._bars.update(self._all, completed=completed, note=self._counted() + self._remaining())
        if not self._console.is_terminal and time.monotonic() > self._line_due:
            self._line_due = time.monotonic() + LINE_SECONDS
            for run, text in self._texts.items():
                self.say(f"run {run}: {text}")
            self.say(self._counted() + self._remaining())

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _counted(self) -> str:
        return f"{self._done} of {self._total} runs ended"

    def _remaining(self) -> str:
        """How long the rest takes if it goes on as in this command so far; nothing while that is a guess."""
        worked = self._worked + sum(share - self._arrived.get(run, share) for run, share in self._shares.items())
        left = self._total - self._done - sum(self._shares.values())
        if worked < 0.02 or left <= 0:
            return ""
        minutes = (time.monotonic() - self._began) / worked * left / 60
        return f", about {minutes / 60:.1f} h left" if minutes > 90 else f", about {max(minutes, 0.1):.1f} min left"

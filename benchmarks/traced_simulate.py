"""`locum simulate` with a clock: the same command, with the times of first and last steps written down.

Usage: python traced_simulate.py TRACE_FILE ARGUMENTS_OF_LOCUM...
"""

import json
import resource
import sys
import time
from pathlib import Path

from coordinator import live
from coordinator.cli import leave, main


class Traced(live.Live):
    """Notes when each visit's first, second and last step ended, its commit and its scores."""

    events: list[tuple[str, float]] = []

    def stepped(self, stop: int, site: str, step: int, steps: int, loss: float | None) -> None:
        if name := {1: "first", 2: "second", steps: "last"}.get(step):
            self.events.append((name, time.time()))
        super().stepped(stop, site, step, steps, loss)

    def stop_ended(self, stop: int, sites: tuple[str, ...], seconds: float) -> None:
        self.events.append(("committed", time.time()))
        super().stop_ended(stop, sites, seconds)

    def scored(self, stop: int, site: str, dsc: float | None) -> None:
        self.events.append(("scored", time.time()))
        super().scored(stop, site, dsc)


if __name__ == "__main__":
    live.Live = Traced  # type: ignore[misc]
    trace, sys.argv = Path(sys.argv[1]), ["locum", *sys.argv[2:]]
    status = 0
    try:
        main()
    except SystemExit as end:
        status = int(end.code or 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trace.write_text(json.dumps({"events": Traced.events, "peak_kib": peak}))
    leave(status)  # as the console script does

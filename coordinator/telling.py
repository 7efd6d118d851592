"""What a run's process tells the control service of it, as it happens; coordinator/journal.py writes it down."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from coordinator.events import Listener
from coordinator.exchange import in_words
from protos.software import Software

STEP_SECONDS = 2.0  # between two reports of a stop's steps


class Teller(Listener):
    """Sends every event as the fields of a control.proto Event; how the run ends is kept, since why comes after it."""

    def __init__(self, send: Callable[..., None]) -> None:
        self._send = send
        self._rounds = 1
        self._due = 0.0  # for the next report of steps
        self.status = "failed"  # as long as the run has not ended

    def _tell(self, kind: str, **fields: Any) -> None:
        self._send(event=kind, fields=fields)

    def run_began(self, run: str, stops: int, done: int) -> None:
        """The run begins or goes on."""
        self._tell("run_began", stops=stops, done=done)

    def describing(self, site: str) -> None:
        """A site is asked to describe itself."""
        self._tell("describing", site=site)

    def described(self, site: str, cases: Mapping[str, int]) -> None:
        """A site has described itself; kept apart from the run's events."""
        self._send(site=site, cases=dict(cases))

    def introduced(self, site: str, software: Software | None) -> None:
        """A site has said which software is at work there; kept apart from the run's events."""
        self._send(introduced=site, software=software and asdict(software))

    def stop_began(
        self, stop: int, sites: tuple[str, ...], rounds: int, done: int, rehearsing: tuple[str, ...] = ()
    ) -> None:
        """A stop begins."""
        self._rounds, self._due = rounds, 0.0
        self._tell("stop_began", stop=stop, sites=sites, rounds=rounds, done=done, rehearsing=rehearsing)

    def stepped(self, stop: int, site: str, step: int, steps: int, loss: float | None) -> None:
        """A step, now and then; within a stop of many rounds only whole rounds."""
        now = time.monotonic()
        if now >= self._due and not (self._rounds > 1 and site):
            self._due = now + STEP_SECONDS
            known = {} if loss is None or not math.isfinite(loss) else {"loss": loss}
            self._tell("stepped", stop=stop, site=site, step=step, steps=steps, **known)

    def waiting(self, site: str, seconds: float) -> None:
        """A site is away."""
        if not seconds:
            self._tell("said", sentence=f"Site {site} is still away.")
            return
        until = in_words(seconds)
        if math.isfinite(seconds):
            until = f"until {(datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec='seconds')}"
        self._tell("said", sentence=f"Site {site} is away; it is waited for {until}.")

    def held(self, site: str, seconds: float) -> None:
        """A person at a site has to decide."""
        how_long = in_words(seconds, "until that is decided")
        self._tell("said", sentence=f"Waits at {site}: a person there must release what leaves ({how_long}).")

    def skipped(self, stop: int, sites: tuple[str, ...], by: str) -> None:
        """A stop is gone on without."""
        self._tell("said", sentence=f"Stop {stop} is skipped in the name of {by}; the run will be incomplete.")

    def said(self, sentence: str) -> None:
        """Something else that a person should read."""
        self._tell("said", sentence=sentence)

    def stop_ended(self, stop: int, sites: tuple[str, ...], seconds: float) -> None:
        """A stop is committed."""
        self._tell("stop_ended", stop=stop, sites=sites, seconds=seconds)

    def scoring(self, stop: int, site: str) -> None:
        """A site is asked to score."""
        self._tell("scoring", stop=stop, site=site)

    def scored(self, stop: int, site: str, dsc: float | None) -> None:
        """A site's score is committed."""
        self._tell("scored", stop=stop, site=site, **({} if dsc is None else {"dsc": dsc}))

    def run_ended(self, run: str, status: str) -> None:
        """The run ended."""
        self.status = status

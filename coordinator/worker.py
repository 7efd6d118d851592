"""A process that carries out runs for a study or the control service, told so by coordinator/workers.py.

Lines of JSON: the first on standard input is {"home", "database"}, which may hold a password and so is in no argument,
and for the control service {"superlink"} besides, through which the nodes are reached; each further one {"run",
"device", "given_up"}. On standard output come {"share", "text"} while a run goes on, or for the control service what
coordinator/telling.py sends; {"said"} for what a person should read; and {"status", "failed": [sentences], "again"} at
a run's end, where `again` says that the run itself has no fault and is to be taken up anew. When the input ends, as
the other process ended, however it did, this one is gone at once: a run survives that at any moment. On SIGTERM it ends
the run at the SuperLink first.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO

from coordinator.events import Listener
from coordinator.faults import exit_status, told
from coordinator.telling import Teller

TELL_SECONDS = 0.2  # between two reports of a visit's steps
ELSEWHERE = "carried out by another process"  # the status of a run that this one did not begin


def _sender(out: TextIO) -> Callable[..., None]:
    """What writes one message."""

    def send(**message: Any) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    return send


class _Reporter(Listener):
    """Says how much of the run is done, and where it is."""

    def __init__(self, send: Callable[..., None]) -> None:
        self._send = send
        self._stops, self._done, self._rounds = 1, 0, 1
        self._where = ""
        self._told = 0.0
        self.status = "failed"  # as long as the run has not ended

    def _tell(self, text: str, part: float = 0.0) -> None:
        self._told = time.monotonic()
        self._send(share=min(1.0, (self._done + part) / max(self._stops, 1)), text=text)

    def run_began(self, run: str, stops: int, done: int) -> None:
        """The run begins or goes on."""
        self._stops, self._done = stops, done
        self._tell("begins" if not done else "goes on")

    def describing(self, site: str) -> None:
        """A site's cases are read."""
        self._tell(f"reading {site}")

    def stop_began(
        self, stop: int, sites: tuple[str, ...], rounds: int, done: int, rehearsing: tuple[str, ...] = ()
    ) -> None:
        """A stop begins."""
        self._rounds = rounds
        self._where = f"stop {stop} at {sites[0] if len(sites) == 1 else f'{len(sites)} sites'}"
        self._tell(f"{self._where}: reading its cases", done / rounds)

    def stepped(self, stop: int, site: str, step: int, steps: int, loss: float | None) -> None:
        """A step; within a stop of many rounds only whole rounds count."""
        if (self._rounds > 1 and site) or time.monotonic() - self._told < TELL_SECONDS:
            return
        note = "" if loss is None else f", loss {loss:.3f}"
        self._tell(f"{self._where}, step {step} of {steps}{note}", step / steps)

    def waiting(self, site: str, seconds: float) -> None:
        """A site is away."""
        self._tell(f"waiting for {site}, which is away")

    def held(self, site: str, seconds: float) -> None:
        """A person at a site has to decide."""
        self._tell(f"waits at {site}: a person there must release what leaves")

    def skipped(self, stop: int, sites: tuple[str, ...], by: str) -> None:
        """A stop is gone on without."""
        self._send(said=f"stop {stop} is skipped in the name of {by}; the run will be incomplete")

    def stop_ended(self, stop: int, sites: tuple[str, ...], seconds: float) -> None:
        """A stop is committed."""
        self._done += 1
        self._tell(f"{self._where}: done")

    def scoring(self, stop: int, site: str) -> None:
        """A site scores."""
        self._tell(f"stop {stop}: scoring at {site}")

    def scored(self, stop: int, site: str, dsc: float | None) -> None:
        """A site could not score; everything else is in the table at the end."""
        if dsc is None:
            self._send(said=f"stop {stop}: {site} could not be scored; the run will be incomplete")

    def said(self, sentence: str) -> None:
        """Something else that a person should read."""
        self._send(said=sentence)

    def run_ended(self, run: str, status: str) -> None:
        """The run ended."""
        self.status = status


def main() -> None:
    """Carry out runs until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the other process, which ends this one
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    send = _sender(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)  # what a library prints is no message
    place = json.loads(sys.stdin.readline())
    orders: SimpleQueue[dict[str, Any]] = SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()
    from coordinator.engine import Deployed
    from coordinator.home import Home, RunBusy
    from coordinator.simulate import carry_out
    from coordinator.superlink import SuperLinkConfig

    home = Home(Path(place["home"]), place["database"])
    engine = Deployed(SuperLinkConfig.of(place["superlink"])) if "superlink" in place else None
    while True:
        order = orders.get()
        listener = _Reporter(send) if engine is None else Teller(send)
        failed, again, status = [], False, None
        try:
            given_up = tuple(order["given_up"])
            carry_out(order["run"], home, device=order["device"], listener=listener, engine=engine, given_up=given_up)
        except Exception as error:
            again = engine is not None and _is_passing(error)
            if exit_status(error) is None and not again:
                raise
            failed = told(error)
            status = ELSEWHERE if isinstance(error, RunBusy) else None
        send(status=status or listener.status, failed=failed, again=again)


def _is_passing(error: Exception) -> bool:
    """Whether it is no fault of the run, but of the SuperLink or of a process that is about to end."""
    return type(error).__name__ in ("NoSuperLink", "RunBusy")


def _listen(orders: "SimpleQueue[dict[str, Any]]") -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    main()

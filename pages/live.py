"""What is live: one look at the state every second, however many listen, told as server-sent events."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.responses import StreamingResponse

_log = logging.getLogger("locum.pages")

LOOK_SECONDS = 1.0
HEARTBEAT_SECONDS = 15.0
MOST_LISTENERS = 100
RETRY_MILLISECONDS = 3000

# Topic -> something that changes whenever what the topic stands for does; cheap, called in a thread.
State = Mapping[str, object]


class Live:
    """Tells listeners which topics changed, never what: the page then asks for the part that it shows.

    Nothing is queued for a slow listener: it learns of the newest state when it is ready. Nobody looks while nobody
    listens.
    """

    def __init__(self, look: Callable[[], State], every: float = LOOK_SECONDS) -> None:
        self._look, self._every = look, every
        self._state: State = {}
        self._listeners: set[asyncio.Event] = set()
        self._looking: asyncio.Task[None] | None = None
        self._over = False

    def close(self) -> None:
        """End every stream, since the server is about to end. For the thread of the event loop."""
        self._over = True
        for woken in self._listeners:
            woken.set()

    def stream(self, let_in: Callable[[], bool]) -> StreamingResponse:
        """The events for one listener, until it goes, is no longer let in, or the server ends."""
        if len(self._listeners) >= MOST_LISTENERS or self._over:
            raise HTTPException(HTTPStatus.SERVICE_UNAVAILABLE, "Too many pages listen already; close some.")
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(self._events(let_in), media_type="text/event-stream", headers=headers)

    async def _events(self, let_in: Callable[[], bool]) -> AsyncIterator[str]:
        woken = asyncio.Event()
        self._listeners.add(woken)
        try:
            known: State = {}  # so a newcomer hears of every topic once, and so of what changed since its page was made
            if self._looking is None:
                self._looking = asyncio.create_task(self._keep_looking())
            elif self._state:
                woken.set()
            yield f"retry: {RETRY_MILLISECONDS}\n\n"
            while not self._over:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(HEARTBEAT_SECONDS):
                        await woken.wait()
                if self._over or not let_in():  # asked anew before anything is told
                    return
                if not woken.is_set():
                    yield ": still here\n\n"
                    continue
                woken.clear()
                state = self._state
                for topic, value in state.items():
                    if topic not in known or known[topic] != value:
                        yield f"event: {topic}\ndata: changed\n\n"
                known = state
        finally:
            self._listeners.discard(woken)
            if not self._listeners and self._looking is not None:
                self._looking.cancel()
                self._looking, self._state = None, {}

    async def _keep_looking(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            while True:
                try:
                    state = await asyncio.to_thread(self._look)
                except Exception:
                    _log.exception("What is shown live could not be looked at.")
                else:
                    if state != self._state:
                        self._state = dict(state)
                        for woken in self._listeners:
                            woken.set()
                await asyncio.sleep(self._every)

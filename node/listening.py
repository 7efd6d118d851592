"""Waiting for two things at once: for a call that may take long, in a thread of its own, and for the service's end."""

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

_Found = TypeVar("_Found")


class Listening(Generic[_Found]):
    """Makes `call`, which must not raise, in a thread of its own, one call after the other, each when it is wanted."""

    def __init__(self, call: Callable[[], _Found]) -> None:
        self._call = call
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._found: SimpleQueue[_Found] = SimpleQueue()
        self._under_way = False
        # a daemon: nobody waits for a call that is under way when the process ends
        threading.Thread(target=self._listen, name="listening", daemon=True).start()

    def heard(self, seconds: float) -> tuple[bool, _Found | None]:
        """Whether a call has come back within so many seconds, and with what; else it goes on."""
        if not self._under_way:
            self._wanted.put(True)
            self._under_way = True
        try:
            found = self._found.get(timeout=seconds)
        except Empty:
            return False, None
        self._under_way = False
        return True, found

    def end(self) -> None:
        """Make no further call."""
        self._wanted.put(False)

    def _listen(self) -> None:
        while self._wanted.get():
            self._found.put(self._call())

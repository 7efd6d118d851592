"""Where a visit stands, step by step: for listeners in this process. Declared scalars only; no data."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """One step of a visit is done."""

    run: str
    stop: int
    site: str
    step: int  # from 1
    steps: int
    scalars: Mapping[str, float]


_listener: ContextVar[Callable[[Step], None] | None] = ContextVar("listener", default=None)


@contextmanager
def listener(listen: Callable[[Step], None] | None) -> Iterator[None]:
    """Call `listen` for every step taken inside the block."""
    token = _listener.set(listen)
    try:
        yield
    finally:
        _listener.reset(token)


def report(step: Step) -> None:
    """Tell the listener, if there is one."""
    if (listen := _listener.get()) is not None:
        listen(step)

"""A clock that jumps: processes under libfaketime, which reads how far theirs is off from a file at every look.

Only what people and certificates call the time jumps; the clock that durations are measured with goes on, as it does
when an administrator sets a machine's clock.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

LIBRARIES = ("/usr/lib/*/faketime/libfaketimeMT.so.1", "/usr/local/lib/faketime/libfaketimeMT.so.1")


@dataclass(frozen=True)
class Clock:
    """How far the clocks are off of the processes that were started inside `for_children`."""

    file: Path
    library: str

    def jump(self, hours: float) -> None:
        """Be so far off from now on, seen from the true time."""
        new = self.file.with_suffix(".new")
        new.write_text(f"{3600 * hours:+.0f}\n")
        new.replace(self.file)

    @contextmanager
    def for_children(self) -> Iterator[None]:
        """Processes that are started inside the block have this clock, and so have theirs."""
        settings = {
            "LD_PRELOAD": self.library,
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def a_clock(folder: Path) -> Clock:
    """A clock that is right so far; skips the test where libfaketime is not installed."""
    found = [str(path) for pattern in LIBRARIES for path in Path("/").glob(pattern.removeprefix("/"))]
    if not found:
        pytest.skip("needs libfaketime to let clocks jump: apt-get install faketime")
    clock = Clock(folder / "clock", found[0])
    clock.jump(0)
    return clock

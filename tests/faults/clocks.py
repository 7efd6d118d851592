"""A clock that jumps: processes whose time of day is off by what a file says (clock.c), and anew at every look."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Clock:
    """How far the clocks are off of the processes that were started inside `for_children`."""

    file: Path
    library: Path

    def jump(self, hours: float) -> None:
        """Be so far off from now on, seen from the true time."""
        new = self.file.with_suffix(".new")
        new.write_text(f"{3600 * hours:.0f}\n")
        new.replace(self.file)

    @contextmanager
    def for_children(self) -> Iterator[None]:
        """Processes that are started inside the block have this clock, and so have theirs."""
        settings = {"LD_PRELOAD": str(self.library), "CLOCK_FILE": str(self.file)}
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
    """A clock that is right so far; skips the test where there is no C compiler to make one."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler to make a clock that jumps: apt-get install gcc")
    clock = Clock(folder / "clock", folder / "clock.so")
    source = Path(__file__).with_name("clock.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", clock.library, source], check=True)
    clock.jump(0)
    return clock

"""A process that imports everything once and then forks a `locum` command per order, to be killed at any moment.

A moment is a place where what is on the disk changes next, or a training step has just been taken: before a file is
synced, before it is renamed, before a transaction commits, after a step. Between two moments nothing durable happens,
so a process that dies at every one of them in turn has died at every moment that can matter. The command
appends every moment to a log; with `at`, it sends itself `signal` there instead (counted from 0).

Orders and answers are lines of JSON: {"start": ARGV, "log": FILE, "output": FILE, "at": N, "signal": N} -> pid;
{"wait": PID} -> [its exit status or minus its signal, whether it is only stopped].
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def _import_everything() -> None:
    import alembic.command
    import alembic.config  # noqa: F401
    import monai.losses
    import monai.networks.nets  # noqa: F401

    import coordinator.console
    import coordinator.live
    import coordinator.simulate  # noqa: F401
    from strategies.registry import STRATEGIES, strategy_class

    for name in STRATEGIES:
        strategy_class(name)


class _Moments:
    def __init__(self, log: str, at: int | None, number: int) -> None:
        self._log = os.open(log, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        self._at, self._signal = at, number
        self._count = 0

    def __call__(self, what: str) -> None:
        os.write(self._log, f"{what}\n".encode())
        self._count += 1
        if self._at == self._count - 1:
            os.kill(os.getpid(), self._signal)

    def watch(self) -> None:
        from sqlalchemy import Engine, event

        from node import progress

        def before(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
            def wrapper(*args: Any, **keywords: Any) -> Any:
                self(name)
                return real(*args, **keywords)

            return wrapper

        os.fsync = before("sync", os.fsync)
        os.replace = before("rename", os.replace)
        event.listen(Engine, "commit", lambda connection: self(f"commit {Path(connection.engine.url.database).name}"))
        report = progress.report

        def stepped(step: progress.Step) -> None:
            self(f"step {step.stop} {step.site} {step.step}")
            report(step)

        progress.report = stepped


def _command(order: dict[str, Any]) -> int:
    output = os.open(order["output"], os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    errors = os.open(f"{order['output']}.err", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(errors, 2)
    _Moments(order["log"], order["at"], order["signal"]).watch()
    from coordinator.cli import main

    sys.argv[1:] = order["start"]
    try:
        main(order["start"])
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
        return 70
    return 0


def _serve() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _import_everything()
    for line in sys.stdin:
        order = json.loads(line)
        if "start" in order:
            answer: Any = os.fork()
            if answer == 0:
                status = _command(order)
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        else:
            _, status = os.waitpid(order["wait"], os.WUNTRACED)
            stopped = os.WIFSTOPPED(status)
            answer = [0 if stopped else os.waitstatus_to_exitcode(status), stopped]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve()

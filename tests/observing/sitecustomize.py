"""Python imports this in every process whose PYTHONPATH names this folder: it writes down whom the process looks for.

A line of JSON per event in the file that LOCUM_TEST_OBSERVED names, each written at once: the process, what, whom.
"""

import json
import os
import sys

_WATCHED = frozenset(
    {
        "socket.getaddrinfo",
        "socket.gethostbyname",
        "socket.gethostbyaddr",
        "socket.connect",
        "socket.sendto",
        "socket.sendmsg",
        "socket.bind",
        "subprocess.Popen",
        "os.exec",
        "os.posix_spawn",
        "os.system",
    }
)


def _observe(path: str) -> None:
    def write(what: str, whom: object) -> None:
        line = json.dumps([os.getpid(), what, whom], default=repr) + "\n"
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, line.encode())
        os.close(file)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in _WATCHED:
            whom = [part for part in arguments if isinstance(part, str | int | bytes | tuple | list | None)]
            write(event, [part.decode("utf-8", "replace") if isinstance(part, bytes) else part for part in whom])

    write("begins", sys.orig_argv)
    sys.addaudithook(hook)


if "LOCUM_TEST_OBSERVED" in os.environ:
    _observe(os.environ["LOCUM_TEST_OBSERVED"])

"""A PostgreSQL server for a test's own use, on loopback; installed ones are found, none is downloaded."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PASSWORD = "topsecret"  # which the server does not ask for; nobody is to print it


def tools_of_postgres() -> Path | None:
    """The folder with initdb and pg_ctl, of the newest release that is here; None if there is none."""
    found = [Path(path).parent for path in (shutil.which("initdb"),) if path]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return found[0] if found else None


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server of our own, which is stopped afterwards; skips where none can be started."""
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'locum[postgres]'")
    if (tools := tools_of_postgres()) is None:
        pytest.skip("needs PostgreSQL's initdb and pg_ctl: looked on PATH and in /usr/lib/postgresql/*/bin")
    folder = Path(tempfile.mkdtemp(prefix="locum-postgres-"))  # pytest's folders are closed to other users
    user: dict[str, object] = {}
    if os.getuid() == 0:  # which PostgreSQL refuses to run as
        nobody = pwd.getpwnam("nobody")
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        os.chown(folder, nobody.pw_uid, nobody.pw_gid)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def call(tool: str, *arguments: str) -> None:
        command = [tools / tool, "-D", folder / "data", *arguments]
        with (folder / "log.txt").open("a") as log:  # the server that pg_ctl leaves behind would hold a pipe open
            done = subprocess.run(command, stdout=log, stderr=log, cwd=folder, check=False, **user)
        assert done.returncode == 0, (folder / "log.txt").read_text()

    call("initdb", "-A", "trust", "-U", "locum", "--no-sync")
    call("pg_ctl", "-w", "-o", f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories=''", "start")
    try:
        yield f"postgresql+psycopg://locum:{PASSWORD}@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "-m", "immediate", "stop")
        shutil.rmtree(folder)

"""Flower's SuperLink, as a process of this coordinator's own, and what the coordinator asks of it.

The SuperLink passes messages between the conductor and the nodes. Its one port serves nodes, operators and executors
alike, and knows no operator's password, so it stays where only the coordinator's own processes reach it: on loopback,
or on a network that hospitals are not on, behind a gateway that lets nodes' calls through and nothing else. The
executor's calls need a secret besides.
"""

import os
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

import httpx

from coordinator.keys import ServerKeys

START_SECONDS = 60.0

# Flower's own questions to the outside: none is asked here.
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}


class NoSuperLink(Exception):
    """The SuperLink did not start, or does not answer; one sentence."""


@dataclass(frozen=True)
class SuperLinkConfig:
    """Where a SuperLink listens, and its files."""

    folder: Path  # its database, log and the executor's secret
    keys: ServerKeys
    host: str = "127.0.0.1"
    port: int = 8000

    @property
    def address(self) -> str:
        """host:port, for clients on this machine."""
        return f"{'127.0.0.1' if self.host in ('0.0.0.0', '::') else self.host}:{self.port}"  # noqa: S104 (not bound to)

    def told(self) -> dict[str, str | int]:
        """All of it, for another process of this coordinator's; no secret is in it, but where secrets lie."""
        files = {name: str(path) for name, path in asdict(self.keys).items()}
        return {**files, "folder": str(self.folder), "host": self.host, "port": self.port}

    @classmethod
    def of(cls, told: Mapping[str, str | int]) -> Self:
        """What another process told."""
        keys = ServerKeys(*(Path(str(told[field.name])) for field in fields(ServerKeys)))
        return cls(Path(str(told["folder"])), keys, str(told["host"]), int(told["port"]))

    @property
    def secret(self) -> Path:
        """The file with the executor's secret."""
        return self.folder / "executor.secret"

    @property
    def log(self) -> Path:
        """The file that the SuperLink logs to."""
        return self.folder / "superlink.log"


@contextmanager
def running(config: SuperLinkConfig) -> Iterator["subprocess.Popen[bytes]"]:
    """A SuperLink while the block lasts; it ends with this process, however that ends. Raises NoSuperLink."""
    config.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    arguments = [
        *("--host", config.host, "--port", str(config.port), "--isolation", "process", "--enable-supernode-auth"),
        *("--database", str(config.folder / "superlink.db"), "--superexec-auth-secret-file", str(config.secret)),
        *("--ssl-ca-certfile", str(config.keys.authority), "--ssl-certfile", str(config.keys.certificate)),
        *("--ssl-keyfile", str(config.keys.key), "--disable-runtime-dependency-installation"),
    ]
    environment = {**os.environ, **QUIET, "FLWR_HOME": str(config.folder / "flower")}
    with config.log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "coordinator.superlink", *arguments],
            stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True,
        )  # fmt: skip
    try:
        _wait_until_healthy(config, process)
        yield process
    finally:
        if process.stdin is not None:
            process.stdin.close()  # it is gone at once; on SIGTERM it would wait until nobody asks it anything
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=10)
        process.kill()
        process.wait()


def _wait_until_healthy(config: SuperLinkConfig, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if process.poll() is not None:
            raise NoSuperLink(f"The SuperLink ended with status {process.returncode}; {config.log} says why.")
        if healthy(config):
            return
        time.sleep(0.1)
    raise NoSuperLink(f"The SuperLink did not answer within {START_SECONDS:.0f} s; {config.log} says more.")


def healthy(config: SuperLinkConfig) -> bool:
    """Whether the SuperLink answers."""
    try:
        trusted = ssl.create_default_context(cafile=str(config.keys.authority))
        return httpx.get(f"https://{config.address}/health", verify=trusted, timeout=3).is_success
    except httpx.HTTPError:
        return False


def main(arguments: Sequence[str]) -> None:
    """Be the SuperLink: Flower's own command with the layers of coordinator/layers.py, until standard input ends."""
    from flwr.superlink.cli import flower_superlink

    from coordinator import layers

    layers.lay()
    threading.Thread(target=_end_with_input, daemon=True).start()
    sys.argv = ["flower-superlink", *arguments]
    flower_superlink()


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])

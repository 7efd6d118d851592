"""Runs a dashboard's application: on loopback unless told, with TLS elsewhere, until it is stopped."""

import logging
import signal
import socket
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from pages.live import Live
from pages.shield import is_loopback

_log = logging.getLogger("locum.pages")

SHUTDOWN_SECONDS = 3
LARGEST_HEAD = 16 * 1024  # bytes of a request's first line and headers
MOST_CONNECTIONS = 300


class CannotListen(Exception):
    """An address at which no dashboard may or can be; one sentence with the remedy."""


@dataclass(frozen=True)
class Address:
    """Where to listen. Port 0 is any that is free. `certificate` and `key` are PEM files."""

    host: str = "127.0.0.1"
    port: int = 0
    certificate: Path | None = None
    key: Path | None = None
    plain: bool = False  # no TLS although others can reach it: something in front of it has it

    def check(self, signs_in: bool) -> None:
        """Raise CannotListen for what would be open to others."""
        if (self.certificate is None) != (self.key is None):
            raise CannotListen("--certificate and --key: give both, a certificate and its key, or neither.")
        for option, path in (("--certificate", self.certificate), ("--key", self.key)):
            if path is not None and not path.is_file():
                raise CannotListen(f"{option}: there is no file {path}.")
        if is_loopback(self.host):
            return
        if not signs_in:
            raise CannotListen(f"--no-token: {self.host} can be reached by others; only loopback may go without.")
        if self.certificate is None and not self.plain:
            raise CannotListen(
                f"{self.host} can be reached by others; give --certificate and --key, or --no-tls where a proxy in "
                "front of it has them."
            )


class Server:
    """An application at an address, in a thread of its own."""

    def __init__(self, app: FastAPI, address: Address) -> None:
        config = uvicorn.Config(
            app,
            host=address.host,
            port=address.port,
            ssl_certfile=address.certificate,
            ssl_keyfile=address.key,
            log_config=None,  # the log is the program's
            access_log=False,  # addresses name cases
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=LARGEST_HEAD,
            http="h11",
            ws="none",
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=20,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        self._server = _Server(config, app.state.live)
        self._address = address
        self._thread: threading.Thread | None = None

    def start(self) -> str:
        """Listen; returns the address for a browser, where connections wait from now on. Raises CannotListen."""
        listening = self._listening()
        self._thread = threading.Thread(target=self._server.run, args=([listening],), name="dashboard", daemon=True)
        self._thread.start()
        shown = f"[{self._address.host}]" if ":" in self._address.host else self._address.host
        return f"{'https' if self._address.certificate else 'http'}://{shown}:{listening.getsockname()[1]}"

    def stop(self) -> None:
        """Stop listening, end what is live, and wait for the rest."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join()

    def _listening(self) -> socket.socket:
        host, port = self._address.host, self._address.port
        try:
            family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
            return socket.create_server(place[:2], family=family, backlog=128)
        except OSError as error:
            raise CannotListen(
                f"{host}:{port} cannot be listened at ({error.strerror}); give another --host or --port."
            ) from error


def say_and_wait(where: str) -> None:
    """Say where a dashboard is, and wait for SIGINT or SIGTERM. For the main thread, once its server listens."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    sys.stdout.write(f"{where}\n")
    sys.stdout.flush()
    stop.wait()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, live: Live | None) -> None:
        super().__init__(config)
        self._live = live

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Streams never end by themselves, so they are ended first."""
        if self._live is not None:
            self._live.close()
        await super().shutdown(sockets)  # type: ignore[arg-type]

"""A network on loopback that can be cut: passes TCP connections on to a port."""

import socket
import struct
import threading
import time
from contextlib import suppress
from typing import Literal

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends RST


class Proxy:
    """Listens at `port` and passes on to the port `to`, at most `rate` bytes per second and direction.

    `up` and `down` count the bytes that were passed on, from and to those who connect here.
    """

    def __init__(self, to: int) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.rate = float("inf")
        self.up = self.down = 0
        self._passing = threading.Event()
        self._passing.set()
        self._refusing = False
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, how: Literal["stall", "reset"]) -> None:
        """Let nothing through any more: what is sent vanishes, or all connections are reset and new ones too."""
        if how == "stall":
            self._passing.clear()
        else:
            self._refusing = True
            self._reset()

    def mend(self) -> None:
        """Let new connections through; those from before are reset, as by a router that has forgotten them."""
        self._refusing = False
        self._reset()
        self._passing.set()

    def let_go(self) -> None:
        """Let what was stalled go on, over the same connections."""
        self._passing.set()

    def close(self) -> None:
        self._refusing = True
        self._listener.close()
        self._reset()
        self._passing.set()

    def _reset(self) -> None:
        with self._lock:
            for one in self._open:
                with suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    one.shutdown(socket.SHUT_RDWR)
                    one.close()
            self._open.clear()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                near.close()  # nobody listens there at the moment
                continue
            with self._lock:
                self._open |= {near, far}
            for way in ((near, far, True), (far, near, False)):
                threading.Thread(target=self._pass_on, args=way, daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, up: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                self._passing.wait()
                sink.sendall(data)
                if up:
                    self.up += len(data)
                else:
                    self.down += len(data)
                time.sleep(len(data) / self.rate)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        with self._lock:
            if up:
                return
            self._open -= {source, sink}
        for one in (source, sink):
            one.close()

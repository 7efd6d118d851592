"""Short messages between the processes of one node: a length, then JSON, over a Unix socket."""

import json
import socket
import struct
from typing import Any

_LENGTH = struct.Struct(">I")


def send_frame(connection: socket.socket, fields: dict[str, Any]) -> None:
    """Send one message."""
    content = json.dumps(fields).encode()
    connection.sendall(_LENGTH.pack(len(content)) + content)


def receive_frame(connection: socket.socket) -> dict[str, Any] | None:
    """The next message, or None when the other end is gone."""
    head = _receive(connection, _LENGTH.size)
    content = None if head is None else _receive(connection, _LENGTH.unpack(head)[0])
    return None if content is None else dict(json.loads(content))


def _receive(connection: socket.socket, size: int) -> bytes | None:
    content = bytearray()
    while len(content) < size:
        try:
            part = connection.recv(min(size - len(content), 1 << 20))
        except OSError:
            return None
        if not part:
            return None
        content += part
    return bytes(content)

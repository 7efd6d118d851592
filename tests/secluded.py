"""A command in a network namespace of its own: there is loopback and nothing else, and every look-up is heard of.

`unshare --map-root-user --net --mount python tests/secluded.py RESOLV_CONF NAMES COMMAND...` brings loopback up, has
the system's resolver, and every library that reads its configuration, ask a server here that knows no name, writes
what it is asked into the file NAMES, and ends with the command's status.
"""

import fcntl
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 0x1


def bring_loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        _, flags = struct.unpack("16sH14x", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def asked_for(question: bytes) -> str:
    """The name in a DNS question, whose labels begin behind twelve bytes."""
    labels, place = [], 12
    while length := question[place]:
        labels.append(question[place + 1 : place + 1 + length].decode("ascii", "backslashreplace"))
        place += 1 + length
    return ".".join(labels)


def answer_that_there_is_no_such_name(server: socket.socket, names: Path) -> None:
    while True:
        question, sender = server.recvfrom(4096)
        with names.open("a") as file:
            file.write(asked_for(question) + "\n")
        server.sendto(question[:2] + b"\x81\x83" + question[4:6] + b"\0\0\0\0\0\0" + question[12:], sender)


def main() -> None:
    resolv_conf, names, *command = sys.argv[1:]
    bring_loopback_up()
    Path(resolv_conf).write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
    subprocess.run(["mount", "--bind", resolv_conf, "/etc/resolv.conf"], check=True)
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 53))
    threading.Thread(target=answer_that_there_is_no_such_name, args=(server, Path(names)), daemon=True).start()
    sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()

"""Run in a container: which of these names are known, and which of these addresses take a connection."""

import json
import socket
import sys
from concurrent.futures import ThreadPoolExecutor


def known(name: str) -> bool:
    try:
        socket.getaddrinfo(name, None)
    except OSError:
        return False
    return True


def takes(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
    except ConnectionRefusedError:
        return True  # somebody is there and says no: that is reached
    except OSError:
        return False
    return True


names, addresses = sys.argv[1].split(","), sys.argv[2:]
with ThreadPoolExecutor(32) as pool:
    print(
        json.dumps(
            {
                "known": [name for name, there in zip(names, pool.map(known, names), strict=True) if there],
                "open": [
                    address for address, open_ in zip(addresses, pool.map(takes, addresses), strict=True) if open_
                ],
            }
        )
    )

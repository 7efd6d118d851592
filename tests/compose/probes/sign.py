"""Run at a hospital: the SuperLink's status for a sign of life by key and node number."""

import json
import sys
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node

from node.fleet import Fleet
from node.keys import read_key


def status(key: ec.EllipticCurvePrivateKey, number: int) -> int:
    client = Fleet("gateway:8443", Path("/authority/ca.crt"), key)._client
    try:
        client.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=Node(node_id=number), heartbeat_interval=30))
    except httpx.HTTPStatusError as error:
        return error.response.status_code
    finally:
        client.close()
    return 200


own, other = map(int, sys.argv[1:])
key, unknown = read_key(Path("/site/node.key")), ec.generate_private_key(ec.SECP384R1())
found = {
    "own key, own number": status(key, own),
    "own key, other number": status(key, other),
    "unknown key, own number": status(unknown, own),
}
print(json.dumps(found))

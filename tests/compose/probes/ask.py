"""Run at a hospital: the gateway's status for each request, sent as it is written."""

import http.client
import json
import ssl
import sys

trusting = ssl.create_default_context(cafile="/authority/ca.crt")
statuses = {}
for request in sys.argv[1:]:
    method, path = request.split(" ")
    connection = http.client.HTTPSConnection("gateway", 8443, context=trusting, timeout=10)
    connection.request(method, path, body=b"" if method != "GET" else None)
    statuses[request] = connection.getresponse().status
    connection.close()
print(json.dumps(statuses))

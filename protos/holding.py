"""Questions for messages that the SuperLink answers once there is one, instead of at once: what asks for that.

A node and the conductor ask "is there a message?" all the time; asked often enough to be quick, that alone would keep
the SuperLink busy. So they say for how many seconds their question may be held. coordinator/holding.py holds it.
"""

import httpx
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext

HEADER = "locum-hold"  # of a request: seconds; of its answer: that it would have been held
PATH = "/pull-messages"  # ends that of every question for messages
_SPARE_SECONDS = 5.0  # after which a held question that is not answered counts as lost


class Hold:
    """Lets every question for messages that a client asks be held for `seconds`.

    `works` is whether the SuperLink holds questions, as its last answer said: then there is no need for a pause between
    two of them.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.works = False

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Flower's hook around a call."""
        if not context.request.url.path.endswith(PATH):
            return call_next(context)
        context.request.headers[HEADER] = f"{self._seconds:g}"
        context.request.extensions["timeout"]["read"] = self._seconds + _SPARE_SECONDS
        self.works = False
        response = call_next(context)
        self.works = HEADER in response.headers
        return response

"""The layers of Flower's SuperLink that a call passes through: one of ours, and fewer of its own.

Six of its nine have nothing to do for nodes' and executors' calls: they look at operators' calls, or write logs that
are switched off here. Yet each takes its time for every object that passes.
"""

from typing import Any

from flwr.superlink import main as flower
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from coordinator.holding import Holding

OPERATORS = "/v1/control/"
_FOR_OPERATORS = frozenset(
    {
        "ControlSensitiveResponseMiddleware",
        "ControlAuthenticationMiddleware",
        "ControlLicenseMiddleware",
        "ControlEventLogMiddleware",
    }
)
_FOR_LOGS = frozenset({"RuntimeTracingMiddleware", "FleetEventLogMiddleware"})


class ForOperators:
    """A layer that only operators' calls pass through."""

    def __init__(self, app: ASGIApp, layer: Any, args: Any, kwargs: Any) -> None:
        self._app, self._layered = app, layer(app, *args, **kwargs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on, through the layer if it is an operator's."""
        operators = scope["type"] != "http" or scope["path"].startswith(OPERATORS)
        await (self._layered if operators else self._app)(scope, receive, send)


def lay() -> None:
    """Have the SuperLink that is made in this process use the layers of `layers`."""
    found = layers(flower._get_middleware())
    flower._get_middleware = lambda: found


def layers(of_flower: list[Middleware]) -> list[Middleware]:
    """Flower's layers, each for the calls that it is for, within the one that holds questions."""
    kept = [Middleware(Holding)]
    for layer in of_flower:
        name = getattr(layer.cls, "__name__", "")
        if name in _FOR_OPERATORS:
            kept.append(Middleware(ForOperators, layer.cls, layer.args, layer.kwargs))
        elif name not in _FOR_LOGS:
            kept.append(layer)
    return kept

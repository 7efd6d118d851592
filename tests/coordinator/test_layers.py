"""The SuperLink's layers: none of Flower's is missing for a call that it is for."""

import asyncio
from typing import Any

import pytest
from flwr.superlink import main as flower
from starlette.middleware import Middleware

from coordinator.holding import Holding
from coordinator.layers import ForOperators, layers


def test_every_layer_of_flower_is_kept_or_known_to_write_logs_alone() -> None:
    """Another version of Flower may have others."""
    found = layers(flower._get_middleware())
    names = [
        layer.args[0].__name__ if layer.cls is ForOperators else getattr(layer.cls, "__name__", "") for layer in found
    ]
    assert names == [
        "Holding",
        "ControlSensitiveResponseMiddleware",
        "BaseHTTPMiddleware",  # says what went wrong
        "ControlAuthenticationMiddleware",
        "ControlLicenseMiddleware",
        "ProtobufTranslationMiddleware",
        "ControlEventLogMiddleware",
        "NodeAuthMiddleware",
    ]
    assert [layer.cls for layer in found if layer.cls is ForOperators] == [ForOperators] * 4
    assert found[0].cls is Holding


class Layer:
    """Notes which calls pass."""

    def __init__(self, app: Any, passed: list[str]) -> None:
        self._app, self._passed = app, passed

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._passed.append(scope.get("path", scope["type"]))
        await self._app(scope, receive, send)


@pytest.mark.parametrize(
    ("scope", "through"),
    [
        ({"type": "http", "path": "/v1/control/start-run"}, True),
        ({"type": "lifespan"}, True),
        ({"type": "http", "path": "/v1/fleet/pull-object"}, False),
        ({"type": "http", "path": "/v1/runtime/push-object"}, False),
    ],
)
def test_a_layer_for_operators_sees_their_calls_alone(scope: Any, through: bool) -> None:
    reached: list[Any] = []
    passed: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope)

    class ControlLicenseMiddleware(Layer):
        """Named like one of Flower's."""

    (_, layer) = layers([Middleware(ControlLicenseMiddleware, passed)])
    asyncio.run(layer.cls(app, *layer.args, **layer.kwargs)(scope, None, None))  # type: ignore[arg-type]
    assert reached == [scope]
    assert bool(passed) == through

"""The description of /api is true whatever is asked, and nothing that is asked breaks it."""

from http import HTTPStatus
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import ignored_auth, negative_data_rejection

from tests.coordinator.dashboard.conftest import TOKEN, Asking, Made

PATHS = [
    "/api/runs", "/api/queue", "/api/sites", "/api/comparison",
    *(f"/api/runs/{{run}}{part}" for part in ("", "/stops", "/matrix", "/curves", "/traffic", "/events")),
]  # fmt: skip
HEADERS = {"authorization": f"Bearer {TOKEN}", "host": "127.0.0.1"}

OWN = [ignored_auth]  # who is let in is tested in test_pages.py; here the token is always shown


@pytest.fixture(scope="module")
def described(looking: Asking) -> Any:
    return schemathesis.openapi.from_asgi("/api/openapi.json", looking.app, headers=HEADERS)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode), ids=lambda mode: mode.value)
def test_whatever_is_asked_is_answered_as_described(
    described: Any, made: Made, path: str, mode: schemathesis.GenerationMode
) -> None:
    answered = set()

    @given(described[path]["GET"].as_strategy(generation_mode=mode))
    @settings(max_examples=25, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    def ask(case: Any) -> None:
        case.headers = {**(case.headers or {}), **HEADERS}
        answer(case, OWN)
        if "run" in (case.path_parameters or {}):
            case.path_parameters = {**case.path_parameters, "run": made.finetune}
            answer(case, [*OWN, negative_data_rejection])

    def answer(case: Any, without: list[Any]) -> None:
        found = case.call()
        answered.add(found.status_code)
        if found.status_code != HTTPStatus.REQUEST_URI_TOO_LONG:  # a refusal too, unknown to schemathesis
            case.validate_response(found, excluded_checks=without)

    ask()
    assert answered & {200, 404, 422}
    assert not [status for status in answered if status >= 500]


def test_only_questions_are_described(looking: Asking) -> None:
    paths = looking.client.get("/api/openapi.json").json()["paths"]
    assert {method for operations in paths.values() for method in operations} == {"get"}
    assert set(paths) == set(PATHS)

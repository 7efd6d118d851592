"""schemathesis against the description of the API: whatever is asked, nothing ends in a fault of the server."""

from pathlib import Path

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error

from node.dashboard.house import TOKEN_FILE
from tests.node.dashboard.houses import Opened

EXAMPLES = 6  # per operation; raise it for a longer look


@pytest.fixture(scope="module")
def schema(lived_in: Path) -> schemathesis.schemas.BaseSchema:
    opened = Opened.of(lived_in, token=True)
    token = (lived_in / TOKEN_FILE).read_text().strip()
    return schemathesis.openapi.from_asgi(
        "/api/openapi.json",
        opened.app,
        headers={"authorization": f"Bearer {token}", "host": "127.0.0.1"},
    )


lazy = schemathesis.pytest.from_fixture("schema")


@lazy.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_no_request_ends_in_a_fault(case: schemathesis.Case, lived_in: Path) -> None:
    token = (lived_in / TOKEN_FILE).read_text().strip()
    answer = case.call(headers={"authorization": f"Bearer {token}", "host": "127.0.0.1"})
    case.validate_response(answer, checks=[not_a_server_error])

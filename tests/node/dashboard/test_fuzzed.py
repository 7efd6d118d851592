"""schemathesis against the description of the API: whatever is asked, nothing ends in a fault of the server."""

import itertools
from pathlib import Path

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode

from pages.credentials import TOKEN_FILE
from tests.node.dashboard.houses import Opened

EXAMPLES = 5  # per operation and sense; raise it for a longer look


def test_no_request_ends_in_a_fault(lived_in: Path) -> None:
    opened = Opened.of(lived_in, token=True)
    shown = {"authorization": f"Bearer {(lived_in / TOKEN_FILE).read_text().strip()}", "host": "127.0.0.1"}
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", opened.app, headers=shown)
    asked: set[str] = set()
    statuses: set[int] = set()
    operations = [found.ok() for found in schema.get_all_operations()]
    modes = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    for operation, mode in itertools.product(operations, modes):
        if mode is GenerationMode.NEGATIVE and not list(operation.iter_parameters()):
            continue  # there is nothing to get wrong

        @settings(
            max_examples=EXAMPLES,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def fuzz(case: schemathesis.Case) -> None:
            answer = case.call(headers=shown)
            case.validate_response(answer, checks=[not_a_server_error])
            asked.add(case.operation.label)
            statuses.add(answer.status_code)

        fuzz()
    opened.house.jobs.close()
    assert len(asked) > 10
    assert "GET /api/ledger" in asked
    assert {200, 422} <= statuses  # it is let in, and what makes no sense is refused

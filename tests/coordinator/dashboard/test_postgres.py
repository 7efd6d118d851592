"""The overview on PostgreSQL: every page and document is there, and says what it says on SQLite."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi.routing import APIRoute

from coordinator.dashboard.pulse import Pulse, topics_of
from coordinator.dashboard.queries import STATUSES
from coordinator.home import Home
from tests.conftest import TINY, Desk
from tests.coordinator.dashboard.conftest import Asking, Made, asking, service_desk
from tests.coordinator.postgres import PASSWORD, postgres

ELSEWHERE = {"/sign-in", "/favicon.ico", "/live"}  # they lead to a page, or never end


@dataclass(frozen=True)
class OnPostgres(Desk):
    database: str

    @property
    def home(self) -> Home:
        return Home(self.folder / "home", self.database)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnPostgres]:
    with postgres() as url:
        desk = OnPostgres(tmp_path_factory.mktemp("postgres"), url)
        desk.home.folder.mkdir()
        yield desk
        desk.home.store().engine.dispose()


def addresses(asked: Asking, run: str) -> list[str]:
    """Every page and document that there is, about a run where it is about one."""
    routes = [route for route in asked.app.routes if isinstance(route, APIRoute) and "GET" in route.methods]
    found = {route.path.replace("{run}", run) for route in routes} - ELSEWHERE
    return sorted(f"{path}?run={run}" if "compar" in path else path for path in found)


def test_every_page_and_document_is_there(desk: OnPostgres, made: Made) -> None:
    looking, serving = asking(desk.home), asking(desk.home, service_desk(desk.home))
    for path in ("/", "/sites", "/compare", "/api/runs", "/api/queue", "/api/sites"):
        assert looking.client.get(path).status_code == 200, path  # nothing was written yet
    run = desk.simulate()
    fields = {"scenario": TINY, "overrides": "seed=7", "at": "2099-01-01T00:00", "confirm": "yes"}
    status, there = serving.post("/schedule", **fields)
    assert status == 303, there
    queued = there.rpartition("/")[2]
    assert serving.post(f"/runs/{queued}/cancel") == (303, there)
    assert serving.post(f"/runs/{queued}/resume") == (303, there)
    assert serving.client.get("/api/queue").json()["queue"][0]["run"] == queued

    for path in addresses(looking, run):
        changes = path.rpartition("/")[2] in ("cancel", "resume", "skip", "schedule")
        if not changes:
            assert looking.client.get(path).status_code == 200, path
        if "sites" not in path:  # of a service, the SuperLink says who they are
            assert serving.client.get(path).status_code == 200, path
    for query in (f"run={run}&run={queued}", "scenario=tiny", *(f"status={status}" for status in STATUSES)):
        assert looking.client.get(f"/?{query}").status_code == 200
    assert "Dr Grey (name stated) scheduled this run" in looking.text(f"/runs/{queued}")
    events = looking.client.get(f"/api/runs/{queued}/events").json()["events"]
    older = looking.client.get(f"/api/runs/{queued}/events?before={events[0]['number']}").json()["events"]
    assert older == events[1:]
    state = Pulse(looking.overview)()
    assert {topic for name in (run, queued) for topic in topics_of(name)} <= set(state)
    assert PASSWORD not in looking.text("/")

    there = asking(made.home)
    for part in ("matrix?score=dsc", "matrix?score=asd", "curves?score=dsc", "traffic"):
        assert told(looking, run, part) == told(there, made.finetune, part)
    assert [row["run"] for row in looking.client.get("/api/runs").json()["runs"]] == [queued, run]


def told(asked: Asking, run: str, part: str) -> Any:
    return asked.client.get(f"/api/runs/{run}/{part}").json()

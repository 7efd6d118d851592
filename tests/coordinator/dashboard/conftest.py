"""Overviews over homes that real runs were made in, and one whose texts mean harm."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from coordinator.dashboard.app import COOKIE, overview_app
from coordinator.dashboard.overview import Overview
from coordinator.dispatcher import Dispatcher
from coordinator.home import Home
from coordinator.journal import Journal
from coordinator.keys import server_keys
from coordinator.service_desk import ServiceDesk
from coordinator.store import EventRow, Run, ScoreRow, SiteRow, StopRow
from coordinator.superlink import SuperLinkConfig
from pages.credentials import PEOPLE_FILE, People
from tests.browser import chromium
from tests.conftest import Desk

__all__ = ["chromium"]

TOKEN = "t" * 43
BASE = "http://127.0.0.1"
HOSTILE = "<img src=x onerror=alert(1)>\"'&\u202egnp.\x00\x1b[31m\r\n" + "m" * 3000


@dataclass(frozen=True)
class Made:
    """A home with two finished runs of one method and one of another, over three sites and an unseen one."""

    desk: Desk
    finetune: str
    again: str  # with another seed
    joint: str
    smaller: str  # over other sites

    @property
    def home(self) -> Home:
        return self.desk.home


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    desk = Desk(tmp_path_factory.mktemp("made"))
    runs = [desk.simulate(), desk.simulate("seed=1"), desk.simulate("strategy=joint")]
    return Made(desk, *runs, desk.simulate("unseen=[]"))


@dataclass(frozen=True)
class Asking:
    """A browser's side of an overview that runs in this process."""

    app: FastAPI
    client: TestClient

    @property
    def overview(self) -> Overview:
        found: Overview = self.app.state.overview
        return found

    def text(self, path: str, status: int = 200) -> str:
        answer = self.client.get(path, headers={"accept": "text/html"})
        assert answer.status_code == status, answer.text
        return answer.text

    def post(self, path: str, **fields: str) -> "tuple[int, str]":
        """A form with the session's own token; the status, and where it leads or what it shows."""
        answer = self.client.post(path, data={"csrf": self.csrf(), **fields}, headers={"accept": "text/html"})
        return answer.status_code, answer.headers.get("location", answer.text)

    def csrf(self) -> str:
        return self.text("/sites").partition('X-CSRF-Token": "')[2].partition('"')[0]


def asking(
    home: Home,
    desk: ServiceDesk | None = None,
    token: str | None = TOKEN,
    name: str = "Dr Grey",
    password: str | None = None,
) -> Asking:
    """Somebody who is signed in, by the token unless they have a password."""
    app = overview_app(home, desk, token, people=People(home.folder / PEOPLE_FILE))
    client = TestClient(app, base_url=BASE, follow_redirects=False)
    if token is not None:
        assert client.post("/sign-in", data={"name": name, "secret": password or token}).status_code == 303
        assert COOKIE in client.cookies
    return Asking(app, client)


@pytest.fixture(scope="package")
def looking(made: Made) -> Asking:
    """The overview of the home, where nothing can be changed."""
    return asking(made.home)


def service_desk(home: Home) -> ServiceDesk:
    """The desk of a service whose queue nobody goes through, so that what is asked can be looked at."""
    superlink = SuperLinkConfig(
        home.folder / "superlink", server_keys(home.folder / "keys", ["localhost"]), "127.0.0.1", 1
    )
    journal = Journal(home.store())
    return ServiceDesk(home, superlink, journal, Dispatcher(home, superlink, journal, 1))


@pytest.fixture
def hostile(desk: Desk) -> Iterator[Asking]:
    """A home in whose store every text that a store can hold means harm."""
    scenario = desk.scenario().model_dump(mode="json")
    run = Run(
        id="hostile-1", name="hostile", scenario=scenario, data=None, status="failed", device=HOSTILE[:32],
        software=HOSTILE[:40], command=HOSTILE,
    )  # fmt: skip
    error = {"site": HOSTILE, "code": HOSTILE, "sentence": HOSTILE}
    north = {"north": {"sent": {HOSTILE: 7}, "received": {"weights": 3}}}
    metrics = {"dsc.1": 0.5, "asd.1": 1.0, "cases": 2, "both_empty": 0, "penalised": 0}
    rows = [
        StopRow(run_id=run.id, index=0, sites=["north"], action="visit", status="done", traffic=north, metrics={},
                artifact="a" * 64, weights_sha256="b" * 64),
        StopRow(run_id=run.id, index=1, sites=["east"], action="visit", status="failed", error=error),
        StopRow(run_id=run.id, index=2, sites=[HOSTILE], rehearsing=[HOSTILE], action="visit", status="skipped",
                skipped_by=HOSTILE, skipped_why=HOSTILE, left_out={HOSTILE: {"by": HOSTILE, "why": HOSTILE}}),
        ScoreRow(run_id=run.id, stop=0, site="north", metrics=metrics),
        ScoreRow(run_id=run.id, stop=0, site="east", metrics=None, error=error),
        SiteRow(name=HOSTILE[:64], schema_version=1, cases={"test": 4, HOSTILE: 2}),
    ]  # fmt: skip
    for kind, fields in (
        ("said", {"sentence": HOSTILE}),
        ("failed", {"sentence": HOSTILE}),
        ("stop_began", {"stop": 1, "sites": [HOSTILE], "rehearsing": [HOSTILE]}),
        ("stepped", {"stop": 1, "site": HOSTILE, "step": HOSTILE, "steps": 4, "loss": HOSTILE}),
        ("scored", {"stop": 0, "site": HOSTILE, "dsc": HOSTILE}),
        ("run_ended", {"status": HOSTILE}),
        ("another", {HOSTILE: HOSTILE}),
    ):
        rows.append(EventRow(run_id=run.id, kind=kind, stop=1, fields=fields))
    with desk.home.store().transaction() as session:
        session.add(run)
        session.flush()
        session.add_all(rows)
    yield asking(desk.home, service_desk(desk.home))
    desk.home.store().engine.dispose()

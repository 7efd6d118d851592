"""What can be done in a service's overview: asked twice, by name, kept among the events, and refused in sentences."""

import html

import pytest
from sqlalchemy import select
from typer.testing import CliRunner

from coordinator.cli import app
from coordinator.store import EventRow, QueueRow, Run, StopRow
from tests.conftest import TINY, Desk
from tests.coordinator.dashboard.conftest import Asking, asking, service_desk

SECRET = "correct horse"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> tuple[Desk, Asking]:
    desk = Desk(tmp_path_factory.mktemp("serving"))
    return desk, asking(desk.home, service_desk(desk.home))


@pytest.fixture(scope="module")
def scheduled(serving: tuple[Desk, Asking]) -> str:
    """A run that was scheduled in the overview."""
    desk, asked = serving
    fields = {
        "scenario": TINY,
        "source": "tiny.yaml",
        "overrides": "training.steps=2\nseed=4",
        "at": "2099-01-01T00:00",
    }
    status, question = asked.post("/schedule", **fields)
    assert status == 200
    assert "Schedule 1 run?" in question
    assert "finetune, seed 4: north, east, south" in question
    assert rows(desk, Run) == []
    status, there = asked.post("/schedule", confirm="yes", **fields)
    assert status == 303, there
    (run,) = rows(desk, Run)
    assert there == f"/runs/{run.id}"
    return str(run.id)


def rows(desk: Desk, table: type) -> list:
    with desk.home.store().transaction() as session:
        return list(session.scalars(select(table)))


def said(desk: Desk, run: str) -> list[str]:
    return [row.fields["sentence"] for row in rows(desk, EventRow) if row.run_id == run and row.kind == "said"]


def test_a_scheduled_run_waits_and_says_who_asked(serving: tuple[Desk, Asking], scheduled: str) -> None:
    desk, asked = serving
    (queued,) = rows(desk, QueueRow)
    assert queued.not_before is not None
    run = desk.row(scheduled)
    assert (run.scenario["training"]["steps"], run.scenario["seed"], run.status) == (2, 4, "pending")
    assert run.command == "locum schedule tiny.yaml --set=training.steps=2 --set=seed=4"
    assert said(desk, scheduled)[-1] == "Dr Grey (name stated) scheduled this run in the overview."
    assert scheduled in asked.text("/").partition("Queue")[2]
    assert asked.client.get("/api/queue").json()["queue"][0]["run"] == scheduled


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({}, "a scenario is a mapping"),
        ({"scenario": "name: [\x00"}, "not valid YAML"),
        ({"scenario": TINY, "overrides": "training.stesp=1"}, "stesp"),
        ({"scenario": TINY, "at": "soon"}, "no time"),
        ({"scenario": TINY, "after": "no-such-run"}, "There is no run"),
        ({"scenario": TINY.replace("tiny", "<b>")}, "name"),
        ({"scenario": "a: &a [1]\nb: &b [*a, *a, *a, *a, *a]\n" * 40}, "not valid YAML"),
    ],
)
def test_what_cannot_be_scheduled_is_said_in_the_form(
    serving: tuple[Desk, Asking], scheduled: str, fields: dict[str, str], sentence: str
) -> None:
    desk, asked = serving
    for confirm in ({}, {"confirm": "yes"}):
        status, page = asked.post("/schedule", **fields, **confirm)
        assert status == 409
        assert sentence in html.unescape(page.partition('role="alert"')[2].partition("</p>")[0])
        assert "<b>" not in page
    assert len(rows(desk, Run)) == 1


def test_who_signed_in_without_a_name_gives_one(serving: tuple[Desk, Asking], scheduled: str) -> None:
    desk, _ = serving
    nameless = asking(desk.home, service_desk(desk.home), name="")
    assert 'name="asked_by"' in nameless.text(f"/runs/{scheduled}/cancel")
    for name in ("", "x" * 65, "Dr\nGrey", "\u202e"):
        status, page = nameless.post(f"/runs/{scheduled}/cancel", asked_by=name)
        assert (status, "Your name" in page) == (409, True)
    assert desk.row(scheduled).status == "pending"


def test_changes_need_the_sessions_own_token(serving: tuple[Desk, Asking], scheduled: str) -> None:
    desk, asked = serving
    for csrf in ("", "x" * 32):
        for path in (f"/runs/{scheduled}/cancel", f"/runs/{scheduled}/skip", "/schedule"):
            assert asked.client.post(path, data={"csrf": csrf, "confirm": "yes"}).status_code == 403
    for path in (f"/runs/{scheduled}/cancel", "/schedule"):
        assert asked.client.post(path, content="x" * 70_000).status_code == 413
        answer = asked.client.post(path, json={}, headers={"x-csrf-token": asked.csrf()})
        assert answer.status_code == 400
    assert desk.row(scheduled).status == "pending"


def test_a_run_is_cancelled_resumed_and_gone_on_without_a_stop(serving: tuple[Desk, Asking], scheduled: str) -> None:
    desk, asked = serving
    assert "Cancel this run?" in asked.text(f"/runs/{scheduled}/cancel")
    assert desk.row(scheduled).status == "pending"  # asking changes nothing
    assert asked.post(f"/runs/{scheduled}/cancel") == (303, f"/runs/{scheduled}")
    assert desk.row(scheduled).status == "cancelled"
    assert rows(desk, QueueRow) == []
    assert said(desk, scheduled)[-1] == "Dr Grey (name stated) asked to cancel this run in the overview."
    assert "Resume" in asked.text(f"/runs/{scheduled}")

    assert asked.post(f"/runs/{scheduled}/resume") == (303, f"/runs/{scheduled}")
    assert said(desk, scheduled)[-1] == "Dr Grey (name stated) resumed this run in the overview."
    assert asked.post(f"/runs/{scheduled}/cancel")[0] == 303

    with desk.home.store().transaction() as session:
        session.add_all(
            StopRow(run_id=scheduled, index=n, sites=[site], action="visit", rehearsing=["north"] if n else [])
            for n, site in enumerate(("north", "east", "south"))
        )
    assert "Skip a stop" in asked.text(f"/runs/{scheduled}/skip")
    reason = {"stop": "0", "by": "Dr Bailey", "why": "the ward is closed <b>"}
    status, question = asked.post(f"/runs/{scheduled}/skip", **reason)
    assert (status, "without stop 0" in question, "<b>" in question) == (200, True, False)
    assert desk.row(scheduled).stops[0].status == "pending"
    assert asked.post(f"/runs/{scheduled}/skip", confirm="yes", **reason)[0] == 303
    stop = desk.row(scheduled).stops[0]
    assert (stop.status, stop.skipped_by, stop.skipped_why) == (
        "skipped",
        "Dr Bailey (name stated)",
        "the ward is closed <b>",
    )
    assert said(desk, scheduled)[-1] == "Dr Grey (name stated) had stop 0 skipped in the overview."
    assert "by Dr Bailey (name stated): the ward is closed &lt;b&gt;" in asked.text(f"/runs/{scheduled}")
    for fields, sentence in (
        ({"stop": "0"}, "is skipped already"), ({"stop": "9"}, "has no stop 9"), ({"stop": "x"}, "which stop"),
        ({"stop": "\u0663"}, "which stop"), ({"stop": "1", "by": ""}, "is missing"),
        ({"stop": "1", "why": "x" * 501}, "at most"),
        ({"stop": "1", "rehearsal_at": "nowhere"}, "does not rehearse"),
    ):  # fmt: skip
        status, page = asked.post(f"/runs/{scheduled}/skip", **{**reason, "confirm": "yes", **fields})
        assert (status, sentence in html.unescape(page)) == (409, True), fields


def test_what_a_person_with_a_password_asks_for_carries_their_proven_name(desk: Desk) -> None:
    desk.home.folder.mkdir()
    given = CliRunner().invoke(
        app, ["person", "Dr Roe", "--home", str(desk.home.folder)], input=f"{SECRET}\n{SECRET}\n"
    )
    assert given.exit_code == 0, given.stderr
    asked = asking(desk.home, service_desk(desk.home), name="Dr Roe", password=SECRET)
    fields = {"scenario": TINY, "asked_by": "Dr Grey", "at": "2099-01-01T00:00"}
    assert "Your name" not in asked.text("/schedule")
    assert asked.post("/schedule", confirm="yes", **fields)[0] == 303
    (run,) = rows(desk, Run)
    assert said(desk, run.id)[-1] == "Dr Roe scheduled this run in the overview."
    assert asked.post(f"/runs/{run.id}/cancel", asked_by="Dr Grey")[0] == 303
    with desk.home.store().transaction() as session:
        session.add(StopRow(run_id=run.id, index=0, sites=["north"], action="visit"))
    assert "<strong>Dr Roe</strong> answers for it" in asked.text(f"/runs/{run.id}/skip")
    skip = {"stop": "0", "by": "Dr Grey", "why": "closed", "asked_by": "Dr Grey", "confirm": "yes"}
    assert asked.post(f"/runs/{run.id}/skip", **skip)[0] == 303
    assert desk.row(run.id).stops[0].skipped_by == "Dr Roe"
    assert said(desk, run.id)[-1] == "Dr Roe had stop 0 skipped in the overview."
    assert not any("Dr Grey" in sentence for sentence in said(desk, run.id))

    taken = CliRunner().invoke(app, ["person", "Dr Roe", "--remove", "--home", str(desk.home.folder)])
    assert taken.exit_code == 0
    assert asked.client.get("/").status_code == 303  # the session ended with the password
    assert asked.client.post("/sign-in", data={"name": "Dr Roe", "secret": SECRET}).status_code == 403


def test_what_is_done_cannot_be_cancelled(serving: tuple[Desk, Asking], scheduled: str) -> None:
    desk, asked = serving
    with desk.home.store().transaction() as session:
        session.get_one(Run, scheduled).status = "done"
    status, page = asked.post(f"/runs/{scheduled}/cancel")
    assert (status, "is done; only a run that is queued" in page) == (409, True)
    assert "go-cancel" not in asked.text(f"/runs/{scheduled}")
    assert asked.post("/runs/no-such-run/cancel")[0] == 404

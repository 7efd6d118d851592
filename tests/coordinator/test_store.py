"""The store: migrations make exactly the models' tables, transactions are whole, PostgreSQL does as SQLite does."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text
from sqlalchemy.exc import IntegrityError

import coordinator.migrations
from coordinator.home import Home
from coordinator.results import summarise
from coordinator.simulate import begin, carry_out
from coordinator.store import REVISION, Base, Run, ScoreRow, StopRow, Store, StoreUnusable, UnknownRun, sqlite_url
from tests.conftest import Desk, Recorder, outcome
from tests.coordinator.postgres import postgres

MIGRATIONS = Path(coordinator.migrations.__file__).parent


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(sqlite_url(tmp_path / "home"))
    yield opened
    opened.engine.dispose()


def alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


def a_run(**changes: object) -> Run:
    fields = {"id": "a-1", "name": "a", "scenario": {}, "data": None, "software": "locum", "command": "locum"}
    return Run(**fields | changes)


def test_the_newest_migration_is_the_one_the_store_asks_for():
    assert ScriptDirectory.from_config(alembic()).get_heads() == [REVISION]


def assert_tables_are_the_models(store: Store) -> None:
    with store.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == REVISION


def test_migrations_make_exactly_the_tables_of_the_models(store):
    assert_tables_are_the_models(store)
    with store.engine.connect() as connection:  # Alembic does not compare primary keys
        for table in Base.metadata.tables.values():
            key = inspect(connection).get_pk_constraint(table.name)["constrained_columns"]
            assert key == [column.name for column in table.primary_key], table.name


def test_migrations_go_down_and_up_again(store):
    config = alembic()
    with store.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    assert inspect(store.engine).get_table_names() == ["alembic_version"]
    assert_tables_are_the_models(Store(store.url))


def test_rows_of_the_first_release_survive_every_migration(store):
    """Other tables refer to `runs`, so that no migration may make it anew."""
    config = alembic()
    with store.transaction() as session:
        session.add_all([a_run(), StopRow(run_id="a-1", index=0, sites=["north"], action="visit")])
    with store.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
    run = Store(store.url).run("a-1")
    assert (run.policies, [(stop.rehearsing, stop.left_out) for stop in run.stops]) == ([{}], [([], {})])


def test_an_up_to_date_database_is_left_alone_and_keeps_its_rows(store):
    with store.transaction() as session:
        session.add(a_run())
    assert Store(store.url).run("a-1").name == "a"


def test_a_transaction_commits_whole_or_not_at_all(store):
    with pytest.raises(IntegrityError), store.transaction() as session:
        session.add_all([a_run(), StopRow(run_id="another", index=0, sites=[], action="visit")])
    with pytest.raises(UnknownRun, match=r"no run 'a-1'.*`locum runs`"):
        store.run("a-1")


def test_stops_and_scores_belong_to_a_run(store):
    for orphan in (
        StopRow(run_id="nobody", index=0, sites=[], action="visit"),
        ScoreRow(run_id="nobody", stop=0, site="north", metrics=None),
    ):
        with pytest.raises(IntegrityError), store.transaction() as session:
            session.add(orphan)


def test_a_commit_is_on_the_disk(store):
    with store.engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA synchronous")).scalar() == 2  # FULL


def test_stops_and_scores_come_back_in_order(store):
    with store.transaction() as session:
        session.add(a_run())
        for stop in (2, 0, 1):
            session.add(StopRow(run_id="a-1", index=stop, sites=["north"], action="visit"))
            session.add(ScoreRow(run_id="a-1", stop=stop, site="north", metrics={"dsc": stop / 2}))
    run = store.run("a-1")
    assert [stop.index for stop in run.stops] == [0, 1, 2]
    assert [score.metrics for score in run.scores] == [{"dsc": 0.0}, {"dsc": 0.5}, {"dsc": 1.0}]
    assert run.created.year > 2000


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:////proc/nothing/coordinator.db",
        "postgresql+psycopg://127.0.0.1:1/nowhere?connect_timeout=1",
        "nonsense",
        "oracle+nothing://x",
    ],
)
def test_a_database_that_cannot_be_used_is_one_sentence_without_its_password(url):
    with pytest.raises(StoreUnusable) as caught:
        Store(url)
    assert len(str(caught.value).splitlines()) == 1
    assert "--database" in str(caught.value)


def test_a_password_is_not_printed():
    with pytest.raises(StoreUnusable) as caught:
        Store("postgresql+psycopg://me:topsecret@127.0.0.1:1/nowhere?connect_timeout=1")
    assert "topsecret" not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


def test_a_database_of_a_newer_release_is_refused(store):
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreUnusable, match="unknown revision 9999; install the Locum release"):
        Store(store.url)


# PostgreSQL


def test_postgresql_holds_the_same_run_as_sqlite(desk: Desk, tmp_path: Path):
    with postgres() as url:
        home = Home(tmp_path / "second home", url)
        run = begin(desk.scenario(), home, tmp_path, "locum simulate tiny.yaml")
        for _ in range(2):  # the second time it goes on with a finished run
            carry_out(run, home, device="cpu", listener=Recorder())
        there = home.store()
        assert_tables_are_the_models(there)
        here = desk.simulate()
        assert outcome(there.run(run)) == outcome(desk.row(here))
        same = {"run": "", "seconds": 0}
        documents = [summarise(row).document() | same for row in (there.run(run), desk.row(here))]
        assert documents[0] == documents[1]
        assert not (home.folder / "coordinator.db").exists()
        there.engine.dispose()

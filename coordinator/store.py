"""The coordinator's database: runs, their stops and scores. One transaction commits one stop."""

import sqlite3
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sqlalchemy import (
    JSON,
    Connection,
    DateTime,
    Engine,
    ExceptionContext,
    ForeignKey,
    String,
    create_engine,
    event,
    inspect,
    make_url,
    text,
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from coordinator import database_copy
from coordinator.database_copy import sqlite_file

REVISION = "0006"  # the newest migration; a test holds it to Alembic's own answer

SETTLED = ("done", "skipped")  # stops that a run does not come back to

RunStatus = Literal["pending", "running", "done", "incomplete", "failed", "cancelled"]
StopStatus = Literal["pending", "running", "done", "failed", "skipped"]


class Base(DeclarativeBase):
    """Base of the coordinator's tables."""

    # absent JSON is SQL's NULL, not JSON's
    type_annotation_map = {
        dict[str, Any]: JSON(none_as_null=True),
        list[str]: JSON,
        list[dict[str, Any]]: JSON,
        datetime: DateTime(timezone=True),
    }


class Run(Base):
    """One execution of a scenario."""

    __tablename__ = "runs"

    id: Mapped[str] = mapped_column(String(80), primary_key=True)
    name: Mapped[str] = mapped_column(String(40))
    scenario: Mapped[dict[str, Any]]  # the scenario of this run alone, as validated
    data: Mapped[str | None]  # the data folder of a simulation
    status: Mapped[str] = mapped_column(String(16), default="running")  # RunStatus
    created: Mapped[datetime] = mapped_column(default=lambda: datetime.now(UTC))
    seconds: Mapped[float] = mapped_column(default=0.0)  # of work, over all resumptions
    device: Mapped[str] = mapped_column(String(32), default="cpu")  # of the simulated nodes; bits depend on it
    # what the sites' policies changed in it, see coordinator/introductions.py; one entry more whenever that was another
    policies: Mapped[list[dict[str, Any]]] = mapped_column(default=list)
    software: Mapped[str] = mapped_column(String(40))
    command: Mapped[str]  # makes the same run again
    stops: Mapped[list["StopRow"]] = relationship(order_by="StopRow.index", cascade="all, delete-orphan")
    scores: Mapped[list["ScoreRow"]] = relationship(
        order_by="ScoreRow.stop, ScoreRow.site", cascade="all, delete-orphan"
    )


class StopRow(Base):
    """One stop of a run's itinerary."""

    __tablename__ = "stops"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    index: Mapped[int] = mapped_column("stop", primary_key=True)
    sites: Mapped[list[str]]
    action: Mapped[str] = mapped_column(String(32))
    follows: Mapped[int | None]  # the stop whose handover arrives; null: the first handover
    rehearsing: Mapped[list[str]] = mapped_column(default=list)  # sites that take part with the cases they keep
    left_out: Mapped[dict[str, Any]] = mapped_column(default=dict)  # site that was to rehearse -> by, why
    status: Mapped[str] = mapped_column(String(16), default="pending")  # StopStatus
    artifact: Mapped[str | None] = mapped_column(String(64))  # vault address of the handover it ended with
    weights_sha256: Mapped[str | None] = mapped_column(String(64))
    seconds: Mapped[float] = mapped_column(default=0.0)
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)
    traffic: Mapped[dict[str, Any]] = mapped_column(default=dict)  # site -> sent/received -> kind -> bytes
    error: Mapped[dict[str, Any] | None]  # site, code, sentence
    skipped_by: Mapped[str | None]
    skipped_why: Mapped[str | None]
    # Within a stop of many rounds: where to go on after a crash.
    rounds_done: Mapped[int] = mapped_column(default=0)
    rounds_state: Mapped[str | None] = mapped_column(String(64))  # vault address
    samples: Mapped[dict[str, Any] | None]  # site -> training samples, which the rounds were dealt out by


class ScoreRow(Base):
    """One cell of the score matrix: what one site measured after one stop."""

    __tablename__ = "scores"

    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), primary_key=True)
    stop: Mapped[int] = mapped_column(primary_key=True)
    site: Mapped[str] = mapped_column(String(64), primary_key=True)
    metrics: Mapped[dict[str, Any] | None]  # null: the site could not score, see error
    traffic: Mapped[dict[str, Any]] = mapped_column(default=dict)
    error: Mapped[dict[str, Any] | None]


class QueueRow(Base):
    """A run that the control service carries out now, or is to carry out."""

    __tablename__ = "queue"

    number: Mapped[int] = mapped_column(primary_key=True)  # the order of their turns
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), unique=True)
    not_before: Mapped[datetime | None]
    after: Mapped[str | None] = mapped_column(ForeignKey("runs.id"))  # a run that has to end first
    waits_for: Mapped[str | None]  # in words; null: it is carried out, or nobody has looked yet
    away_since: Mapped[dict[str, Any]] = mapped_column(default=dict)  # site that it needs and that is away -> ISO 8601
    run: Mapped[Run] = relationship(foreign_keys=[run_id], lazy="joined")


class EventRow(Base):
    """Something that happened in a run which the control service carries out, see coordinator/journal.py."""

    __tablename__ = "events"

    number: Mapped[int] = mapped_column(primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id"), index=True)
    time: Mapped[datetime] = mapped_column(default=lambda: datetime.now(UTC))
    kind: Mapped[str] = mapped_column(String(16))  # the field of a control.proto Event
    stop: Mapped[int | None]
    fields: Mapped[dict[str, Any]]


class SiteRow(Base):
    """What a site last said of itself to a run that the control service carried out."""

    __tablename__ = "sites"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    schema_version: Mapped[int]
    cases: Mapped[dict[str, Any]]  # part -> cases
    software: Mapped[str | None] = mapped_column(String(40))  # name and version; null: it did not say
    torch: Mapped[str | None] = mapped_column(String(40))  # version
    code_sha256: Mapped[str | None] = mapped_column(String(64))  # see protos/software.py


class UnknownRun(Exception):
    """No run of that name in the store; one sentence."""


class StoreUnusable(Exception):
    """The database cannot be opened or used; one sentence, without the URL's password."""


class StoreDamaged(StoreUnusable):
    """The database's file is damaged, or gone while there is a copy of it; one sentence."""


class Store:
    """The database at `url`, brought to the newest schema.

    Whatever uses it raises StoreUnusable when the disk does not let it, and StoreDamaged when it is a damaged file.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._file = sqlite_file(url)
        if self._file is not None and database_copy.is_lost(self._file):
            raise StoreDamaged(
                database_copy.damaged(self._file, "it is empty" if self._file.exists() else "it is gone")
            )
        try:
            self.engine = _engine(url)
            _migrate(self.engine)
        except (SQLAlchemyError, OSError, ImportError) as error:
            raise StoreUnusable(
                f"The database {_shown(url)} cannot be used ({_first_line(error)}); --home or --database names another."
            ) from error

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        """A session that commits as a whole, or not at all."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            yield session

    def keep_copy(self) -> None:
        """Copy a database that is a file, so that what was committed so far outlives damage to it.

        A server's has backups of its own. Raises StoreUnusable and StoreDamaged.
        """
        if self._file is None:
            return
        try:
            database_copy.keep_copy(self._file)
        except (sqlite3.DatabaseError, OSError) as error:
            raise _unusable(self._file, error) from error

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that reads as of one moment; with SQLite it waits for no writer, and no writer for it."""
        engine = self.engine.execution_options(reading=True)
        with Session(engine, expire_on_commit=False, autoflush=False) as session, session.begin():
            yield session

    def run(self, run: str) -> Run:
        """A run with its stops and scores loaded; raises UnknownRun."""
        with self.transaction() as session:
            found = session.get(Run, run)
            if found is None:
                raise UnknownRun(
                    f"There is no run {run!r} in this store; `locum runs` lists them, --home names another."
                )
            _ = found.stops, found.scores  # loaded before the session closes
            return found


_opened: OrderedDict[str, Store] = OrderedDict()
_MOST = 8  # stores that are kept open


def open_store(url: str) -> Store:
    """The store at `url`, opened once per process: its connections and its look at the schema are shared."""
    if (store := _opened.get(url)) is None:
        store = _opened[url] = Store(url)
        while len(_opened) > _MOST:
            _opened.popitem(last=False)
    return store


def close_store(url: str) -> None:
    """Close the store at `url`, if this process has it open; the next caller opens it anew."""
    if (store := _opened.pop(url, None)) is not None:
        store.engine.dispose()


def sqlite_url(home: Path) -> str:
    """The default database below a home folder."""
    return f"sqlite:///{home.absolute() / 'coordinator.db'}"


def _engine(url: str) -> Engine:
    engine = create_engine(url, pool_pre_ping=True)  # a server may close what lay idle for the hours of a visit
    if engine.dialect.name == "sqlite":
        if engine.url.database:
            Path(engine.url.database).parent.mkdir(parents=True, exist_ok=True)

        @event.listens_for(engine, "connect")
        def _configure(connection: Any, _: Any) -> None:
            connection.isolation_level = None  # Python's driver begins no transaction for a CREATE TABLE; _begin does
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")  # a committed stop survives a power cut
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute("PRAGMA busy_timeout=30000")

        @event.listens_for(engine, "handle_error")
        def _tell(context: ExceptionContext) -> None:
            error, file = context.original_exception, sqlite_file(url)
            if file is not None and database_copy.code_of(error) in database_copy.DAMAGED | database_copy.UNUSABLE:
                raise _unusable(file, error) from error

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            reads = connection.get_execution_options().get("reading", False)
            # immediate, so that what was read still holds when it is written to
            connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _unusable(file: Path, error: BaseException) -> StoreUnusable:
    if database_copy.code_of(error) in database_copy.DAMAGED:
        return StoreDamaged(database_copy.damaged(file, str(error)))
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return StoreUnusable(
        f"The database {file} could not be used ({reason}); free or mend its disk, or name another with --database."
    )


def _shown(url: str) -> str:
    try:
        return make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return "URL"


def _first_line(error: Exception) -> str:
    reason = error.orig if isinstance(error, DBAPIError) else error
    return str(reason).strip().splitlines()[0].rstrip(".")


def _migrate(engine: Engine) -> None:
    """Upgrade the schema where it is not the newest; Alembic is only loaded then. Raises StoreUnusable."""
    current = None
    with engine.connect() as connection:
        if inspect(connection).has_table("alembic_version"):
            current = connection.execute(text("SELECT version_num FROM alembic_version")).scalar()
            if current == REVISION:
                return
    file = sqlite_file(str(engine.url))
    if current is None and file is not None and database_copy.copy_of(file).exists():
        raise StoreDamaged(database_copy.damaged(file, "its tables are gone"))
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:  # it knows no such revision
            raise StoreUnusable(
                f"The database {_shown(str(engine.url))} has the unknown revision {current}; install the Locum release "
                "that wrote it."
            ) from error

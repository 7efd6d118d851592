"""The runs that this node was asked for: their plan, and where the site's data lay then. For the site's own pages."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from sqlalchemy import Engine, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import Mapped, mapped_column

from node.database import Base
from node.settings import SiteSettings

if TYPE_CHECKING:  # it brings Flower, which reading does not need
    from protos.messages import Request


class AskedRun(Base):
    """A run, as of the newest message of another kind than before. Never sent anywhere."""

    __tablename__ = "asked_runs"

    run: Mapped[str] = mapped_column(primary_key=True)
    first: Mapped[str]  # time of the first message, UTC in ISO format
    unseen: Mapped[bool]  # the site is scored and never visited
    plan: Mapped[str]  # JSON, a Plan
    settings: Mapped[str]  # JSON, SiteSettings


def note(engine: Engine, settings: SiteSettings, request: "Request") -> None:
    """Keep the plan and the settings, if they are not those that are kept already."""
    if settings.data is not None:
        settings = settings.model_copy(update={"data": settings.data.absolute()})
    row = {
        "unseen": request.unseen,
        "plan": request.plan.model_dump_json(),
        "settings": settings.model_dump_json(),
    }
    query = select(AskedRun.unseen, AskedRun.plan, AskedRun.settings).where(AskedRun.run == request.run)
    with engine.connect() as connection:
        found = connection.execute(query).first()
    if found is not None and dict(found._mapping) == row:
        return
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with engine.execution_options(write=True).begin() as connection:
        statement = insert(AskedRun).values(run=request.run, first=now, **row)
        connection.execute(statement.on_conflict_do_update(index_elements=[AskedRun.run], set_=row))

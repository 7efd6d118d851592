"""What an overview is made from: the runs of a home, and where a service serves it, the desk that changes them."""

import time
from dataclasses import dataclass, field
from http import HTTPStatus
from threading import Lock
from typing import Annotated, Any

from fastapi import Path as InPath
from sqlalchemy import select
from starlette.exceptions import HTTPException

from coordinator.dashboard.documents import SiteEntry, SiteList
from coordinator.dashboard.queries import Queries
from coordinator.dashboard.summaries import Summaries
from coordinator.home import Home
from coordinator.service_desk import ServiceDesk
from coordinator.store import Run, SiteRow, UnknownRun
from coordinator.summary import RunSummary

SITES_SECONDS = 3.0  # for so long the SuperLink is not asked again

RunName = Annotated[str, InPath(pattern=r"^[A-Za-z0-9._-]{1,80}$", description="the run's whole name")]


@dataclass
class Overview:
    """The runs of `home`; without `desk` they can only be looked at."""

    home: Home
    desk: ServiceDesk | None = None
    queries: Queries = field(init=False)
    summaries: Summaries = field(init=False)
    _sites: tuple[float, list[dict[str, Any]]] = field(default=(float("-inf"), []), init=False)
    _lock: Lock = field(default_factory=Lock, init=False)

    def __post_init__(self) -> None:
        self.queries = Queries(self.home)
        self.summaries = Summaries(self.home)

    def run(self, name: str) -> Run:
        """The run's own row, without stops and scores; refuses a name that is not there."""
        if not self.home.is_new():
            with self.home.store().reading() as session:
                if (found := session.get(Run, name)) is not None:
                    return found
        raise no_such_run()

    def summary(self, name: str) -> RunSummary:
        """The run as far as it has come; refuses a name that is not there."""
        self.run(name)
        try:
            return self.summaries.newest(name)
        except UnknownRun as error:
            raise no_such_run() from error

    def sites(self) -> SiteList:
        """The sites: those with registered nodes, or of a home that no service serves, those that its runs heard of."""
        if self.desk is not None:
            with self._lock:
                asked, rows = self._sites
                if time.monotonic() - asked > SITES_SECONDS:
                    rows = self.desk.sites()
                    self._sites = time.monotonic(), rows
            return SiteList(sites=[SiteEntry(**row) for row in rows])
        if self.home.is_new():
            return SiteList(sites=[])
        with self.home.store().reading() as session:
            told = session.scalars(select(SiteRow).order_by(SiteRow.name)).all()
        return SiteList(
            sites=[
                SiteEntry(
                    site=row.name,
                    online=None,
                    last_seen=None,
                    software=row.software,
                    code_sha256=row.code_sha256,
                    torch=row.torch,
                    schema_version=row.schema_version,
                    cases=row.cases,
                )
                for row in told
            ]
        )


def no_such_run() -> HTTPException:
    """The refusal of a name that no run has."""
    return HTTPException(HTTPStatus.NOT_FOUND, "There is no run of this name.")

"""What every page of the dashboard works with."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node.dashboard.jobs import Jobs
from node.dashboard.reading import Reader
from node.dashboard.traffic import Traffic
from pages.application import templates_beside
from pages.credentials import TOKEN_FILE
from pages.rendering import Link, Look

NAVIGATION = (
    Link("/", "Now"),
    Link("/crossed", "What crossed"),
    Link("/data", "My data"),
    Link("/scores", "My scores"),
    Link("/replay", "Replay"),
    Link("/policy", "Policy"),
)


@dataclass(frozen=True)
class House:
    """One node's folder, as its dashboard knows it."""

    reader: Reader
    site: str
    look: Look
    traffic: Traffic
    jobs: Jobs = field(default_factory=Jobs)

    @classmethod
    def of(cls, reader: Reader, *, must_sign_in: bool) -> "House":
        """The house whose database is read."""
        site = reader.site()
        look = Look(
            name=site,
            kind="Node dashboard",
            navigation=NAVIGATION,
            templates=templates_beside(__file__),
            hint=f"The token lies in the file {TOKEN_FILE} in the node's home folder.",
            must_sign_in=must_sign_in,
        )
        return cls(reader, site, look, Traffic(reader))

    @property
    def home(self) -> Path:
        """The node's folder."""
        return self.reader.home

    def state(self) -> dict[str, object]:
        """What is live: topic -> what changes with it."""
        return {**self.reader.state(), "jobs": self.jobs.version}

    def settings_json(self) -> dict[str, Any] | None:
        """The site's settings as a job is told them."""
        settings = self.reader.settings()
        return None if settings is None else settings.model_dump(mode="json")

"""What programs get below /api: every document's keys, which stay as they are; new ones may be added."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Document(BaseModel):
    """Base of all documents."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="null")


class RunEntry(Document):
    """One run, as `locum runs --json` lists it."""

    run: str
    scenario: str
    status: str = Field(description="pending, running, interrupted, cancelled, failed, incomplete or done")
    strategy: str
    parameters: dict[str, Any]
    seed: int
    stops_done: int
    stops: int
    created: str = Field(description="ISO 8601")
    seconds: float
    waits_for: str | None = Field(description="in words; null: for nothing, or nobody has looked yet")


class RunList(Document):
    """Runs, newest first."""

    runs: list[RunEntry]
    total: int = Field(description="of all that were asked for, over all pages")


class QueueEntry(Document):
    """A run that is carried out, or waits for its turn."""

    run: str
    scenario: str
    status: str
    not_before: str | None = Field(description="ISO 8601, UTC")
    after: str | None = Field(description="a run that has to end first")
    waits_for: str | None = Field(description="in words; null: it is carried out, or nobody has looked yet")


class Queue(Document):
    """The queue in the order of the turns."""

    queue: list[QueueEntry]


class StopEntry(Document):
    """One stop of an itinerary. Bytes are by kind of artifact."""

    stop: int
    sites: list[str]
    rehearsing: list[str]
    action: str
    status: str = Field(description="pending, running, done, failed or skipped")
    seconds: float | None
    sent: dict[str, int] = Field(description="to the sites")
    received: dict[str, int] = Field(description="from the sites")
    failed_at: str | None
    code: str | None
    why: str | None = Field(description="why it failed or was skipped, in a sentence")
    skipped_by: str | None
    left_out: dict[str, str] = Field(description="site that was to rehearse: who left it out, and why")
    artifact: str | None = Field(description="SHA-256 of the handover that the stop ended with")
    weights_sha256: str | None
    bytes: int | None = Field(description="size of the artifact's file; null if it is not in the vault")


class StopList(Document):
    """Some stops of a run, in order."""

    stops: list[StopEntry]
    total: int


class MatrixRow(Document):
    """The model after one visit, scored on every site of the window."""

    visit: int = Field(description="from 1")
    sites: list[str] = Field(description="learnt from at this visit")
    values: list[float | None]
    refused: dict[str, str] = Field(description="site that could not score: its code")


class Matrix(Document):
    """A window of a score matrix: DSC as fractions, ASD in mm (pixels for pictures)."""

    score: str
    columns: list[str]
    unseen: list[str] = Field(description="those of the columns that are never visited")
    rows: list[MatrixRow]
    first_row: int
    first_column: int
    total_rows: int
    total_columns: int
    top: float = Field(description="the upper end of the scale: 1, or a little above the largest ASD")


class Axis(Document):
    """What the places of a chart are."""

    label: str
    time: bool = False


class Series(Document):
    """One line of a chart."""

    label: str
    unit: str = ""


class Chart(Document):
    """What a chart draws: the places, then every line's values there."""

    x: Axis
    series: list[Series]
    values: list[list[float | None]]


class TrafficEntry(Document):
    """Bytes between the coordinator and a site over a whole run, scoring included, for one kind of artifact."""

    site: str
    kind: str
    sent: int = Field(description="to the site")
    received: int = Field(description="from the site")


class TrafficList(Document):
    """The traffic of a run."""

    traffic: list[TrafficEntry]


class EventEntry(Document):
    """Something that happened in a run."""

    number: int
    time: str
    kind: str
    stop: int | None
    sentence: str
    fields: dict[str, Any]


class EventList(Document):
    """Some events of a run, newest first."""

    events: list[EventEntry]
    older: int | None = Field(description="`before` of the page with older ones")
    newer: int | None = Field(description="`after` of the page with newer ones")


class SiteEntry(Document):
    """One site, as `locum sites --json` lists it."""

    site: str
    online: bool | None = Field(description="null where there is no service that would know")
    last_seen: str | None
    software: str | None = Field(description="name and version; null: the node did not say")
    code_sha256: str | None = Field(description="digest of the code that the node runs, see docs/privacy.md")
    torch: str | None
    schema_version: int | None
    cases: dict[str, int] = Field(description="part: cases, as of the last run that asked")


class SiteList(Document):
    """The sites by name."""

    sites: list[SiteEntry]

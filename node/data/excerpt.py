"""What a scenario says about one site: as much of the file as `locum-node check` needs to see the run's own split."""

from datetime import date
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from protos import strict_yaml
from protos.plan import PhantomSite, Record, Scored, SiteName, Split, Task


class ScenarioFault(ValueError):
    """A scenario that says nothing clear about the site; the text is one sentence with file, key and remedy."""


class Excerpt(Record):
    """One site's part of a scenario."""

    task: Task
    split: Split
    labels: dict[int, str] | None  # value in the label files -> class name; None: values are class numbers
    unseen: bool  # only scored, never trained on
    scored: Scored = "test"  # the part that scores are over


def read_excerpt(path: Path, site: str) -> Excerpt:
    """What the scenario at `path` says about the site named `site`; raises ScenarioFault."""
    try:
        raw = strict_yaml.load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ScenarioFault(f"{path}: the scenario cannot be read ({reason}); give the path of a YAML file.") from error
    except yaml.YAMLError as error:
        raise ScenarioFault(f"{path}: not valid YAML ({' '.join(str(error).split())}); correct it.") from error
    if not isinstance(raw, dict):
        raise ScenarioFault(f"{path}: a scenario is a mapping with name, task and sites; correct it.")
    try:
        scenario = _Scenario.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ScenarioFault(f"{path}: {key}: {first['msg'].removeprefix('Value error, ')}; correct it.") from error
    found = [entry for entry in (*scenario.sites, *scenario.unseen) if entry.name == site]
    if len(found) != 1:
        names = ", ".join(entry.name for entry in (*scenario.sites, *scenario.unseen))
        fault = f"names {site!r} twice; list every site once" if found else f"has no site {site!r}; it has {names}"
        raise ScenarioFault(f"{path}: the scenario {fault}.")
    if found[0].phantom is not None:
        raise ScenarioFault(f"{path}: {site} is a synthetic hospital, which has no files; there is nothing to check.")
    return Excerpt(
        task=scenario.task,
        split=scenario.split,
        labels=found[0].labels,
        unseen=found[0] in scenario.unseen,
        scored=scenario.scored,
    )


class _Part(BaseModel):
    """Other keys are the coordinator's affair, who refuses the unknown ones."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class _Site(_Part):
    name: SiteName
    labels: dict[int, str] | None = None
    phantom: PhantomSite | None = None


class _Scenario(_Part):
    task: Task
    sites: tuple[_Site, ...]
    unseen: tuple[_Site, ...] = ()
    split: Split = Split()
    scored: Scored = "test"

    @field_validator("sites", "unseen", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        """`north` stands for `{name: north}`; YAML reads some names as numbers or dates."""
        if not isinstance(value, list):
            return value
        return [{"name": str(item)} if isinstance(item, str | int | float | date) else item for item in value]

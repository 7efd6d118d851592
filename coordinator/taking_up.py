"""The runs of a study: those that are in the home already are taken up, the others are begun."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import func, select

from coordinator.grid import policies
from coordinator.home import Home
from coordinator.scenario import Scenario
from coordinator.simulate import begin_all, software
from coordinator.store import SETTLED, Run, StopRow


@dataclass(frozen=True)
class StudyRuns:
    """The names of a study's runs in its order, every one once, and which of them were there before."""

    asked: int  # combinations of strategies, orders and seeds, of which equal ones share a run
    names: tuple[str, ...]
    taken_up: frozenset[str]


@dataclass(frozen=True)
class _Known:
    name: str
    status: str
    settled: int  # stops that it does not come back to
    created: datetime
    policies: list[dict[str, Any]]


def take_up_or_begin(
    scenarios: Sequence[Scenario], home: Home, data: Path, command: str, *, source: str, device: str
) -> StudyRuns:
    """Find or begin a run for every scenario of a single run; equal ones share a run.

    Two runs are equal if their plans are (with the order of the visits written out, whatever the scenarios are called),
    the folders or phantoms of all sites, the software's version and the device. The sites' files are not compared: a
    run that has stops behind it is not taken up if it is older than some file, or was made while the sites' policies
    changed something else in it than they do now. Raises ScenarioError as begin_all does.
    """
    known = _known(home)
    changed = policies(scenarios[0], home.folder)
    newest = max(map(_newest_file, _folders(scenarios[0], data)), default=0.0)
    wanted = {_identity(scenario, data, device, software()): scenario for scenario in scenarios}
    found: dict[str, str] = {}
    for identity in wanted:
        usable = [
            run
            for run in known.get(identity, ())
            if not run.settled or (run.created.timestamp() > newest and run.policies == [changed])
        ]
        if usable:
            found[identity] = max(usable, key=lambda run: (run.status == "done", run.settled, run.created)).name
    missing = [identity for identity in wanted if identity not in found]
    begun = begin_all([wanted[one] for one in missing], home, data, command, source=source, device=device)
    names = found | dict(zip(missing, begun, strict=True))
    return StudyRuns(len(scenarios), tuple(names[identity] for identity in wanted), frozenset(found.values()))


def _known(home: Home) -> dict[str, list[_Known]]:
    """Identity -> the runs in the home that have it."""
    settled = select(func.count()).where(StopRow.run_id == Run.id, StopRow.status.in_(SETTLED)).scalar_subquery()
    with home.store().transaction() as session:
        rows = session.execute(select(Run, settled)).all()
    known: dict[str, list[_Known]] = {}
    for run, stops in rows:
        if run.data is None:  # a deployment's
            continue
        try:
            scenario = Scenario.model_validate(run.scenario)
        except ValidationError:  # of another version, so it is no equal
            continue
        identity = _identity(scenario, Path(run.data), run.device, run.software)
        created = run.created if run.created.tzinfo else run.created.replace(tzinfo=UTC)  # SQLite keeps no zone
        known.setdefault(identity, []).append(_Known(run.id, run.status, stops, created, run.policies))
    return known


def _identity(scenario: Scenario, data: Path, device: str, made_with: str) -> str:
    """All that decides a run's bits, as far as the coordinator knows it."""
    sites = {
        site.name: [
            site.labels,
            site.phantom and site.phantom.model_dump(mode="json"),
            None if site.phantom else str((data / (site.path or site.name)).resolve()),
        ]
        for site in (*scenario.sites, *scenario.unseen)
    }
    unseen = [site.name for site in scenario.unseen]
    return json.dumps([scenario.plan().model_dump(mode="json"), sites, unseen, device, made_with], sort_keys=True)


def _folders(scenario: Scenario, data: Path) -> Iterator[Path]:
    for site in (*scenario.sites, *scenario.unseen):
        if site.phantom is None:
            yield data / (site.path or site.name)


def _newest_file(folder: Path) -> float:
    """When a file below `folder` was last written, in seconds since the epoch."""
    return max((path.stat().st_mtime for path in folder.rglob("*") if path.is_file()), default=0.0)

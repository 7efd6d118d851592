"""What the sites of a run say of themselves when it begins or goes on: software, and what their policies change."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from coordinator.assignment import Assignment
from coordinator.exchange import AWAY, Answer, Question, SiteFailure
from coordinator.store import Run, Store
from protos.introduction import Introduction
from protos.messages import INTRODUCE
from protos.software import Software, installed

UNTOLD = {"untold": True}  # what is noted of a policy that its site does not tell
_NAMED = 4  # places, in a sentence


def introduce(assignment: Assignment, sites: Iterable[str]) -> None:
    """Ask the sites, note what their policies change, and say so if not all of them have this coordinator's code.

    A site may keep all of it to itself: its policy lists the metrics that leave. Of a simulation's policies the files
    are read instead, before it is carried out.
    """
    software = {"the coordinator": installed()}
    run = assignment.store.run(assignment.run)
    policies: dict[str, Mapping[str, Any]] = dict(run.policies[-1] if run.policies else {})
    questions = (Question(INTRODUCE, assignment.request(site, 0)) for site in sites)
    for answer in assignment.exchange.ask(questions):
        site, introduction = answer.site, _read(answer)
        if isinstance(answer, SiteFailure) and answer.code == AWAY:
            continue  # what it said an earlier time still counts
        if introduction is not None:
            software[site] = introduction.software
        assignment.listener.introduced(site, software.get(site))
        if site in assignment.plan.sites:
            policies[site] = UNTOLD if introduction is None else introduction.policy
    if (sentence := different_code(software)) is not None:
        assignment.listener.said(sentence)
    if run.data is None:
        note_policies(assignment.store, run.id, {site: dict(found) for site, found in policies.items() if found})


def note_policies(store: Store, run: str, now: Mapping[str, Any]) -> None:
    """Note with a run what the sites' policies change in it from now on: site -> a policy's words for it."""
    with store.transaction() as session:
        row = session.get_one(Run, run)
        earlier = row.policies if any(stop.status != "pending" for stop in row.stops) else []
        row.policies = earlier if now in earlier[-1:] else [*earlier, dict(now)]


def different_code(places: Mapping[str, Software]) -> str | None:
    """A sentence if the code is not the same everywhere: place -> software."""
    by_code: dict[str, list[str]] = {}
    for place, software in places.items():
        by_code.setdefault(software.code, []).append(place)
    if len(by_code) < 2:
        return None
    parts = [f"{places[where[0]].name} ({code[:8]}) at {_listed(where)}" for code, where in by_code.items()]
    return f"The code is not the same everywhere: {'; '.join(parts)}; install one release at all of them."


def _read(answer: Answer | SiteFailure) -> Introduction | None:
    """None if the site refused, or what it said is none."""
    try:
        return None if isinstance(answer, SiteFailure) else Introduction.of(answer.metrics)
    except ValueError:
        return None


def _listed(places: Sequence[str]) -> str:
    named = [*places[:_NAMED], *([f"{len(places) - _NAMED} more"] if len(places) > _NAMED else [])]
    return named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"

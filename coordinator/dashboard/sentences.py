"""What happens in a run, and where its model is, in sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

from coordinator.dashboard.line import Line
from pages import words


def in_a_sentence(kind: str, fields: Mapping[str, Any]) -> str:
    """An event of a run; `kind` and `fields` are those of a control.proto Event."""
    get = fields.get
    match kind:
        case "said" | "failed":
            return str(get("sentence", ""))
        case "run_began":
            return f"The run is carried out: {get('done', 0)} of its {get('stops', 0)} stops are done."
        case "describing":
            return f"{get('site')} is asked what cases it has."
        case "stop_began":
            rehearsal = f", rehearsing at {words.listed(list(get('rehearsing', ())))}" if get("rehearsing") else ""
            return f"Stop {get('stop')} begins: the model is at {_sites(get('sites', ()))}{rehearsal}."
        case "stepped":
            loss = "" if get("loss") is None else f", loss {_number(get('loss'))}"
            what = "step" if get("site") else "round"
            return f"Stop {get('stop')}: {what} {get('step')} of {get('steps')}{loss}."
        case "stop_ended":
            return f"Stop {get('stop')} is done: the model has left {_sites(get('sites', ()))}."
        case "scoring":
            return f"{get('site')} is asked to score the model of stop {get('stop')}."
        case "scored":
            if get("dsc") is None:
                return f"{get('site')} could not score the model of stop {get('stop')}."
            return f"{get('site')} scored {_number(get('dsc'))} DSC with the model of stop {get('stop')}."
        case "run_ended":
            return f"The run is {get('status')}."
        case _:
            return kind


def where_the_model_is(line: Line, status: str, waits_for: str | None) -> str:
    """One sentence about a run's model; `waits_for`: what the run waits for, in words."""
    stop = line.stop_here
    waits = waits_for and f"The run waits for {waits_for}."
    if stop is None:
        came = sum(stop.status == "done" for stop in line.stops)
        if not line.stops:
            return waits or f"The run is {status}; it has not begun."
        if status == "running":
            return "Every stop is made; the last model is being scored."
        return f"The run is {status}: the model made {words.count(came, 'stop')}."
    where = _sites(stop.sites)
    if stop.status == "failed":
        return f"Stop {stop.number} failed at {stop.failed_at or 'the coordinator'}: {stop.why}"
    if status == "running" and stop.status == "running":
        told = "" if line.step is None else in_a_sentence("stepped", line.step).partition(":")[2].rstrip(".")
        return f"The model is at {where}{':' if told else ''}{told}."
    if status == "running":
        return f"The model is being scored; the next stop is {where}."
    if status == "pending" and waits:
        return waits
    return f"The run is {status}; the next stop is {where}."


def _number(value: Any) -> str:
    return f"{value:.3f}" if isinstance(value, int | float) else str(value)


def _sites(sites: Sequence[str]) -> str:
    """One site, a few, or how many at once."""
    return words.listed(list(sites)) if len(sites) <= 3 else f"{len(sites)} sites at once"

"""Runs and strategies as lists, and runs by the beginning of their names."""

from typing import Any

from sqlalchemy import ColumnElement, func, select

from coordinator.home import Home, is_busy
from coordinator.store import SETTLED, QueueRow, Run, StopRow, UnknownRun
from protos.plan import StrategyChoice
from strategies.registry import STRATEGIES, strategy_class


def listed(
    home: Home, *conditions: ColumnElement[bool], first: int = 0, most: int | None = None
) -> list[dict[str, Any]]:
    """The runs that fulfil all conditions, newest first; a home without a database has none, and gets none."""
    if home.is_new():
        return []
    done = select(func.count()).where(StopRow.run_id == Run.id, StopRow.status.in_(SETTLED)).scalar_subquery()
    stops = select(func.count()).where(StopRow.run_id == Run.id).scalar_subquery()
    waits = select(QueueRow.waits_for).where(QueueRow.run_id == Run.id).scalar_subquery()
    wanted = select(Run, done, stops, waits).where(*conditions).order_by(Run.created.desc()).offset(first).limit(most)
    with home.store().reading() as session:
        rows = session.execute(wanted).all()
    return [
        {
            "run": run.id,
            "scenario": run.name,
            "status": status_of(run, home),
            "strategy": run.scenario["strategy"]["name"],
            "parameters": StrategyChoice.model_validate(run.scenario["strategy"]).parameters,
            "seed": run.scenario["seed"],
            "stops_done": settled,
            "stops": total,
            "created": run.created.isoformat(timespec="seconds"),
            "seconds": run.seconds,
            "waits_for": waits_for,
        }
        for run, settled, total, waits_for in rows
    ]


def status_of(run: Run, home: Home) -> str:
    """The run's status; a run that says `running` while no process carries it out is `interrupted`."""
    return "interrupted" if run.status == "running" and not is_busy(home, run.id) else run.status


def full_name(run: str, home: Home) -> str:
    """The run whose name is `run` or begins with it; raises UnknownRun unless there is exactly one."""
    names = []
    if not home.is_new():
        with home.store().transaction() as session:
            begins = Run.id.startswith(run, autoescape=True)
            names = list(session.scalars(select(Run.id).where(begins).order_by(Run.id)))
    if run in names or len(names) == 1:
        return run if run in names else names[0]
    if not names:
        raise UnknownRun(f"There is no run {run!r} in {home.folder}; `locum runs` lists them, --home names another.")
    raise UnknownRun(f"{run!r} may be {', '.join(names[:5])}; give more of the name.")


def installed_strategies() -> list[dict[str, Any]]:
    """Every strategy with what it carries and its parameters and their defaults, as JSON has them."""
    classes = [strategy_class(name) for name in STRATEGIES]
    return [
        {
            "strategy": kind.name,
            "summary": kind.summary,
            "source": kind.source,
            "carries": sorted(kind.carries),
            "parameters": kind.Parameters().model_dump(mode="json"),
        }
        for kind in classes
    ]

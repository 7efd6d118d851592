"""A run being carried out: what its conductor and its scoring share."""

import time
from collections.abc import Mapping

from sqlalchemy import update
from sqlalchemy.orm import Session

from coordinator.events import Listener
from coordinator.exchange import Exchange
from coordinator.scenario import Scenario
from coordinator.store import Run, Store
from coordinator.vault import Vault
from protos.messages import Request
from strategies.registry import strategy_for


class Assignment:
    """One run: its plan and strategy, where it is kept, whom it asks, who is told. Its time counts from here on."""

    def __init__(
        self, run: str, scenario: Scenario, *, store: Store, vault: Vault, exchange: Exchange, listener: Listener
    ) -> None:
        self.run = run
        self.store = store
        self.vault = vault
        self.exchange = exchange
        self.listener = listener
        self.plan = scenario.plan()
        self.strategy = strategy_for(self.plan)
        self._unseen = tuple(site.name for site in scenario.unseen)
        self._clock = time.monotonic()

    @property
    def columns(self) -> tuple[str, ...]:
        """Every scored site: the visited, then the unseen."""
        return (*self.plan.sites, *self._unseen)

    def request(
        self,
        site: str,
        stop: int,
        *,
        round: int = 0,
        action: str = "visit",
        args: Mapping[str, int | float] | None = None,
        first: bool = False,
    ) -> Request:
        """What is asked of a site at a stop."""
        return Request(
            run=self.run,
            stop=stop,
            round=round,
            action=action,
            site=site,
            first=first,
            unseen=site in self._unseen,
            plan=self.plan,
            args=dict(args or {}),
        )

    def count_time(self, session: Session) -> float:
        """Add the time since the last commit to the run's, within a transaction that is open anyway; return it."""
        elapsed = time.monotonic() - self._clock
        session.execute(update(Run).where(Run.id == self.run).values(seconds=Run.seconds + elapsed))
        self._clock += elapsed
        return elapsed

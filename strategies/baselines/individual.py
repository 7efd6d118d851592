"""A model per site: what each hospital reaches on its own, without any other."""

from dataclasses import replace

from strategies.gathering import Stop
from strategies.strategy import Strategy
from strategies.visit import Departure, Visit


class Individual(Strategy):
    """Every site trains a fresh model, and is scored with its own.

    Which model a case is scored with depends on the site it comes from, so at test time the site must be known: an
    unseen site has no model, and its scores do not exist. Orders do not matter: every site trains as if it were the
    first.
    """

    name = "individual"
    summary = "a fresh model per site, each site scored with its own; sites never help nor harm each other"
    source = "baseline"

    def itinerary(self) -> tuple[Stop, ...]:
        """One visit per site, each setting out with the first handover."""
        return tuple(Stop(index, (site,), follows=None) for index, site in enumerate(self.plan.sites))

    def model_for(self, site: str, stop: int) -> int | None:
        """The site's own visit, once it has been."""
        if site not in self.plan.sites:
            return None
        own = self.plan.sites.index(site)
        return own if own <= stop else None

    def visit(self, visit: Visit) -> Departure:
        """Train as at the first stop, so that the order of sites changes nothing."""
        return super().visit(replace(visit, seeds=visit.seeds.at_stop(0)))

"""How much of the gap between fine-tuning and joint training the other methods close, run by run and in words."""

import statistics
from collections.abc import Iterable, Sequence

from coordinator.methods import Methods
from coordinator.metrics import DEFINITIONS, Score, gap_closed
from coordinator.summary import RunSummary

FLOOR, CEILING = "finetune", "joint"
_LISTED = 6  # above so many runs their shares are not named one by one

Ends = tuple[float, float]  # overall scores of fine-tuning and of joint training


class Gap:
    """The gap beside every run: between the finished `finetune` and `joint` of its plan otherwise, seed and order."""

    def __init__(self, methods: Methods) -> None:
        self._methods = methods
        self._beside: dict[tuple[str, str], RunSummary] = {
            (run.strategy, methods.around(run)): run for run in methods.runs if run.complete
        }

    @property
    def there(self) -> bool:
        """Whether there are both fine-tuning and joint training, so that a gap may be spoken of."""
        return {FLOOR, CEILING} <= {run.strategy for run in self._methods.runs}

    def ends(self, run: RunSummary, score: Score = "dsc") -> Ends | None:
        """Fine-tuning's and joint training's overall score; None where one of them is missing."""
        found = []
        for strategy in (FLOOR, CEILING):
            beside = self._beside.get((strategy, self._methods.around(run)))
            overall = None if beside is None else beside.metrics[score]["overall"]
            if overall is None:
                return None
            found.append(overall)
        return found[0], found[1]

    def closed(self, run: RunSummary, score: Score = "dsc") -> float | None:
        """The share that the run closes; None where the gap or the run's overall score is undefined."""
        ends, mine, better = self.ends(run, score), run.metrics[score]["overall"], DEFINITIONS["overall"].better(score)
        if ends is None or mine is None or better is None:
            return None
        return gap_closed(mine, *ends, better)

    def words(self) -> tuple[str, ...]:
        """One sentence for every other method about its overall DSC, in percent; none where no run has both ends."""
        others = (group for group in self._methods.groups if group[0].strategy not in (FLOOR, CEILING))
        return tuple(self._sentence(group) for group in others if any(self.ends(run) for run in group))

    def _sentence(self, group: Sequence[RunSummary]) -> str:
        label = self._methods.label(group[0])
        shares = [share for run in group if (share := self.closed(run)) is not None]
        came_to = f"overall DSC {_mean(run.metrics['dsc']['overall'] for run in group)}"
        if None not in (rem := [run.metrics["dsc"]["rem"] for run in group]):
            came_to += f", REM {statistics.fmean(value for value in rem if value is not None):.2f}"
        if len(shares) < len(group):
            why = ", ".join(self._undefined(run, group) for run in group if self.closed(run) is None)
            known = f"; it closes {self._one_by_one(group)}" if shares else ""
            return f"How much of the gap {label} closes is not defined: {why}{known}; {came_to}."
        ends = [ends for run in group if (ends := self.ends(run)) is not None]
        floor, ceiling = (_mean(end) for end in zip(*ends, strict=True))
        mean, over = f"{100 * statistics.fmean(shares):.1f}", ""
        if len(group) > 1:
            mean += f" ± {100 * statistics.stdev(shares):.1f}"
            over = f", mean of {len(group)} runs ({self._one_by_one(group)})"
        between = f"between {FLOOR} ({floor}) and {CEILING} ({ceiling})"
        return f"{label} closes {mean} % of the gap {between}{over}: {came_to}."

    def _one_by_one(self, group: Sequence[RunSummary]) -> str:
        shares = [(100 * share, run) for run in group if (share := self.closed(run)) is not None]
        if len(shares) > _LISTED:
            values = [share for share, _ in shares]
            return f"from {min(values):.1f} to {max(values):.1f} %"
        return ", ".join(f"{share:.1f} % with {self._which(run, group)}" for share, run in shares)

    def _undefined(self, run: RunSummary, group: Sequence[RunSummary]) -> str:
        which, ends = self._which(run, group), self.ends(run)
        if ends is None:
            return f"with {which} there is no finished {FLOOR} and {CEILING}"
        if run.metrics["dsc"]["overall"] is None:
            return f"with {which} a score of the final model is missing"
        floor, ceiling = (f"{100 * end:.1f}" for end in ends)
        return f"with {which} {CEILING} ({ceiling}) is not better than {FLOOR} ({floor})"

    def _which(self, run: RunSummary, group: Sequence[RunSummary]) -> str:
        pooled = len({other.sites for other in group}) > 1
        return f"seed {run.seed}" + (f" in order {self._methods.order(run)}" if pooled else "")


def gap_in_words(runs: Sequence[RunSummary]) -> tuple[str, ...]:
    """What every method closes, and what the orders are that are named by number; nothing where there is no gap."""
    gap = Gap(methods := Methods(runs))
    words = gap.words()
    return (*words, *methods.order_notes()) if words else ()


def _mean(scores: Iterable[float | None]) -> str:
    """In percent; a dash where one is undefined."""
    scores = list(scores)
    known = [score for score in scores if score is not None]
    return f"{100 * statistics.fmean(known):.1f}" if len(known) == len(scores) else "–"

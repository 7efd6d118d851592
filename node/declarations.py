"""What a request may bring and what its reply may hold: computed from the plan, before any data is touched."""

from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType

from node.copies import COPIES, carries_generator
from node.drift import DRIFT
from node.guard import Exchange
from node.scoring import declared_metrics
from protos.declaration import Bound, Declaration
from protos.handover import Kind
from protos.introduction import INTRODUCTION
from protos.messages import INTRODUCE, PROGRESS, SCORE, VISIT, Request
from protos.plan import Plan
from protos.refusals import Refusal, RefusalCode
from strategies.registry import UnknownStrategy, strategy_for
from strategies.strategy import Strategy, UnknownParameter

DESCRIPTION = MappingProxyType({part: Bound(0, 1e7) for part in ("train", "val", "test", "samples")})
# A finite loss says little, and a wild one is a fact about training: no image fits into it.
STANDING = MappingProxyType(
    {
        "working": Bound(0, 1, whole=True),
        "step": Bound(0, 2**32, whole=True),
        "steps": Bound(0, 2**32, whole=True),
        "loss": Bound(-1e6, 1e6),
    }
)
DESCRIBE_ARGS = MappingProxyType({"samples": Bound(0, 1, whole=True)})


def declare(message_type: str, request: Request) -> Exchange:
    """What may cross for `request`; raises Refusal when this node's strategies do not accept the plan."""
    # Only scoring depends on the stop and the site: the thousands of rounds of a joint stop declare the same.
    site, stop = (request.site, request.stop) if message_type == SCORE else ("", 0)
    return _declare(message_type, request.plan.model_dump_json(), request.action, site, stop)


@lru_cache(maxsize=64)
def _declare(message_type: str, plan: str, action: str, site: str, stop: int) -> Exchange:
    strategy = installed(Plan.model_validate_json(plan))
    try:
        if message_type == VISIT:
            if action not in {stop.action for stop in strategy.itinerary()}:
                raise Refusal(RefusalCode.PLAN, f"{strategy.name} knows no action {action!r}.")
            leaves = strategy.declares(action)
            if carries_generator(leaves):
                leaves = replace(leaves, metrics={**leaves.metrics, **COPIES})
            return Exchange(strategy.arrives(action), leaves, strategy.takes(action))
        if message_type == SCORE:
            arrives = strategy.scoring_schema(site, stop)
            drift = DRIFT if Kind.GENERATOR in arrives.kinds else {}
            return Exchange(arrives, Declaration(None, {**declared_metrics(strategy.plan.task), **drift}))
        if message_type == PROGRESS:
            return Exchange(None, Declaration(None, STANDING))
        if message_type == INTRODUCE:
            return Exchange(None, Declaration(None, INTRODUCTION))
        return Exchange(None, Declaration(None, DESCRIPTION), DESCRIBE_ARGS)
    except ValueError as error:  # the network does not fit the task
        raise Refusal(RefusalCode.PLAN, str(error)) from error


def installed(plan: Plan) -> Strategy:
    """This node's own installed strategy for the plan; raises Refusal."""
    try:
        return strategy_for(plan)
    except UnknownStrategy as error:
        raise Refusal(RefusalCode.UNKNOWN_STRATEGY, str(error)) from error
    except UnknownParameter as error:
        raise Refusal(RefusalCode.PLAN, str(error)) from error

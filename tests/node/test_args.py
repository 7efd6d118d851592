"""A request brings exactly the numbers that the strategy takes, within the plan's bounds, or no work is done."""

import json
import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from node.app import app
from node.declarations import declare
from node.inspection import check_args
from protos.declaration import Bound
from protos.handover import Handover, Kind
from protos.messages import DESCRIBE, SCORE, VISIT, Request, pack_request
from protos.plan import Plan, StrategyChoice
from protos.refusals import Refusal, RefusalCode
from strategies.registry import strategy_for
from tests.node.guarded import instruction, over_the_wire
from tests.node.test_app import PLAN, Node

UPDATE = {"position": 0, "count": 2, "update": 0}
STEPS = {"rehearse": 0, "position": 0, "steps": 2, "lr": 0.001}
HONEST: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "finetune": ("visit", {}, {}),
    "joint": ("gradient", {}, UPDATE),
    "joint-fedavg": ("local_steps", {"local_steps": 3}, {"first_step": 0, "steps": 3, "batch_size": 2, "lr": 0.001}),
    "exact": ("gradient", {"memory_batch": 5}, UPDATE | {"rehearse": 0}),
    "interleaved": ("steps", {"mode": "interleaved", "local_steps": 2}, STEPS),
}

# The strategy, what is changed of its honest args (None: left out), and how it would harm.
BAD: list[tuple[str, dict[str, Any]]] = [
    ("finetune", {"samples": 1}),
    ("joint", {"count": 0}),  # a sum that is divided by nothing
    ("joint", {"count": -3}),  # the gradient with its sign turned
    ("joint", {"count": 10**9}),  # memory for a billion images
    ("joint", {"count": 3}),  # more than the plan's batch
    ("joint", {"count": 1.5}),
    ("joint", {"count": math.nan}),
    ("joint", {"position": -7}),
    ("joint", {"position": 10**18}),
    ("joint", {"update": 3}),  # of 3 steps
    ("joint", {"update": None}),
    ("joint", {"rehearse": 1}),
    ("joint-fedavg", {"steps": 4}),
    ("joint-fedavg", {"steps": 0}),
    ("joint-fedavg", {"batch_size": 10**9}),
    ("joint-fedavg", {"first_step": -1}),
    ("joint-fedavg", {"lr": math.nan}),
    ("joint-fedavg", {"lr": -0.001}),
    ("exact", {"rehearse": 2}),
    ("exact", {"rehearse": 0.5}),
    ("exact", {"rehearse": None}),
    ("exact", {"count": 6}),
    ("exact", {"count": 0}),
    ("interleaved", {"steps": 10**9}),
    ("interleaved", {"steps": -1}),
    ("interleaved", {"lr": 1.0}),  # loud enough to read the gradient off the weights
    ("interleaved", {"lr": math.inf}),
    ("interleaved", {"position": 10**9}),
    ("interleaved", {"count": 1}),
]


def plan_of(name: str, parameters: dict[str, Any]) -> Plan:
    strategy = "replay" if name in ("exact", "interleaved") else name
    return PLAN.model_copy(update={"strategy": StrategyChoice(name=strategy, **parameters)})


def ask(node: Node, name: str, changes: dict[str, Any]) -> Message:
    """The first visit with some args changed, as raw JSON, since an adversary does not go through our classes."""
    action, parameters, args = HONEST[name]
    plan = plan_of(name, parameters)
    strategy = strategy_for(plan)
    handover = strategy.first_handover()
    if name == "interleaved":
        handover = Handover.of(weights=handover.state(Kind.WEIGHTS) | strategy.fresh_optimizer())
    request = Request(run="run-1", site="north", plan=plan, action=action)
    records = pack_request(request, handover)
    document = json.loads(request.model_dump_json())
    document["args"] = {key: value for key, value in (args | changes).items() if value is not None}
    records["request"] = ConfigRecord({"json": json.dumps(document)})
    context = Context(1, 7, {"site": node.settings.model_dump_json()}, RecordDict(), {})
    return over_the_wire(app(over_the_wire(instruction(records, VISIT)), context))


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.parametrize("name", HONEST)
def test_honest_args_are_let_in(node: Node, name: str) -> None:
    assert ask(node, name, {}).has_content()


@pytest.mark.parametrize(("name", "changes"), BAD, ids=str)
def test_other_args_are_refused_before_any_work(node: Node, name: str, changes: dict[str, Any]) -> None:
    numbers = [value for value in changes.values() if value is not None]
    code = RefusalCode.ARGS if all(map(math.isfinite, numbers)) else RefusalCode.REQUEST
    assert ask(node, name, changes).error.code == code
    assert node.crossings() == [("in", "refused", code.name)]
    assert not (node.settings.home / "memory").exists()


@pytest.mark.parametrize("args", [{}, {"samples": 2}, {"samples": -1}, {"samples": 1, "count": 1}])
def test_other_args_of_a_description_are_refused(node: Node, args: dict[str, Any]) -> None:
    assert node.ask(DESCRIBE, args=args).error.code == RefusalCode.ARGS


def test_scoring_takes_no_args(node: Node) -> None:
    first = strategy_for(PLAN).first_handover()
    assert node.ask(SCORE, first, args={"samples": 1}).error.code == RefusalCode.ARGS
    assert node.ask(SCORE, first).has_content()


def test_the_plan_sets_the_bounds() -> None:
    """A coordinator that wants other args must send another plan, whose name and digest the ledger keeps."""
    for steps, batch_size in ((3, 2), (50, 8)):
        training = PLAN.training.model_copy(update={"steps": steps, "batch_size": batch_size})
        plan = plan_of("joint", {}).model_copy(update={"training": training, "sites": ("north", "east")})
        args = declare(VISIT, Request(run="run-1", site="north", plan=plan, action="gradient")).args
        assert args["count"] == Bound(1, batch_size, whole=True)
        assert args["update"] == Bound(0, 2 * steps - 1, whole=True)


numbers = st.integers(-(10**400), 10**400) | st.floats()
bounds = st.builds(Bound, st.floats(-1e9, 0), st.floats(0, 1e9), st.booleans())


@given(st.dictionaries(st.sampled_from("abc"), numbers), st.dictionaries(st.sampled_from("abc"), bounds))
def test_what_passes_is_exactly_declared(args: dict[str, Any], declared: dict[str, Bound]) -> None:
    fits = args.keys() == declared.keys() and all(
        bound.low <= args[name] <= bound.high and (isinstance(args[name], int) or not bound.whole)
        for name, bound in declared.items()
    )
    with nullcontext() if fits else pytest.raises(Refusal, match="The arg"):
        check_args(args, declared)

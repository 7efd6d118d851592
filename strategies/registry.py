"""Every strategy by name. Adding a method is adding its file and one line here."""

from importlib import import_module
from typing import TYPE_CHECKING

from protos.plan import Plan

if TYPE_CHECKING:  # names can be listed without torch
    from strategies.strategy import Strategy

STRATEGIES: dict[str, str] = {
    "finetune": "strategies.baselines.finetune:FineTune",
    "individual": "strategies.baselines.individual:Individual",
    "joint": "strategies.baselines.joint:Joint",
    "joint-fedavg": "strategies.baselines.joint_fedavg:JointFedAvg",
    "replay": "strategies.rehearsal.replay:Replay",
    "smg": "strategies.generative.smg:SMG",
    "l2": "strategies.regularisation.l2:L2",
    "dropout": "strategies.regularisation.dropout:Dropout",
    "ewc": "strategies.regularisation.ewc:EWC",
    "mas": "strategies.regularisation.mas:MAS",
    "mas-fix": "strategies.regularisation.mas_fix:MASFix",
    "mas-lr": "strategies.regularisation.mas_lr:MASLR",
}


class UnknownStrategy(ValueError):
    """No strategy of that name is installed; one sentence."""


def strategy_class(name: str) -> "type[Strategy]":
    """The class registered under `name`; raises UnknownStrategy. Methods are imported when first asked for."""
    if name not in STRATEGIES:
        raise UnknownStrategy(f"strategy.name: {name!r} is not installed; choose one of {', '.join(STRATEGIES)}.")
    module, _, attribute = STRATEGIES[name].partition(":")
    found: type[Strategy] = getattr(import_module(module), attribute)
    return found


def strategy_for(plan: Plan) -> "Strategy":
    """The plan's strategy; raises UnknownStrategy or UnknownParameter."""
    return strategy_class(plan.strategy.name).of(plan)

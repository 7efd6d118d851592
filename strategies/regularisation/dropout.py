"""Fine-tuning with dropout, which alone is known to soften forgetting (Goodfellow et al. 2013)."""

from typing import Annotated

from pydantic import Field
from torch import nn

from protos.plan import Record
from strategies import networks
from strategies.strategy import Strategy


class DropoutParameters(Record):
    """`p` is the probability with which a channel's activation is dropped."""

    p: Annotated[float, Field(ge=0, lt=1)] = 0.2


class Dropout(Strategy):
    """Fine-tuning with dropout after every convolution; scoring and the handover know nothing of it."""

    name = "dropout"
    summary = "fine-tuning with dropout after every convolution"
    source = "baseline (Goodfellow et al. 2013)"
    Parameters = DropoutParameters
    neutral = {"p": 0.0}

    parameters: DropoutParameters

    def network(self) -> nn.Module:
        """The plan's network with dropout."""
        return networks.build(self.plan.task, self.plan.network, dropout=self.parameters.p)

"""Clipped and noised updates: what a site's policy asks of them, and what all that left come to.

strategies/privacy.py does it, node/updates.py makes the noise and holds what leaves against it. Nothing here takes
PyTorch, so that people can look at a policy and a ledger at once.
"""

from collections.abc import Mapping
from typing import Annotated, Self

import numpy as np
from pydantic import Field, model_validator

from protos.declaration import Declaration
from protos.handover import UPDATE, Kind
from protos.plan import Record
from protos.refusals import Refusal, RefusalCode


class Updates(Record):
    """What a site's policy asks of every update, see docs/privacy.md.

    `clip` bounds the L2 norm of what one sample adds; `noise` is the standard deviation in units of `clip`, 0 for
    clipping alone; `epsilon`, at `delta`, is the most that all noised updates together may come to. With `only` nothing
    else that is learnt may leave: weights after a step, or an optimizer's state, are a gradient too.
    """

    clip: Annotated[float, Field(gt=0, le=1e6)]
    noise: Annotated[float, Field(ge=0, le=1000)] = 0.0
    delta: Annotated[float, Field(gt=0, le=0.01)] | None = None
    epsilon: Annotated[float, Field(gt=0)] | None = None
    only: bool = True

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if 0 < self.noise < 0.1:
            raise ValueError("noise is 0, for clipping alone, or at least 0.1, below which nothing is protected")
        if self.noise and self.delta is None:
            raise ValueError("noise needs delta, the risk that epsilon does not hold, such as 1.0e-5")
        if not self.noise and (self.delta is not None or self.epsilon is not None):
            raise ValueError("delta and epsilon need noise, without which there is no epsilon")
        return self


class Release(Record):
    """A protected update that leaves, as the ledger keeps it: how it was made, and what all so far come to."""

    clip: float
    noise: float
    delta: float | None
    epsilon: float | None  # of all noised updates so far, this one included; None for one without noise
    releases: dict[float, int]  # noise -> protected updates made with it, over all runs, this one included

    @classmethod
    def after(cls, last: "Release | None", updates: Updates) -> "Release":
        """The next release, after `last`; raises Refusal (PRIVACY_BUDGET) if the policy's epsilon forbids it."""
        releases = dict(last.releases) if last else {}
        releases[updates.noise] = releases.get(updates.noise, 0) + 1
        spent = None if updates.delta is None else epsilon(releases, updates.delta)
        if spent is not None and updates.epsilon is not None and spent > updates.epsilon:
            raise Refusal(
                RefusalCode.PRIVACY_BUDGET,
                f"One more update would bring epsilon to {spent:.4g}, but the policy's updates.epsilon is "
                f"{updates.epsilon:g}.",
            )
        return cls(clip=updates.clip, noise=updates.noise, delta=updates.delta, epsilon=spent, releases=releases)


def epsilon(releases: Mapping[float, int], delta: float) -> float:
    """The epsilon at `delta` of so many releases per noise (the key 0 is passed over), by Opacus' RDP accountant.

    Every release counts against every sample, as if it were drawn each time.
    """
    from opacus.accountants.analysis import rdp  # seconds, since it brings the whole of Opacus

    # Opacus' own orders are too few for little noise and for much; these hold the best one for all that Updates allows
    orders = (1 + np.geomspace(1e-7, 1e6, 1000)).tolist()
    curve = np.zeros(len(orders))
    for noise, count in releases.items():
        if noise:
            curve += rdp.compute_rdp(q=1.0, noise_multiplier=noise, steps=count, orders=orders)
    spent, _ = rdp.get_privacy_spent(orders=orders, rdp=curve.tolist(), delta=delta)
    return max(0.0, float(spent))


def holds_update(declared: Declaration) -> bool:
    """Whether a reply would hold an update."""
    return any(name.startswith(UPDATE) for _, name in _declared(declared))


def beside_updates(declared: Declaration) -> list[str]:
    """The tensors of a reply that are no update, as `kind/name`."""
    return [f"{kind}/{name}" for kind, name in _declared(declared) if not name.startswith(UPDATE)]


def _declared(declared: Declaration) -> list[tuple[Kind, str]]:
    groups = declared.handover.tensors if declared.handover else {}
    return [(kind, name) for kind, group in groups.items() for name in group]

"""What a handover would carry out, in numbers: for the person who decides whether it leaves. Nothing here leaves."""

import sys
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protos.handover import Handover, Kind, Tensor
from protos.plan import Record

_LARGEST: Final = sys.float_info.max


class KindFacts(Record):
    """The tensors of one kind. `norm` is the L2 norm of all their values together.

    `change` is the norm of the difference to the tensors of the same names and shapes that came in, `compared` how
    many of them there were; None where there was none. Truth values and integers count as numbers.
    """

    tensors: int
    bytes: int
    largest: str  # name, dtype and shape
    largest_bytes: int
    finite: bool
    norm: float
    change: float | None
    compared: int


def measure(leaving: Handover, arrived: Handover | None) -> dict[Kind, KindFacts]:
    """The facts on every kind that `leaving` holds, compared with what came in."""
    return {kind: _facts(kind, leaving, arrived) for kind in Kind if leaving.group(kind)}


def _facts(kind: Kind, leaving: Handover, arrived: Handover | None) -> KindFacts:
    group = leaving.group(kind)
    before = {} if arrived is None else arrived.group(kind)
    largest = max(group, key=lambda name: len(group[name].data))
    compared = [name for name, tensor in group.items() if name in before and before[name].spec == tensor.spec]
    spec = group[largest].spec
    return KindFacts(
        tensors=len(group),
        bytes=leaving.nbytes(kind),
        largest=f"{kind}/{largest}: {spec.dtype}{list(spec.shape)}",
        largest_bytes=spec.nbytes,
        finite=all(tensor.finite() for tensor in group.values()),
        norm=_norm([_norm_of(_numbers(tensor)) for tensor in group.values()]),
        change=_norm([_norm_of(_difference(group[name], before[name])) for name in compared]) if compared else None,
        compared=len(compared),
    )


def _difference(one: Tensor, other: Tensor) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        difference: NDArray[np.float64] = _numbers(one) - _numbers(other)
    return difference


def _numbers(tensor: Tensor) -> NDArray[np.float64]:
    """The values [n]; what is not finite becomes zero."""
    with np.errstate(invalid="ignore"):  # a NaN of a narrower format
        if tensor.dtype == "bfloat16":  # the upper half of a float32
            values = (np.frombuffer(tensor.data, "<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
        else:
            values = np.frombuffer(tensor.data, tensor.dtype).astype(np.float64)
    return np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


def _norm(parts: list[float]) -> float:
    return _norm_of(np.asarray(parts, np.float64))


def _norm_of(values: NDArray[np.float64]) -> float:
    """The L2 norm, scaled so that no square is too large for a number."""
    values = np.nan_to_num(values)  # a difference may be too large for one
    most = float(np.abs(values).max(initial=0.0))
    if most == 0.0:
        return 0.0
    return min(most * float(np.sqrt(np.square(values / most).sum())), _LARGEST)

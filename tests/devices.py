"""A device that holds no data, and a watch that tells when something is copied to it or waits for it.

PyTorch's "meta" device stands for a GPU, so that what a GPU's steps must not do can be tested without one. Whatever
would wait for the device (`item`, a branch on a tensor, rows chosen by a mask, a copy back) raises there of itself;
copies to it raise under `watched`. What the kernels of a real GPU do within themselves is not seen.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ABSENT = torch.device("meta")

MADE_OF_DATA = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)
INDEXED = (Tensor.__getitem__, Tensor.__setitem__)


class Copied(Exception):
    """Something on the CPU was copied to the device."""


class AbsentGenerator(torch.Generator):
    """Stands for a generator of the device, of which there can be none."""

    @property
    def device(self) -> torch.device:
        return ABSENT


def generator_on(device: torch.device, seed: int) -> torch.Generator:
    """In place of strategies.randomness.generator_on."""
    return (AbsentGenerator() if device == ABSENT else torch.Generator(device)).manual_seed(seed)


@pytest.fixture
def absent_generators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generators of the device, wherever one is made."""
    for module in ("node.data.transforms", "strategies.generative.smd_learning", "strategies.generative.smg"):
        monkeypatch.setattr(f"{module}.generator_on", generator_on)


class _Operations(TorchDispatchMode):
    """What PyTorch carries out: nothing may be both on the CPU and on the device."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        where = {leaf.device for leaf in tree_leaves((args, kwargs, found)) if isinstance(leaf, Tensor)}
        if len(where) > 1:
            raise Copied(f"{function} had tensors on {where}")
        return found


class _Calls(TorchFunctionMode):
    """What is called: no tensor on the device may be made of Python's numbers, as lists of indices are too."""

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        if function in MADE_OF_DATA and found.device == ABSENT:
            raise Copied(f"{function} made a tensor of {args}")
        if function in INDEXED and args[0].device == ABSENT:
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(index, list | np.ndarray) for index in indices):
                raise Copied(f"{function} was given {indices}")
        return found


@contextmanager
def watched() -> Iterator[None]:
    """Raise Copied when anything is copied to the device."""
    with _Calls(), _Operations():
        yield


class Enough(Exception):
    """As many steps were taken as were asked for."""


def two_steps(visit: Callable[[Callable[[int, int, Mapping[str, float]], None]], object]) -> None:
    """Run `visit`, which is given what to report its steps to, to its third step: from the first one on it is watched.

    What a visit does before its steps, and in between two of them, is its own: the watch begins when the first step is
    reported, so that two whole ones are seen.
    """
    with ExitStack() as watch:

        def report(step: int, steps: int, scalars: Mapping[str, float]) -> None:
            if step == 1:
                watch.enter_context(watched())
            if step == 3:
                raise Enough

        with pytest.raises(Enough):
            visit(report)

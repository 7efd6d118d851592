"""Work that a site does once: a folder per result in `workshop/`, named by the SHA-256 of all that it depends on.

Equal runs, and the runs of a study that share a part, find it done. The results stay at the site like its checkpoints,
for ever; the whole of `workshop/` can be removed while no run is under way.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from node.files import clear_leftovers, replace_file

_SOFTWARE = ("locum", "torch", "monai", "diffusers", "numpy")


class Workshop:
    """The finished work of the node at `home`; see strategies.visit.Once.

    `cases` says what the training cases are, contents included as far as the source can tell; it is asked when work is
    first looked for, since it may take decoding them.
    """

    def __init__(self, home: Path, device: str, cases: Callable[[], str]) -> None:
        self._folder = home / "workshop"
        self._device = device
        self._cases = cases

    def __call__(
        self, recipe: Mapping[str, Any], make: Callable[[], Mapping[str, torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        """What was made to this recipe, now or before; other processes that want the same wait for it."""
        folder = self._folder / self._key(recipe)
        for path in (self._folder, folder):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _alone(folder / "lock"):
            clear_leftovers(folder)
            path = folder / "made.safetensors"
            try:
                found: dict[str, torch.Tensor] = load_file(path)
                return found
            except (FileNotFoundError, SafetensorError):  # half a file is no work done
                # copies: what is returned must not change when its maker goes on, as what is found does not
                made = {name: _copy(tensor) for name, tensor in make().items()}
                replace_file(path, save(made))
                return made

    def _key(self, recipe: Mapping[str, Any]) -> str:
        software = {name: metadata.version(name) for name in _SOFTWARE}
        whole = {"recipe": recipe, "cases": self._cases(), "device": _device(self._device), "software": software}
        return hashlib.sha256(json.dumps(whole, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock that the system gives back when the process dies."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _device(name: str) -> str:
    """The processor that a device's name stands for: other GPUs compute other bits."""
    gpu = torch.device(name).type == "cuda" and torch.cuda.is_available()
    return f"{name} {torch.cuda.get_device_name(torch.device(name))}" if gpu else name

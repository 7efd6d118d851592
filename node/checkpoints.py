"""Where a long visit keeps its place on the node's own disk: one safetensors file per visit, replaced atomically."""

import logging
import shutil
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from node.files import replace_file
from protos.messages import Request

_log = logging.getLogger("locum.node.checkpoints")


class VisitCheckpoint:
    """The checkpoint of one visit (one round of one stop of one run), below the node's home.

    `samples` says which training cases its steps are drawn from: with others they cannot go on. It is asked when the
    first checkpoint is looked for or made, since it may take decoding the cases.
    """

    def __init__(self, home: Path, request: Request, samples: Callable[[], str]) -> None:
        self._path = _folder(home, request.run) / f"{request.stop}-{request.round}.safetensors"
        self._plan = request.plan.digest()
        self._samples = samples
        self._told = False  # that it cannot be written

    @cached_property
    def _belongs(self) -> dict[str, str]:
        return {"plan": self._plan, "samples": self._samples()}

    def load(self) -> tuple[int, dict[str, torch.Tensor]] | None:
        """The last saved step and tensors; None when there are none or they belong to another plan or other data."""
        if not self._path.exists():
            return None
        try:
            with safe_open(self._path, framework="pt") as file:
                metadata = file.metadata()
                if any(metadata.get(key) != value for key, value in self._belongs.items()):
                    return None
                return int(metadata["step"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, OSError):  # half a file is no checkpoint: the visit starts anew
            return None

    def save(self, step: int, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write, sync, rename: a crash leaves the old checkpoint or the new one.

        Where it cannot be written the visit goes on without; it would only have to begin earlier after a crash.
        """
        data = save({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, {"step": str(step)} | self._belongs)
        try:
            replace_file(self._path, data)
        except OSError as error:
            if not self._told:
                _log.warning("%s: %s; the visit goes on without a checkpoint.", self._path, error.strerror)
            self._told = True
        # The rename need not be synced: if a power cut takes it back, the older checkpoint is still whole.


def forget(home: Path, run: str, stop: int) -> None:
    """Remove the checkpoints of all stops up to `stop`, whose handovers the coordinator has committed."""
    folder = _folder(home, run)
    if not folder.is_dir():
        return
    for path in folder.glob("*.safetensors"):
        if int(path.name.split("-")[0]) <= stop:
            path.unlink()
    if not any(folder.glob("*.safetensors")):
        shutil.rmtree(folder)


def _folder(home: Path, run: str) -> Path:
    return home / "checkpoints" / run

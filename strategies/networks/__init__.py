"""Segmentation networks: MONAI's U-Nets with GroupNorm or InstanceNorm.

No BatchNorm: its running statistics would describe one site and travel to the next, and sums over sites (joint
training, rehearsal at home) would no longer equal the pooled computation.
"""

from math import gcd, prod
from typing import Any

import torch
from monai.networks.nets import BasicUNet, UNet
from torch import nn

from protos.plan import NetworkChoice, Task


def definition(task: Task, choice: NetworkChoice, dropout: float = 0.0) -> tuple[type[nn.Module], dict[str, Any]]:
    """MONAI's class and its keyword arguments (JSON holds them) for a network from [N, channels, *size] to logits
    [N, classes, *size], without the background's channel for soft tasks.

    Raises ValueError, in one sentence, when `task.size` does not fit the network's levels.
    """
    levels = len(choice.channels) if choice.name == "unet" else 5
    factor = 2 ** (levels - 1)
    if any(size % factor for size in task.size):
        raise ValueError(
            f"network: {levels} levels halve the image {levels - 1} times, so every number of task.size "
            f"{list(task.size)} must be a multiple of {factor}; change task.size or network.channels."
        )
    if choice.norm == "instance" and prod(size // factor for size in task.size) < 2:
        raise ValueError(
            f"network: at the lowest level task.size {list(task.size)} leaves a single pixel, which InstanceNorm "
            "cannot normalise; use fewer levels in network.channels or a larger task.size."
        )
    outputs = len(task.classes) - task.soft
    norm: tuple[str, dict[str, Any]] = ("instance", {"affine": True})
    if choice.norm == "group":
        # with residual units MONAI normalises the top layer too, over the outputs
        top = (outputs,) if choice.residual_units else ()
        norm = ("group", {"num_groups": gcd(8, *choice.channels, *top), "affine": True})
    common = {
        "spatial_dims": task.dims,
        "in_channels": task.channels,
        "out_channels": outputs,
        "norm": norm,
        "dropout": dropout,
    }
    if choice.name == "basic_unet":
        return BasicUNet, common | {"features": choice.channels}
    own = {"channels": choice.channels, "strides": (2,) * (levels - 1), "num_res_units": choice.residual_units}
    return UNet, common | own


def build(task: Task, choice: NetworkChoice, dropout: float = 0.0) -> nn.Module:
    """The network of `definition`, float32, freshly initialised. Raises ValueError as that does."""
    network, arguments = definition(task, choice, dropout)
    return network(**arguments)


def outline(task: Task, choice: NetworkChoice) -> dict[str, torch.Tensor]:
    """The network's state with shapes and dtypes but no storage (PyTorch's meta device)."""
    with torch.device("meta"):
        return dict(build(task, choice).state_dict())

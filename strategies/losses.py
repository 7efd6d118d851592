"""The segmentation loss: computed per sample, then averaged, so that sums over sites equal the pooled loss."""

from typing import Literal

from monai.losses import DiceCELoss, DiceLoss
from torch import Tensor, nn

from protos.plan import Task


def segmentation_loss(logits: Tensor, label: Tensor, name: Literal["dice_ce", "dice", "ce"]) -> Tensor:
    """Mean over samples of soft Dice (foreground classes), cross-entropy, or their sum.

    logits: [N, K, *size]; label: int64 [N, 1, *size]. MONAI's DiceLoss with `batch=False` gives each sample its own
    Dice; a batch Dice would couple samples, and with them sites.
    """
    if name == "ce":
        return nn.functional.cross_entropy(logits, label.squeeze(1))
    loss = DiceLoss if name == "dice" else DiceCELoss
    value: Tensor = loss(to_onehot_y=True, softmax=True, include_background=False)(logits, label)
    return value


def probabilities(logits: Tensor, task: Task) -> Tensor:
    """What the network says of each pixel, in [0, 1]: softmax over the classes, of [N, classes, *size]."""
    return logits.softmax(dim=1)

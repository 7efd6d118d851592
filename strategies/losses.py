"""What a network's output means, and the segmentation loss: computed per sample, then averaged, so that sums over
sites equal the pooled loss.

Soft tasks (SoftSeg, Gros et al. 2021) have no background channel and no softmax. Their activation is the normalised
ReLU, relu(z) / max relu(z) over each sample and channel, so that the largest value is 1 wherever anything is positive.
The maximum couples all pixels of a sample, though never two samples. A trap lies in it: with `fit: patch` a sample is a
window, also at scoring, and each window is normalised alone. One without any structure still shows a 1 somewhere unless
the network is negative everywhere in it.
"""

from typing import Literal

import torch
from monai.losses import DiceCELoss, DiceLoss
from torch import Tensor, nn

from protos.plan import Task


def probabilities(logits: Tensor, task: Task) -> Tensor:
    """What the network says of each pixel, in [0, 1], same shape as `logits`.

    Softmax over [N, classes, *size]; for soft tasks the normalised ReLU of [N, classes - 1, *size].
    """
    return normalised_relu(logits) if task.soft else logits.softmax(dim=1)


def normalised_relu(logits: Tensor) -> Tensor:
    """relu(z) / max relu(z) over each sample and channel of [N, C, *size]; 0 where nothing is positive.

    There the gradient would vanish for good, so it is passed straight through as if z itself had been given: Dice then
    lifts the pixels that the label holds, and leaves a sample alone whose label is empty.
    """
    positive = logits.relu()
    top = positive.amax(dim=tuple(range(2, logits.ndim)), keepdim=True)
    alive = top > 0
    return torch.where(alive, positive / torch.where(alive, top, 1), logits - logits.detach())


def segmentation_loss(logits: Tensor, label: Tensor, name: Literal["dice_ce", "dice", "ce"]) -> Tensor:
    """Mean over samples of Dice (foreground classes), cross-entropy, or their sum.

    logits: [N, K, *size]; label: int64 [N, 1, *size] with class numbers. MONAI's DiceLoss with `batch=False` gives each
    sample its own Dice; a batch Dice would couple samples, and with them sites.

    A soft label is of a floating dtype, [N, K, *size] like the logits, and takes Dice whatever the name:
    1 - (2 sum py + 1) / (sum p^2 + sum y^2 + 1). The denominator is squared because only so p = y is best: with plain
    sums fractions would cost, and the network would learn to round them. The 1 (the authors' smoothing, too) keeps a
    gradient where the label is empty.
    """
    if label.is_floating_point():
        soft: Tensor = DiceLoss(squared_pred=True, smooth_nr=1.0, smooth_dr=1.0)(normalised_relu(logits), label)
        return soft
    if name == "ce":
        return nn.functional.cross_entropy(logits, label.squeeze(1))
    loss = DiceLoss if name == "dice" else DiceCELoss
    value: Tensor = loss(to_onehot_y=True, softmax=True, include_background=False)(logits, label)
    return value

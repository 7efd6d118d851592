"""The network of Site-Modulated Diffusion (SMG-Learning, Sec. III-C): MONAI's diffusion U-Net, told mask and site.

Mask channels stand clean beside the noisy image channels; a site's prompt is added to the time embedding, which is what
MONAI's class embedding does.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from monai.networks.layers.factories import Conv
from monai.networks.nets import DiffusionModelUNet
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from monai.networks.utils import pixelshuffle, pixelunshuffle
from torch import Tensor, nn
from torch.nn import functional

from protos.plan import Task
from strategies.generative.parameters import PROMPT, GeneratorChoice, Precision
from strategies.randomness import derive
from strategies.visit import seeded

_TOUCH = 16  # channels at full resolution


class Prompts(nn.Module):
    """One learnable vector per site, brought to the width of the time embedding where that is another."""

    def __init__(self, sites: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(sites, PROMPT))
        self.project: nn.Module = nn.Identity()
        if width != PROMPT:
            self.project = linear = nn.Linear(PROMPT, width, bias=False)
            nn.init.normal_(linear.weight, std=PROMPT**-0.5)  # a prompt of N(0, 1) stays one

    def forward(self, site: Tensor) -> Tensor:
        """int64 [N] -> [N, width]."""
        found: Tensor = self.project(self.table[site])
        return found


class Touch(nn.Module):
    """Goes over what a network of folded images said, pixel by pixel, as noise level and site ask.

    Folding leaves it to single channels which pixel of a square is meant. Structures of a pixel or two came out pale
    without this: nuclei of 2 pixels on a light ground, folded by 4, at half their contrast after 600 steps.
    """

    def __init__(self, dims: int, channels: int, masks: int, width: int) -> None:
        """`masks`: mask channels; `width`: of the embedding of level and site."""
        super().__init__()
        convolution = Conv[Conv.CONV, dims]
        self.first = convolution(2 * channels + masks, _TOUCH, 3, padding=1)
        self.modulation = nn.Linear(width, 2 * _TOUCH)
        self.last = convolution(_TOUCH, channels, 3, padding=1)
        nn.init.zeros_(self.last.weight)  # at first nothing is changed
        nn.init.zeros_(self.last.bias)

    def forward(self, said: Tensor, given: Tensor, embedding: Tensor) -> Tensor:
        """said [N, channels, *size], given (noisy image, mask) [N, channels + masks, *size], embedding [N, width]."""
        modulation = self.modulation(functional.silu(embedding))
        scale, shift = modulation.reshape(len(said), 2, _TOUCH, *[1] * (said.ndim - 2)).unbind(1)
        # so laid out, with so few channels, it takes half as long
        layout = torch.channels_last if said.ndim == 4 else torch.channels_last_3d
        hidden = self.first(torch.cat([said, given.to(said.dtype)], dim=1).contiguous(memory_format=layout))
        found: Tensor = said + self.last(functional.silu(hidden * (1 + scale) + shift))
        return found.contiguous()


class Denoiser(nn.Module):
    """From noisy image, clean mask, noise level and site to the image without its noise, or to the noise."""

    def __init__(self, task: Task, choice: GeneratorChoice, sites: int) -> None:
        """`sites`: of the plan, visited or not. Raises ValueError, in one sentence, when task.size does not fit."""
        super().__init__()
        factor = choice.unshuffle * 2 ** (len(choice.channels) - 1)
        if any(size % factor for size in task.size):
            raise ValueError(
                f"strategy.generator: unshuffle {choice.unshuffle} and {len(choice.channels)} levels need every number "
                f"of task.size {list(task.size)} to be a multiple of {factor}; use fewer levels or another size."
            )
        self._dims, self._fold, self._classes = task.dims, choice.unshuffle, len(task.classes)
        folded = choice.unshuffle**task.dims
        self.unet = DiffusionModelUNet(
            spatial_dims=task.dims,
            in_channels=(task.channels + self._classes - 1) * folded,
            out_channels=task.channels * folded,
            num_res_blocks=choice.blocks,
            channels=choice.channels,
            attention_levels=choice.attention or (False,) * len(choice.channels),
            norm_num_groups=8,
            num_head_channels=tuple(8 if number % 32 else 32 for number in choice.channels),
            num_class_embeds=sites,
            use_flash_attention=True,
        )
        del self.unet.class_embedding  # so that prompts come after what the U-Net has learnt
        self.unet.class_embedding = Prompts(sites, 4 * choice.channels[0])
        if choice.unshuffle > 1:
            self.touch = Touch(task.dims, task.channels, self._classes - 1, 4 * choice.channels[0])

    @property
    def prompts(self) -> Prompts:
        """The sites' prompts."""
        found = self.unet.class_embedding
        assert isinstance(found, Prompts)
        return found

    def forward(self, noisy: Tensor, label: Tensor, k: Tensor, site: Tensor) -> Tensor:
        """noisy [N, channels, *size], label int64 [N, 1, *size], k and site int64 [N] -> like `noisy`."""
        mask = functional.one_hot(label[:, 0], self._classes).movedim(-1, 1)[:, 1:]
        given = torch.cat([noisy, mask.to(noisy.dtype) * 2 - 1], dim=1)  # the mask stays clean
        if self._fold == 1:
            found: Tensor = self.unet(given, k, class_labels=site)
            return found
        said = self.unet(pixelunshuffle(given, self._dims, self._fold), k, class_labels=site)
        level = get_timestep_embedding(k, self.unet.block_out_channels[0])
        embedding = self.unet.time_embed(level.to(noisy.dtype)) + self.prompts(site)  # the U-Net's own
        touched: Tensor = self.touch(pixelshuffle(said, self._dims, self._fold), given, embedding)
        return touched


def fresh_denoiser(
    task: Task,
    choice: GeneratorChoice,
    sites: Sequence[str],
    seed: int,
    vectors: Mapping[str, Sequence[float]] | None = None,
) -> Denoiser:
    """The denoiser as the run's seed gives it, whose prompts follow from the sites' names and not their order.

    `vectors` are prompts of PROMPT numbers by site, instead of those that the seed gives.
    """
    with seeded(derive(seed, "generator")):
        denoiser = Denoiser(task, choice, len(sites))
    with torch.no_grad():
        for row, site in enumerate(sites):
            if vectors is not None:
                denoiser.prompts.table[row] = torch.tensor(vectors[site])
            else:
                own = torch.Generator().manual_seed(derive(seed, "prompt", site))
                denoiser.prompts.table[row] = torch.randn(PROMPT, generator=own)
    return denoiser


def precision_on(precision: Precision, device: torch.device, dims: int) -> Literal["float32", "bfloat16"]:
    """What `precision` comes to on `device`; `auto` is bfloat16 where the processor has it.

    Not in 3D on a CPU: PyTorch's bfloat16 gradient of small 3D convolutions was seen to hold NaN there.
    """
    if precision != "auto":
        return precision
    has = device.type != "cpu" or (dims == 2 and bool(torch.cpu.get_capabilities().get("avx512_bf16", False)))
    return "bfloat16" if has else "float32"


def autocast(precision: Precision, device: torch.device, dims: int) -> torch.autocast:
    """Mixed precision on `device`, where `precision` comes to that."""
    mixed = precision_on(precision, device, dims) == "bfloat16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=mixed)

"""Diffusion: noise levels, the loss that trains a denoiser, and samplers that turn noise into images.

A level k in [0, K) stands for z_k = sqrt(a_k) image + sqrt(1 - a_k) noise, where a is `alphas_cumprod`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Literal

import torch
from torch import Tensor

Prediction = Literal["x0", "eps"]
Sampler = Literal["ancestral", "ddim", "dpm++"]
Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(noisy [N, C, *size], k int64 [N]) -> the image ("x0") or the noise ("eps") in it, [N, C, *size]."""
_Step = Callable[[int, Tensor, Tensor], Tensor]
"""(place among the levels in use, what the denoiser said, what it was given) -> what it is given next."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """How much of the image is left at each of K levels: `alphas_cumprod`, float64 [K] in (0, 1), strictly falling."""

    alphas_cumprod: Tensor

    @classmethod
    def of(cls, name: Literal["cosine", "linear"], steps: int = 1000) -> "Schedule":
        """The schedule of Nichol & Dhariwal 2021 ("cosine") or of Ho et al. 2020 ("linear") over `steps` levels.

        Ho et al. have 1000 levels; other numbers scale beta so that the last level is noise all the same. Raises
        ValueError where there are too few.
        """
        fewest = {"cosine": 2, "linear": 21}[name]
        if steps < fewest:
            raise ValueError(f"a {name} noise schedule has at least {fewest} steps, not {steps}: give it more")
        if name == "cosine":  # MONAI's is in float32, where the first betas have three digits left
            time = torch.arange(steps + 1, dtype=torch.float64) / steps
            left = torch.cos((time + 0.008) / 1.008 * torch.pi / 2).square()
            betas = (1 - left[1:] / left[:-1]).clamp(max=0.999)
        else:
            from monai.networks.schedulers import NoiseSchedules

            scale = 1000 / steps
            betas = NoiseSchedules["linear_beta"](steps, beta_start=scale * 1e-4, beta_end=scale * 0.02).double()
        return cls((1 - betas).cumprod(0))

    @property
    def steps(self) -> int:
        """K."""
        return len(self.alphas_cumprod)

    def to(self, device: torch.device | str) -> "Schedule":
        """The same levels on another device: moved once, no training step has to wait for them."""
        return Schedule(self.alphas_cumprod.to(device))

    def at(self, k: Tensor, like: Tensor) -> Tensor:
        """a_k for k int64 [N]: float64 [N, 1, ...] on the device of `like` [N, ...], with as many dimensions."""
        left = self.alphas_cumprod.to(like.device)[k.to(like.device)]
        return left.reshape(-1, *[1] * (like.ndim - 1))


def noised(schedule: Schedule, image: Tensor, noise: Tensor, k: Tensor) -> Tensor:
    """Eq. 6: `image` [N, C, *size] with `noise` of the same shape at the levels k int64 [N]; of the image's dtype."""
    left = schedule.at(k, image)
    return left.sqrt().to(image.dtype) * image + (1 - left).sqrt().to(image.dtype) * noise


def denoising_loss(  # noqa: PLR0917 (what a denoiser saw, in the order of Eq. 6)
    schedule: Schedule, predicted: Tensor, image: Tensor, noise: Tensor, k: Tensor, prediction: Prediction
) -> Tensor:
    """The mean squared error of what the denoiser said of `noised(schedule, image, noise, k)`; a scalar.

    "eps": of the noise, every level alike (Eq. 7 and 8). "x0": of the image, each sample weighted by its
    signal-to-noise ratio a / (1 - a) held to [1, 5] (after Hang et al. 2023): the bare ratio would make it "eps" again,
    where what is nearly all noise teaches nothing; yet that is where the mask alone says what is to come.
    """
    if prediction == "eps":
        return (predicted - noise).square().mean()
    left = schedule.at(k, image)
    weight = (left / (1 - left)).clamp(1, 5).to(image.dtype)
    return (weight * (predicted - image).square()).mean()


def times(generator: torch.Generator, count: int, steps: int) -> Tensor:
    """Random levels, int64 [count] on the generator's device: one from each of `count` equal parts of [0, steps).

    They come shuffled. So spread, a batch's loss varies less than with independent levels.
    """
    device = generator.device
    within = torch.rand(count, generator=generator, device=device, dtype=torch.float64)
    levels = ((torch.arange(count, device=device) + within) * steps / count).long()
    return levels.clamp(max=steps - 1)[torch.randperm(count, generator=generator, device=device)]  # the sum rounds


def sample(
    schedule: Schedule,
    denoiser: Denoiser,
    noise: Tensor,
    *,
    sampler: Sampler,
    evaluations: int,
    prediction: Prediction,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Images from `noise` [N, C, *size], of its shape, dtype and device, in `evaluations` calls of `denoiser`.

    "ancestral" draws from `generator` at every step (Ho et al. 2020; over a chain of fewer levels when there are fewer
    evaluations than K). "ddim" (Song et al. 2021) and "dpm++" (DPM-Solver++(2M), Lu et al. 2022) draw nothing: the same
    noise gives the same image, whatever else is in the batch, as far as the denoiser keeps to that. Raises ValueError
    where `evaluations` is not in [1, K], or "ancestral" has no generator.

    "eps" with the cosine schedule is not for few steps of those two: almost no image is left at its last level, and the
    first step multiplies the denoiser's error by thousands. Rounding to bfloat16 is enough to ruin the images.
    """
    if not 1 <= evaluations <= schedule.steps:
        raise ValueError(f"a sampler calls its denoiser 1 to {schedule.steps} times, not {evaluations}: change it")
    if sampler == "ancestral" and generator is None:
        raise ValueError("the ancestral sampler draws noise at every step: give it a generator")
    levels = _spaced(schedule, evaluations)
    step: _Step
    if sampler == "dpm++":
        step = _dpm_solver(schedule, levels, prediction)
    else:
        step = _chain(schedule, levels, prediction, generator if sampler == "ancestral" else None)
    image = noise
    with torch.inference_mode():
        for place, level in enumerate(levels):
            k = torch.full((len(noise),), level, device=noise.device)
            image = step(place, denoiser(image, k).to(noise.dtype), image)
    return image.clone()  # a tensor made in inference mode could not be learnt from


def _spaced(schedule: Schedule, count: int) -> list[int]:
    """`count` levels from K - 1 down to 0, all different.

    They lie equally apart in the cube root of the noise's angle, acos sqrt(a): of the spacings tried (in k, its powers,
    the log-SNR) the one whose samples keep their spread best in few steps, with every sampler and either schedule.
    """
    place = schedule.alphas_cumprod.cpu().sqrt().acos() ** (1 / 3)
    wanted = torch.linspace(float(place[-1]), float(place[0]), count, dtype=torch.float64).flip(0)
    nearest = (place - wanted[:, None]).abs().argmin(1)
    rank = torch.arange(count)
    apart = (nearest - rank).cummax(0).values.clamp(max=schedule.steps - count) + rank
    levels: list[int] = apart.flip(0).tolist()
    return levels


def _chain(schedule: Schedule, levels: list[int], prediction: Prediction, source: torch.Generator | None) -> _Step:
    """Song et al. 2021, Eq. 12: eta = 1 with a `source` of noise, else 0.

    With eta = 1 a step is Ho et al.'s posterior, and its beta, 1 - now / then, is the one between the levels in use.
    """
    every = schedule.alphas_cumprod.tolist()
    left = [*(every[level] for level in levels), 1.0]

    def step(place: int, predicted: Tensor, noisy: Tensor) -> Tensor:
        now, then = left[place], left[place + 1]
        if prediction == "x0":
            image, noise = predicted, (noisy - sqrt(now) * predicted) / sqrt(1 - now)
        else:
            image, noise = (noisy - sqrt(1 - now) * predicted) / sqrt(now), predicted
        if source is None:
            return sqrt(then) * image + sqrt(1 - then) * noise
        variance = (1 - then) / (1 - now) * (1 - now / then)
        fresh = torch.randn(noisy.shape, generator=source, dtype=noisy.dtype, device=source.device).to(noisy.device)
        return sqrt(then) * image + sqrt(1 - then - variance) * noise + sqrt(variance) * fresh

    return step


def _dpm_solver(schedule: Schedule, levels: list[int], prediction: Prediction) -> _Step:
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    left = schedule.alphas_cumprod.cpu().numpy()
    solver = DPMSolverMultistepScheduler(
        num_train_timesteps=schedule.steps,
        trained_betas=[1 - left[0], *(1 - left[1:] / left[:-1])],
        solver_order=2,
        prediction_type={"x0": "sample", "eps": "epsilon"}[prediction],
    )
    solver.alphas_cumprod = left  # it would hand NumPy a tensor, which warns
    solver.set_timesteps(timesteps=levels)
    solver.set_begin_index(0)

    def step(place: int, predicted: Tensor, noisy: Tensor) -> Tensor:
        result: Tensor = solver.step(predicted, levels[place], noisy, return_dict=False)[0]
        return result

    return step

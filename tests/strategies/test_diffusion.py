"""Diffusion against data whose best denoiser is known in closed form: a Gaussian, and a mixture of two."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from strategies.generative.diffusion import (
    Denoiser,
    Prediction,
    Sampler,
    Schedule,
    denoising_loss,
    noised,
    sample,
    times,
)

COSINE, LINEAR = Schedule.of("cosine"), Schedule.of("linear")
MEAN, STD = 0.4, 0.2
SHARE, WIDTH = 0.3, 0.1  # of the mode at +1; the other is at -1

both_schedules = pytest.mark.parametrize("schedule", [COSINE, LINEAR], ids=["cosine", "linear"])
both_predictions = pytest.mark.parametrize("prediction", ["x0", "eps"])
every_sampler = pytest.mark.parametrize("sampler", ["ancestral", "ddim", "dpm++"])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The quantiles of N(0, 1), [count, 1]: what a deterministic sampler makes of them has no sampling error."""
    quantiles = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    return (quantiles / quantiles.std()).to(dtype)[:, None]


def as_asked(schedule: Schedule, prediction: Prediction, image: Callable[[Tensor, Tensor], Tensor]) -> Denoiser:
    """A denoiser from E[image | noisy, a_k], in the dtype that it is given."""

    def denoiser(noisy: Tensor, k: Tensor) -> Tensor:
        left = schedule.at(k, noisy)
        z = noisy.double()
        best = image(z, left)
        return (best if prediction == "x0" else (z - left.sqrt() * best) / (1 - left).sqrt()).to(noisy.dtype)

    return denoiser


def gaussian(schedule: Schedule, prediction: Prediction) -> Denoiser:
    def image(z: Tensor, left: Tensor) -> Tensor:
        return MEAN + left.sqrt() * STD**2 / (left * STD**2 + 1 - left) * (z - left.sqrt() * MEAN)

    return as_asked(schedule, prediction, image)


def two_modes(schedule: Schedule, prediction: Prediction) -> Denoiser:
    def image(z: Tensor, left: Tensor) -> Tensor:
        variance = left * WIDTH**2 + 1 - left
        upper = torch.sigmoid(2 * left.sqrt() * z / variance + math.log(SHARE / (1 - SHARE)))
        up, down = (mode + left.sqrt() * WIDTH**2 / variance * (z - left.sqrt() * mode) for mode in (1, -1))
        return upper * up + (1 - upper) * down

    return as_asked(schedule, prediction, image)


class Recording:
    """Notes the levels that a denoiser is asked about."""

    def __init__(self, denoiser: Denoiser) -> None:
        self.denoiser, self.levels = denoiser, list[int]()

    def __call__(self, noisy: Tensor, k: Tensor) -> Tensor:
        assert (k.shape, k.dtype) == ((len(noisy),), torch.int64)
        assert torch.is_inference_mode_enabled()
        assert len(k.unique()) == 1
        self.levels.append(int(k[0]))
        return self.denoiser(noisy, k)


# ---- levels


@pytest.mark.parametrize("steps", [10, 1000])
def test_the_cosine_schedule_is_nichols(steps: int) -> None:
    def f(time: float) -> float:
        return math.cos((time / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    found = Schedule.of("cosine", steps).alphas_cumprod
    assert found.dtype == torch.float64
    assert found[:-1].tolist() == pytest.approx([f(k + 1) / f(0) for k in range(steps - 1)], rel=1e-9)
    assert float(found[-1] / found[-2]) == pytest.approx(0.001)  # where beta would be 1, it is held to 0.999


def test_the_linear_schedule_is_hos_and_ends_in_noise_whatever_its_length() -> None:
    left = LINEAR.alphas_cumprod
    betas = 1 - left / torch.cat([left.new_ones(1), left[:-1]])
    torch.testing.assert_close(betas, torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), rtol=1e-6, atol=1e-9)
    assert 0 < Schedule.of("linear", 50).alphas_cumprod[-1] < 1e-4


@given(name=st.sampled_from(["cosine", "linear"]), steps=st.integers(21, 2000))
@settings(max_examples=25)
def test_less_and_less_of_the_image_is_left(name: str, steps: int) -> None:
    schedule = Schedule.of(name, steps)  # type: ignore[arg-type]
    assert schedule.steps == steps
    assert schedule.alphas_cumprod[-1] > 0
    assert schedule.alphas_cumprod[0] < 1
    assert (schedule.alphas_cumprod.diff() < 0).all()


@pytest.mark.parametrize(("name", "steps"), [("cosine", 1), ("linear", 20)])
def test_too_few_levels_are_refused(name: str, steps: int) -> None:
    with pytest.raises(ValueError, match=f"{name} noise schedule .* not {steps}"):
        Schedule.of(name, steps)  # type: ignore[arg-type]


@both_schedules
def test_noised_images_have_the_mean_and_variance_of_their_level(schedule: Schedule) -> None:
    k = torch.tensor([0, 300, 700, 999])
    image = torch.full((4, 1, 100, 100), 3.0)
    found = noised(schedule, image, normal(10000).reshape(1, 1, 100, 100).expand(4, -1, -1, -1), k)
    left = schedule.alphas_cumprod[k].float()
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.mean((1, 2, 3)), 3 * left.sqrt(), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.var((1, 2, 3)), 1 - left, rtol=1e-3, atol=0)


@given(seed=st.integers(0, 2**31), count=st.integers(1, 40), steps=st.integers(1, 1000))
@settings(max_examples=100)
def test_one_level_comes_from_each_part(seed: int, count: int, steps: int) -> None:
    levels = times(generator(seed), count, steps)
    assert (levels.dtype, levels.shape) == (torch.int64, (count,))
    for part, level in enumerate(sorted(levels.tolist())):
        assert math.floor(part * steps / count) <= level < math.ceil((part + 1) * steps / count)
    assert torch.equal(levels, times(generator(seed), count, steps))


def test_levels_are_shuffled_and_every_one_comes() -> None:
    drawn = [times(source, 16, 100) for source in [generator()] for _ in range(500)]
    assert not any(torch.equal(levels, levels.sort().values) for levels in drawn)
    assert set(torch.cat(drawn).tolist()) == set(range(100))
    assert float(torch.stack(drawn)[:, 0].double().mean()) == pytest.approx(49.5, abs=5)  # of any place in the batch


# ---- the loss


def test_the_loss_of_noise_counts_every_level_alike() -> None:
    noise = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])
    for k in ([0, 0], [999, 3]):
        loss = denoising_loss(
            COSINE, noise + torch.tensor([1.0, 3.0]), torch.zeros(2, 1, 2), noise, torch.tensor(k), "eps"
        )
        assert loss.item() == pytest.approx((1 + 9) / 2)


@pytest.mark.parametrize(
    ("left", "weight"), [(0.999, 5), (0.9, 5), (0.75, 3), (0.6, 1.5), (0.5, 1), (0.1, 1), (1e-6, 1)]
)
def test_the_loss_of_images_is_weighted_by_their_signal_to_noise(left: float, weight: float) -> None:
    schedule = Schedule(torch.tensor([0.9999, left, 1e-9], dtype=torch.float64))
    image = torch.randn(2, 3, 4, 4, generator=generator())
    loss = denoising_loss(schedule, image + 2, image, torch.zeros_like(image), torch.tensor([1, 2]), "x0")
    assert loss.item() == pytest.approx(4 * (weight + 1) / 2, rel=1e-5)
    assert loss.dtype == torch.float32


@both_predictions
def test_the_loss_leads_to_the_best_denoiser(prediction: Prediction) -> None:
    """A denoiser with one free factor is trained: the factor's minimum is 1, where it is the closed form."""
    source = generator()
    image = MEAN + STD * torch.randn(20000, 1, generator=source)
    noise, k = torch.randn(20000, 1, generator=source), times(source, 20000, 1000)
    z = noised(COSINE, image, noise, k)
    best = gaussian(COSINE, prediction)(z, k)
    factor = torch.tensor(0.3, requires_grad=True)
    optimizer = torch.optim.LBFGS([factor])

    def closure() -> float:
        optimizer.zero_grad()
        loss = denoising_loss(COSINE, factor * best, image, noise, k, prediction)
        loss.backward()
        return loss.item()

    optimizer.step(closure)
    assert factor.item() == pytest.approx(1, abs=0.02)


# ---- samplers


def drawn(
    schedule: Schedule, denoiser: Denoiser, noise: Tensor, how: tuple[Sampler, int], prediction: Prediction = "x0"
) -> Tensor:
    sampler, evaluations = how
    return sample(
        schedule,
        denoiser,
        noise,
        sampler=sampler,
        evaluations=evaluations,
        prediction=prediction,
        generator=generator(1),
    )


# How far the spread may be from STD; the mean is right everywhere.
SPREAD = {
    ("ancestral", 1000): 0.006, ("ancestral", 50): 0.014, ("ddim", 200): 0.002, ("ddim", 50): 0.007,
    ("ddim", 25): 0.013, ("dpm++", 25): 0.003, ("dpm++", 10): 0.016,
}  # fmt: skip


def is_right(images: Tensor, how: tuple[str, int]) -> bool:
    mean, std = float(images.double().mean()), float(images.double().std())
    return abs(mean - MEAN) < 0.003 and abs(std - STD) < SPREAD[how]


@both_schedules
@both_predictions
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("how", SPREAD, ids=str)
def test_samples_of_a_gaussian_are_gaussian(
    schedule: Schedule, prediction: Prediction, dtype: torch.dtype, how: tuple[Sampler, int]
) -> None:
    noise = normal(8000 if how[0] == "ancestral" else 2000, dtype)
    images = drawn(schedule, gaussian(schedule, prediction), noise, how, prediction)
    assert images.dtype == dtype
    assert is_right(images, how), (float(images.mean()), float(images.std()))


def test_monais_ancestral_sampler_is_not_right_with_fewer_steps_than_levels() -> None:
    """Why the ancestral sampler here is our own: MONAI's keeps the posterior of neighbouring levels."""
    from monai.networks.schedulers import DDPMScheduler

    def images(steps: int) -> Tensor:
        monai = DDPMScheduler(1000, "linear_beta", clip_sample=False, prediction_type="sample")
        monai.set_timesteps(steps)
        noisy, source = normal(20000), generator(1)
        for level in monai.timesteps.tolist():
            predicted = gaussian(LINEAR, "x0")(noisy, torch.full((len(noisy),), level))
            noisy, _ = monai.step(predicted, level, noisy, generator=source)
        return noisy

    assert is_right(images(1000), ("ancestral", 1000))
    few = images(50)
    assert abs(few.mean() - MEAN) > 0.2
    assert few.std() > 3 * STD


@both_schedules
@pytest.mark.parametrize("how", [("ancestral", 100), ("ddim", 50), ("ddim", 25), ("dpm++", 25)], ids=str)
def test_both_modes_are_sampled_in_their_shares(schedule: Schedule, how: tuple[Sampler, int]) -> None:
    images = drawn(schedule, two_modes(schedule, "x0"), normal(20000), how)
    upper, lower = images[images > 0], images[images < 0]
    assert len(upper) / len(images) == pytest.approx(SHARE, abs=0.012)
    for mode, place in ((upper, 1), (lower, -1)):
        assert float(mode.mean()) == pytest.approx(place, abs=0.025)
        assert float(mode.std()) == pytest.approx(WIDTH, abs=0.012)


@both_schedules
@pytest.mark.parametrize("denoiser", [gaussian, two_modes])
@pytest.mark.parametrize(
    ("how", "close"), [(("ancestral", 100), 1e-7), (("ddim", 25), 1e-7), (("dpm++", 25), 2e-3)], ids=str
)
def test_image_and_noise_are_two_ways_to_say_the_same(
    schedule: Schedule,
    denoiser: Callable[[Schedule, Prediction], Denoiser],
    how: tuple[Sampler, int],
    close: float,  # the library's solver computes in float32
) -> None:
    noise = normal(500, torch.float64)
    images, noises = (
        drawn(schedule, denoiser(schedule, prediction), noise, how, prediction) for prediction in ("x0", "eps")
    )
    torch.testing.assert_close(images, noises, rtol=0, atol=close)


@pytest.mark.parametrize("how", [("ddim", 7), ("dpm++", 7)], ids=str)
def test_an_image_depends_on_its_own_noise_alone_bit_for_bit(how: tuple[Sampler, int]) -> None:
    noise = torch.randn(5, 2, 3, 7, generator=generator())
    given = noise.clone()
    images = drawn(COSINE, two_modes(COSINE, "x0"), noise, how)
    assert torch.equal(noise, given)
    assert torch.equal(images, drawn(COSINE, two_modes(COSINE, "x0"), noise, how))
    alone = [drawn(COSINE, two_modes(COSINE, "x0"), noise[n : n + 1], how) for n in range(5)]
    assert torch.equal(images, torch.cat(alone))


def test_the_ancestral_sampler_follows_its_generator() -> None:
    def images(seed: int) -> Tensor:
        return sample(
            COSINE,
            gaussian(COSINE, "x0"),
            normal(50),
            sampler="ancestral",
            evaluations=20,
            prediction="x0",
            generator=generator(seed),
        )

    state = torch.get_rng_state()
    assert torch.equal(images(3), images(3))
    assert not torch.equal(images(3), images(4))
    assert torch.equal(state, torch.get_rng_state())


@every_sampler
@settings(max_examples=20)
@given(data=st.data(), name=st.sampled_from(["cosine", "linear"]), steps=st.integers(21, 300))
def test_the_denoiser_is_called_as_often_as_asked(sampler: Sampler, data: st.DataObject, name: str, steps: int) -> None:
    evaluations = data.draw(st.integers(1, steps))
    schedule = Schedule.of(name, steps)  # type: ignore[arg-type]
    denoiser = Recording(gaussian(schedule, "x0"))
    images = drawn(schedule, denoiser, normal(3), (sampler, evaluations))
    assert images.isfinite().all()
    assert len(denoiser.levels) == evaluations
    assert denoiser.levels[0] == steps - 1
    assert evaluations == 1 or denoiser.levels[-1] == 0
    assert all(now > then for now, then in zip(denoiser.levels, denoiser.levels[1:], strict=False))


@settings(max_examples=50)
@given(data=st.data(), steps=st.integers(2, 60), bend=st.floats(0.05, 20))
def test_the_levels_differ_whatever_the_schedule(data: st.DataObject, steps: int, bend: float) -> None:
    evaluations = data.draw(st.integers(2, steps))
    schedule = Schedule(1 - torch.linspace(0.2, 0.9, steps, dtype=torch.float64) ** bend)
    denoiser = Recording(lambda noisy, k: noisy)
    drawn(schedule, denoiser, normal(2), ("ddim", evaluations))
    assert (denoiser.levels[0], denoiser.levels[-1]) == (steps - 1, 0)
    assert denoiser.levels == sorted(set(denoiser.levels), reverse=True)


@both_schedules
@every_sampler
def test_what_the_denoiser_says_last_is_the_image(schedule: Schedule, sampler: Sampler) -> None:
    def denoiser(noisy: Tensor, k: Tensor) -> Tensor:
        return torch.where(k[:, None] == 0, noisy.sign(), noisy)

    images = drawn(schedule, denoiser, normal(10), (sampler, 8))
    torch.testing.assert_close(images.abs(), torch.ones(10, 1), rtol=0, atol=1e-6)


def test_noise_predicted_on_the_cosine_schedule_must_be_exact() -> None:
    """The warning of `sample`, held against numbers: with the linear schedule, or of images, rounding does no harm."""

    def spread(schedule: Schedule, prediction: Prediction) -> float:
        best = gaussian(schedule, prediction)
        images = drawn(schedule, lambda z, k: best(z, k).bfloat16(), normal(2000), ("ddim", 25), prediction)
        return float(images.std())

    assert spread(COSINE, "eps") > 3 * STD
    for schedule, prediction in ((LINEAR, "eps"), (COSINE, "x0"), (LINEAR, "x0")):
        assert spread(schedule, prediction) == pytest.approx(STD, abs=SPREAD["ddim", 25])  # type: ignore[arg-type]


@every_sampler
def test_images_are_of_the_noises_dtype_and_can_be_learnt_from(sampler: Sampler) -> None:
    best = gaussian(COSINE, "x0")

    def in_bfloat16(noisy: Tensor, k: Tensor) -> Tensor:
        assert noisy.dtype == torch.float32
        return best(noisy, k).bfloat16()

    images = drawn(COSINE, in_bfloat16, normal(4), (sampler, 5))
    assert images.dtype == torch.float32
    weight = torch.ones(1, requires_grad=True)
    (weight * images).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("evaluations", [0, 1001])
def test_a_number_of_evaluations_that_cannot_be_is_refused(evaluations: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 1000 times, not {evaluations}"):
        drawn(COSINE, gaussian(COSINE, "x0"), normal(2), ("ddim", evaluations))


def test_the_ancestral_sampler_needs_a_generator() -> None:
    with pytest.raises(ValueError, match="give it a generator"):
        sample(
            COSINE,
            gaussian(COSINE, "x0"),
            normal(2),
            sampler="ancestral",
            evaluations=5,
            prediction="x0",
            generator=None,
        )

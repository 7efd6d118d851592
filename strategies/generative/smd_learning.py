"""How Site-Modulated Diffusion learns (SMG-Learning, Eq. 8 and 9): the denoiser and all prompts together."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor

from strategies.data import GEOMETRY, Batch
from strategies.generative.denoiser import Denoiser, autocast
from strategies.generative.diffusion import Schedule, denoising_loss, noised, times
from strategies.generative.parameters import DiffusionParameters
from strategies.randomness import Seeds, derive, generator_on
from strategies.training import OPTIMIZER, Losses, optimizer_state, restore_optimizer
from strategies.visit import Checkpoint, Visit, seeded

TABLE = "unet.class_embedding.table"  # of the denoiser's state: the prompts

Replay = Mapping[str, Batch]  # by earlier site: what the arrived generator made of it, and the masks it was made from


@dataclass(frozen=True)
class Lesson:
    """What a generator learns from at one visit: the site's own samples, and a replay of the earlier sites."""

    visit: Visit
    replay: Replay
    sites: Sequence[str]  # in the order of the prompts
    parameters: DiffusionParameters
    dims: int

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor, int]:
        """Images, masks and sites of one step, and how many of them, the first ones, are the site's own.

        The replayed sites take turns over the steps, so that all come as often.
        """
        size, share = self.parameters.generator_batch, self.parameters.incoming_share
        own = size
        if self.replay:
            own = min(size - 1, max(1, round(size * (share or 1 / (1 + len(self.replay))))))
        rows = [_own(self.visit, step * own + place) for place in range(own)]
        names = [self.visit.seeds.site] * own
        places = range(step * (size - own), (step + 1) * (size - own))
        for site, row in in_turn(self.replay, self.visit.seeds, "replay of", places):
            rows.append(row)
            names.append(site)
        if (crop := self.parameters.crop) is not None:
            seeds = (self.visit.seeds("crop", step, place) for place in range(size))
            rows = [_cropped(row, crop, seed) for row, seed in zip(rows, seeds, strict=True)]
        # one by one, since a list would have to be copied to the device
        numbers = torch.stack([torch.full((), self.sites.index(name), device=self.visit.device) for name in names])
        return torch.cat([row.image for row in rows]), torch.cat([row.label for row in rows]), numbers, own


def learn(  # noqa: PLR0917 (what learns, from whom, from what, how long, and where its place is kept)
    denoiser: Denoiser,
    arrived: Denoiser | None,
    lesson: Lesson,
    schedule: Schedule,
    steps: int,
    checkpoint: Checkpoint,
    every: int,
) -> tuple[dict[str, Tensor], list[float]]:
    """Train `denoiser` in place; returns the state averaged over the steps, and every step's loss.

    Goes on from the checkpoint, which is renewed after `every` steps. `arrived` is the generator before the visit,
    where replays are learnt as it sees them; None: as they are.
    """
    visit, parameters = lesson.visit, lesson.parameters
    denoiser.train()
    denoiser.prompts.table.requires_grad_(parameters.prompts == "learnable")
    mean = {name: tensor.detach().clone() for name, tensor in denoiser.state_dict().items()}
    optimizer = _optimizer(denoiser, parameters)
    schedule, losses, start = schedule.to(visit.device), Losses(visit.device), 0
    if saved := checkpoint.load():
        start, state = saved
        losses = Losses(visit.device, state["losses"].tolist())
        denoiser.load_state_dict(_under("model/", state))
        mean = {name: tensor.to(visit.device) for name, tensor in _under("mean/", state).items()}
        restore_optimizer({k: t for k, t in state.items() if k.startswith(OPTIMIZER)}, denoiser, optimizer)
    with seeded(visit.seeds("generator"), visit.device):
        for step in range(start, steps):
            value = _loss(denoiser, arrived, lesson, schedule, step)
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
            _set_rates(optimizer, parameters, step / steps)
            optimizer.step()
            # with the usual warm-up, so that short trainings are not held back at their beginning
            decay = min(parameters.average, (1 + step) / (10 + step))
            now = denoiser.state_dict()
            torch._foreach_lerp_(list(mean.values()), [now[name] for name in mean], 1 - decay)
            keeps = (step + 1) % every == 0 and step + 1 < steps
            losses.add(value, read=keeps or step + 1 == steps)
            visit.report(step + 1, steps, losses.newest())
            if keeps:
                place = {f"model/{n}": t for n, t in now.items()} | {f"mean/{n}": t for n, t in mean.items()}
                place["losses"] = torch.tensor(losses.known, dtype=torch.float64)
                checkpoint.save(step + 1, place | optimizer_state(denoiser, optimizer))
    return mean, losses.known


def _loss(denoiser: Denoiser, arrived: Denoiser | None, lesson: Lesson, schedule: Schedule, step: int) -> Tensor:
    """Eq. 8 over one batch, at noise levels spread evenly over all."""
    visit, parameters = lesson.visit, lesson.parameters
    image, label, site, own = lesson.batch(step)
    draws = generator_on(visit.device, visit.seeds("noise", step))
    k = times(draws, len(image), schedule.steps)
    noise = torch.randn(image.shape, generator=draws, device=draws.device)
    noisy = noised(schedule, image, noise, k)
    with autocast(parameters.precision, visit.device, lesson.dims):
        if arrived is not None and own < len(image):
            with torch.no_grad():
                said = arrived(noisy[own:], label[own:], k[own:], site[own:]).float()
            if parameters.prediction == "x0":
                image = torch.cat([image[:own], said])
            else:
                noise = torch.cat([noise[:own], said])
        predicted = denoiser(noisy, label, k, site)
    return denoising_loss(schedule, predicted.float(), image, noise, k, parameters.prediction)


def _own(visit: Visit, place: int) -> Batch:
    """The sample at `place` of the endless shuffled stream of the site's own samples, turned about.

    Their intensities stay: a generator that learnt changed ones would make images of no scanner.
    """
    index = visit.seeds.sample(place, len(visit.train))
    found = visit.train.batch([index], [visit.seeds("generator augment", place)], GEOMETRY)
    return Batch(found.image.to(visit.device), found.label.to(visit.device))


def in_turn(replay: Replay, seeds: Seeds, purpose: str, places: Iterable[int]) -> Iterator[tuple[str, Batch]]:
    """The site and the one sample at each place of an endless stream, in which the replayed sites take turns.

    `purpose` tells streams apart; each shuffles every site's replays on its own.
    """
    sites = tuple(replay)
    for place in places:
        site = sites[place % len(sites)]
        batch, stream = replay[site], Seeds(derive(seeds.run, f"{purpose} {site}"), seeds.stop, seeds.site)
        index = stream.sample(place // len(sites), len(batch.image))
        yield site, Batch(batch.image[index : index + 1], batch.label[index : index + 1])


def _cropped(row: Batch, size: int, seed: int) -> Batch:
    """A window of `size` pixels along each axis, or the whole axis where that is shorter."""
    draws = torch.Generator().manual_seed(seed)
    where: list[EllipsisType | slice] = [...]
    for length in row.image.shape[2:]:
        start = int(torch.randint(max(1, length - size + 1), (), generator=draws))
        where.append(slice(start, start + size))
    return Batch(row.image[tuple(where)], row.label[tuple(where)])


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _optimizer(denoiser: Denoiser, parameters: DiffusionParameters) -> torch.optim.Optimizer:
    """Adam, as in the paper, with a rate of its own for the prompts."""
    named = dict(denoiser.named_parameters())
    place = list(named).index(TABLE)
    before, after = list(named.values())[:place], list(named.values())[place + 1 :]
    groups: list[dict[str, Any]] = [  # in the order of the parameters, whose names its saved state goes by
        {"params": before, "times": 1.0},
        {"params": [named[TABLE]], "times": parameters.prompt_lr},
        {"params": after, "times": 1.0},
    ]
    return torch.optim.Adam([group for group in groups if group["params"]], lr=parameters.generator_lr, fused=True)


def _set_rates(optimizer: torch.optim.Optimizer, parameters: DiffusionParameters, done: float) -> None:
    """The rate falls along a line to a tenth within the visit."""
    for group in optimizer.param_groups:
        group["lr"] = parameters.generator_lr * group["times"] * (1 - 0.9 * done)

"""Site-Modulated Diffusion (SMG-Learning, Sec. III-C): one denoiser and a prompt per site that replay earlier sites.

The images of a replay are made where it is used, from the masks of the site that the model is at; they do not travel.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from protos.handover import Handover, HandoverSchema, Kind, TensorSpec
from protos.plan import Plan, PositiveInt, Record
from strategies.data import Batch
from strategies.generative.denoiser import PROMPT, Denoiser, GeneratorChoice, Precision, autocast, fresh_denoiser
from strategies.generative.diffusion import Prediction, Sampler, Schedule, denoising_loss, noised, sample, times
from strategies.randomness import Seeds, derive
from strategies.strategy import specs
from strategies.training import OPTIMIZER, finite, optimizer_state, restore_optimizer
from strategies.visit import Checkpoint, Visit, seeded

LEVELS = 1000  # of noise, as in the paper
REPLAYED = "replayed"  # names, among the prompts, the tensor that says which sites can be replayed
TABLE = "unet.class_embedding.table"  # of the denoiser's state: the prompts
_TOGETHER = 16  # images that are sampled in one batch

Replay = Mapping[str, Batch]  # by earlier site: what the arrived generator made of it, and the masks it was made from


class DiffusionParameters(Record):
    """How the generator is built, trained and sampled. Defaults are for small budgets; the paper's stand beside."""

    generator: GeneratorChoice = GeneratorChoice()
    prediction: Prediction = "x0"  # the paper: eps, which at a small budget samples noise
    schedule: Literal["cosine", "linear"] = "cosine"  # the paper: linear, in all likelihood
    sampler: Sampler = "ddim"  # the paper: ancestral
    evaluations: Annotated[int, Field(ge=1, le=LEVELS)] = 25  # of the network per replayed image; the paper: 1000
    replays: PositiveInt | None = None  # images per earlier site; None: as many as the site has samples (the paper)
    crop: PositiveInt | None = None  # pixels along the axes of the windows that the generator learns from; None: all
    prompts: Literal["learnable", "fixed"] = "learnable"
    vectors: dict[str, tuple[Annotated[float, Field(allow_inf_nan=False)], ...]] | None = None  # fixed prompts, by site
    generator_steps: Annotated[int, Field(ge=0)] = 600  # per visit; the paper: 800 000
    generator_first_steps: Annotated[int, Field(ge=0)] | None = None  # at the first visit; None: as at the others
    generator_batch: PositiveInt = 16
    generator_lr: Annotated[float, Field(ge=0)] = 1e-3  # falls to a tenth within a visit; the paper: 1e-4
    prompt_lr: Annotated[float, Field(ge=0)] = 5.0  # times generator_lr
    average: Annotated[float, Field(ge=0, lt=1)] = 0.995  # of the weights over the steps; what travels
    precision: Precision = "auto"  # auto: bfloat16 where the processor has it


class SiteModulatedDiffusion:
    """The generator of one plan: what travels of it, how it replays, how it learns."""

    def __init__(self, plan: Plan, parameters: DiffusionParameters) -> None:
        self._plan = plan
        self._parameters = parameters
        self._schedule = Schedule.of(parameters.schedule, LEVELS)
        self._sites = tuple(dict.fromkeys(plan.sites))

    # What travels

    def schema(self) -> HandoverSchema:
        """The denoiser without prompts, a prompt for each of the plan's sites, and which of them can be replayed."""
        with torch.device("meta"):
            outline = Denoiser(self._plan.task, self._parameters.generator, len(self._sites)).state_dict()
        generator = specs({name: tensor for name, tensor in outline.items() if name != TABLE})
        prompts = {f"site/{site}": TensorSpec("float32", (PROMPT,)) for site in self._sites}
        prompts[REPLAYED] = TensorSpec("bool", (len(self._sites),))
        return HandoverSchema({Kind.GENERATOR: generator, Kind.PROMPTS: prompts})

    def first(self) -> Handover:
        """The generator before any visit, from the run's seed."""
        parameters = self._parameters
        denoiser = fresh_denoiser(
            self._plan.task, parameters.generator, self._sites, self._plan.seed, parameters.vectors
        )
        return self._pack(denoiser.state_dict(), frozenset())

    def _pack(self, state: Mapping[str, Tensor], replayed: frozenset[str]) -> Handover:
        generator = {name: tensor for name, tensor in state.items() if name != TABLE}
        prompts = {f"site/{site}": row for site, row in zip(self._sites, state[TABLE], strict=True)}
        prompts[REPLAYED] = torch.tensor([site in replayed for site in self._sites])
        return Handover.of(generator=generator, prompts=prompts)

    def _state(self, handover: Handover) -> dict[str, Tensor]:
        prompts = handover.state(Kind.PROMPTS)
        return handover.state(Kind.GENERATOR) | {TABLE: torch.stack([prompts[f"site/{s}"] for s in self._sites])}

    def replayed(self, handover: Handover) -> frozenset[str]:
        """The sites whose prompts have been learnt; a skipped visit leaves its site out."""
        flags = handover.state(Kind.PROMPTS)[REPLAYED]
        return frozenset(site for site, flag in zip(self._sites, flags.tolist(), strict=True) if flag)

    def _loaded(self, handover: Handover, device: torch.device) -> Denoiser:
        with seeded(0):  # the initialisation draws, and is overwritten
            denoiser = Denoiser(self._plan.task, self._parameters.generator, len(self._sites))
        denoiser.load_state_dict(self._state(handover))
        return denoiser.to(device)

    # Replay

    def replayer(self, handover: Handover, device: torch.device) -> "SiteReplayer":
        """The generator of `handover` as strategies.replayer.Replayer."""
        denoiser = self._loaded(handover, device).eval().requires_grad_(False)
        return SiteReplayer(
            denoiser, self._sites, self.replayed(handover), self._schedule, self._parameters, self._plan.task.channels
        )

    def replay(self, visit: Visit) -> Replay:
        """P: images of every earlier site, made by the arrived generator from masks of this site's training samples.

        Every training sample's mask is used in turn, augmented as in training, so that there may be more replays than
        samples. Without a training sample, or at the first visit, there is none.
        """
        earlier = sorted(self.replayed(visit.handover) - {visit.seeds.site}, key=self._sites.index)
        if not len(visit.train) or not earlier:
            return {}

        def make() -> dict[str, Tensor]:
            replayer = self.replayer(visit.handover, visit.device)
            made: dict[str, Tensor] = {}
            for site in earlier:
                label, seeds = self._masks(visit, site)
                made[f"{site}/image"] = replayer(site, label.to(visit.device), seeds)
                made[f"{site}/label"] = label.to(torch.uint8)
            return made

        made = visit.once(self._recipe(visit, "replay"), make)
        on = visit.device
        return {site: Batch(made[f"{site}/image"].to(on), made[f"{site}/label"].long().to(on)) for site in earlier}

    def _masks(self, visit: Visit, site: str) -> tuple[Tensor, list[int]]:
        samples = len(visit.train)
        numbers = range(self._parameters.replays or samples)
        seeds = [visit.seeds(f"replay of {site}", number) for number in numbers]
        labels = [
            visit.train.batch([visit.seeds.sample(number, samples)], [seed]).label
            for number, seed in zip(numbers, seeds, strict=True)
        ]
        return torch.cat(labels), seeds

    def _recipe(self, visit: Visit, what: str) -> dict[str, object]:
        """All that a replay or a generator depends on, beside this site's training cases."""
        task = self._plan.task.model_dump(mode="json")
        handover, parameters = visit.handover, self._parameters.model_dump(mode="json")
        return {
            "what": f"SMD {what}",
            "generator": [handover.digest(kind).hex() for kind in (Kind.GENERATOR, Kind.PROMPTS)],
            "sites": self._sites,
            "seeds": [visit.seeds.run, visit.seeds.stop, visit.seeds.site],
            "task": task,
            "augment": self._plan.training.augment,
            "threads": self._plan.training.threads,
            "parameters": {name: parameters[name] for name in DiffusionParameters.model_fields},
        }

    # Learning

    def learn(self, visit: Visit, replay: Replay, checkpoint: Checkpoint) -> tuple[Handover, list[float]]:
        """Update denoiser and prompts, one of them new, on this site and the replay (Eq. 8 and 9).

        Every replayed image comes with the mask that it was made from. Returns what travels and the loss, a mean per
        step. An equal generator is made once at a site, see strategies.visit.Once.
        """

        def make() -> dict[str, Tensor]:
            state, losses = self._train(visit, replay, checkpoint)
            return state | {"losses": torch.tensor(losses, dtype=torch.float64)}

        state = visit.once(self._recipe(visit, "generator"), make)
        losses = state.pop("losses").tolist()
        replayed = self.replayed(visit.handover) | ({visit.seeds.site} if losses else set())
        return self._pack(state, frozenset(replayed)), losses

    def steps(self, visit: Visit) -> int:
        """The generator's steps at this visit."""
        parameters = self._parameters
        if not len(visit.train):
            return 0
        first = parameters.generator_first_steps
        return parameters.generator_steps if first is None or self.replayed(visit.handover) else first

    def _train(self, visit: Visit, replay: Replay, checkpoint: Checkpoint) -> tuple[dict[str, Tensor], list[float]]:
        parameters, steps = self._parameters, self.steps(visit)
        denoiser = self._loaded(visit.handover, visit.device).train()
        denoiser.prompts.table.requires_grad_(parameters.prompts == "learnable")
        mean = {name: tensor.detach().clone() for name, tensor in denoiser.state_dict().items()}
        optimizer = _optimizer(denoiser, parameters)
        schedule, losses, start = self._schedule.to(visit.device), list[float](), 0
        if saved := checkpoint.load():
            start, state = saved
            losses = state["losses"].tolist()
            denoiser.load_state_dict(_under("model/", state))
            mean = {name: tensor.to(visit.device) for name, tensor in _under("mean/", state).items()}
            restore_optimizer({k: t for k, t in state.items() if k.startswith(OPTIMIZER)}, denoiser, optimizer)
        every = self._plan.training.checkpoint_every
        with seeded(visit.seeds("generator"), visit.device):
            for step in range(start, steps):
                image, label, site = self._batch(visit, replay, step)
                draws = torch.Generator().manual_seed(visit.seeds("noise", step))
                k = times(draws, len(image), schedule.steps).to(visit.device)
                noise = torch.randn(image.shape, generator=draws).to(visit.device)
                with autocast(parameters.precision, visit.device, self._plan.task.dims):
                    predicted = denoiser(noised(schedule, image, noise, k), label, k, site)
                value = denoising_loss(schedule, predicted.float(), image, noise, k, parameters.prediction)
                optimizer.zero_grad(set_to_none=True)
                value.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
                _set_rates(optimizer, parameters, step / steps)
                optimizer.step()
                # with the usual warm-up, so that short trainings are not held back at their beginning
                decay = min(parameters.average, (1 + step) / (10 + step))
                now = denoiser.state_dict()
                torch._foreach_lerp_(list(mean.values()), [now[name] for name in mean], 1 - decay)
                losses.append(finite(value))
                visit.report(step + 1, steps, {"generator_loss": losses[-1]})
                if (step + 1) % every == 0 and step + 1 < steps:
                    place = {f"model/{n}": t for n, t in now.items()} | {f"mean/{n}": t for n, t in mean.items()}
                    place["losses"] = torch.tensor(losses, dtype=torch.float64)
                    checkpoint.save(step + 1, place | optimizer_state(denoiser, optimizer))
        return mean, losses

    def _batch(self, visit: Visit, replay: Replay, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images, masks and sites of one step: as many of each site, taken in turn over the steps."""
        size = self._parameters.generator_batch
        names = (visit.seeds.site, *replay)
        places = range(step * size, (step + 1) * size)
        rows = [_row(visit, replay, names[place % len(names)], place // len(names)) for place in places]
        if (crop := self._parameters.crop) is not None:
            rows = [_cropped(row, crop, visit.seeds("crop", place)) for row, place in zip(rows, places, strict=True)]
        numbers = [self._sites.index(names[place % len(names)]) for place in places]
        image = torch.cat([row.image for row in rows])
        label = torch.cat([row.label for row in rows])
        return image, label, torch.tensor(numbers, device=visit.device)


def _row(visit: Visit, replay: Replay, site: str, place: int) -> Batch:
    """The sample at `place` of the endless shuffled stream of this site, augmented, or of a replayed one."""
    if site in replay:
        batch = replay[site]
        index = replace_site(visit.seeds, f"replay of {site}").sample(place, len(batch.image))
        return Batch(batch.image[index : index + 1], batch.label[index : index + 1])
    index = visit.seeds.sample(place, len(visit.train))
    found = visit.train.batch([index], [visit.seeds("generator augment", place)])
    return Batch(found.image.to(visit.device), found.label.to(visit.device))


def replace_site(seeds: Seeds, purpose: str) -> Seeds:
    """Seeds whose streams are another's than the site's own samples'."""
    return Seeds(derive(seeds.run, purpose), seeds.stop, seeds.site)


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


@dataclass
class SiteReplayer:
    """See strategies.replayer.Replayer."""

    denoiser: Denoiser
    numbers: Sequence[str]  # the sites in the order of the prompts
    sites: frozenset[str]
    schedule: Schedule
    parameters: DiffusionParameters
    channels: int

    def __call__(self, site: str, label: Tensor, seeds: Sequence[int]) -> Tensor:
        """See strategies.replayer.Replayer; raises ValueError for a site that has not been visited."""
        if site not in self.sites:
            raise ValueError(f"No replay of {site}: the generator has not learnt it.")
        return torch.cat([self._some(site, part, own) for part, own in _parts(label, seeds)])

    def _some(self, site: str, label: Tensor, seeds: Sequence[int]) -> Tensor:
        device = next(self.denoiser.parameters()).device
        shape = (1, self.channels, *label.shape[2:])
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.cat([torch.randn(shape, generator=own) for own in draws]).to(device)
        number = torch.full((len(label),), self.numbers.index(site), device=device)
        label = label.to(device)

        def denoise(noisy: Tensor, k: Tensor) -> Tensor:
            with autocast(self.parameters.precision, device, label.ndim - 2):
                found: Tensor = self.denoiser(noisy, label, k, number)
                return found

        return sample(
            self.schedule,
            denoise,
            noise,
            sampler=self.parameters.sampler,
            evaluations=self.parameters.evaluations,
            prediction=self.parameters.prediction,
            generator=torch.Generator(device).manual_seed(derive("ancestral", *seeds)),
        )


def _parts(label: Tensor, seeds: Sequence[int]) -> Iterator[tuple[Tensor, Sequence[int]]]:
    for start in range(0, len(label), _TOGETHER):
        yield label[start : start + _TOGETHER], seeds[start : start + _TOGETHER]

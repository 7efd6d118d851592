"""Site-Modulated Diffusion (SMG-Learning, Sec. III-C): one denoiser and a prompt per site that replay earlier sites.

The images of a replay are made where it is used, from the masks of the site that the model is at; they do not travel.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protos.handover import Handover, HandoverSchema, Kind, TensorSpec
from protos.plan import Augmentation, Plan
from strategies.data import Batch
from strategies.generative.denoiser import Denoiser, autocast, fresh_denoiser, precision_on
from strategies.generative.diffusion import Schedule, sample
from strategies.generative.masks import NUMBERS, fitted, measure
from strategies.generative.parameters import LEVELS, PROMPT, DiffusionParameters
from strategies.generative.smd_learning import TABLE, Lesson, Replay, learn
from strategies.randomness import derive
from strategies.strategy import specs
from strategies.visit import Checkpoint, Visit, seeded

REPLAYED = "replayed"  # names, among the prompts, the tensor that says which sites can be replayed
MASKS = "masks"  # the one that tells of their masks, see masks.measure
_TOGETHER = 16  # images that are sampled in one batch
_FLIPPED: frozenset[Augmentation] = frozenset({"flip"})  # of the augmentations: what keeps a mask a mask of the site


class SiteModulatedDiffusion:
    """The generator of one plan: what travels of it, how it replays, how it learns."""

    def __init__(self, plan: Plan, parameters: DiffusionParameters) -> None:
        self._plan = plan
        self._parameters = parameters
        self._schedule = Schedule.of(parameters.schedule, LEVELS)
        self._sites = tuple(dict.fromkeys(plan.sites))
        self._fits = parameters.replay_masks == "fitted"

    # What travels

    def schema(self) -> HandoverSchema:
        """The denoiser without prompts, a prompt for each of the plan's sites, and which of them can be replayed."""
        with torch.device("meta"):
            outline = Denoiser(self._plan.task, self._parameters.generator, len(self._sites)).state_dict()
        generator = specs({name: tensor for name, tensor in outline.items() if name != TABLE})
        prompts = {f"site/{site}": TensorSpec("float32", (PROMPT,)) for site in self._sites}
        prompts[REPLAYED] = TensorSpec("bool", (len(self._sites),))
        if self._fits:
            prompts[MASKS] = TensorSpec("float32", (len(self._sites), NUMBERS))
        return HandoverSchema({Kind.GENERATOR: generator, Kind.PROMPTS: prompts})

    def first(self) -> Handover:
        """The generator before any visit, from the run's seed."""
        parameters = self._parameters
        denoiser = fresh_denoiser(
            self._plan.task, parameters.generator, self._sites, self._plan.seed, parameters.vectors
        )
        return self._pack(denoiser.state_dict(), frozenset(), torch.zeros(len(self._sites), NUMBERS))

    def _pack(self, state: Mapping[str, Tensor], replayed: frozenset[str], masks: Tensor) -> Handover:
        generator = {name: tensor for name, tensor in state.items() if name != TABLE}
        prompts = {f"site/{site}": row for site, row in zip(self._sites, state[TABLE], strict=True)}
        prompts[REPLAYED] = torch.tensor([site in replayed for site in self._sites])
        if self._fits:
            prompts[MASKS] = masks
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

        Every training sample's mask is used in turn, flipped where training flips, so that there may be more replays
        than samples; whoever learns from a replay augments it further. Without a training sample, or at the first
        visit, there is none.
        """
        earlier = sorted(self.replayed(visit.handover) - {visit.seeds.site}, key=self._sites.index)
        if not len(visit.train) or not earlier:
            return {}

        def make() -> dict[str, Tensor]:
            replayer = self.replayer(visit.handover, visit.device)
            made: dict[str, Tensor] = {}
            own = self._measured(visit)
            for site in earlier:
                label, seeds = self._masks(visit, site, own)
                made[f"{site}/image"] = replayer(site, label.to(visit.device), seeds)
                made[f"{site}/label"] = label.to(torch.uint8)
            return made

        made = visit.once(self._recipe(visit, "replay"), make)
        on = visit.device
        return {site: Batch(made[f"{site}/image"].to(on), made[f"{site}/label"].long().to(on)) for site in earlier}

    def _masks(self, visit: Visit, site: str, own: Tensor) -> tuple[Tensor, list[int]]:
        """A mask per replay of `site`, int64 [N, 1, *size], and a seed for each; `own` tells of this site's masks."""
        samples = len(visit.train)
        numbers = range(self._parameters.replays or samples)
        seeds = [visit.seeds(f"replay of {site}", number) for number in numbers]
        known = self._known(visit.handover)[self._sites.index(site)]

        def drawn(number: int) -> Callable[[int], Tensor]:
            def draw(further: int) -> Tensor:
                seed = visit.seeds(f"replay of {site}", number, further) if further else seeds[number]
                index = visit.seeds.sample(number + further * len(seeds), samples)
                return visit.train.batch([index], [seed], only=_FLIPPED).label.cpu()

            return draw

        return torch.cat([fitted(drawn(n), own, known, seed) for n, seed in zip(numbers, seeds, strict=True)]), seeds

    def _measured(self, visit: Visit) -> Tensor:
        """What travels of this site's masks: float32 [NUMBERS], zeros where none are fitted."""
        return measure(visit.train, visit.seeds) if self._fits and len(visit.train) else torch.zeros(NUMBERS)

    def _known(self, handover: Handover) -> Tensor:
        """What arrived of the sites' masks: float32 [sites, NUMBERS], zeros where none are fitted."""
        return handover.state(Kind.PROMPTS)[MASKS] if self._fits else torch.zeros(len(self._sites), NUMBERS)

    def _recipe(self, visit: Visit, what: str) -> dict[str, object]:
        """All that a replay or a generator depends on, beside this site's training cases."""
        task = self._plan.task.model_dump(mode="json")
        handover, parameters = visit.handover, self._parameters.model_dump(mode="json")
        # not `auto`: a home may be taken up by another processor
        parameters["precision"] = precision_on(self._parameters.precision, visit.device, self._plan.task.dims)
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
            denoiser = self._loaded(visit.handover, visit.device)
            teaches = self._parameters.replay_targets == "arrived"
            arrived = self._loaded(visit.handover, visit.device).eval() if teaches else None
            lesson = Lesson(visit, replay, self._sites, self._parameters, self._plan.task.dims)
            every = self._plan.training.checkpoint_every
            state, losses = learn(denoiser, arrived, lesson, self._schedule, self.steps(visit), checkpoint, every)
            return state | {"losses": torch.tensor(losses, dtype=torch.float64), MASKS: self._measured(visit)}

        state = visit.once(self._recipe(visit, "generator"), make)
        losses, measured = state.pop("losses").tolist(), state.pop(MASKS)
        replayed, masks = self.replayed(visit.handover), self._known(visit.handover).clone()
        if losses:
            replayed |= {visit.seeds.site}
            masks[self._sites.index(visit.seeds.site)] = measured
        return self._pack(state, replayed, masks), losses

    def steps(self, visit: Visit) -> int:
        """The generator's steps at this visit."""
        parameters = self._parameters
        if not len(visit.train):
            return 0
        first = parameters.generator_first_steps
        return parameters.generator_steps if first is None or self.replayed(visit.handover) else first


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

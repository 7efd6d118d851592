"""SMG-Learning (Xu et al. 2024, arXiv 2406.18037): Dual-Meta on the incoming site and on replays of the earlier ones.

A visit: replay every earlier site with the arrived generator and prompts (`smd.py`), train the segmentation network by
Dual-Meta (`dual_meta.py`), update generator and prompts, hand over all three. No code was released; what the paper
leaves open is said where it is decided.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Literal

import torch
from monai.losses import DiceCELoss
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from protos.declaration import Bound, Declaration
from protos.handover import Handover, HandoverSchema, Kind, TensorSpec
from protos.plan import Plan
from strategies.data import Batch
from strategies.generative.course import CURVE, Curves, Part, points
from strategies.generative.dual_meta import Alignment, Pair, aligned, draw_split, dual_meta
from strategies.generative.parameters import PROMPT, DiffusionParameters
from strategies.generative.smd import SiteModulatedDiffusion, SiteReplayer
from strategies.generative.smd_learning import Replay, in_turn
from strategies.generative.smg_kept import AlignedReplay
from strategies.losses import segmentation_loss
from strategies.randomness import generator_on
from strategies.strategy import LOSS, VISIT_METRICS, Strategy, UnknownParameter
from strategies.training import backward, train, visit_steps
from strategies.visit import Departure, Visit

_TOGETHER = 16  # replays that are labelled in one batch
_CURVES: Mapping[str, Bound] = {"loss": LOSS, "replay_loss": LOSS, "alignment": Bound(-1, 1), "generator_loss": LOSS}


class SMGParameters(DiffusionParameters):
    """gamma and beta are the paper's; at them the look-aheads change an update by about a percent."""

    gamma: Annotated[float, Field(ge=0)] = 5e-5
    beta: Annotated[float, Field(ge=0)] = 5e-4
    # what is aligned: the incoming site's gradient with the replay's, those of random halves of both; without one of
    # them it is the paper's "w/o orientation" or "w/o arbitrary", without both the naive sum of the two losses.
    orientation: bool = True
    arbitrary: bool = True
    # without, it is the paper's "w/o SMD": no generator, and each earlier site rehearses at most `cases` cases at home
    smd: bool = True
    cases: Annotated[int, Field(ge=0, le=20)] = 20
    # the labels that the segmentation network learns a replay with: the mask it was made from (the paper), or what the
    # arrived network says of it, as classes or as probabilities, or the mean of mask and probabilities
    replay_labels: Literal["mask", "arrived", "arrived_soft", "blended"] = "blended"
    replay_noise: Annotated[float, Field(ge=0)] = 0.0  # the largest standard deviation of noise laid over a replay

    @model_validator(mode="after")
    def _prompts_given(self) -> "SMGParameters":
        if (self.prompts == "fixed") != (self.vectors is not None):
            raise ValueError("prompts: fixed needs vectors, and learnable prompts take none")
        return self

    @property
    def alignment(self) -> Alignment:
        """What is aligned, at which rates."""
        return Alignment(self.gamma, self.beta, self.orientation, self.arbitrary)


class SMG(Strategy):
    """Weights, one generator and one prompt per site travel; replays are made where they are used and stay there."""

    name = "smg"
    summary = "aligned gradients on the incoming site and on diffusion replays of the earlier ones"
    source = "Xu et al. 2024 (SMG-Learning)"
    carries = frozenset({Kind.WEIGHTS, Kind.GENERATOR, Kind.PROMPTS})
    Parameters = SMGParameters
    neutral = {"smd": False, "cases": 0}

    parameters: SMGParameters

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        if plan.task.soft and self.parameters.smd:
            raise UnknownParameter("strategy.name: smg replays masks of classes; set task.soft to false.")
        if (vectors := self.parameters.vectors) is not None:
            _check_vectors(vectors, plan.sites)
        self._diffusion = SiteModulatedDiffusion(plan, self.parameters)

    @classmethod
    def of(cls, plan: Plan) -> Strategy:
        """With `smd: false` only weights travel, and gradients of the cases that earlier sites keep (`smg_kept.py`)."""
        strategy = cls(plan)
        parameters = strategy.parameters
        return strategy if parameters.smd else AlignedReplay(plan, parameters.cases, parameters.alignment)

    def schema(self) -> HandoverSchema:
        """Weights, generator and prompts."""
        return HandoverSchema({**super().schema().tensors, **_present(self._diffusion.schema())})

    def first_handover(self) -> Handover:
        """Network and generator as initialised from the run's seed."""
        generator = self._diffusion.first()
        return replace(super().first_handover(), generator=generator.generator, prompts=generator.prompts)

    def declares(self, action: str) -> Declaration:
        """The handover, and the visit's curves."""
        curves = {f"{name}.{point:02}": bound for name, bound in _CURVES.items() for point in range(CURVE)}
        return Declaration(self.schema(), {**VISIT_METRICS, **curves})

    def scoring_kinds(self, site: str, stop: int) -> frozenset[Kind]:
        """A site that has been visited is sent the generator too, and measures how far its replay has drifted."""
        return self.carries if site in self.plan.sites[: stop + 1] else frozenset({Kind.WEIGHTS})

    def replayer(self, handover: Handover, device: torch.device) -> SiteReplayer | None:
        """The handover's generator, if it has one."""
        return self._diffusion.replayer(handover, device) if handover.generator else None

    def visit(self, visit: Visit) -> Departure:
        """Replay, update generator and prompts, train the segmentation network.

        The generator does not depend on the network, so that it does not matter which learns first.
        """
        own, generator_steps = visit_steps(self.plan.training, len(visit.train)), self._diffusion.steps(visit)

        def reported(first: int) -> Visit:
            whole = own + generator_steps
            return replace(visit, report=lambda step, _, scalars: visit.report(first + step, whole, scalars))

        replay = self._diffusion.replay(visit)
        part = Part(visit.checkpoint, "generator")
        generator, generator_losses = self._diffusion.learn(reported(0), replay, part)
        model, metrics, curves = self._segment(reported(generator_steps), replay)
        handover = replace(
            Handover.of(weights=model.state_dict()), generator=generator.generator, prompts=generator.prompts
        )
        courses = {"generator_loss": generator_losses, **curves}
        return Departure(handover, {**metrics, **{k: v for name, of in courses.items() for k, v in points(name, of)}})

    def _segment(
        self, visit: Visit, replay: Replay
    ) -> tuple[nn.Module, Mapping[str, int | float], Mapping[str, list[float]]]:
        """Train the arrived network; at the first visit, where nothing can be replayed, by plain steps.

        (The paper does not say what it does there.)
        """
        model = self.loaded(visit.handover, visit.device)
        labelled = self._labelled(model.eval(), replay)
        curves = Curves()
        training, alignment = self.plan.training, self.parameters.alignment
        size, every = training.batch_size * training.patches, max(1, visit_steps(training, len(visit.train)) // CURVE)

        def loss(batch: Batch) -> Tensor:
            return replay_loss(self.plan, model(batch.image), batch.label)

        def gradients(batch: Batch, step: int) -> Tensor:
            if not labelled:
                value = backward(loss)(batch, step)
                curves.add(value.detach())
                return value
            drawn = _roughened(_drawn(visit, labelled, step, size), self.parameters.replay_noise, visit, step)
            split = draw_split(len(batch.image), len(drawn.image), visit.seeds("split", step))
            pair = Pair(batch, drawn, split)
            cosine = aligned(model, loss, pair) if step % every == 0 else None
            found = dual_meta(model, loss, pair, alignment)
            for name, parameter in model.named_parameters():
                parameter.grad = found.gradient[name]
            curves.add(found.incoming, found.replay, cosine)
            return found.incoming

        checkpoint = Part(visit.checkpoint, "network", curves)
        metrics = train(model, training, replace(visit, checkpoint=checkpoint), gradients=gradients)
        return model, metrics, curves.values()

    def _labelled(self, model: nn.Module, replay: Replay) -> Replay:
        """The replay with the labels that it is learnt with; probabilities are float32 [N, classes, *size]."""
        kind = self.parameters.replay_labels
        if kind == "mask":
            return replay
        labelled = {}
        with torch.no_grad():
            for site, batch in replay.items():
                said = torch.cat([model(part) for part in torch.split(batch.image, _TOGETHER)])
                label = said.argmax(dim=1, keepdim=True) if kind == "arrived" else said.softmax(dim=1)
                if kind == "blended":
                    mask = functional.one_hot(batch.label[:, 0], said.shape[1]).movedim(-1, 1)
                    label = (label + mask) / 2
                labelled[site] = Batch(batch.image, label)
        return labelled


def replay_loss(plan: Plan, logits: Tensor, label: Tensor) -> Tensor:
    """The plan's segmentation loss; against probabilities (floating, [N, classes, *size]) the same of soft labels.

    Dice then has squared sums below the fraction: only so is it least where prediction and label agree.
    """
    if not label.is_floating_point():
        return segmentation_loss(logits, label, plan.training.loss)
    dice, ce = {"dice_ce": (1.0, 1.0), "dice": (1.0, 0.0), "ce": (0.0, 1.0)}[plan.training.loss]
    soft = DiceCELoss(include_background=False, softmax=True, squared_pred=True, lambda_dice=dice, lambda_ce=ce)
    value: Tensor = soft(logits, label)
    return value


def _drawn(visit: Visit, replay: Replay, step: int, size: int) -> Batch:
    """`size` replayed samples, augmented like real ones, as many of each earlier site: they take turns."""
    places = range(step * size, (step + 1) * size)
    rows = [row for _, row in in_turn(replay, visit.seeds, "learning from", places)]
    drawn = Batch(torch.cat([row.image for row in rows]), torch.cat([row.label for row in rows]))
    return visit.augment(drawn, [visit.seeds("augment replay", place) for place in places])


def _roughened(batch: Batch, most: float, visit: Visit, step: int) -> Batch:
    """With noise over every image, of a standard deviation drawn from [0, most]; labels stay as they are."""
    if not most:
        return batch
    draws = generator_on(visit.device, visit.seeds("replay noise", step))
    shape = (len(batch.image), *[1] * (batch.image.ndim - 1))
    size = torch.rand(shape, generator=draws, device=draws.device) * most
    noise = torch.randn(batch.image.shape, generator=draws, device=draws.device) * size
    return Batch(batch.image + noise, batch.label)


def _check_vectors(vectors: Mapping[str, Sequence[float]], sites: Sequence[str]) -> None:
    if set(vectors) != set(sites) or any(len(vector) != PROMPT for vector in vectors.values()):
        raise UnknownParameter(f"strategy.vectors: give every site of the scenario {PROMPT} numbers, and no other.")


def _present(schema: HandoverSchema) -> dict[Kind, Mapping[str, TensorSpec]]:
    return {kind: schema.tensors[kind] for kind in schema.kinds}

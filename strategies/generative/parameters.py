"""The settings of Site-Modulated Diffusion (SMG-Learning, Sec. III-C and IV-B): how a generator is built and learns."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from protos.plan import PositiveInt, Record
from strategies.generative.diffusion import Prediction, Sampler

PROMPT = 512  # floats of a prompt; the paper's, whose time embedding is as wide
LEVELS = 1000  # of noise, as in the paper
Precision = Literal["auto", "float32", "bfloat16"]


class GeneratorChoice(Record):
    """The denoiser's size; the paper's (Sec. IV-B) begins with 128 channels and attends at 16 x 16 pixels.

    `unshuffle` folds squares (cubes) of so many pixels into channels first, which makes a small generator fast.
    """

    channels: tuple[PositiveInt, ...] = (32, 64, 96)  # per level, finest first; multiples of 8
    attention: tuple[bool, ...] | None = None  # per level; None: only in the middle, where MONAI always attends
    blocks: PositiveInt = 1  # residual ones per level
    unshuffle: Literal[1, 2, 4] = 2

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        if not self.channels or any(number % 8 for number in self.channels):
            raise ValueError("channels must be multiples of 8, at least one")
        if self.attention is not None and len(self.attention) != len(self.channels):
            raise ValueError("attention needs one truth value per level of channels")
        return self


class DiffusionParameters(Record):
    """How the generator is built, trained and sampled. Defaults are for small budgets; the paper's stand beside."""

    generator: GeneratorChoice = GeneratorChoice()
    prediction: Prediction = "x0"  # the paper: eps, which at a small budget samples noise
    schedule: Literal["cosine", "linear"] = "cosine"  # the paper: linear, in all likelihood
    sampler: Sampler = "ddim"  # the paper: ancestral
    evaluations: Annotated[int, Field(ge=1, le=LEVELS)] = 25  # of the network per replayed image; the paper: 1000
    replays: PositiveInt | None = None  # images per earlier site; None: as many as the site has samples (the paper)
    # the masks that replays are made from: those of the incoming site (the paper), or these after they were brought to
    # the size and share of the replayed site's structures, of which four numbers then travel (masks.py)
    replay_masks: Literal["incoming", "fitted"] = "fitted"
    crop: PositiveInt | None = None  # pixels along the axes of the windows that the generator learns from; None: all
    prompts: Literal["learnable", "fixed"] = "learnable"
    vectors: dict[str, tuple[Annotated[float, Field(allow_inf_nan=False)], ...]] | None = None  # fixed prompts, by site
    generator_steps: Annotated[int, Field(ge=0)] = 600  # per visit; the paper: 800 000
    generator_first_steps: Annotated[int, Field(ge=0)] | None = None  # at the first visit; None: as at the others
    generator_batch: Annotated[int, Field(ge=2)] = 16  # one image of the site and one replay at the least
    generator_lr: Annotated[float, Field(ge=0)] = 1e-3  # falls to a tenth within a visit; the paper: 1e-4
    prompt_lr: Annotated[float, Field(ge=0)] = 5.0  # times generator_lr
    average: Annotated[float, Field(ge=0, lt=1)] = 0.995  # of the weights over the steps; what travels
    incoming_share: Annotated[float, Field(gt=0, lt=1)] | None = None  # of a batch; None: as much as any other site's
    # what the replayed part of a batch is to become: the replayed image (the paper), or what the arrived generator says
    # of it at the same noise
    replay_targets: Literal["image", "arrived"] = "image"
    precision: Precision = "auto"  # auto: bfloat16 where the processor has it

"""What the coordinator tells every node of a run: the task, the network, the training, the split.

A scenario holds a plan; a node receives it with every request and validates it anew. Unknown keys are errors on
both sides, so that a spelling mistake can never change an experiment in silence.
"""

import hashlib
import json
import re
from pathlib import PurePath
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

PositiveInt = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
SiteName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}$")]


class Record(BaseModel):
    """Base of every validated record: immutable, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)  # JSON has no infinity


class Task(Record):
    """What is segmented, and the grid it is learnt on."""

    dims: Literal[2, 3] = 2
    plane: Literal["axial", "coronal", "sagittal"] = "axial"  # in which volumes are sliced for dims 2
    channels: PositiveInt = 1
    # pixels or voxels, in the order of the image's axes (row, column); in 3D (64, 64, 64) unless told
    size: tuple[PositiveInt, ...] = (128, 128)
    classes: tuple[str, ...]  # the first is the background
    # labels stay shares in [0, 1], one channel per structure, instead of class numbers (SoftSeg, Gros et al. 2021)
    soft: bool = False
    intensity: Literal["zscore", "minmax", "symmetric", "percentile", "none"] = "zscore"  # per image and channel
    # resize: the whole image is brought to `size`; patch: `size` is a window on the image at `spacing`
    fit: Literal["resize", "patch"] = "resize"
    spacing: tuple[Annotated[float, Field(gt=0)], ...] | None = None  # mm; None keeps each image's own; patch only
    foreground: Fraction = 0.5  # share of training windows about a labelled pixel, drawn by its label; patch only

    @model_validator(mode="before")
    @classmethod
    def _size_by_dims(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("dims") == 3 and "size" not in value:
            return value | {"size": (64, 64, 64)}
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.dims == 3 and self.plane != "axial":
            raise ValueError(
                f"plane is {self.plane} but dims is 3, where nothing is sliced; remove plane or set dims to 2"
            )
        if len(self.size) != self.dims:
            raise ValueError(f"size has {len(self.size)} numbers but dims is {self.dims}; give one number per axis")
        if self.spacing is not None and len(self.spacing) != self.dims:
            raise ValueError(f"spacing has {len(self.spacing)} numbers but dims is {self.dims}; give one per axis")
        if self.spacing is not None and self.fit == "resize":
            raise ValueError("spacing needs fit: patch, since fit: resize brings every image to size")
        if len(self.classes) < 2:
            raise ValueError("classes needs the background and at least one structure")
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes names one class twice; give every class a name of its own")
        return self

    @property
    def padding(self) -> float:
        """What an image that is smaller than a window is surrounded by: black, or the mean with zscore."""
        return -1.0 if self.intensity == "symmetric" else 0.0


class NetworkChoice(Record):
    """A MONAI network without running statistics (docs/architecture.md says why)."""

    name: Literal["unet", "basic_unet"] = "unet"
    channels: tuple[PositiveInt, ...] = (8, 16, 32, 64, 128)  # per level, finest first
    norm: Literal["instance", "group"] = "instance"
    residual_units: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _enough_levels(self) -> Self:
        if len(self.channels) < 2:
            raise ValueError("channels needs at least two levels")
        if self.name == "basic_unet" and len(self.channels) != 6:
            raise ValueError("basic_unet takes exactly six channel numbers: five levels and the last up-sampling")
        return self


Augmentation = Literal["flip", "rotate", "scale", "intensity", "noise"]


class Training(Record):
    """The ordinary training loop of one visit."""

    steps: Annotated[int, Field(ge=0)] = 300
    epochs: PositiveInt | None = None  # instead of steps: as many as take each of the site's samples so often
    batch_size: PositiveInt = 8
    patches: PositiveInt = 1  # windows (or augmentations) of each sample of a batch
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: Annotated[float, Field(ge=0)] = 1e-3
    lr_step: PositiveInt | None = None  # the rate is multiplied by lr_factor every so many steps, or epochs
    lr_factor: Fraction = 0.5
    # first: later visits keep the rate that the first one ended with; all: every visit begins at lr
    lr_decay_visits: Literal["all", "first"] = "all"
    momentum: Fraction = 0.9  # sgd only
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    loss: Literal["dice_ce", "dice", "ce"] = "dice_ce"  # per sample, then the mean over samples
    augment: tuple[Augmentation, ...] = ()
    checkpoint_every: PositiveInt = 100  # steps; at most so many are repeated after a crash
    threads: PositiveInt = 1  # CPU threads: part of the plan because sums change with it in the last bit

    @field_validator("augment")
    @classmethod
    def _once_each(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("augment names one augmentation twice")
        return value


class GroupByPattern(Record):
    """The patient is what a regular expression's group `patient` (or its first group) finds in the case name."""

    pattern: str

    @field_validator("pattern")
    @classmethod
    def _has_a_group(cls, value: str) -> str:
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression ({error})") from error
        if groups < 1:
            raise ValueError(f"{value!r} has no group; put the part that names the patient in brackets")
        return value


class CaseTable(Record):
    """A column of a CSV file in the site's folder, with a row per case."""

    csv: str
    column: str
    case: str = "case"  # the column that holds the case's base name

    @field_validator("csv")
    @classmethod
    def _inside_the_folder(cls, value: str) -> str:
        path = PurePath(value)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{value!r} leaves the site's folder; give a path inside it")
        return value


class GroupByTable(CaseTable):
    """The patient stands in a column of a CSV file in the site's folder."""


class PartsByTable(CaseTable):
    """The part (train, val or test) stands in a column of a CSV file in the site's folder."""

    column: str = "part"


def _group_kind(value: Any) -> str | None:
    if isinstance(value, GroupByTable) or (isinstance(value, dict) and "csv" in value):
        return "table"
    if isinstance(value, dict | GroupByPattern):
        return "pattern"
    return "case" if isinstance(value, str) else None


# One branch is chosen before it is validated, so that a mistake gives one message and not one per branch.
Group = Annotated[
    Annotated[Literal["case"], Tag("case")]
    | Annotated[GroupByPattern, Tag("pattern")]
    | Annotated[GroupByTable, Tag("table")],
    Discriminator(
        _group_kind,
        custom_error_type="group",
        custom_error_message="should be case, {pattern: REGULAR_EXPRESSION} or {csv: FILE, column: NAME}",
    ),
]


class Split(Record):
    """Fractions of patients, where who lands where depends on the patient and the split's seed alone, or a table."""

    train: Fraction = 0.6
    val: Fraction = 0.15
    test: Fraction = 0.25
    group: Group = "case"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # not the run's seed: a study over seeds keeps its test cases
    table: PartsByTable | None = None  # a published split, instead of the fractions and the seed

    @model_validator(mode="after")
    def _table_alone(self) -> Self:
        replaced = ("train", "val", "test", "seed")
        changed = [key for key in replaced if getattr(self, key) != type(self).model_fields[key].default]
        if self.table is not None and changed:
            raise ValueError(f"table says the part of every case, so {changed[0]} has no effect; remove one of them")
        return self

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train, val and test sum to {total:g}; they must sum to 1")
        return self

    def at(self, unseen: bool) -> Self:
        """The split as a site reads it: where the site is only scored, every case is a test case without a table."""
        return self.model_copy(update={"table": None}) if unseen else self


# The part whose cases every score is over. With `val`, which is for searches, no test case is even decoded.
Scored = Literal["test", "val"]


class PhantomSite(Record):
    """A synthetic hospital: which anatomy, which appearance, how many cases (node/phantoms)."""

    task: str
    appearance: Annotated[int, Field(ge=0)] = 0
    cases: Annotated[int, Field(gt=0)] = 40
    size: Annotated[int, Field(ge=16)] = 64  # pixels along rows and columns; volumes have fewer slices
    seed: int = 0


class StrategyChoice(BaseModel):
    """A strategy's name and its own parameters, which the strategy itself validates."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str

    @property
    def parameters(self) -> dict[str, Any]:
        """All keys but the name."""
        return dict(self.model_extra or {})

    @property
    def in_words(self) -> str:
        """The name, and the parameters where some are given: `replay (mode: interleaved)`."""
        words = {
            key: value if isinstance(value, str) else json.dumps(value, default=str)
            for key, value in self.parameters.items()
        }
        given = ", ".join(f"{key}: {value}" for key, value in words.items())
        return f"{self.name} ({given})" if given else self.name


class Plan(Record):
    """Everything a node must know to learn and to score; together with the site's data it fixes every bit."""

    task: Task
    strategy: StrategyChoice
    network: NetworkChoice = NetworkChoice()
    training: Training = Training()
    split: Split = Split()
    scored: Scored = "test"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    sites: tuple[SiteName, ...]  # in visiting order

    @model_validator(mode="after")
    def _fitting(self) -> Self:
        check_loss(self.task, self.training)
        return self

    @property
    def scored_cases(self) -> str:
        """What every score is over, in words."""
        return "test cases" if self.scored == "test" else "validation cases"

    def digest(self) -> str:
        """SHA-256 of the plan as canonical JSON, as 64 hexadecimal digits."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def check_loss(task: Task, training: Training) -> None:
    """Raise ValueError if a soft task is to be learnt with a loss that needs class numbers."""
    if task.soft and training.loss != "dice":
        raise ValueError(f"soft labels are learnt with Dice, not {training.loss}; set training.loss to dice")

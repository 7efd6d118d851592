"""The scenario: the YAML file that says what to run. Every fault is one sentence: file, key, remedy."""

import re
import shlex
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BeforeValidator, Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from coordinator.wording import sentences
from protos import strict_yaml
from protos.plan import (
    NetworkChoice,
    PhantomSite,
    Plan,
    Record,
    Scored,
    SiteName,
    Split,
    StrategyChoice,
    Task,
    Training,
    check_loss,
)

Seed = Annotated[int, Field(ge=0, lt=2**32)]


class ScenarioError(ValueError):
    """A scenario that cannot be used; every line of the text is one sentence with file, key and remedy."""


def _seconds(value: Any) -> Any:
    """`90 s`, `30 min`, `2 h` or `1 d` in seconds; what is written otherwise is left for the validation to refuse."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    return float(match[1]) * _UNITS[match[2]] if match else value


_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(rf"\s*(\d+(?:\.\d+)?)\s*({'|'.join(_UNITS)})\s*")


class SkipInstead(Record):
    """Go on without the site, in the name of a person who answers for it."""

    skip: Annotated[str, Field(min_length=1, max_length=80)]


class Patience(Record):
    """What becomes of a stop whose site is away: how long it is waited for, and what then."""

    wait: Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=1e9)] = 1800.0  # seconds
    then: Literal["fail", "wait"] | SkipInstead = "fail"  # wait: for as long as it takes

    @property
    def seconds(self) -> float:
        """How long a site may be away."""
        return float("inf") if self.then == "wait" else self.wait


class SiteEntry(Record):
    """One hospital of the simulation: a folder of images, or a phantom."""

    name: SiteName
    path: Path | None = None  # relative to the data folder; default: the site's name
    labels: dict[int, str] | None = None  # value in the label files -> class; default: values are class numbers
    phantom: PhantomSite | None = None
    patience: Patience | None = None  # default: the scenario's

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.path is not None and self.phantom is not None:
            raise ValueError("a site has either a path or a phantom; remove one of them")
        return self


class Shuffle(Record):
    """A visiting order drawn from a seed of its own."""

    shuffle: Annotated[int, Field(ge=0)]


def _order_kind(value: Any) -> str | None:
    if isinstance(value, dict | Shuffle):
        return "shuffle"
    if isinstance(value, list | tuple):
        return "list"
    return "word" if isinstance(value, str) else None


# One branch is chosen before it is validated, so that a mistake gives one message and not one per branch.
Order = Annotated[
    Annotated[Literal["listed", "reversed"], Tag("word")]
    | Annotated[Shuffle, Tag("shuffle")]
    | Annotated[tuple[SiteName, ...], Tag("list")],
    Discriminator(
        _order_kind,
        custom_error_type="order",
        custom_error_message="should be listed, reversed, {shuffle: NUMBER} or a list of all sites",
    ),
]


class Study(Record):
    """Several runs to compare: every combination of what is listed; an empty list means the scenario's own."""

    seeds: tuple[Seed, ...] = ()
    strategies: tuple[StrategyChoice, ...] = ()
    orders: tuple[Order, ...] = ()
    shuffles: Annotated[int, Field(ge=0, le=1000)] = 0  # so many orders besides, drawn with the seeds 0, 1, ...

    @field_validator("strategies", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        return [_named(item) for item in value] if isinstance(value, list | tuple) else value

    def every_order(self) -> tuple[Order, ...]:
        """The listed orders, then the shuffled ones."""
        return (*self.orders, *(Shuffle(shuffle=seed) for seed in range(self.shuffles)))


class Scenario(Record):
    """What to run: the task, the sites and their order, the strategy, the budget, the seed."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
    task: Task
    sites: Annotated[tuple[SiteEntry, ...], Field(min_length=1)]
    unseen: tuple[SiteEntry, ...] = ()
    order: Order = "listed"
    strategy: StrategyChoice = StrategyChoice(name="finetune")
    network: NetworkChoice = NetworkChoice()
    training: Training = Training()
    split: Split = Split()
    scored: Scored = "test"
    patience: Patience = Patience()  # with sites that are away; those of a simulation never are
    seed: Seed = 0
    study: Study = Study()

    @field_validator("sites", "unseen", mode="before")
    @classmethod
    def _sites_by_name(cls, value: Any) -> Any:
        return [_named(item) for item in value] if isinstance(value, list | tuple) else value

    @field_validator("strategy", mode="before")
    @classmethod
    def _strategy_by_name(cls, value: Any) -> Any:
        return _named(value)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_loss(self.task, self.training)
        names = [site.name for site in (*self.sites, *self.unseen)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"sites and unseen name {twice[0]} twice; list every site once")
        if self.scored == "val" and self.unseen:
            raise ValueError(
                f"scored is val, but site {self.unseen[0].name} of unseen has no validation cases; remove unseen or "
                "score the test cases"
            )
        if self.split.table is not None and (made := [site.name for site in self.sites if site.phantom is not None]):
            raise ValueError(
                f"site {made[0]} is a phantom, which has no {self.split.table.csv}; remove split.table or give the "
                "site a folder"
            )
        for order in (self.order, *self.study.orders):
            if isinstance(order, tuple) and sorted(order) != sorted(site.name for site in self.sites):
                raise ValueError("order must name every site of sites exactly once")
        for site in (*self.sites, *self.unseen):
            if unknown := sorted(set((site.labels or {}).values()) - set(self.task.classes)):
                raise ValueError(
                    f"site {site.name}: labels maps to {unknown[0]!r}, which is not in task.classes "
                    f"({', '.join(self.task.classes)})"
                )
        return self

    def visiting_order(self) -> tuple[str, ...]:
        """The names of the sites in the order in which they are visited."""
        names = tuple(site.name for site in self.sites)
        match self.order:
            case "listed":
                return names
            case "reversed":
                return names[::-1]
            case Shuffle(shuffle=seed):
                import numpy as np

                places = np.random.Generator(np.random.PCG64(seed)).permutation(len(names))
                return tuple(names[place] for place in places)
            case explicit:
                return tuple(explicit)

    def patience_with(self, site: str) -> Patience:
        """What becomes of a stop at this site while it is away."""
        return next(
            (entry.patience for entry in (*self.sites, *self.unseen) if entry.name == site and entry.patience),
            self.patience,
        )

    def plan(self) -> Plan:
        """What every node is told."""
        return Plan(
            task=self.task,
            strategy=self.strategy,
            network=self.network,
            training=self.training,
            split=self.split,
            scored=self.scored,
            seed=self.seed,
            sites=self.visiting_order(),
        )

    def runs(self) -> Iterator["Scenario"]:
        """The scenario of every single run: the combinations of `study`, strategies first, then orders, then seeds."""
        alone = self.model_copy(update={"study": Study()})
        for strategy in self.study.strategies or (self.strategy,):
            for order in self.study.every_order() or (self.order,):
                for seed in self.study.seeds or (self.seed,):
                    yield alone.model_copy(update={"strategy": strategy, "order": order, "seed": seed})


def _named(item: Any) -> Any:
    """`north` stands for `{name: north}`; YAML reads some names as numbers or dates, so all plain values do."""
    return {"name": str(item)} if isinstance(item, str | int | float | date) else item


def load_scenario(path: Path, overrides: Sequence[str] = ()) -> Scenario:
    """Read, override and validate a scenario file; raises ScenarioError."""
    return parse_scenario(read_scenario(path), str(path), overrides)


def read_scenario(path: Path) -> str:
    """A scenario file's text; raises ScenarioError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ScenarioError(f"{path}: the scenario cannot be read ({reason}); give the path of a YAML file.") from error


def parse_scenario(text: str, source: str, overrides: Sequence[str] = ()) -> Scenario:
    """Like `load_scenario`, from text; `source` names it in messages."""
    try:
        raw = _read(text)
    except _NotYaml as error:
        raise ScenarioError(f"{source}{error.where}: not valid YAML ({error}); correct it.") from error
    if not isinstance(raw, dict):
        raise ScenarioError(f"{source}: a scenario is a mapping with name, task and sites; see docs/cli.md.")
    for override in overrides:
        _apply(raw, override)
    for override in overrides:
        _check_effect(raw, override)
    try:
        return Scenario.model_validate(raw)
    except ValidationError as error:
        raise ScenarioError("\n".join(sentences(error, Scenario, raw, source))) from error


class _NotYaml(Exception):
    """Text that is no YAML; `where` is the line, if it is known."""

    def __init__(self, reason: str, mark: yaml.Mark | None = None) -> None:
        super().__init__(reason.splitlines()[0])
        self.where = "" if mark is None else f", line {mark.line + 1}"


def _read(text: str) -> Any:
    """What `text` says in YAML; raises _NotYaml."""
    try:
        return strict_yaml.load(text)
    except yaml.MarkedYAMLError as error:
        raise _NotYaml(error.problem or str(error), error.problem_mark) from error
    except yaml.YAMLError as error:
        raise _NotYaml(str(error)) from error


def _apply(raw: dict[str, Any], override: str) -> None:
    """Carry out one `--set a.b=value`; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise ScenarioError(f"--set {override}: write it as key=value, for example --set training.steps=50.")
    try:
        value = _read(text)
    except _NotYaml as error:
        raise ScenarioError(f"--set {override}: the value is not valid YAML; quote it.") from error
    *parents, last = key.split(".")
    place: Any = raw
    for depth, parent in enumerate(parents):
        place = _descend(override, place, parents[:depth], parent)
    if isinstance(place, list):
        place[_index(override, place, parents, last)] = value
    else:
        place[last] = value


_STUDIED = {"seed": "seeds", "strategy": "strategies", "order": "orders"}  # key -> what replaces it in a study


def _check_effect(raw: dict[str, Any], override: str) -> None:
    """Raise ScenarioError if a study lists what the override sets for all its runs: the list would win in silence."""
    key, _, text = override.partition("=")
    first, _, rest = key.partition(".")
    listed = _STUDIED.get(first)
    study = raw.get("study")
    if listed is None or not isinstance(study, dict):
        return
    if first == "order" and study.get("shuffles"):
        raise ScenarioError(
            f"--set {override}: has no effect, since study.shuffles draws the orders; add --set study.shuffles=0."
        )
    if not study.get(listed):
        return
    if rest and first == "strategy":
        instead = f"study.{listed}.0.{rest}={text}"
    else:
        instead = f"study.{listed}=[{{{rest}: {text}}}]" if rest else f"study.{listed}=[{text}]"
    raise ScenarioError(
        f"--set {override}: has no effect, since study.{listed} lists what the runs take; override that, for example "
        f"--set {shlex.quote(instead)}."
    )


def _descend(override: str, place: Any, parents: list[str], key: str) -> Any:
    """What stands under `key` of the list or mapping `place`; a name alone becomes a mapping that can take keys."""
    inside: Any = _index(override, place, parents, key) if isinstance(place, list) else key
    found = place.setdefault(key, {}) if isinstance(place, dict) else place[inside]
    named = parents[-1:] in (["sites"], ["unseen"], ["strategies"]) or key == "strategy"
    if found is None or (isinstance(found, str) and named):
        found = place[inside] = {} if found is None else {"name": found}
    if not isinstance(found, dict | list):
        raise ScenarioError(f"--set {override}: {key} has no keys of its own; replace it as a whole instead.")
    return found


def _index(override: str, place: list[Any], parents: list[str], text: str) -> int:
    if not (text.isdecimal() and int(text) < len(place)):
        raise ScenarioError(f"--set {override}: {'.'.join(parents)} has no entry {text}; count from 0.")
    return int(text)

"""The scenario: the YAML file that says what to run. Every fault is one sentence: file, key, remedy."""

import difflib
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from protos.plan import NetworkChoice, PhantomSite, Plan, Record, SiteName, Split, StrategyChoice, Task, Training


class ScenarioError(ValueError):
    """A scenario that cannot be used; every line of the text is one sentence with file, key and remedy."""


class SiteEntry(Record):
    """One hospital of the simulation: a folder of images, or a phantom."""

    name: SiteName
    path: Path | None = None  # relative to the data folder; default: the site's name
    labels: dict[int, str] | None = None  # value in the label files -> class; default: values are class numbers
    phantom: PhantomSite | None = None

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

    seeds: tuple[Annotated[int, Field(ge=0)], ...] = ()
    strategies: tuple[StrategyChoice, ...] = ()
    orders: tuple[Order, ...] = ()

    @field_validator("strategies", mode="before")
    @classmethod
    def _names_alone(cls, value: Any) -> Any:
        return [_named(item) for item in value] if isinstance(value, list | tuple) else value


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
    seed: Annotated[int, Field(ge=0)] = 0
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
        names = [site.name for site in (*self.sites, *self.unseen)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"sites and unseen name {twice[0]} twice; list every site once")
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

    def plan(self) -> Plan:
        """What every node is told."""
        return Plan(
            task=self.task,
            strategy=self.strategy,
            network=self.network,
            training=self.training,
            split=self.split,
            seed=self.seed,
            sites=self.visiting_order(),
        )

    def runs(self) -> Iterator["Scenario"]:
        """The scenario of every single run: the combinations of `study`, strategies first, then orders, then seeds."""
        alone = self.model_copy(update={"study": Study()})
        for strategy in self.study.strategies or (self.strategy,):
            for order in self.study.orders or (self.order,):
                for seed in self.study.seeds or (self.seed,):
                    yield alone.model_copy(update={"strategy": strategy, "order": order, "seed": seed})


def _named(item: Any) -> Any:
    """`north` stands for `{name: north}`; YAML reads some names as numbers or dates, so all plain values do."""
    return item if isinstance(item, Mapping | BaseModel) else {"name": item if item is None else str(item)}


def load_scenario(path: Path, overrides: Sequence[str] = ()) -> Scenario:
    """Read, override and validate a scenario file; raises ScenarioError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ScenarioError(f"{path}: the scenario cannot be read ({reason}); give the path of a YAML file.") from error
    return parse_scenario(text, str(path), overrides)


def parse_scenario(text: str, source: str, overrides: Sequence[str] = ()) -> Scenario:
    """Like `load_scenario`, from text; `source` names it in messages."""
    try:
        raw = yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 (a SafeLoader that also refuses duplicate keys)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ScenarioError(
            f"{source}{where}: not valid YAML ({getattr(error, 'problem', None) or error}); correct it."
        ) from error
    if not isinstance(raw, dict):
        raise ScenarioError(f"{source}: a scenario is a mapping with name, task and sites; see docs/cli.md.")
    for override in overrides:
        _apply(raw, override)
    try:
        return Scenario.model_validate(raw)
    except ValidationError as error:
        sentences = dict.fromkeys(_sentence(source, raw, fault) for fault in error.errors())
        raise ScenarioError("\n".join(sentences)) from error


class _UniqueKeys(yaml.SafeLoader):
    """YAML takes the last of two equal keys in silence; a scenario must not."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _apply(raw: dict[str, Any], override: str) -> None:
    """Carry out one `--set a.b=value`; the value is read as YAML."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ScenarioError(f"--set {override}: write it as key=value, for example --set training.steps=50.")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ScenarioError(f"--set {override}: the value is not valid YAML; quote it.") from error
    *parents, last = key.split(".")
    place: Any = raw
    for parent in parents:
        place = place[int(parent)] if isinstance(place, list) and _index(place, parent) else _descend(place, parent)
        if not isinstance(place, dict | list):
            raise ScenarioError(f"--set {override}: {parent} has no keys of its own; replace it as a whole instead.")
    if isinstance(place, list):
        if not _index(place, last):
            raise ScenarioError(f"--set {override}: {'.'.join(parents)} has no entry {last}; count from 0.")
        place[int(last)] = value
    else:
        place[last] = value


def _index(place: list[Any], text: str) -> bool:
    return text.isdecimal() and int(text) < len(place)


def _descend(place: Any, key: str) -> Any:
    if isinstance(place, dict):
        if isinstance(place.get(key), str) and key == "strategy":
            place[key] = {"name": place[key]}
        return place.setdefault(key, {})
    return None


def _sentence(source: str, raw: Any, fault: Any) -> str:
    """One pydantic fault as one sentence: the file, the key path as the user wrote it, the remedy."""
    path: list[str] = []
    place = raw
    model: Any = Scenario
    known: list[str] = []
    for part in fault["loc"]:
        inside = (isinstance(place, dict) and part in place) or (
            isinstance(place, list | tuple) and isinstance(part, int)
        )
        if inside and place is not None:
            place = place[part] if not isinstance(place, dict) else place.get(part)
            path.append(str(part))
        elif fault["type"] == "missing" and part == fault["loc"][-1]:
            path.append(str(part))
        # whatever else stands in `loc` names a branch of a union, which the user never wrote
        known = list(model.model_fields) if model is not None else known
        model = _model_at(model, part)
    key = ".".join(path) or "the scenario"
    if fault["type"] == "extra_forbidden":
        close = difflib.get_close_matches(path[-1], known, n=1)
        remedy = f"did you mean {close[0]}?" if close else f"remove it; known here: {', '.join(known)}."
        return f"{source}: {key}: unknown key; {remedy}"
    if fault["type"] == "missing":
        return f"{source}: {key}: is missing; add it."
    if fault["type"] == "too_short":
        return f"{source}: {key}: is empty; it needs at least one entry."
    own_words = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error" or isinstance(fault["input"], dict | list | BaseModel):
        return f"{source}: {key}: {own_words}."
    message = own_words.replace("Input should be", "should be").replace("a valid tuple", "a list")
    return f"{source}: {key}: {message}, not {fault['input']!r}."


def _model_at(model: Any, part: Any) -> Any:
    """The pydantic model that stands at `part` of `model`, through tuples and unions; None where there is none."""
    if model is None or not isinstance(part, str) or part not in model.model_fields:
        return model if isinstance(part, int) else _only_model(part) or model
    return _first_model(model.model_fields[part].annotation)


def _only_model(name: str) -> Any:
    """A union branch in `loc` is named like its class."""
    return next((m for m in Record.__subclasses__() if m.__name__ == name), None)


def _first_model(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, types.UnionType, tuple, list, Annotated):
        return next((m for a in get_args(annotation) if (m := _first_model(a)) is not None), None)
    return None

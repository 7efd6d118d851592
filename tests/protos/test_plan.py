"""The plan: what it refuses and in which words, and that its digest stays what it is."""

from typing import Any

import pytest
from pydantic import ValidationError

from protos.plan import Plan, StrategyChoice, Task

VALID: dict[str, Any] = {
    "task": {"size": [32, 32], "classes": ["background", "lung"]},
    "strategy": {"name": "l2", "strength": 0.5},
    "sites": ["north", "south"],
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """VALID with one key more or changed."""
    *folders, last = path.split(".")
    result = {key: dict(inner) if isinstance(inner, dict) else inner for key, inner in VALID.items()}
    place = result
    for folder in folders:
        place = place.setdefault(folder, {})
    place[last] = value
    return result


def test_known_digest() -> None:
    """Checkpoints and reports of earlier runs hold digests of this form; defaults are part of it."""
    plan = Plan.model_validate(VALID)
    assert plan.digest() == "c6f12ea5c57c15d31f673d406833add0305e43b4da619708d237880ce28e8b7e"
    assert Plan.model_validate_json(plan.model_dump_json()).digest() == plan.digest()
    assert Plan.model_validate(plan.model_dump(mode="json")) == plan


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("seed", 1),
        ("sites", ["south", "north"]),
        ("task.channels", 3),
        ("strategy.strength", 0.25),
        ("training.steps", 299),
        ("training.threads", 2),
        ("split.seed", 1),
        ("split.table", {"csv": "parts.csv"}),
        ("task.plane", "coronal"),
        ("scored", "val"),
        ("network.norm", "group"),
    ],
)
def test_every_change_changes_the_digest(path: str, value: Any) -> None:
    assert Plan.model_validate(changed(path, value)).digest() != Plan.model_validate(VALID).digest()


@pytest.mark.parametrize(
    ("path", "value", "where", "said"),
    [
        ("task.size", [32, 32, 32], "task", "size has 3 numbers but dims is 2"),
        ("task.dims", 4, "task.dims", "should be 2 or 3"),
        ("task.size", [32, 0], "task.size.1", "greater than 0"),
        ("task.spacing", [1.0, 1.0], "task", "spacing needs fit: patch"),
        ("task.classes", ["background"], "task", "at least one structure"),
        ("task.classes", ["lung", "lung"], "task", "one class twice"),
        ("task.foreground", 1.5, "task.foreground", "less than or equal to 1"),
        ("task.soft", True, "", "set training.loss to dice"),
        ("task.colour", True, "task.colour", "Extra inputs"),
        ("network.channels", [8], "network", "at least two levels"),
        ("network.channels", [8, 0], "network.channels.1", "greater than 0"),
        ("network.name", "transformer", "network.name", "'unet' or 'basic_unet'"),
        ("network", {"name": "basic_unet"}, "network", "exactly six"),
        ("training.steps", -1, "training.steps", "greater than or equal to 0"),
        ("training.lr", float("nan"), "training.lr", "finite|greater"),
        ("training.lr", float("inf"), "training.lr", "finite"),
        ("training.momentum", 1.5, "training.momentum", "less than or equal to 1"),
        ("training.augment", ["flip", "flip"], "training.augment", "one augmentation twice"),
        ("training.epochs", 0, "training.epochs", "greater than 0"),
        ("training.patches", 0, "training.patches", "greater than 0"),
        ("training.lr_step", 0, "training.lr_step", "greater than 0"),
        ("training.lr_factor", 2.0, "training.lr_factor", "less than or equal to 1"),
        ("training.checkpoint_every", 0, "training.checkpoint_every", "greater than 0"),
        ("split", {"train": 0.9}, "split", "they must sum to 1"),
        ("split.group", "patient", "split.group", "case"),
        ("split.group", {"patern": "x"}, "split.group", "Field required|Extra inputs"),
        ("split.group", {"pattern": "p[0-9"}, "split.group", "no regular expression"),
        ("split.group", {"pattern": "p[0-9]+"}, "split.group", "no group"),
        ("split.group", {"csv": "/etc/passwd", "column": "id"}, "split.group", "leaves the site's folder"),
        ("split.group", {"csv": "a/../../b", "column": "id"}, "split.group", "leaves the site's folder"),
        ("split.group", 5, "split.group", "should be case, "),
        ("split.table", {"csv": "../parts.csv"}, "split.table", "leaves the site's folder"),
        ("split", {"table": {"csv": "a.csv"}, "seed": 3}, "split", "table says the part of every case, so seed has no"),
        ("split", {"table": {"csv": "a.csv"}, "test": 0.5, "train": 0.5, "val": 0}, "split", "so train has no effect"),
        ("task.plane", "oblique", "task.plane", "'axial', 'coronal' or 'sagittal'"),
        ("task", VALID["task"] | {"dims": 3, "size": [32] * 3, "plane": "coronal"}, "task", "nothing is sliced"),
        ("seed", -1, "seed", "greater than or equal to 0"),
        ("sites", ["../elsewhere"], "sites.0", "match pattern"),
        ("sites", ["a\nb"], "sites.0", "match pattern"),
        ("order", "listed", "order", "Extra inputs"),
    ],
)
def test_a_mistake_is_found_where_it_is(path: str, value: Any, where: str, said: str) -> None:
    with pytest.raises(ValidationError, match=said) as caught:
        Plan.model_validate(changed(path, value))
    assert ".".join(map(str, caught.value.errors()[0]["loc"])).startswith(where)


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({}, (128, 128)),
        ({"dims": 2}, (128, 128)),
        ({"dims": 3}, (64, 64, 64)),
        ({"dims": 3, "fit": "patch"}, (64, 64, 64)),
        ({"dims": 3, "size": [32, 16, 8]}, (32, 16, 8)),
    ],
)
def test_the_size_goes_by_the_dimensions(given: dict[str, Any], size: tuple[int, ...]) -> None:
    task = Task.model_validate({"classes": ["background", "lung"]} | given)
    assert task.size == size
    assert Task.model_validate_json(task.model_dump_json()) == task


def test_a_strategy_is_told_in_words_with_what_was_given() -> None:
    def words(**given: Any) -> str:
        return StrategyChoice.model_validate({"name": "replay"} | given).in_words

    assert words() == "replay"
    assert words(mode="interleaved", cases=5) == "replay (mode: interleaved, cases: 5)"
    assert words(memory_batch=None, on=True, at=[0.5, "b"]) == 'replay (memory_batch: null, on: true, at: [0.5, "b"])'


def test_a_plan_cannot_be_changed() -> None:
    plan = Plan.model_validate(VALID)
    with pytest.raises(ValidationError):
        plan.training.steps = 5
    assert plan.strategy.parameters == {"strength": 0.5}

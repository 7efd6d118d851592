"""The reference is complete and true: every command, option, variable, status, scenario key, default and strategy."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
import pytest
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.main import get_command

from coordinator import faults
from coordinator.gateway import app as make_gateway_keys
from coordinator.listing import installed_strategies
from coordinator.scenario import Scenario
from node.phantoms.__main__ import app as write_phantoms
from node.policy import Policy
from tests.documentation import ROOT, blocks, commands, every_page

CLI = (ROOT / "docs" / "cli.md").read_text()
FOREIGN_OPTIONS = {"--help"}  # everybody's


def options(command: click.Command) -> set[str]:
    spellings = (s for p in command.params if isinstance(p, click.Option) for s in (*p.opts, *p.secondary_opts))
    return {spelling for spelling in spellings if spelling.startswith("--")}


def mentioned(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", re.sub(r"<!--.*?-->", "", text, flags=re.S))) - {"--help"}


@pytest.mark.parametrize(
    ("name", "command"), list(commands()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_cli_page_has_exactly_the_options_of_every_command(name: str, command: click.Command) -> None:
    section = re.search(rf"^### `{name}\b.*?(?=^##|\Z)", CLI, re.S | re.M)
    assert section, f"docs/cli.md has no section {name}"
    others = re.compile(rf"^\$? ?locum(?!{re.escape(name.removeprefix('locum'))}\b).*$", re.M)  # in its examples
    assert mentioned(others.sub("", section[0])) == options(command)
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            assert (parameter.metavar or parameter.human_readable_name).strip("[].") in section[0]


def test_cli_page_has_no_section_of_a_command_that_is_not_there() -> None:
    assert set(re.findall(r"^### `(locum(?:-node)? \w+)", CLI, re.M)) == {name for name, _ in commands()}


@every_page
def test_options_and_commands_named_in_prose_exist(page: Path) -> None:
    known = FOREIGN_OPTIONS.union(*(options(command) for _, command in commands()))
    known |= set(re.findall(r"--[a-z-]+", (ROOT / "benchmarks" / "overhead.py").read_text()))
    known = known.union(*(options(get_command(tool)) for tool in (make_gateway_keys, write_phantoms)))
    others = r"\b(?:docker|pip|systemctl|systemd-analyze)\b[^`]*?(?=`|\n\$|\n\n)"  # other people's commands
    assert mentioned(re.sub(others, "", page.read_text())) <= known
    said = set(re.findall(r"`(locum(?:-node)? [a-z]+)", page.read_text()))
    planned = set(re.findall(r"`(locum(?:-node)? [a-z]+)[^`]*` \(planned\)", page.read_text()))
    assert said - planned <= {name for name, _ in commands()}
    assert not planned & {name for name, _ in commands()}, "no longer planned: it is there"


def test_environment_variables_are_those_of_the_options() -> None:
    known = {str(p.envvar) for _, command in commands() for p in command.params if p.envvar}
    assert set(re.findall(r"`\$?(LOCUM_\w+)`", CLI)) == known


def test_exit_statuses_are_those_of_the_code() -> None:
    section = CLI[CLI.index("## Exit status") :]
    wanted = {faults.DONE, faults.FAILED, faults.USAGE, faults.INCOMPLETE, faults.INTERRUPTED}
    assert {int(number) for number in re.findall(r"^\| `(\d+)` \|", section, re.M)} == wanted


# Tables


def rows(first: str) -> dict[str, tuple[str, str]]:
    """A table of docs/cli.md whose first heading is `first`: key -> (default, meaning)."""
    table = re.search(rf"^\| {first} \|.*?(?=\n\n|\Z)", CLI, re.S | re.M)
    assert table
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table[0].splitlines()[2:]]
    return {key.strip("` "): (default.strip("` "), meaning) for key, default, meaning in cells}


def plain(value: Any) -> str:
    """A default as YAML writes it in one line."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", exclude_defaults=True)
    dumped = yaml.safe_dump(list(value) if isinstance(value, tuple) else value, default_flow_style=True, width=1000)
    return str(dumped).removesuffix("\n").removesuffix("\n...")


def models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in models(part)]


def words(annotation: Any) -> set[str]:
    if get_origin(annotation) is Literal:
        return {str(value) for value in get_args(annotation)}
    return {word for part in get_args(annotation) for word in words(part)}


def reference(model: type[BaseModel], prefix: str, default: Any, seen: set[Any]) -> Iterator[tuple[str, str, set[str]]]:
    """Key, default and fixed words of everything below a model; a model that stands twice is described once."""
    for name, field in model.model_fields.items():
        key = prefix + name
        value = getattr(default, name) if default is not None else field.get_default(call_default_factory=True)
        inner = [found for found in models(field.annotation) if found not in seen]
        is_section = isinstance(value, BaseModel) or field.annotation in inner
        if not is_section:
            yield key, "required" if value is PydanticUndefined else plain(value), words(field.annotation)
        many = "[]" if get_origin(field.annotation) is tuple else ""
        seen |= set(inner)
        for found in inner:
            yield from reference(found, f"{key}{many}.", value if isinstance(value, found) else None, seen)


def test_every_scenario_key_is_documented_with_its_default() -> None:
    table = rows("key")
    wanted = list(reference(Scenario, "", None, {Scenario}))
    assert {key: default for key, (default, _) in table.items()} == {key: default for key, default, _ in wanted}
    for key, _, fixed in wanted:
        missing = {word for word in fixed if f"`{word}`" not in table[key][1]}
        assert not missing, f"{key} does not name {missing}"


def test_every_strategy_and_parameter_is_documented_with_its_default() -> None:
    said = {key: default for key, (default, _) in rows("strategy").items()}
    wanted = {
        row["strategy"]: ", ".join(f"{name}: {plain(value)}" for name, value in row["parameters"].items()) or "-"
        for row in installed_strategies()
    }
    assert said == wanted


def test_every_policy_key_is_documented() -> None:
    page = ROOT / "docs" / "adding-a-hospital.md"
    example = next(block.text for block in blocks(page) if block.text.startswith("# .locum/nodes/north/policy.yaml"))
    assert set(yaml.safe_load(example)) == set(Policy.model_fields)
    assert set(re.findall(r"^\| `(\w+)` \|", page.read_text(), re.M)) == set(Policy.model_fields)

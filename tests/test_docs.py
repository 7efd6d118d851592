"""The documentation is held to the code: its commands run, its links lead somewhere, its tables are complete.

A comment before a code block steers the test, and no reader sees it:

    <!-- test: file NAME -->            the block is written to NAME in the page's folder
    <!-- test: --set a.b=c -->          added to every `locum simulate` of the block
    <!-- test: exit 1 -->               the block's last command must end with this status
    <!-- test: output differs -->       lines without `$` are not compared (scores depend on what --set changes)
    <!-- test: not run -->              commands that are not Locum's own
    <!-- test: keys of the output -->   a JSON block must have the keys that the last command printed

Every page has a folder of its own with `hospitals/north`, `east`, `south`, `island` and the damaged `west`, and its
commands run in order.
Numbers, run names and frames are masked when output is compared, and `...` stands for anything.
"""

import ast
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import dropwhile
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
import pytest
import typer.main
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import coordinator.cli
import node.cli
from coordinator.listing import installed_strategies
from coordinator.scenario import Scenario, parse_scenario
from node.phantoms import write_phantoms
from node.policy import Policy
from protos.plan import PhantomSite
from protos.plan import Task
from strategies.registry import STRATEGIES, strategy_class, strategy_for

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "scenarios" / "README.md", *(ROOT / "docs").glob("*.md")])
OWN = ["README.md", "docs/cli.md", "docs/adding-a-hospital.md", "docs/adding-a-method.md", "docs/architecture.md"]
PROGRAMS = {"locum": coordinator.cli, "locum-node": node.cli}
FOREIGN_OPTIONS = {"--extra-index-url", "--help"}  # pip's, and everybody's
CLI = (ROOT / "docs" / "cli.md").read_text()

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, and what the comment before it says."""

    language: str
    text: str
    steer: list[str]


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"(?:<!-- test: (.*?) -->\n)?^```(\w*)\n(.*?)^```$", page.read_text(), re.S | re.M)
    return [Block(language, text, shlex.split(steer)) for steer, language, text in found]


# Commands


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small sites as folders of pictures, and one with four faults."""
    folder = tmp_path_factory.mktemp("hospitals")
    task = Task(size=(32, 32), classes=("background", "organ"))
    for number, name in enumerate(("north", "east", "south", "island")):
        write_phantoms(PhantomSite(task="organ", appearance=number, cases=10, size=32), task, folder / name)
    shutil.copytree(folder / "north", folder / "west")
    (folder / "west" / "labels" / "case-003.png").unlink()
    images = folder / "west" / "images"
    (images / "case-005.png").write_bytes((images / "case-005.png").read_bytes()[:200])
    (images / "case-002.png").write_bytes((images / "case-001.png").read_bytes())
    (images / "scan.dcm").write_bytes(bytes(128) + b"DICM")
    return folder


@pytest.mark.parametrize("name", OWN)
def test_commands_do_what_the_page_says(
    name: str, hospitals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hospitals").symlink_to(hospitals)
    monkeypatch.chdir(tmp_path)
    for variable in ("LOCUM_HOME", "LOCUM_DATABASE"):
        monkeypatch.delenv(variable, raising=False)
    out = ""
    for block in blocks(ROOT / name):
        match block.steer[:1]:
            case ["file"]:
                Path(block.steer[1]).write_text(block.text)
            case ["keys"]:
                assert keys(json.loads(block.text)) == keys(json.loads(out))
        if block.language in ("console", "bash"):
            out = run_block(block, monkeypatch, capsys)


def run_block(block: Block, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a block's commands, compare what they print, return what the last one printed on standard output."""
    lines = block.text.replace("\\\n", "").splitlines()
    commands = [line.removeprefix("$ ") for line in lines if block.language == "bash" or line.startswith("$ ")]
    foreign = [command for command in commands if shlex.split(command, comments=True)[:1][0] not in PROGRAMS]
    if "not" in block.steer:
        assert foreign == commands, "a block with Locum's own commands must run"
        for target in re.findall(r"\bmake (\w+)", block.text):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)
        return ""
    assert not foreign
    status, out, err = 0, "", ""
    printed: list[str] = []
    for number, command in enumerate(commands, 1):
        words = shlex.split(command, comments=True)
        if words[:2] == ["locum", "simulate"]:
            words += dropwhile(lambda word: not word.startswith("--"), block.steer)
        status = run(words, monkeypatch)
        out, err = capsys.readouterr()
        printed += (err + out).splitlines()
        wanted = int(block.steer[block.steer.index("exit") + 1]) if "exit" in block.steer else 0
        assert status == (wanted if number == len(commands) else 0), f"{command}: {err}{out}"
    if "differs" not in block.steer:
        actual = {masked(line) for line in printed}
        for line in lines if block.language == "console" else ():
            if not line.startswith("$ ") and line.strip() not in ("", "..."):
                pattern = re.escape(masked(line)).replace(re.escape("..."), ".*")
                assert any(re.fullmatch(pattern, found) for found in actual), f"{line!r} is not in {printed}"
    return out


def run(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run one command in this process, since importing torch anew takes seconds."""
    monkeypatch.setattr(sys, "argv", list(words))
    with pytest.raises(SystemExit) as ended:
        PROGRAMS[words[0]].main()
    return ended.value.code or 0


def masked(line: str) -> str:
    line = re.sub(r"[│┃━─┏┓┗┛┡┩├┤┬┴┼╇╈┳┻└┘┌┐╭╮╰╯]+", " ", line)
    line = re.sub(r"-s\d+-[0-9a-f]{4}\b", "-RUN", line)
    line = re.sub(r"\b[0-9a-f]{64}\b|\d+(?:[.:\-T+]\d+)*", "#", line)
    return " ".join(line.split())


def keys(document: Any) -> Any:
    """The names in a JSON document, level by level."""
    return {name: keys(value) for name, value in document.items()} if isinstance(document, dict) else None


@every_page
def test_every_command_block_is_of_a_page_that_runs(page: Path) -> None:
    if str(page.relative_to(ROOT)) not in OWN:
        shown = [block for block in blocks(page) if block.language in ("console", "bash")]
        if any("locum" in block.text for block in shown):
            assert page.name in ("export.md", "privacy.md", "results.md", "synthetic-hospitals.md")


# Names


def commands() -> Iterator[tuple[str, click.Command]]:
    for program, module in PROGRAMS.items():
        group = typer.main.get_command(module.app)
        assert isinstance(group, click.Group)
        for name, command in group.commands.items():
            yield f"{program} {name}", command


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
    assert mentioned(page.read_text()) <= known
    said = set(re.findall(r"`(locum(?:-node)? [a-z]+)", page.read_text()))
    planned = set(re.findall(r"`(locum(?:-node)? [a-z]+)[^`]*` \(planned\)", page.read_text()))
    assert said - planned <= {name for name, _ in commands()}
    assert not planned & {name for name, _ in commands()}, "no longer planned: it is there"


def test_environment_variables_are_those_of_the_options() -> None:
    known = {str(p.envvar) for _, command in commands() for p in command.params if p.envvar}
    assert set(re.findall(r"`\$?(LOCUM_\w+)`", CLI)) == known


def test_exit_statuses_are_those_of_the_code() -> None:
    section = CLI[CLI.index("## Exit status") :]
    cli = coordinator.cli
    wanted = {cli.DONE, cli.FAILED, cli.USAGE, cli.INCOMPLETE, cli.INTERRUPTED}
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


# Links, layout, the demo


def slug(heading: str) -> str:
    """A heading's anchor as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@every_page
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M)
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        path, _, anchor = "".join(target).partition("#")
        if path.startswith("https://"):
            continue
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{path} is not there"
        if anchor:
            assert anchor in {slug(line) for line in re.findall(r"^#+ (.*)$", there.read_text(), re.M)}


@every_page
def test_files_named_in_code_style_exist(page: Path) -> None:
    rooms = "protos|strategies|node|coordinator|tests|docs|scenarios|benchmarks"
    for name in re.findall(rf"`((?:{rooms})/[\w./-]*)`", page.read_text()):
        assert (ROOT / name).exists(), f"{name} is not there"


def test_the_readme_shows_the_demo_as_it_is() -> None:
    demo = parse_scenario((ROOT / "coordinator" / "demo.yaml").read_text(), "demo")
    shown = next(block.text for block in blocks(ROOT / "README.md") if "after visiting" in block.text)
    for run in demo.runs():
        assert f"demo-{run.strategy.name}-s{run.seed}-" in shown
        assert f"{run.strategy.name}: DSC" in shown
    for site in (*demo.sites, *demo.unseen):
        assert site.name in shown
    assert all(site.phantom for site in demo.sites)


def test_the_map_of_the_rooms_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for room in ("protos", "strategies", "node", "coordinator"):
        for path in (ROOT / room).rglob("*.py"):
            name = path.relative_to(ROOT)
            generated = name.name.endswith("_pb2.py") or "migrations" in name.parts
            if name.name != "__init__.py" and not generated:
                assert name.name in text, f"docs/architecture.md does not say what {name} is for"


# The worked example


def test_the_example_of_a_method_is_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, desk: Any) -> None:
    page = blocks(ROOT / "docs" / "adding-a-method.md")
    code = next(block.text for block in page if block.language == "python" and "class Interpolation" in block.text)
    line = next(block.text for block in page if block.text.startswith('"interpolation"'))
    ((name, target),) = ast.literal_eval(f"{{{line}}}").items()
    folder, _, kind = target.removeprefix("strategies.").partition(":")
    place = tmp_path / "added" / f"{folder.rpartition('.')[2]}.py"
    place.parent.mkdir()
    place.write_text(code)
    monkeypatch.syspath_prepend(place.parent)
    monkeypatch.setitem(STRATEGIES, name, f"{place.stem}:{kind}")

    neutral = strategy_class(name).neutral
    assert neutral is not None
    same = {"name": name, **neutral}
    run = desk.simulate(f"strategy={json.dumps(same)}")
    assert desk.summary(run).status == "done"
    plain_run = desk.summary(desk.simulate("strategy=finetune"))
    assert desk.summary(run).weights_sha256 == plain_run.weights_sha256
    differs = desk.summary(desk.simulate(f"strategy={name}"))
    assert differs.weights_sha256 != plain_run.weights_sha256
    assert strategy_for(desk.scenario(f"strategy={name}").plan()).carries <= {"weights"}

"""The documentation is held to the code: its commands run and print what it says, its links lead somewhere.

A comment before a code block steers the test, and no reader sees it:

    <!-- test: file NAME -->            the block is written to NAME in the page's folder
    <!-- test: --set a.b=c -->          added to every `locum simulate` and `study` of the block
    <!-- test: exit 1 -->               the block's last command must end with this status
    <!-- test: output differs -->       lines without `$` are not compared (scores depend on what --set changes)
    <!-- test: keys of the output -->   a JSON block must have the keys that the last command printed

Every page has a folder of its own with `hospitals/north`, `east`, `south`, `island` and the damaged `west`, and its
commands run in order. Numbers, run names and frames are masked when output is compared, and `...` stands for anything.
Commands that are not Locum's do not run; of `make`, the target must exist.
"""

import ast
import json
import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from itertools import dropwhile
from pathlib import Path
from typing import Any

import pytest

from coordinator.scenario import parse_scenario
from node.phantoms import write_phantoms
from protos.plan import PhantomSite, Task
from strategies.registry import STRATEGIES
from tests.conftest import Desk
from tests.documentation import PROGRAMS, ROOT, Block, blocks, commands, every_page
from tests.strategies import test_contract as contract

# Their commands run; those of other pages are long, or need data that is not here, and are only parsed.
RUN = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("cli", "adding-a-hospital"))]


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


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_commands_do_what_the_page_says(
    page: Path, hospitals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hospitals").symlink_to(hospitals)
    monkeypatch.chdir(tmp_path)
    for variable in ("LOCUM_HOME", "LOCUM_DATABASE"):
        monkeypatch.delenv(variable, raising=False)
    out = ""
    for block in blocks(page):
        match block.steer[:1]:
            case ["file"]:
                Path(block.steer[1]).write_text(block.text)
            case ["keys"]:
                assert keys(json.loads(block.text)) == keys(json.loads(out))
        if block.language in ("console", "bash"):
            out = run_block(block, monkeypatch, capsys)


def run_block(block: Block, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """Run a block's commands, compare what they print, return what the last one printed on standard output."""
    out = ""
    printed: list[str] = []
    statuses = []
    for words in block.commands:
        if words[0] in PROGRAMS:
            added = dropwhile(lambda word: not word.startswith("--"), block.steer)
            statuses.append(run([*words, *added] if words[1] in ("simulate", "study") else words, monkeypatch))
            out, err = capsys.readouterr()
            printed += (err + out).splitlines()
    wanted = int(block.steer[block.steer.index("exit") + 1]) if "exit" in block.steer else 0
    assert statuses == [*[0] * (len(statuses) - 1), wanted][: len(statuses)], "\n".join(printed)
    if "differs" not in block.steer:
        actual = {masked(line) for line in printed}
        for line in block.lines if block.language == "console" else ():
            if not line.startswith("$ ") and line.strip() not in ("", "..."):
                pattern = re.escape(masked(line)).replace(re.escape("..."), ".*")
                assert any(re.fullmatch(pattern, found) for found in actual), f"{line!r} is not in {printed}"
    return out


def run(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run one command in this process, since importing torch anew takes seconds."""
    monkeypatch.setattr(sys, "argv", list(words))
    with pytest.raises(SystemExit) as ended:
        PROGRAMS[words[0]].main()
    return int(ended.value.code or 0)


def masked(line: str) -> str:
    line = re.sub(r"[\u2500-\u257f]+", " ", line)
    line = re.sub(r"-s\d+-[0-9a-f]{8}\b", "-RUN", line)
    line = re.sub(r"\b[0-9a-f]{64}\b|\d+(?:[.:\-T+]\d+)*", "#", line)
    return " ".join(line.split())


def keys(document: Any) -> Any:
    """The names in a JSON document, level by level."""
    return {name: keys(value) for name, value in document.items()} if isinstance(document, dict) else None


@every_page
def test_commands_have_the_options_they_are_given(page: Path) -> None:
    known = dict(commands())
    for block in blocks(page):
        typed = block.commands or [shlex.split(line, comments=True) for line in block.lines if line.startswith("locum")]
        for words in typed:
            if words[0] in PROGRAMS:
                known[" ".join(words[:2])].make_context(words[1], words[2:])
            elif words[0] == "make":
                assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)


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
    rooms = "protos|pages|strategies|node|coordinator|tests|docs|scenarios|benchmarks"
    for name in re.findall(rf"`((?:{rooms})/[\w./-]*)`", page.read_text()):
        assert (ROOT / name).exists(), f"{name} is not there"


def test_the_readme_shows_the_demo_as_it_is() -> None:
    demo = parse_scenario((ROOT / "coordinator" / "demo.yaml").read_text(), "demo")
    shown = next(block.text for block in blocks(ROOT / "README.md") if "after visiting" in block.text)
    for run in demo.runs():
        assert f"demo-{run.strategy.name}-s{run.seed}-" in shown
        assert re.search(rf"^(.* )?{run.strategy.name}( \(.*)?(: DSC)?$", shown, re.M)
    for site in (*demo.sites, *demo.unseen):
        assert site.name in shown
    assert all(site.phantom for site in demo.sites)


def test_the_map_of_the_rooms_names_every_module() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for room in ("protos", "pages", "strategies", "node", "coordinator"):
        for path in (ROOT / room).rglob("*.py"):
            name = path.relative_to(ROOT)
            generated = name.name.endswith(("_pb2.py", "_pb2_grpc.py")) or "migrations" in name.parts
            if name.name != "__init__.py" and not generated:
                assert name.name in text, f"docs/architecture.md does not say what {name} is for"


# The worked example


def test_the_example_of_a_method_keeps_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, desk: Desk
) -> None:
    page = [block.text for block in blocks(ROOT / "docs" / "adding-a-method.md") if block.language == "python"]
    code, line = page
    ((name, target),) = ast.literal_eval(f"{{{line}}}").items()
    module, _, kind = target.rpartition(":")
    file = tmp_path / f"{module.rpartition('.')[2]}.py"
    file.write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(STRATEGIES, name, f"{file.stem}:{kind}")

    contract.test_registered_under_its_own_name(name)
    contract.test_schema_is_that_of_the_first_handover(name, 2)
    contract.test_only_declared_artifacts_leave(name, 2)
    contract.test_same_bits_whatever_the_global_generators(name)
    contract.test_resume_after_many_crashes(name)
    contract.test_neutral_parameters_are_finetuning_bit_for_bit(name, {})
    contract.test_unknown_parameter_is_one_sentence_that_names_the_key(name)

    ends = {
        choice: desk.summary(desk.simulate(f"strategy={choice}")).weights_sha256
        for choice in ("finetune", name, f"{{name: {name}, keep: 1}}")
    }
    plain, half, all_kept = ends.values()
    assert all_kept == plain != half

"""The house plan, held against the sources: who imports whom, who may open what, what a command loads to help."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Room -> the rooms below it, which are all that it may import.
BELOW = {
    "protos": set[str](),
    "pages": set[str](),
    "strategies": {"protos"},
    "node": {"protos", "strategies", "pages"},
    "coordinator": {"protos", "strategies", "pages"},
}
IN_PROCESS_GRID = Path("coordinator/grid.py")  # the one file that puts nodes and coordinator into one process

SOURCES = sorted(
    path.relative_to(ROOT) for room in BELOW for path in (ROOT / room).rglob("*.py") if "_pb2" not in path.name
)
every_source = pytest.mark.parametrize("path", SOURCES, ids=str)
in_strategies = pytest.mark.parametrize("path", [path for path in SOURCES if path.parts[0] == "strategies"], ids=str)
in_coordinator = pytest.mark.parametrize("path", [path for path in SOURCES if path.parts[0] == "coordinator"], ids=str)
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, within functions and for type checking too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute, so that rooms can be read off them"
            assert node.module
            yield node.module


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def calls(path: Path) -> Iterator[tuple[str, int]]:
    """Every call of a plain or dotted name, with its line."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func)).replace(".", "").isidentifier():
            yield name, node.lineno


def test_there_is_something_to_look_at() -> None:
    assert {path.parts[0] for path in SOURCES} == set(BELOW)
    assert IN_PROCESS_GRID in SOURCES


@every_source
def test_a_room_imports_only_rooms_below(path: Path) -> None:
    room = path.parts[0]
    allowed = BELOW[room] | {room} | ({"node"} if path == IN_PROCESS_GRID else set())
    assert packages(path) & (BELOW.keys() | {"tests", "benchmarks"}) <= allowed


def test_the_in_process_grid_is_the_one_door() -> None:
    assert "node" in packages(IN_PROCESS_GRID)


@in_strategies
def test_strategies_know_no_flower_file_socket_or_database(path: Path) -> None:
    libraries = {"numpy", "torch", "monai", "diffusers", "pydantic", "safetensors", "scipy", "protos", "strategies"}
    harmless = {
        "abc", "collections", "contextlib", "dataclasses", "enum", "functools", "hashlib", "importlib", "itertools",
        "math", "operator", "statistics", "types", "typing",
    }  # fmt: skip
    assert packages(path) <= libraries | harmless
    assert "protos.messages" not in set(imports(path))  # the layout of Flower's messages
    assert "open" not in {name for name, _ in calls(path)}


@in_coordinator
def test_the_coordinator_cannot_open_an_image(path: Path) -> None:
    assert not packages(path) & {"PIL", "nibabel", "tifffile", "imageio", "skimage", "cv2", "pydicom", "SimpleITK"}
    assert not any(name.startswith(("monai.data", "monai.transforms")) for name in imports(path))


@every_source
def test_nothing_is_pickled_or_evaluated(path: Path) -> None:
    """coordinator/bundle.py writes a `.pt` for MONAI's loader; nothing here reads one."""
    assert not packages(path) & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    forbidden = {
        "eval", "exec", "compile", "__import__", "print", "torch.load", "np.load", "numpy.load", "torch.jit.load",
        "pickle.loads", "yaml.unsafe_load", "yaml.full_load", "os.system",
    }  # fmt: skip
    forbidden |= {"torch.save"} if path != Path("coordinator/bundle.py") else set()
    forbidden |= {"import_module"} if path != Path("strategies/registry.py") else set()
    assert [(name, line) for name, line in calls(path) if name in forbidden] == []


@every_source
def test_no_hidden_randomness(path: Path) -> None:
    """All randomness has an explicit seed, so no generator of a whole process is drawn from or set up.

    strategies/visit.py and strategies/training.py seed torch's, whose state they give back.
    """
    assert "random" not in packages(path)
    seeded = {"np.random.default_rng", "np.random.Generator", "np.random.PCG64", "torch.random.fork_rng"}
    found = {name for name, _ in calls(path) if name.startswith(("np.random.", "torch.random."))} - seeded
    if path not in {Path("strategies/visit.py"), Path("strategies/training.py")}:
        found |= {name for name, _ in calls(path) if name in {"torch.manual_seed", "torch.seed"}}
    assert not found
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "np.random.default_rng":
            assert node.args, f"{path}:{node.lineno}: a generator without a seed"


def python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_learning_loads_no_flower_and_no_database() -> None:
    """MONAI itself loads what readers of images it finds, so those are only looked for in the sources, above."""
    loaded = python(
        "import sys\n"
        "from strategies.registry import STRATEGIES, strategy_class\n"
        "for name in STRATEGIES: strategy_class(name)\n"
        "print(*sys.modules)"
    ).split()
    assert "torch" in loaded
    assert not {name.partition(".")[0] for name in loaded} & {"flwr", "grpc", "sqlalchemy", "node", "coordinator"}


def test_protos_load_neither_torch_nor_flower_for_the_handover() -> None:
    loaded = python(
        "import sys, protos.handover, protos.plan, protos.declaration, protos.refusals\nprint(*sys.modules)"
    )
    assert not set(loaded.split()) & {"torch", "monai", "flwr", "strategies"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_loads_no_heavy_library(script: str) -> None:
    module, _ = SCRIPTS[script].split(":")
    shown, _, loaded = python(
        f"import sys\nfrom {module} import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert not end.code\n"
        "print('\\0', *sys.modules)"
    ).partition("\0")
    assert "Commands:" in shown
    heavy = {"torch", "monai", "numpy", "scipy", "flwr", "matplotlib", "sqlalchemy", "alembic", "nibabel", "PIL"}
    assert not set(loaded.split()) & heavy


def test_committed_stubs_are_those_of_the_sources() -> None:
    python("import sys\nsys.argv = ['generate', '--check']\nfrom protos.generate import main\nmain()")

"""The digest of a node's code: the same wherever it lies, another after any change, without importing what it is of."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from protos.software import PACKAGES, code_digest, installed

ROOT = Path(__file__).parents[2]
AUDITORS = "find node protos strategies -name '*.py' | LC_ALL=C sort | xargs sha256sum | sha256sum"


def digest_in(folder: Path) -> str:
    """What a process finds whose packages lie in `folder`."""
    code = "import sys; from protos.software import code_digest; print(code_digest()); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    digest, modules = done.stdout.splitlines()
    assert {"node", "strategies", "torch", "flwr"}.isdisjoint(modules.split())
    return digest


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The packages alone, somewhere else."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_an_auditor_finds_the_same_without_locum() -> None:
    found = subprocess.run(AUDITORS, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.split()[0] == code_digest() == installed().code
    assert AUDITORS in (ROOT / "docs" / "privacy.md").read_text()


def test_a_copy_elsewhere_has_the_same_and_what_is_no_code_does_not_count(copy: Path) -> None:
    (copy / "node" / "__pycache__").mkdir()
    (copy / "node" / "__pycache__" / "app.pyc").write_bytes(b"x")
    (copy / "coordinator").mkdir()
    (copy / "coordinator" / "cli.py").write_text("")
    assert digest_in(copy) == code_digest()


@pytest.mark.parametrize("change", ["content", "name", "one more", "one less", "moved to the next file"])
def test_any_change_of_the_code_shows(copy: Path, change: str) -> None:
    guard, following = copy / "node" / "guard.py", copy / "node" / "inspection.py"
    match change:
        case "content":
            guard.write_text(guard.read_text().replace("Refusal", "refusal", 1))
        case "name":
            guard.rename(copy / "node" / "guards.py")
        case "one more":
            (copy / "strategies" / "baselines" / "late.py").write_text("")
        case "one less":
            guard.unlink()
        case _:
            *lines, last = guard.read_text().splitlines(keepends=True)
            guard.write_text("".join(lines))
            following.write_text(last + following.read_text())
    assert digest_in(copy) != code_digest()

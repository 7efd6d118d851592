"""`python -m node.phantoms` writes a synthetic hospital once, whole or not at all."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from node.data.layouts import FolderSource
from node.phantoms.__main__ import app
from node.settings import SiteSettings
from protos.plan import Split, Task


def command(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("task", "dims"), [("organ", 2), ("heart", 2), ("lesions", 3)])
def test_a_node_reads_what_was_written(task: str, dims: int, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    done = command(folder, "--task", task, "--cases", 3, "--size", 16)
    assert (done.exit_code, done.output) == (0, "")
    classes = ("background", "a", "b", "c")[: {"heart": 4}.get(task, 2)]
    settings = SiteSettings(name="north", home=tmp_path, data=folder)
    source = FolderSource(settings, Task(dims=2 if dims == 2 else 3, classes=classes), Split())
    assert (len(source.names), source.problems) == (3, ())
    assert sorted(path.name for path in folder.iterdir()) == ["images", "labels"]


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    command(tmp_path, "--cases", 2)
    before = contents(tmp_path)
    done = command(tmp_path, "--cases", 5, "--appearance", 2)
    assert (done.exit_code, contents(tmp_path)) == (0, before)
    assert "already" in done.output


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("--task", "liver"), "organ, heart, lesions"), (("--appearance", 8), "0 to 7"), (("--cases", 0), "--cases")],
)
def test_what_cannot_be_drawn_is_refused_in_a_sentence(
    arguments: tuple[object, ...], named: str, tmp_path: Path
) -> None:
    done = command(tmp_path, *arguments)
    assert done.exit_code == 2
    assert named in done.output
    assert done.output.count("\n") == 1
    assert contents(tmp_path) == {}


def test_images_that_somebody_put_there_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.png").write_bytes(b"mine")
    done = command(tmp_path, "--cases", 2)
    assert done.exit_code == 2
    assert contents(tmp_path) == {"images/mine.png": b"mine"}

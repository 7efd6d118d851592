"""`python -m node.phantoms FOLDER`: a synthetic hospital as files, for trying things out and for containers."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from node.phantoms.anatomy import TASKS
from node.phantoms.source import write_phantoms
from protos.plan import PhantomSite, Task

KINDS = ("images", "labels")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def write(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where images and labels are to lie.")],
    task: Annotated[str, typer.Option(help=f"What is drawn: {', '.join(TASKS)}.")] = "organ",
    appearance: Annotated[int, typer.Option(help="Which hospital it looks like, 0 to 7.")] = 0,
    cases: Annotated[int, typer.Option(help="How many patients.")] = 40,
    size: Annotated[int, typer.Option(help="Pixels along rows and columns.")] = 64,
) -> None:
    """Write a synthetic hospital's images and labels, unless they are there."""
    if all((folder / kind).is_dir() for kind in KINDS):
        typer.echo(f"{folder} has images and labels already.")
        return
    try:
        phantom = PhantomSite(task=task, appearance=appearance, cases=cases, size=size)
        _write_whole(phantom, folder)
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        raise _refused(f"--{first['loc'][0]}: {first['msg']}.") from error
    except (ValueError, OSError) as error:
        raise _refused(str(error)) from error


def _write_whole(phantom: PhantomSite, folder: Path) -> None:
    """Write beside where they are to lie and rename, so that a folder never holds a part of the cases."""
    drawn = TASKS.get(phantom.task)
    if drawn is None:
        raise ValueError(f"--task: {phantom.task!r} is none of {', '.join(TASKS)}.")
    task = Task(dims=3 if drawn.axes == 3 else 2, classes=("background", *drawn.classes))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".phantoms-") as temporary:
        write_phantoms(phantom, task, Path(temporary))
        for kind in KINDS:
            (Path(temporary) / kind).rename(folder / kind)


def _refused(sentence: str) -> typer.Exit:
    """Say what is wrong; to be raised."""
    typer.echo(f"node.phantoms: {sentence}", err=True)
    return typer.Exit(2)


if __name__ == "__main__":
    app()

"""The options and arguments that several of `locum`'s commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from coordinator.home import Home

HomeOption = Annotated[
    Path, typer.Option("--home", envvar="LOCUM_HOME", help="Folder that holds all state: runs, artifacts, nodes.")
]
DatabaseOption = Annotated[
    str | None,
    typer.Option("--database", envvar="LOCUM_DATABASE", help="SQLAlchemy URL; default: SQLite in the home folder."),
]
DataOption = Annotated[
    Path | None, typer.Option("--data", help="Folder with one folder per site; default: the scenario's folder.")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a scenario key: training.steps=50.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document on standard output.")]
OutOption = Annotated[
    Path | None, typer.Option("--out", help="Also write the tables as PNG, Markdown, CSV and JSON into this folder.")
]
TableOption = Annotated[
    Literal["overview", "mas-lr", "ms-er"], typer.Option("--table", help="Everything, or a paper's own table.")
]
PoolOption = Annotated[
    Literal["orders", "none"] | None,
    typer.Option("--pool", help="Whether runs of different orders share a row; default: in a paper's table they do."),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="PyTorch device of the simulated nodes: auto, cpu, cuda, ...")
]
EngineOption = Annotated[
    Literal["in-process", "flower"],
    typer.Option("--engine", help="Nodes in this process, or each in its own behind Flower's SuperLink, on loopback."),
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run's name, or an unambiguous beginning of it.")]
CoordinatorOption = Annotated[
    str | None,
    typer.Option(
        "--coordinator",
        envvar="LOCUM_COORDINATOR",
        metavar="HOST:PORT",
        help="Ask this coordinator's control service (`locum serve`) instead of a home folder.",
    ),
]
TokenOption = Annotated[
    Path | None,
    typer.Option("--token", envvar="LOCUM_TOKEN", metavar="FILE", help="The file with the control service's token."),
]
AuthorityOption = Annotated[
    Path | None,
    typer.Option("--authority", envvar="LOCUM_AUTHORITY", metavar="FILE", help="The coordinator's keys/ca.crt."),
]


def home_at(folder: Path, database: str | None) -> "Home":
    """The home folder and its database, SQLite in it unless told."""
    from coordinator.home import Home
    from coordinator.store import sqlite_url

    return Home(folder.absolute(), database or sqlite_url(folder))

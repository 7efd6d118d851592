"""The command `locum`. Heavy imports wait until a command needs them, so that `--help` answers at once."""

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from coordinator.batch import (
    carry_out_all,
    command_of,
    compared_in,
    complain,
    conclude,
    given,
    how_to_go_on,
    print_json,
    summary_of,
    write_comparison,
    write_report_of,
)
from coordinator.faults import exit_status, told

if TYPE_CHECKING:
    from coordinator.home import Home

app = typer.Typer(
    name="locum",
    help="Continual cross-site learning for medical image segmentation: the model visits the hospitals in turn, "
    "the data stay.",
    epilog="Exit status: 0 done, 1 failed, 2 wrong usage or scenario, 3 finished but incomplete (a stop or a "
    "rehearsal was skipped, or a site could not be scored), 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

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
WorkersOption = Annotated[int, typer.Option("--workers", min=1, help="So many runs at once, in a process each.")]
DeviceOption = Annotated[
    str, typer.Option("--device", help="PyTorch device of the simulated nodes: auto, cpu, cuda, ...")
]
EngineOption = Annotated[
    Literal["in-process", "flower"],
    typer.Option("--engine", help="Nodes in this process, or each in its own behind Flower's SuperLink, on loopback."),
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="The run's name, or an unambiguous beginning of it.")]


@app.command()
def simulate(
    context: typer.Context,
    scenario: Annotated[
        Path | None, typer.Argument(help="Scenario file (YAML); without one, the demo of synthetic hospitals.")
    ] = None,
    data: DataOption = None,
    overrides: SetOption = None,
    home: HomeOption = Path(".locum"),
    database: DatabaseOption = None,
    device: DeviceOption = "auto",
    workers: WorkersOption = 1,
    engine: EngineOption = "in-process",
    as_json: JsonOption = False,
    report: Annotated[bool, typer.Option(help="Write a report for every run.")] = True,
) -> None:
    """Run a scenario on this machine: the model visits every site in turn, every site scores it after every visit."""
    from coordinator.scenario import ScenarioError, load_scenario, parse_scenario

    if engine == "flower" and workers > 1:
        raise ScenarioError("--workers: behind Flower's SuperLink runs follow one another here; leave out one option.")
    if scenario is None:
        source = "demo"
        path = Path(__file__).parent / "demo.yaml"
        loaded = parse_scenario(path.read_text(encoding="utf-8"), source, overrides or [])
        data = data or Path()
    else:
        source = str(scenario)
        loaded = load_scenario(scenario, overrides or [])
        data = data or scenario.parent
    from coordinator.simulate import begin_all, found_device

    device = found_device(device)
    place = _home(home, database)
    names = begin_all(list(loaded.runs()), place, data, command_of(database), source=source, device=device)
    if workers == 1 or len(names) == 1:
        failed = carry_out_all(names, place, dict.fromkeys(names, device), given(context), engine)
    else:
        from coordinator.study import carry_out_side_by_side

        how = how_to_go_on(names, given(context))
        failed = carry_out_side_by_side(names, place, device, workers=workers, of=len(names), how=how)
    conclude(names, place, failed, given(context), as_json=as_json, report=report)


@app.command()
def study(
    scenario: Annotated[Path, typer.Argument(help="Scenario file (YAML) with a study block.")],
    workers: WorkersOption = 1,
    data: DataOption = None,
    overrides: SetOption = None,
    home: HomeOption = Path(".locum"),
    database: DatabaseOption = None,
    device: DeviceOption = "auto",
    as_json: JsonOption = False,
    out: OutOption = None,
    table: TableOption = "overview",
    pool: PoolOption = None,
) -> None:
    """Make every run of a scenario's study and compare them; made again, it goes on and repeats nothing."""
    from coordinator.scenario import load_scenario
    from coordinator.simulate import found_device
    from coordinator.study import carry_out, compare_and_exit
    from coordinator.taking_up import take_up_or_begin

    loaded = load_scenario(scenario, overrides or [])
    device = found_device(device)
    place = _home(home, database)
    command = command_of(database)
    runs = take_up_or_begin(
        list(loaded.runs()), place, data or scenario.parent, command, source=str(scenario), device=device
    )
    failed = carry_out(runs, place, device, workers, command)
    compare_and_exit(runs.names, place, failed, command, table=table, pool=pool, as_json=as_json, out=out)


@app.command()
def resume(
    context: typer.Context,
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names, or unambiguous beginnings of them.")],
    data: Annotated[
        Path | None, typer.Option("--data", help="Where the runs' data folder lies now, if it was moved.")
    ] = None,
    home: HomeOption = Path(".locum"),
    database: DatabaseOption = None,
    device: Annotated[
        str | None, typer.Option("--device", help="PyTorch device of the simulated nodes; default: each run's own.")
    ] = None,
    as_json: JsonOption = False,
    report: Annotated[bool, typer.Option(help="Write a report for every run.")] = True,
) -> None:
    """Go on with runs that are pending, interrupted, failed or incomplete; they end as if undisturbed."""
    from coordinator.simulate import found_device, move_data

    place = _home(home, database)
    names = list(dict.fromkeys(_named(run, place) for run in runs))
    devices = {name: found_device(device or place.store().run(name).device) for name in names}
    if data is not None:
        for name in names:
            move_data(name, place, data)
    failed = carry_out_all(names, place, devices, given(context))
    conclude(names, place, failed, given(context), as_json=as_json, report=report)


@app.command()
def skip(
    run: RunArgument,
    stop: Annotated[int, typer.Argument(help="The stop's number, from 0.")],
    *,
    by: Annotated[str, typer.Option("--by", help="Who decides this.")],
    why: Annotated[str, typer.Option("--why", help="The reason, for the report.")],
    site: Annotated[
        str | None,
        typer.Option(
            "--rehearsal-at", metavar="SITE", help="Skip no more than this site's rehearsal, from this stop on."
        ),
    ] = None,
    home: HomeOption = Path(".locum"),
    database: DatabaseOption = None,
) -> None:
    """Let a run go on without an unfinished stop, or a rehearsal, in the name of a person who answers for it."""
    from coordinator.skipping import skip as skip_stop
    from coordinator.skipping import skip_rehearsal

    place = _home(home, database)
    name = _named(run, place)
    if site is None:
        skip_stop(name, stop, place, by=by, why=why)
        said = f"Stop {stop} of run {name} will be skipped"
    else:
        skip_rehearsal(name, stop, site, place, by=by, why=why)
        said = f"From stop {stop} of run {name} on {site} will not rehearse"
    typer.echo(f"{said}; `locum resume {name}` goes on.")


@app.command()
def runs(home: HomeOption = Path(".locum"), database: DatabaseOption = None, as_json: JsonOption = False) -> None:
    """List all runs, newest first."""
    from coordinator.console import print_runs
    from coordinator.listing import listed

    rows = listed(place := _home(home, database))
    if as_json:
        print_json({"runs": rows})
    elif not rows:
        typer.echo(f"There are no runs in {place.folder}.")
    else:
        print_runs(rows)


@app.command()
def show(
    run: RunArgument, home: HomeOption = Path(".locum"), database: DatabaseOption = None, as_json: JsonOption = False
) -> None:
    """Show a run's score matrix, metrics and stops, as far as it has come."""
    from coordinator.console import print_run

    summary = summary_of(_named(run, place := _home(home, database)), place)
    if as_json:
        print_json(summary.document())
    else:
        print_run(summary)


@app.command()
def report(run: RunArgument, home: HomeOption = Path(".locum"), database: DatabaseOption = None) -> None:
    """Write a run's report: one HTML page, and its figures and numbers as PNG, CSV and JSON."""
    place = _home(home, database)
    typer.echo(write_report_of(summary_of(_named(run, place), place), place))


@app.command()
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Runs over the same sites and classes.")],
    home: HomeOption = Path(".locum"),
    database: DatabaseOption = None,
    as_json: JsonOption = False,
    out: OutOption = None,
    table: TableOption = "overview",
    pool: PoolOption = None,
) -> None:
    """Compare runs as the papers' tables do: methods by sites, mean and standard deviation over seeds."""
    place = _home(home, database)
    compared = compared_in([summary_of(_named(run, place), place) for run in runs], table, pool)
    if as_json:
        print_json(compared.document())
    else:
        compared.show()
    if out is not None:
        write_comparison(compared, out)


@app.command()
def strategies(as_json: JsonOption = False) -> None:
    """List the installed strategies with what they carry and their parameters."""
    from coordinator.console import print_strategies
    from coordinator.listing import installed_strategies

    rows = installed_strategies()
    if as_json:
        print_json({"strategies": rows})
    else:
        print_strategies(rows)


@app.command()
def export(
    run: RunArgument,
    folder: Annotated[Path, typer.Argument(help="The bundle's folder; it must not exist yet.")],
    home: HomeOption = Path(".locum"),
    database: DatabaseOption = None,
) -> None:
    """Write the final weights as a MONAI bundle that MONAI's own loader runs."""
    from coordinator.bundle import export_bundle

    place = _home(home, database)
    typer.echo(export_bundle(place.store().run(_named(run, place)), place.folder / "vault", folder))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; every expected fault is a line on standard error and an exit status."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    try:
        app(arguments)
    except Exception as error:
        status = exit_status(error)
        if status is None:
            raise
        complain(*told(error))
        sys.exit(status)


def _home(folder: Path, database: str | None) -> "Home":
    from coordinator.home import Home
    from coordinator.store import sqlite_url

    return Home(folder.absolute(), database or sqlite_url(folder))


def _named(run: str, home: "Home") -> str:
    from coordinator.listing import full_name

    return full_name(run, home)


def run() -> None:
    """What the console script calls: the command, then out at once."""
    try:
        main()
    except SystemExit as end:
        leave(end.code if isinstance(end.code, int) else int(end.code is not None))
    leave(0)


def leave(status: int) -> NoReturn:
    """End the process without taking torch apart first, which takes over a second; all that counts is on the disk."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):
            stream.flush()
    os._exit(status)

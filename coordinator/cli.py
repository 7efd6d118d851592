"""The command `locum`. Heavy imports wait until a command needs them, so that `--help` answers at once."""

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from coordinator import cli_runs, cli_service
from coordinator.batch import (
    carry_out_all,
    command_of,
    compared_in,
    complain,
    conclude,
    given,
    print_json,
    summary_of,
    write_comparison,
)
from coordinator.cli_options import (
    AuthorityOption,
    CoordinatorOption,
    DatabaseOption,
    DataOption,
    DeviceOption,
    EngineOption,
    HomeOption,
    JsonOption,
    OutOption,
    PoolOption,
    RunArgument,
    SetOption,
    TableOption,
    TokenOption,
    home_at,
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
    engine: EngineOption = "in-process",
    as_json: JsonOption = False,
    report: Annotated[bool, typer.Option(help="Write a report for every run.")] = True,
) -> None:
    """Run a scenario on this machine: the model visits every site in turn, every site scores it after every visit."""
    from coordinator.scenario import load_scenario, parse_scenario

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
    place = home_at(home, database)
    names = begin_all(list(loaded.runs()), place, data, command_of(database), source=source, device=device)
    failed = carry_out_all(names, place, dict.fromkeys(names, device), given(context), engine)
    summaries = [summary_of(name, place) for name in names]
    conclude(summaries, failed, given(context), as_json=as_json, report_in=place if report else None)


@app.command()
def study(
    scenario: Annotated[Path, typer.Argument(help="Scenario file (YAML) with a study block.")],
    workers: Annotated[int, typer.Option("--workers", min=1, help="So many runs at once, in a process each.")] = 1,
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
    place = home_at(home, database)
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
    coordinator: CoordinatorOption = None,
    token: TokenOption = None,
    authority: AuthorityOption = None,
    as_json: JsonOption = False,
    report: Annotated[bool, typer.Option(help="Write a report for every run.")] = True,
) -> None:
    """Go on with runs that are pending, interrupted, failed or incomplete; they end as if undisturbed."""
    place = home_at(home, database)
    if coordinator is not None:
        cli_service.resume_there(context, runs, place, coordinator, token, authority, as_json=as_json, report=report)
        return
    from coordinator.simulate import found_device, move_data

    names = list(dict.fromkeys(_named(run, place) for run in runs))
    devices = {name: found_device(device or place.store().run(name).device or "cpu") for name in names}
    if data is not None:
        for name in names:
            move_data(name, place, data)
    failed = carry_out_all(names, place, devices, given(context))
    summaries = [summary_of(name, place) for name in names]
    conclude(summaries, failed, given(context), as_json=as_json, report_in=place if report else None)


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
    place = home_at(home, database)
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

    place = home_at(home, database)
    typer.echo(export_bundle(place.store().run(_named(run, place)), place.folder / "vault", folder))


for module in (cli_runs, cli_service):
    for command in module.COMMANDS:
        app.command()(command)


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

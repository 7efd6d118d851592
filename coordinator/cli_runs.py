"""The commands about runs that are there, in a home folder or at a coordinator."""

from pathlib import Path
from typing import Annotated

import typer

from coordinator.batch import print_json, write_report_of
from coordinator.cli_options import (
    AuthorityOption,
    CoordinatorOption,
    DatabaseOption,
    HomeOption,
    JsonOption,
    RunArgument,
    TokenOption,
    home_at,
)
from pages import commands


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
    coordinator: CoordinatorOption = None,
    token: TokenOption = None,
    authority: AuthorityOption = None,
) -> None:
    """Let a run go on without an unfinished stop, or a rehearsal, in the name of a person who answers for it."""
    from coordinator.desks import desk_at

    with desk_at(home_at(home, database), coordinator, token, authority) as desk:
        name = desk.skip(run, stop, site, by=by, why=why)
    said = f"Stop {stop} of run {name} will be skipped"
    if site is not None:
        said = f"From stop {stop} of run {name} on {site} will not rehearse"
    typer.echo(f"{said}; `locum resume {name}` goes on.")


def runs(
    home: HomeOption = Path(".locum"),
    database: DatabaseOption = None,
    coordinator: CoordinatorOption = None,
    token: TokenOption = None,
    authority: AuthorityOption = None,
    as_json: JsonOption = False,
) -> None:
    """List all runs, newest first."""
    from coordinator.console import print_runs
    from coordinator.desks import desk_at

    with desk_at(place := home_at(home, database), coordinator, token, authority) as desk:
        rows = desk.listed()
    if as_json:
        print_json({"runs": rows})
    elif not rows:
        typer.echo(f"There are no runs in {place.folder if coordinator is None else coordinator}.")
    else:
        print_runs(rows)


def show(
    run: RunArgument,
    home: HomeOption = Path(".locum"),
    database: DatabaseOption = None,
    coordinator: CoordinatorOption = None,
    token: TokenOption = None,
    authority: AuthorityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a run's score matrix, metrics and stops, as far as it has come."""
    from coordinator.console import print_run
    from coordinator.desks import desk_at

    with desk_at(home_at(home, database), coordinator, token, authority) as desk:
        summary = desk.summary(run)
    if as_json:
        print_json(summary.document())
    else:
        print_run(summary)


def report(
    run: RunArgument,
    home: HomeOption = Path(".locum"),
    database: DatabaseOption = None,
    coordinator: CoordinatorOption = None,
    token: TokenOption = None,
    authority: AuthorityOption = None,
) -> None:
    """Write a run's report: one HTML page, and its figures and numbers as PNG, CSV and JSON."""
    from coordinator.desks import desk_at

    with desk_at(place := home_at(home, database), coordinator, token, authority) as desk:
        typer.echo(write_report_of(desk.summary(run), place))


def restore(home: HomeOption = Path(".locum"), database: DatabaseOption = None) -> None:
    """Set a damaged database aside and go back to its copy, which was made when a stop was last committed."""
    from coordinator.home import restore as go_back

    aside, time = go_back(home_at(home, database))
    kept = "" if aside is None else f"; the damaged file is {aside} now"
    typer.echo(f"The database is that of {time:%Y-%m-%d %H:%M} UTC again{kept}.")
    typer.echo("What was made since, `locum resume` makes again, to the same bits.")


def dashboard(
    home: HomeOption = Path(".locum"),
    database: DatabaseOption = None,
    host: commands.HostOption = "127.0.0.1",
    port: commands.PortOption = 8002,
    name: commands.NamesOption = None,
    certificate: commands.CertificateOption = None,
    key: commands.KeyOption = None,
    no_tls: commands.NoTlsOption = False,
    no_token: commands.NoTokenOption = False,
) -> None:
    """Show the runs of a home folder in a browser, live while they go on. `locum serve` shows its own."""
    from coordinator.dashboard.serving import run_overview
    from pages.serving import Address

    place = home_at(home, database)
    if not place.folder.is_dir():
        raise typer.BadParameter(f"{home}: there is no such folder; `locum simulate` makes one.", param_hint="--home")
    run_overview(place, Address(host, port, certificate, key, no_tls), names=name or (), token=not no_token)


def person(
    name: commands.PersonArgument, home: HomeOption = Path(".locum"), remove: commands.RemoveOption = False
) -> None:
    """Give a person a password of their own for the overview of a home folder, asked for here; or take it away."""
    commands.let_in(name, home, remove=remove)


COMMANDS = (skip, runs, show, report, restore, dashboard, person)

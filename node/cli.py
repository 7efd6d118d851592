"""The command `locum-node`: a hospital's side. Heavy imports wait until a command needs them."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from node import cli_decisions
from pages import commands
from pages.credentials import UnusableSecret

if TYPE_CHECKING:
    import threading

app = typer.Typer(
    name="locum-node",
    help="A hospital's side of Locum: check the site's data before a run, read what crossed its boundary or is kept.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _commands() -> None:
    """Keep the commands named even where there is only one."""


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The site's folder.")],
    classes: Annotated[
        str | None, typer.Option(help="Class names, background first: 'background,nucleus'. Default: as found.")
    ] = None,
    dims: Annotated[int | None, typer.Option(help="2 or 3. Default: as the files are.")] = None,
    channels: Annotated[int | None, typer.Option(help="1 for grey, 3 for colour. Default: as the files are.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="What the label files' values mean: '255=nucleus'. Default: class numbers.")
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Regular expression whose group is the patient in a case's name.")
    ] = None,
    split_seed: Annotated[int | None, typer.Option(help="The scenario's split.seed. Default: 0.")] = None,
    unseen: Annotated[bool, typer.Option("--unseen", help="The site is only scored: all its cases are tests.")] = False,
    scenario: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Take all of this from a scenario instead, for --site.")
    ] = None,
    site: Annotated[str | None, typer.Option(metavar="NAME", help="The site's name in the scenario.")] = None,
) -> None:
    """Examine a site's folder before any run. Exit status 1 if anything would spoil training."""
    if scenario is not None or site is not None:
        told = {"classes": classes, "dims": dims, "channels": channels, "labels": labels, "group": group}
        told |= {"split-seed": split_seed, "unseen": unseen or None}
        given = [f"--{name}" for name, value in told.items() if value is not None]
        raise typer.Exit(_check_for_scenario(folder, scenario, site, given))

    from pydantic import ValidationError

    from node.data.check import run_check
    from protos.plan import GroupByPattern, Split

    try:
        split = Split(group="case" if group is None else GroupByPattern(pattern=group), seed=split_seed or 0)
    except ValidationError as error:
        raise _wrong_usage(f"--group: {error.errors()[0]['msg'].removeprefix('Value error, ')}.") from error
    status = run_check(folder, classes=classes, dims=dims, channels=channels, labels=labels, split=split, unseen=unseen)
    raise typer.Exit(status)


@app.command()
def key(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Where the private key is to lie; its public half beside it.")
    ],
) -> None:
    """Make the node's key, unless it is there, and print the public half, which the coordinator's operator needs."""
    from node.keys import UnusableKey, make_key

    try:
        typer.echo(make_key(file).read_text(encoding="ascii").strip())
    except (OSError, UnusableKey) as error:
        raise _wrong_usage(f"{error}") from error


@app.command()
def serve(
    config: Annotated[
        Path, typer.Option("--config", metavar="FILE", help="The node's YAML file; `-` reads it from standard input.")
    ],
) -> None:
    """Wait for the model and let it learn here, until stopped. Nothing leaves but what the guard lets through."""
    import logging
    import signal
    import threading

    from node.keys import UnusableKey
    from node.service_config import ConfigError, ServiceConfig
    from node.serving import NodeBusy
    from node.serving import serve as serve_until

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpcore", "flwr"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        if str(config) == "-":
            loaded = ServiceConfig.parse(sys.stdin.readline(), "standard input", Path())
            threading.Thread(target=_stop_at_end, args=(stop,), daemon=True).start()
        else:
            loaded = ServiceConfig.read(config)
        serve_until(loaded, stop)
    except (ConfigError, UnusableKey) as error:
        raise _wrong_usage(str(error)) from error
    except (NodeBusy, OSError) as error:
        typer.echo(f"locum-node: {error}", err=True)
        raise typer.Exit(1) from error


def _stop_at_end(stop: "threading.Event") -> None:
    """Whoever started this node keeps its input open; when that ends, however it ends, the node ends too."""
    sys.stdin.read()
    stop.set()


def _check_for_scenario(folder: Path, scenario: Path | None, site: str | None, given: Sequence[str]) -> int:
    """The check with what a scenario says; `given` are the options that say it otherwise."""
    from node.data.check import run_scenario_check
    from node.data.excerpt import ScenarioFault, read_excerpt

    if scenario is None or site is None:
        raise _wrong_usage("--scenario and --site: give both, a file and the name of a site in it, or neither.")
    if given:
        raise _wrong_usage(f"{given[0]}: the scenario says that itself; leave out the option or --scenario.")
    try:
        excerpt = read_excerpt(scenario, site)
    except ScenarioFault as fault:
        raise _wrong_usage(str(fault)) from fault
    return run_scenario_check(folder, excerpt)


def _wrong_usage(sentence: str) -> typer.Exit:
    """Say what is wrong; to be raised."""
    typer.echo(f"locum-node: {sentence}", err=True)
    return typer.Exit(2)


@app.command()
def ledger(
    home: Annotated[Path, typer.Option("--home", help="The node's folder: .locum/nodes/SITE in a simulation.")],
    verify: Annotated[bool, typer.Option("--verify", help="Recompute the chain; exit status 1 if broken.")] = False,
    head: Annotated[
        str | None, typer.Option(help="With --verify: a head noted earlier, which the chain must still contain.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    limit: Annotated[int, typer.Option(min=0, help="Print the newest so many entries; 0 for all.")] = 50,
) -> None:
    """Print everything that crossed the site's boundary, both ways, refusals too; or verify the record."""
    from node.ledger_view import run_ledger

    raise typer.Exit(run_ledger(home, verify=verify, head=head, json=as_json, limit=limit or None))


@app.command()
def renew(
    home: Annotated[Path, typer.Option("--home", help="The node's folder: .locum/nodes/SITE in a simulation.")],
    *,
    by: Annotated[str, typer.Option("--by", help="Who decides this.")],
    why: Annotated[str, typer.Option("--why", help="The reason, for the ledger.")],
) -> None:
    """Set a ledger aside that is damaged, gone or set back, and begin a new one, which says so in its first entry."""
    from node.renewal import NotRenewable
    from node.renewal import renew as set_aside

    try:
        said, aside = set_aside(home, by=by, why=why)
    except NotRenewable as error:
        raise _wrong_usage(str(error)) from error
    except OSError as error:
        typer.echo(f"locum-node: {error}", err=True)
        raise typer.Exit(1) from error
    typer.echo(said)
    if aside is not None:
        typer.echo(f"Keep {aside}: what can be read of it is the record until then.")


@app.command()
def memory(
    home: Annotated[Path, typer.Option("--home", help="The node's folder: .locum/nodes/SITE in a simulation.")],
    forget: Annotated[
        str | None, typer.Option(metavar="CASE", help="Remove this case's copies, for all runs that keep it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Print the cases that the site keeps for rehearsal, run by run; exit status 1 if some are missing or damaged."""
    from node.memory_view import run_memory

    raise typer.Exit(run_memory(home, forget=forget, json=as_json))


@app.command()
def dashboard(
    home: Annotated[Path, typer.Option("--home", help="The node's folder: .locum/nodes/SITE in a simulation.")],
    host: commands.HostOption = "127.0.0.1",
    port: commands.PortOption = 8100,
    name: commands.NamesOption = None,
    certificate: commands.CertificateOption = None,
    key: commands.KeyOption = None,
    no_tls: commands.NoTlsOption = False,
    no_token: commands.NoTokenOption = False,
) -> None:
    """Show the people of this hospital what happens in their house, in a browser. Nothing of it is sent elsewhere."""
    from node.dashboard.command import CannotShow, run_dashboard
    from pages.serving import Address

    address = Address(host, port, certificate, key, no_tls)
    try:
        run_dashboard(home, address, names=name or (), token=not no_token)
    except CannotShow as fault:
        raise _wrong_usage(str(fault)) from fault


@app.command()
def person(
    name: commands.PersonArgument,
    home: Annotated[Path, typer.Option("--home", help="The node's folder.")],
    remove: commands.RemoveOption = False,
) -> None:
    """Give a person a password of their own for the dashboard, asked for here; or take it away."""
    try:
        commands.let_in(name, home, remove=remove)
    except UnusableSecret as fault:
        raise _wrong_usage(str(fault)) from fault


for command in cli_decisions.COMMANDS:
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    try:
        app(arguments)
    except KeyboardInterrupt:
        sys.exit(130)

"""The commands around the control service: `locum serve` itself, and those that ask one."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from coordinator.batch import complain, conclude, given, print_json
from coordinator.cli_options import (
    AuthorityOption,
    CoordinatorOption,
    JsonOption,
    RunArgument,
    SetOption,
    TokenOption,
)
from coordinator.faults import INTERRUPTED, USAGE

if TYPE_CHECKING:
    from coordinator.client import Coordinator
    from coordinator.home import Home


def serve(
    config: Annotated[
        Path, typer.Option("--config", metavar="FILE", help="The coordinator's YAML file, see deploy/coordinator.yaml.")
    ],
) -> None:
    """Be a deployment's coordinator until stopped: SuperLink, queue of runs, control service."""
    import logging
    import signal
    import sys
    import threading

    from coordinator.serve_config import ServeConfig
    from coordinator.service import serve as serve_until

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    for noisy in ("httpx", "httpcore", "flwr", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    serve_until(ServeConfig.read(config), stop)


def schedule(
    scenario: Annotated[Path, typer.Argument(help="Scenario file (YAML); one with a study becomes several runs.")],
    at: Annotated[
        str | None, typer.Option("--at", metavar="TIME", help="Not before: 2031-05-17T22:30, or 22:30 for the next.")
    ] = None,
    after: Annotated[
        str | None, typer.Option("--after", metavar="RUN", help="Not before this run has ended, done or incomplete.")
    ] = None,
    overrides: SetOption = None,
    coordinator: CoordinatorOption = None,
    token: TokenOption = None,
    authority: AuthorityOption = None,
) -> None:
    """Queue a scenario's runs at a coordinator and print their names; they begin when sites and workers are free."""
    from coordinator.desks import coordinator_at
    from coordinator.moments import moment
    from coordinator.scenario import read_scenario

    not_before = None if at is None else moment(at)
    text = read_scenario(scenario)
    with coordinator_at(coordinator, token, authority) as there:
        for run in there.submit(text, str(scenario), overrides or [], not_before=not_before, after=after):
            typer.echo(run)


def watch(
    context: typer.Context,
    run: RunArgument,
    coordinator: CoordinatorOption = None,
    token: TokenOption = None,
    authority: AuthorityOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow a run at a coordinator until it ends; the exit status is the run's."""
    from coordinator.desks import coordinator_at

    with coordinator_at(coordinator, token, authority) as there:
        name = there.summary(run).run
        failed = _followed([name], there)
        _conclude(context, [name], failed, there, None, as_json=as_json)


def resume_there(
    context: typer.Context,
    runs: Sequence[str],
    home: "Home",
    coordinator: str,
    token: Path | None,
    authority: Path | None,
    *,
    as_json: bool,
    report: bool,
) -> None:
    """Have a coordinator go on with runs, follow them, and conclude as if they had been carried out here."""
    from coordinator.desks import coordinator_at

    with coordinator_at(coordinator, token, authority) as there:
        names = list(dict.fromkeys(there.resume(run) for run in runs))
        failed = _followed(names, there)
        _conclude(context, names, failed, there, home if report else None, as_json=as_json)


def cancel(
    run: RunArgument,
    coordinator: CoordinatorOption = None,
    token: TokenOption = None,
    authority: AuthorityOption = None,
) -> None:
    """Take a run out of a coordinator's queue, or end it; what is committed stays."""
    from coordinator.desks import coordinator_at

    with coordinator_at(coordinator, token, authority) as there:
        name, status = there.cancel(run)
    if status != "cancelled":
        complain(f"Run {name} is {status}; only a run that is queued or carried out is cancelled.")
        raise typer.Exit(USAGE)
    typer.echo(f"Run {name} is cancelled; `locum resume {name}` goes on.")


def sites(
    coordinator: CoordinatorOption = None,
    token: TokenOption = None,
    authority: AuthorityOption = None,
    as_json: JsonOption = False,
) -> None:
    """List a coordinator's sites: whether they are online, when they were seen, what they said of themselves."""
    from coordinator.console import print_sites
    from coordinator.desks import coordinator_at

    with coordinator_at(coordinator, token, authority) as there:
        rows = there.sites()
    if as_json:
        print_json({"sites": rows})
    elif not rows:
        typer.echo("No site has a registered node; `locum node add NAME --key FILE` lets one in.")
    else:
        print_sites(rows)


def node(
    action: Annotated[Literal["add", "remove"], typer.Argument(metavar="add|remove", help="Let it in, or put it out.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The site's name in scenarios.")],
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="With add: the node's public key (node.key.pub).")
    ] = None,
    coordinator: CoordinatorOption = None,
    token: TokenOption = None,
    authority: AuthorityOption = None,
) -> None:
    """Let the node with a key be a site's at a coordinator, or put a site's node out, its key for good."""
    from coordinator.desks import coordinator_at
    from coordinator.keys import public_key

    if (action == "add") != (key is not None):
        raise typer.BadParameter("A node is added with its public key, and removed without.", param_hint="--key")
    with coordinator_at(coordinator, token, authority) as there:
        if key is None:
            there.remove_node(name)
            typer.echo(f"The node of site {name} is let in no more.")
        elif there.add_node(name, public_key(key)):
            typer.echo(f"The node with this key is let in as site {name}.")
        else:
            typer.echo(f"The node with this key is let in as site {name} already.")


COMMANDS = (serve, schedule, watch, cancel, sites, node)


def _followed(runs: Sequence[str], there: "Coordinator") -> list[str]:
    """Show what happens in the runs until they have ended; returns those that failed, after a sentence about each."""
    from coordinator.live import Live

    failed = []
    for run in runs:
        try:
            with Live() as live:
                status, sentences = there.watch(run, live)
        except KeyboardInterrupt:
            complain(f"run {run} goes on at the coordinator; `locum watch {run}` shows it again.")
            raise typer.Exit(INTERRUPTED) from None
        complain(*sentences)
        if status not in ("done", "incomplete"):
            failed.append(run)
    return failed


def _conclude(
    context: typer.Context,
    runs: Sequence[str],
    failed: Sequence[str],
    there: "Coordinator",
    home: "Home | None",
    *,
    as_json: bool,
) -> None:
    conclude([there.summary(run) for run in runs], failed, given(context), as_json=as_json, report_in=home)

"""The runs of one command: carried out one after another, told of, concluded together; and what commands share."""

import json
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from coordinator.faults import FAILED, INCOMPLETE, INTERRUPTED, exit_status, of_one_run, told

if TYPE_CHECKING:
    from coordinator.compare import TableName
    from coordinator.home import Home
    from coordinator.summary import RunSummary
    from coordinator.tables import Comparison


def complain(*sentences: str) -> None:
    """Print sentences on standard error."""
    for sentence in sentences:
        typer.echo(f"locum: {sentence}", err=True)


def summary_of(run: str, home: "Home") -> "RunSummary":
    """The run as far as it has come, with the status that a person is told."""
    from coordinator.listing import status_of
    from coordinator.results import summarise

    row = home.store().run(run)
    return replace(summarise(row), status=status_of(row, home))


def command_of(database: str | None) -> str:
    """The command that is being carried out, less the password of its database, since it is kept and shown."""
    from coordinator.home import without_password

    hidden = "" if database is None else without_password(database)
    return shlex.join(["locum", *(word.replace(database, hidden) if database else word for word in sys.argv[1:])])


def given(context: typer.Context) -> list[str]:
    """Those options of the command line that a command which goes on with its runs needs as well."""
    from coordinator.home import without_password

    options = []
    for name in ("home", "database", "device", "coordinator", "token", "authority"):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            value = str(context.params[name])
            options.append(f"--{name}={without_password(value) if name == 'database' else value}")
    return options


def how_to_go_on(runs: Sequence[str], options: Sequence[str]) -> str:
    """The command that goes on with runs, as the beginning of a sentence."""
    return f"`{shlex.join(['locum', 'resume', *runs, *options])}` goes on"


@contextmanager
def naming_the_log(home: "Home") -> Iterator[None]:
    """Say where the nodes' log is if they write to it inside the block, however that ends."""
    before = _size(home.nodes_log)
    try:
        yield
    finally:
        if _size(home.nodes_log) > before:
            complain(f"details: {home.nodes_log}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def carry_out_all(
    runs: Sequence[str], home: "Home", devices: Mapping[str, str], options: Sequence[str], engine: str = "in-process"
) -> list[str]:
    """Carry out runs one after another; return those that failed, none of which keeps the others from their turn.

    Whatever ends all of them is told here, with how to go on with those that are left, and ends the command. With the
    engine `flower` the nodes of the first run's sites are started and serve all of them.
    """
    from coordinator.live import Live
    from coordinator.simulate import carry_out, engine_for

    left = list(runs)
    try:
        with engine_for(engine, runs[0], home, devices[runs[0]]) as reached:
            for run in runs:
                with naming_the_log(home):
                    try:
                        with Live() as live:
                            carry_out(run, home, device=devices[run], listener=live, engine=reached)
                        left.remove(run)
                    except Exception as error:
                        if not of_one_run(error):
                            raise
                        complain(*told(error))
    except KeyboardInterrupt:
        if left:
            complain(f"interrupted; {how_to_go_on(left, options)} where it stopped.")
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if exit_status(error) != FAILED:
            raise
        complain(*told(error), f"when that is mended, {how_to_go_on(left, options)} where it stopped.")
        raise typer.Exit(FAILED) from None
    return left


def compared_in(summaries: Sequence["RunSummary"], table: "TableName", pool: str | None) -> "Comparison":
    """The comparison in a table, whose rows pool the orders as `pool` says: `orders`, `none`, or as is its custom."""
    from coordinator.compare import comparison

    return comparison(summaries, table, pool=pool == "orders" or (pool is None and table != "overview"))


def write_comparison(table: "Comparison", folder: Path) -> None:
    """Write a comparison into a folder and name the files on standard error."""
    for path in table.write(folder):
        typer.echo(path, err=True)


def conclude(
    summaries: Sequence["RunSummary"],
    failed: Sequence[str],
    options: Sequence[str],
    *,
    as_json: bool,
    report_in: "Home | None",
) -> None:
    """Print what came out of some runs, write reports if asked to, exit with the status that fits the worst."""
    from coordinator.console import print_conclusion

    paths, unwritten = [], []
    if report_in is not None:
        for summary in summaries:
            try:
                paths.append(write_report_of(summary, report_in))
            except OSError as error:
                complain(*told(error))
                unwritten.append(summary.run)
    if as_json:
        documents = [summary.document() for summary in summaries]
        print_json(documents[0] if len(documents) == 1 else {"runs": documents})
    else:
        print_conclusion(summaries, paths)
    for run in unwritten:
        complain(f"when that is mended, `locum report {run}` writes the report.")
    if failed:
        complain(f"when that is mended, {how_to_go_on(failed, options)} where it stopped.")
    if failed or unwritten:
        raise typer.Exit(FAILED)
    if not all(summary.complete for summary in summaries):
        raise typer.Exit(INCOMPLETE)


def write_report_of(summary: "RunSummary", home: "Home") -> Path:
    """Write a run's report with its pictures; return the page's path."""
    from coordinator.report import write_report
    from coordinator.results import overlays, replays

    place = home.folder
    return write_report(summary, home.report(summary.run), overlays(summary, place), replays(summary, place))


def print_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    typer.echo(json.dumps(document, allow_nan=False))

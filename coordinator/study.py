"""A study's runs: carried out several at once, told of, compared."""

from collections.abc import Sequence
from pathlib import Path

import typer

from coordinator.batch import compared_in, complain, naming_the_log, print_json, summary_of, write_comparison
from coordinator.compare import TableName
from coordinator.faults import FAILED, INCOMPLETE, INTERRUPTED
from coordinator.home import Home
from coordinator.overview import Overview
from coordinator.taking_up import StudyRuns
from coordinator.workers import carry_out_at_once


def carry_out(runs: StudyRuns, home: Home, device: str, workers: int, command: str) -> list[str]:
    """Carry out a study's runs that are not done, at most `workers` at once; return those that failed."""
    status = {name: home.store().run(name).status for name in runs.names}
    left = [name for name in runs.names if status[name] != "done"]
    said = []
    if runs.asked > len(runs.names):
        said.append(f"{runs.asked} runs are asked for; equal ones are one, which leaves {len(runs.names)}")
    if runs.taken_up:
        there, done = len(runs.taken_up), len(runs.taken_up.difference(left))
        said.append(f"in the home already: {there} of {len(runs.names)} runs, {done} of them done")
    how = f"`{command}` goes on"
    return carry_out_side_by_side(left, home, device, workers=workers, of=len(runs.names), how=how, said=said)


def carry_out_side_by_side(
    left: Sequence[str], home: Home, device: str, *, workers: int, of: int, how: str, said: Sequence[str] = ()
) -> list[str]:
    """Carry out the runs that are left of `of` runs, at most `workers` at once; return those that failed.

    `said` is told first; `how` to go on is told when a person interrupts, which ends the command.
    """
    with naming_the_log(home):
        try:
            with Overview(of, of - len(left)) as overview:
                for sentence in said:
                    overview.say(sentence)
                return carry_out_at_once(left, home, device, workers, overview)
        except KeyboardInterrupt:
            complain(f"interrupted; {how} where it stopped.")
            raise typer.Exit(INTERRUPTED) from None


def compare_and_exit(
    runs: Sequence[str],
    home: Home,
    failed: Sequence[str],
    command: str,
    *,
    table: TableName,
    pool: str | None,
    as_json: bool,
    out: Path | None,
) -> None:
    """Print the comparison of a study's runs and write it, exit with the status that fits the worst run."""
    summaries = [summary_of(run, home) for run in runs]
    scored = [summary for summary in summaries if summary.visited]
    compared = compared_in(scored, table, pool) if scored else None
    if as_json:
        documents = [summary.document() for summary in summaries]
        print_json({"runs": documents, "comparison": compared and compared.document()})
    elif compared is not None:
        compared.show()
    if compared is not None and out is not None:
        write_comparison(compared, out)
    status = {summary.run: summary.status for summary in summaries}
    elsewhere = [run for run in failed if status[run] == "running"]
    failed = [run for run in failed if status[run] not in ("running", "done")]  # done: by another process, meanwhile
    if elsewhere:
        complain(
            f"{len(elsewhere)} of {len(runs)} runs are being carried out by another process; when they have ended, "
            f"`{command}` compares them too."
        )
    if failed:
        complain(f"{len(failed)} of {len(runs)} runs failed; when that is mended, `{command}` goes on with them.")
        raise typer.Exit(FAILED)
    if not all(summary.complete for summary in summaries):
        raise typer.Exit(INCOMPLETE)

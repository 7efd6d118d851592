"""A run's report, written by a process of its own: drawing takes seconds and memory that a service has no use for."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from coordinator.home import Home

SECONDS = 300.0


class NoReport(Exception):
    """A report could not be written; one sentence."""


def report_of(run: str, home: Home) -> bytes:
    """The page of the run's report, as far as the run has come, without any picture of images. Raises NoReport."""
    with tempfile.TemporaryDirectory(prefix="locum-report-") as folder:
        order = {"home": str(home.folder), "database": home.database, "run": run, "folder": folder}
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "coordinator.reporting"],
                input=json.dumps(order), text=True, timeout=SECONDS, check=False, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise NoReport(f"The report took more than {SECONDS:.0f} s; write it with `locum report {run}`.") from error
        if done.returncode != 0:
            raise NoReport(f"The report of {run} could not be written; the log says why.")
        return (Path(folder) / "report.html").read_bytes()


def main() -> None:
    """Write the report that standard input names."""
    order = json.loads(sys.stdin.read())
    from coordinator.batch import summary_of
    from coordinator.report import write_report

    write_report(summary_of(order["run"], Home(Path(order["home"]), order["database"])), Path(order["folder"]))


if __name__ == "__main__":
    main()

"""A scenario that arrives from outside: checked, and its runs written down, in a process of its own.

To check a scenario is to build its network: that takes PyTorch, which the service does not load, and a scenario with a
gigantic network ends that process and nothing else.
"""

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from coordinator.home import Home
from coordinator.scenario import Scenario, ScenarioError, parse_scenario

MOST_RUNS = 1000  # of one scenario
CHECK_SECONDS = 120.0


def submit(text: str, source: str, overrides: Sequence[str], home: Home) -> list[str]:
    """Write down the runs of a scenario for the sites' own nodes; returns their names. Raises ScenarioError."""
    scenarios = list(islice(parse_scenario(text, source, overrides).runs(), MOST_RUNS + 1))
    if len(scenarios) > MOST_RUNS:
        raise ScenarioError(f"{source}: study comes to more than {MOST_RUNS} runs; submit it in parts.")
    order = {
        "home": str(home.folder),
        "database": home.database,
        "source": source,
        "command": shlex.join(["locum", "schedule", source, *(f"--set={override}" for override in overrides)]),
        "scenarios": [scenario.model_dump(mode="json") for scenario in scenarios],
    }
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "coordinator.submitting"],
            input=json.dumps(order), stdout=subprocess.PIPE, text=True, timeout=CHECK_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ScenarioError(
            f"{source}: the network could not be built within {CHECK_SECONDS:.0f} s; choose a smaller one."
        ) from error
    if done.returncode != 0:
        raise ScenarioError(
            f"{source}: the process that checked it ended with status {done.returncode}, perhaps for lack of memory; "
            "choose a smaller network, and see the coordinator's log."
        )
    answer = json.loads(done.stdout)
    if "refused" in answer:
        raise ScenarioError(answer["refused"])
    return list(answer["runs"])


def main() -> None:
    """Check and write down what standard input says; the names of the runs, or why not, go to standard output."""
    order = json.loads(sys.stdin.read())
    from coordinator.simulate import begin_all

    scenarios = [Scenario.model_validate(scenario) for scenario in order["scenarios"]]
    home = Home(Path(order["home"]), order["database"])
    answer: dict[str, object]
    try:
        answer = {"runs": begin_all(scenarios, home, None, order["command"], source=order["source"], device="")}
    except ScenarioError as error:
        answer = {"refused": str(error)}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()

"""What does the platform cost? `locum simulate` against a plain PyTorch loop doing the same work, in one run.

For 20 and 200 steps per visit, 64 and 128 pixels (4 sites, batch 8, one thread) both are run in turn, several times;
the medians are compared, and the weights must be equal bit for bit. Both are whole processes, started cold, scoring
included; `locum simulate` writes no report here, since the loop writes none (its cost is printed apart).

Usage: python benchmarks/overhead.py [--repeats 3] [--steps 20 200] [--sizes 64 128] [--out FILE.json]
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SCENARIO = """
name: overhead
task: {{size: [{size}, {size}], classes: [background, organ]}}
sites:
  - {{name: north, phantom: {{task: organ, appearance: 0, size: {size}}}}}
  - {{name: east, phantom: {{task: organ, appearance: 1, size: {size}}}}}
  - {{name: south, phantom: {{task: organ, appearance: 2, size: {size}}}}}
  - {{name: west, phantom: {{task: organ, appearance: 3, size: {size}}}}}
network: {{channels: [8, 16, 32, 64, 128]}}
training: {{steps: {steps}, batch_size: 8, augment: [rotate, scale, intensity]}}
"""


def timed(command: list[str], folder: Path) -> tuple[float, float, str]:
    """Run a command; returns when it began, how long it took, and its standard output."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    began = time.time()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return began, time.time() - began, done.stdout


def plain(scenario: Path, folder: Path) -> dict[str, Any]:
    """One run of the plain loop."""
    began, wall, out = timed([sys.executable, str(HERE / "plain_loop.py"), str(scenario), str(folder)], folder)
    document: dict[str, Any] = json.loads(out)
    return document | {"wall": wall} | clocks(document["events"], began)


def platform(scenario: Path, folder: Path, repeat: int) -> dict[str, Any]:
    """One run of `locum simulate`."""
    trace, home = folder / f"trace-{repeat}.json", folder / f"home-{repeat}"
    command = [sys.executable, str(HERE / "traced_simulate.py"), str(trace), "simulate", str(scenario)]
    began, wall, out = timed([*command, "--home", str(home), "--json", "--no-report"], folder)
    document, traced = json.loads(out), json.loads(trace.read_text())
    return {
        "wall": wall,
        "weights_sha256": document["weights_sha256"],
        "dsc": document["matrix"]["dsc"],
        "peak_kib": traced["peak_kib"],
    } | clocks(traced["events"], began)


def clocks(events: list[tuple[str, float]], began: float) -> dict[str, float]:
    """Seconds to the end of the first step, and the longest gap between two visits.

    A gap runs from the end of a visit's last step to the beginning of the next one's first step (its end, less the time
    that the second took), without the time from the commit to the last score. It holds guard, ledger, vault, commit,
    messages, and the reading of the next site's images, which the plain loop has to do too.
    """
    stamps: dict[str, float] = {}
    gaps = []
    first_step = next(when for name, when in events if name == "first") - began
    for name, when in events:
        if name == "second" and "last" in stamps:
            first, step = stamps["first"], when - stamps["first"]
            gaps.append(first - step - stamps["last"] - (stamps["scored"] - stamps["committed"]))
        stamps[name] = when
    return {"to_first_step": first_step, "gap": max(gaps)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 200])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for size in options.sizes:
        for steps in options.steps:
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                scenario = folder / "scenario.yaml"
                scenario.write_text(SCENARIO.format(size=size, steps=steps))
                pairs = [(plain(scenario, folder), platform(scenario, folder, n)) for n in range(options.repeats)]
            for loop, locum in pairs:
                if loop["weights_sha256"] != locum["weights_sha256"] or loop["dsc"] != locum["dsc"]:
                    raise SystemExit(f"size {size}, steps {steps}: the two did not do the same work.")
            loop, locum = ({k: statistics.median(pair[i][k] for pair in pairs) for k in NUMBERS} for i in (0, 1))
            ratios = [b["wall"] / a["wall"] for a, b in pairs]
            row = {
                "size": size,
                "steps": steps,
                "plain_s": loop["wall"],
                "locum_s": locum["wall"],
                "wall_ratio": statistics.median(ratios),
                "wall_ratio_range": [min(ratios), max(ratios)],
                "later_first_step_s": statistics.median(b["to_first_step"] - a["to_first_step"] for a, b in pairs),
                "gap_s": [loop["gap"], locum["gap"]],
                "added_gap_s": statistics.median(b["gap"] - a["gap"] for a, b in pairs),
                "memory_ratio": locum["peak_kib"] / loop["peak_kib"],
                "peak_mib": [loop["peak_kib"] / 1024, locum["peak_kib"] / 1024],
            }
            rows.append(row)
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


NUMBERS = ("wall", "to_first_step", "peak_kib", "gap")

if __name__ == "__main__":
    main()

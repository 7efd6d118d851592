"""Images per second of Site-Modulated Diffusion: learning, and sampling a replay, in float32 and in mixed precision.

    python benchmarks/generator.py                       # the default generator at 64 and 128 pixels
    python benchmarks/generator.py --paper               # the paper's sizes: 256 x 256, 128 channels; for a GPU

A replayed image takes as many evaluations as the sampler makes (25 by default, 1000 in the paper). The rows of one run
are interleaved; times are of the wall on a GPU and of the processor on a CPU, where one thread works.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from protos.plan import Task
from strategies.generative.denoiser import Denoiser, autocast, fresh_denoiser
from strategies.generative.diffusion import Schedule, denoising_loss, noised, sample
from strategies.generative.parameters import GeneratorChoice, Precision

PAPER = GeneratorChoice(
    channels=(128, 128, 256, 256, 512), attention=(False, False, False, False, True), blocks=2, unshuffle=1
)


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paper", action="store_true", help="the paper's sizes instead of the defaults")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--evaluations", type=int, default=25)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    given = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(given.device)
    cases = [("paper", PAPER, 256)] if given.paper else [("default", GeneratorChoice(), size) for size in (64, 128)]
    rows: list[tuple[str, str, list[float], list[float]]] = []
    with Progress() as progress:
        task = progress.add_task("measuring", total=len(cases) * 2 * (given.rounds + 1))
        for name, choice, size in cases:
            works = [
                (precision, *_works(choice, size, given.batch, precision, device))
                for precision in ("float32", "bfloat16")
            ]
            times: dict[str, tuple[list[float], list[float]]] = {precision: ([], []) for precision, *_ in works}
            for _ in range(given.rounds + 1):  # the first round warms up
                for precision, learn, replay in works:
                    times[precision][0].append(_time(learn, device))
                    times[precision][1].append(_time(replay, device) * given.evaluations)
                    progress.advance(task)
            rows += [(f"{name}, {size} x {size}", precision, *both) for precision, both in times.items()]
    table = Table("generator", "precision", "learning, images/s", "replay, images/s", "s per replayed image")
    for name, precision, learning, replaying in rows:
        one = median(replaying[1:]) / given.batch
        table.add_row(name, precision, f"{given.batch / median(learning[1:]):.1f}", f"{1 / one:.3g}", f"{one:.3g}")
    Console().print(table, f"batches of {given.batch} on {given.device}, {given.evaluations} evaluations per image")


def _works(
    choice: GeneratorChoice, size: int, batch: int, precision: Precision, device: torch.device
) -> tuple[Callable[[], None], Callable[[], None]]:
    """A training step, and one evaluation of the sampler."""
    task = Task(size=(size, size), classes=("background", "organ"))
    denoiser: Denoiser = fresh_denoiser(task, choice, ["one", "other"], 0).to(device)
    schedule = Schedule.of("cosine").to(device)
    image = torch.randn(batch, 1, size, size, device=device)
    label = torch.randint(0, 2, image.shape, device=device)
    site = torch.arange(batch, device=device) % 2
    levels = torch.linspace(0, 999, batch, device=device).long()
    optimizer = torch.optim.Adam(denoiser.parameters(), 1e-4, fused=True)

    def learn() -> None:
        noise = torch.randn_like(image)
        with autocast(precision, device, 2):
            predicted = denoiser(noised(schedule, image, noise, levels), label, levels, site)
        optimizer.zero_grad()
        denoising_loss(schedule, predicted.float(), image, noise, levels, "x0").backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def evaluate(noisy: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        with autocast(precision, device, 2):
            found: torch.Tensor = denoiser(noisy, label, k, site)
        return found

    def replay() -> None:
        sample(schedule, evaluate, image, sampler="ddim", evaluations=1, prediction="x0")

    return learn, replay


def _time(work: Callable[[], None], device: torch.device) -> float:
    """Seconds of one piece of work."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = clock()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - began


if __name__ == "__main__":
    main()

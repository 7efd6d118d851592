"""How much faster the vectorised importance pass is than the plain loop, over the same samples in the same process.

    python benchmarks/importance.py [--threads 1] [--rounds 7]

Both are timed in turn, each round gives one ratio, and the table holds the rounds' medians. They must agree: the
largest difference stands in the last column, relative to the largest importance.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from protos.plan import NetworkChoice, Task
from strategies import networks
from strategies.data import Batch
from strategies.losses import probabilities
from strategies.per_sample import MEMORY, chunk_length, fold_gradients, fold_gradients_one_by_one

SMALL, USUAL = (8, 16, 32, 64), (8, 16, 32, 64, 128)
CASES: tuple[tuple[tuple[int, ...], NetworkChoice, int], ...] = (
    ((64, 64), NetworkChoice(channels=SMALL), 64),
    ((64, 64), NetworkChoice(channels=USUAL), 64),
    ((128, 128), NetworkChoice(channels=USUAL), 32),
    ((256, 256), NetworkChoice(channels=USUAL), 8),
    ((64, 64), NetworkChoice(channels=SMALL, residual_units=2), 64),
    ((32, 32, 32), NetworkChoice(channels=SMALL), 8),
)


class Noise:
    """Samples without meaning: time does not depend on it."""

    def __init__(self, count: int, size: tuple[int, ...]) -> None:
        generator = torch.Generator().manual_seed(0)
        self._image = torch.randn(count, 1, *size, generator=generator)
        self._label = torch.randint(3, (count, 1, *size), generator=generator)

    def __len__(self) -> int:
        return len(self._image)

    def batch(self, indices: Sequence[int], seeds: Sequence[int] | None = None, only: object = None) -> Batch:
        chosen = list(indices)
        return Batch(self._image[chosen], self._label[chosen])


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print("| image | network | samples | chunk | loop, ms a sample | vectorised | ratio | difference |")
    print("|---|---|---|---|---|---|---|---|")
    for size, choice, count in CASES:
        task = Task(dims=2 if len(size) == 2 else 3, size=size, classes=("background", "one", "two"))
        torch.manual_seed(0)
        model = networks.build(task, choice).eval()
        samples = Noise(count, size)

        def objective(logits: torch.Tensor, label: torch.Tensor, task: Task = task) -> torch.Tensor:
            return probabilities(logits, task).square().sum()

        loop = partial(fold_gradients_one_by_one, model, objective, samples, torch.abs)
        vectorised = partial(fold_gradients, model, objective, samples, torch.abs)
        plain, fast = loop(), vectorised()
        largest = max(float(value.max()) for value in plain.values())
        apart = max(float((plain[name] - fast[name]).abs().max()) for name in plain) / largest
        times = [(seconds(loop), seconds(vectorised)) for _ in range(options.rounds)]
        ratio = statistics.median(slow / quick for slow, quick in times)
        slow, quick = (1000 / count * statistics.median(column) for column in zip(*times, strict=True))
        chunk = chunk_length(model, samples, MEMORY)
        name = f"{'-'.join(map(str, choice.channels))}{', residual' if choice.residual_units else ''}"
        shape = " x ".join(map(str, size))
        print(f"| {shape} | {name} | {count} | {chunk} | {slow:.2f} | {quick:.2f} | {ratio:.2f} | {apart:.0e} |")


if __name__ == "__main__":
    main()

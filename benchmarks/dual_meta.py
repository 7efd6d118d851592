"""What a step of Dual-Meta costs in plain steps, by the book and as it trains, on one thread in one run.

    python benchmarks/dual_meta.py [--size 64] [--batch 8] [--norm instance] [--layout channels_last] [--rounds 30]

A plain step is forward, backward and Adam on one batch; every other row takes two batches, D and P, of that size. All
are taken in turn, each round gives one ratio to its plain steps, and the table holds the rounds' medians. The time is
that of the processor, so that neighbours on the machine matter less. All use the same network and layout, and a fused
Adam. FLOPs are those of convolutions, as PyTorch counts them; the means over splits, whose cells differ in size.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Literal

import torch
from rich.progress import track
from torch.utils.flop_counter import FlopCounterMode

from protos.plan import NetworkChoice, Task
from strategies import networks
from strategies.data import Batch
from strategies.generative.dual_meta import Alignment, Gradient, Pair, draw_split, dual_meta
from strategies.generative.pga import first_order, pga, second_order
from strategies.losses import segmentation_loss

CHANNELS = (8, 16, 32, 64, 128)
GAMMA, BETA = 5e-5, 5e-4  # the paper's
SLOW = ("second-order", "PGA (Eq. 3)")  # taken in every fifth round only


class Bench:
    """A network, its optimizer, and the ways to take a step."""

    def __init__(self, size: int, batch: int, norm: Literal["instance", "group"], layout: torch.memory_format) -> None:
        task = Task(dims=2, size=(size, size), classes=("background", "one", "two"))
        torch.manual_seed(0)
        self.model = networks.build(task, NetworkChoice(channels=CHANNELS, norm=norm)).to(memory_format=layout)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=5e-4, fused=True)
        self.incoming, self.replay = (
            Batch(torch.randn(batch, 1, size, size), torch.randint(3, (batch, 1, size, size))) for _ in range(2)
        )

    def loss(self, batch: Batch) -> torch.Tensor:
        return segmentation_loss(self.model(batch.image), batch.label, "dice_ce")

    def step(self, found: Gradient) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.grad = found[name]
        self.optimizer.step()

    def plain(self, _: int) -> None:
        self.optimizer.zero_grad()
        self.loss(self.incoming).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def naive(self, _: int) -> None:
        self.optimizer.zero_grad()
        self.loss(self.incoming).backward()  # type: ignore[no-untyped-call]
        self.loss(self.replay).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def pair(self, seed: int) -> Pair:
        return Pair(self.incoming, self.replay, draw_split(len(self.incoming.image), len(self.replay.image), seed))

    def ways(self) -> dict[str, Callable[[int], None]]:
        whole = Alignment(GAMMA, BETA)
        without_arbitrary = Alignment(GAMMA, BETA, arbitrary=False)
        without_orientation = Alignment(GAMMA, BETA, orientation=False)
        model, loss = self.model, self.loss
        return {
            "plain": self.plain,
            "naive replay": self.naive,
            "first-order, by the book": lambda seed: self.step(first_order(model, loss, self.pair(seed), whole)),
            "first-order, as it trains": lambda seed: self.step(
                dual_meta(model, loss, self.pair(seed), whole).gradient
            ),
            "as it trains, w/o arbitrary": lambda seed: self.step(
                dual_meta(model, loss, self.pair(seed), without_arbitrary).gradient
            ),
            "as it trains, w/o orientation": lambda seed: self.step(
                dual_meta(model, loss, self.pair(seed), without_orientation).gradient
            ),
            SLOW[0]: lambda seed: self.step(second_order(model, loss, self.pair(seed), whole)[0]),
            SLOW[1]: lambda seed: self.step(pga(model, loss, self.pair(seed), whole)[0]),
        }


def seconds(step: Callable[[int], None], number: int) -> float:
    began = time.process_time()
    step(number)
    return time.process_time() - began


def flops(step: Callable[[int], None], number: int) -> int:
    with FlopCounterMode(display=False) as counter:
        step(number)
    return int(counter.get_total_flops())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--norm", choices=("instance", "group"), default="instance")
    parser.add_argument("--layout", choices=("channels_last", "contiguous_format"), default="channels_last")
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options.size, options.batch, options.norm, getattr(torch, options.layout))
    ways = bench.ways()
    for step in ways.values():
        step(0)
    counted = {name: statistics.mean(flops(step, seed) for seed in range(5)) for name, step in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    for number in track(range(options.rounds), "rounds"):
        before = [seconds(bench.plain, number) for _ in range(2)]
        taken = {name: seconds(step, number) for name, step in ways.items() if name not in SLOW or number % 5 == 0}
        unit = statistics.median([*before, taken["plain"], *(seconds(bench.plain, number) for _ in range(2))])
        for name, value in taken.items():
            times[name].append(value)
            ratios[name].append(value / unit)
    network = f"U-Net {'-'.join(map(str, CHANNELS))}, {options.norm} norm, {options.layout}"
    print(f"\n{options.size} x {options.size}, batch {options.batch}, {network}\n")
    print("| step | ms | plain steps | quartiles | FLOPs, plain steps |")
    print("|---|---|---|---|---|")
    for name in ways:
        low, middle, high = statistics.quantiles(ratios[name], n=4)
        ms = 1000 * statistics.median(times[name])
        print(f"| {name} | {ms:.1f} | {middle:.2f} | {low:.2f}-{high:.2f} | {counted[name] / counted['plain']:.2f} |")


if __name__ == "__main__":
    main()

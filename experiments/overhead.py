"""Claim: fake devices cost at most 1.05 of the plain CPU's step; two towers on it at most 1.02 of the whole network.

    python experiments/overhead.py [--preset fashion] [--batch-size 64] [--rounds 12] [--threads 2]

Three layouts of the same training step (Adam, float32, channels-last) in alternation in one run: two towers on two
fake devices, two towers on the plain CPU, the whole network in one piece on it. Ratios are taken round by round.
Expected: medians of at most 1.05 and 1.02; run it on an idle machine.
"""

from dataclasses import dataclass

import torch

from splitnet.comparison import WARM_UP, Contender, Training
from splitnet.measure.meter import Layout, alternate, ratio
from splitnet.measure.records import load
from splitnet.network.presets import preset, presets
from splitnet.options import check_bounds, guarded, option, parse
from splitnet.parallel.placement import place
from splitnet.training.data import batches
from splitnet.training.data import load as load_data


@dataclass(frozen=True, kw_only=True)
class Options:
    preset: str = option("fashion", "the network", presets())
    batch_size: int = option(64, "images in a step")
    rounds: int = option(12, "measured steps of each layout")
    threads: int = option(2, "CPU threads")

    def __post_init__(self) -> None:
        check_bounds(self, {"batch_size": (1, 65536), "rounds": (1, 10**6), "threads": (1, 1024)})


def main() -> None:
    options = parse(Options, "experiments/overhead.py", __doc__ or "")
    torch.set_num_threads(options.threads)
    table = preset(options.preset, 2)
    small = "fashion-mnist-small"
    data = load_data(small if table.channels == 1 else "synthetic", size=table.size)
    table = table.adapted(data.channels, len(data.classes))
    [batch, *_] = batches(data.train, options.batch_size)
    training = Training([batch] * (WARM_UP + options.rounds), "adam", None, seed=0)
    layouts = {"fake": ["fake:0", "fake:1"], "cpu": ["cpu", "cpu"], "whole": ["cpu"]}
    contenders = [Contender(name, table, place(table, devices), training) for name, devices in layouts.items()]
    steps = [Layout(c.name, c.placement.devices, c.step) for c in contenders]
    for number in range(options.rounds):
        samples = alternate(steps, WARM_UP + number)
        for contender in contenders:
            contender.samples.append(samples[contender.name])
    fake, cpu, whole = (contender.samples for contender in contenders)
    print(f"{table.name}, batch {options.batch_size}, {options.threads} threads, load before {load()}")
    for text, slow, fast in (
        ("two towers, fake devices / plain CPU", fake, cpu),
        ("plain CPU, two towers / whole network", cpu, whole),
    ):
        times = ratio(fast, slow)  # speed of fast over slow = time of slow over fast
        print(f"{text}: {times.median:.3f} ({times.least:.3f}-{times.greatest:.3f}, n={times.n})")
    for contender in contenders:
        seconds = sorted(s.wall for s in contender.samples)
        print(f"  {contender.name}: {1000 * seconds[len(seconds) // 2]:.0f} ms a step")


if __name__ == "__main__":
    guarded(main)

"""Claims: with an infinitely fast link two devices take at most 0.56 of one's step; overlap hides half of what shows.

    python experiments/overlap.py [--preset alexnet] [--batch-size 32] [--rounds 5] [--threads 2] [--machines a,b]

The same training step on fake devices: two towers that wait for what crosses, two that overlap, the whole network on
one device; in alternation, all figures from the devices' clocks. First with a link that takes no time. Then as pairs of
GPUs (`--machine`), the slowest first: this CPU's measured times divided by the GPU's speed over the CPU's, against the
link's bytes/s and latency. Expected: at most 0.56, and on the first machine with exposed communication at most half of
it left with overlap. Emulated: no GPU took part.
"""

from dataclasses import dataclass
from statistics import median

import torch

from splitnet import fake
from splitnet.calibration import here
from splitnet.comparison import WAITING, WARM_UP, Contender, Training
from splitnet.machines import MACHINES, emulate, machine
from splitnet.measure.meter import Ratio, Sample
from splitnet.measure.records import load
from splitnet.network.execution import Execution
from splitnet.network.presets import preset, presets
from splitnet.options import check_bounds, guarded, option, parse
from splitnet.parallel.placement import Placement, place
from splitnet.reporting import counted
from splitnet.training.data import batches
from splitnet.training.data import load as load_data

TWO_OF_ONE, HIDDEN = 0.56, 0.5
SHOWS = 1e-3
"""Of a step: exposed communication that is less does not show."""


@dataclass(frozen=True, kw_only=True)
class Options:
    preset: str = option("alexnet", "the network", presets(apart=True))
    batch_size: int = option(32, "images in a step")
    rounds: int = option(5, "measured steps of each layout and machine")
    threads: int = option(2, "CPU threads")
    machines: str = option(",".join(MACHINES), "pairs of GPUs, joined by commas, the slowest first")

    def __post_init__(self) -> None:
        check_bounds(self, {"batch_size": (2, 65536), "rounds": (2, 10**6), "threads": (1, 1024)})


def contenders(options: Options) -> list[Contender]:
    table = preset(options.preset, 2)
    data = load_data("fashion-mnist-small" if table.channels == 1 else "synthetic", size=table.size)
    table = table.adapted(data.channels, len(data.classes))
    [batch, *_] = batches(data.train, options.batch_size)
    rounds = WARM_UP + options.rounds * (1 + len(options.machines.split(",")))
    training = Training([batch] * rounds, "sgd", None, seed=0, execution=Execution(overlap=True))
    both = place(table, ["fake:0", "fake:1"])
    layouts = {"towers": both, WAITING: both, "whole": Placement(both.devices[:1], "the first")}
    return [Contender(name, table, where, training) for name, where in layouts.items()]


def measured(running: list[Contender], rounds: int) -> dict[str, list[Sample]]:
    """So many more steps of each, in alternation."""
    for _ in range(rounds):
        for contender in running:
            contender.measure(WARM_UP + len(contender.samples))
    return {contender.name: contender.samples[-rounds:] for contender in running}


def seconds(samples: list[Sample]) -> list[float]:
    return [sample.device or 0.0 for sample in samples]


def exposed(samples: list[Sample]) -> float:
    """Share of a step, the median."""
    return median((sample.exposed or 0.0) / (sample.device or 1.0) for sample in samples)


def main() -> None:
    options = parse(Options, "experiments/overlap.py", __doc__ or "")
    pairs = [machine(name, "--machines", here=False) for name in options.machines.split(",")]
    torch.set_num_threads(options.threads)
    print(f"{options.preset}, batch {options.batch_size}, {counted(options.threads, 'thread')}, load before {load()}")
    running = contenders(options)
    fake.set_link(1e30, 0.0)
    found = measured(running, options.rounds)
    for name, text in ((WAITING, "two devices"), ("towers", "two devices, overlap")):
        times = zip(seconds(found[name]), seconds(found["whole"]), strict=True)
        ratio = Ratio.of(two / one for two, one in times)
        print(
            f"infinitely fast link, {text} / one: {ratio.median:.3f} ({ratio.least:.3f}-{ratio.greatest:.3f},"
            f" n {ratio.n}), at most {TWO_OF_ONE}: {'yes' if ratio.median <= TWO_OF_ONE else 'NO'}"
        )
    table = running[0].architecture
    flops = here(table, options.batch_size, threads=options.threads, rounds=1).flops()
    print(f"{'machine':16} {'speed':>6}  {'step ms':>8} {'exposed':>8}  {'overlap':>8} {'exposed':>8}  hidden")
    first = True
    for pair in pairs:
        factor, bytes_per_second, latency = emulate(pair, flops)
        for index in range(2):
            fake.set_speed(index, factor)
        fake.set_link(bytes_per_second, latency)
        found = measured(running, options.rounds)
        before, after = exposed(found[WAITING]), exposed(found["towers"])
        cells = [f"{1000 * median(seconds(found[name])):8.2f}" for name in (WAITING, "towers")]
        hidden = 1 - after / before if before else 1.0
        verdict = ""
        if first and before >= SHOWS:
            first, verdict = False, f"  at least {HIDDEN:.0%}: {'yes' if hidden >= HIDDEN else 'NO'}"
        print(
            f"{pair.name:16} {factor:6.1f}  {cells[0]} {before:8.2%}  {cells[1]} {after:8.2%}  {hidden:6.1%}{verdict}",
            flush=True,
        )


if __name__ == "__main__":
    guarded(main)

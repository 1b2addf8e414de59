"""Claim: a fake device costs at most 1.05 of the plain CPU's step; two towers on it at most 1.02 of the whole network.

    python experiments/overhead.py [--preset fashion] [--batch-size 64] [--rounds 12] [--threads 2] [--only cpu,whole]

Layouts of the same training step (Adam, float32, channels-last, freed memory kept as `run` does) in alternation in one
run, every other round in the opposite order: two towers on one fake device and on the plain CPU, which compute the
same; on two fake devices, which also copy what crosses and prepare the images twice; the whole network in one piece.
Ratios are taken round by round: of time, and of the processor's, which counts no wait for a core that somebody else
has. Expected: medians of at most 1.05, 1.05 with two devices too, and 1.02; run it on an idle machine.
"""

import time
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from splitnet.allocator import keep_freed_memory
from splitnet.comparison import WARM_UP, Contender, Training
from splitnet.errors import UsageError
from splitnet.measure.meter import Layout, Ratio, alternate, ratio
from splitnet.measure.records import load
from splitnet.network.presets import preset, presets
from splitnet.options import check_bounds, guarded, option, parse
from splitnet.parallel.placement import place
from splitnet.reporting import counted
from splitnet.training.data import batches
from splitnet.training.data import load as load_data

LAYOUTS = {"one": ["fake:0"] * 2, "two": ["fake:0", "fake:1"], "cpu": ["cpu"] * 2, "whole": ["cpu"]}


@dataclass(frozen=True, kw_only=True)
class Options:
    preset: str = option("fashion", "the network", presets(apart=True))
    batch_size: int = option(64, "images in a step")
    rounds: int = option(12, "measured steps of each layout")
    threads: int = option(2, "CPU threads")
    only: str = option(",".join(LAYOUTS), "which layouts take part: others hold memory, and leave it in pieces")

    def __post_init__(self) -> None:
        check_bounds(self, {"batch_size": (1, 65536), "rounds": (1, 10**6), "threads": (1, 1024)})
        for name in self.names:
            if name not in LAYOUTS:
                raise UsageError(f"--only {name}: no such layout (there are {', '.join(LAYOUTS)})")

    @property
    def names(self) -> list[str]:
        return list(dict.fromkeys(name.strip() for name in self.only.split(",")))


def main() -> None:
    options = parse(Options, "experiments/overhead.py", __doc__ or "")
    kept = keep_freed_memory()  # as `run` does: else pages that are zeroed again and again are most of the difference
    torch.set_num_threads(options.threads)
    table = preset(options.preset, 2)
    small = "fashion-mnist-small"
    data = load_data(small if table.channels == 1 else "synthetic", size=table.size)
    table = table.adapted(data.channels, len(data.classes))
    [batch, *_] = batches(data.train, options.batch_size)
    training = Training([batch] * (WARM_UP + options.rounds), "adam", None, seed=0)
    contenders = [Contender(name, table, place(table, LAYOUTS[name]), training) for name in options.names]
    computed: dict[str, list[float]] = {name: [] for name in options.names}

    def timed(contender: Contender, number: int) -> None:
        before = time.process_time()
        contender.step(number)
        computed[contender.name].append(time.process_time() - before)

    steps = [Layout(c.name, c.placement.devices, partial(timed, c)) for c in contenders]
    for number in range(options.rounds):
        samples = alternate(steps if number % 2 else steps[::-1], WARM_UP + number)  # nobody always follows the same
        for contender in contenders:
            contender.samples.append(samples[contender.name])
    samples_of = {contender.name: contender.samples for contender in contenders}
    print(
        f"{table.name}, batch {options.batch_size}, {counted(options.threads, 'thread')}, load before {load()}; {kept}"
    )
    for text, slow, fast, most in (
        ("two towers, one fake device / plain CPU", "one", "cpu", 1.05),
        ("two towers, two fake devices / plain CPU", "two", "cpu", 1.05),
        ("plain CPU, two towers / whole network", "cpu", "whole", 1.02),
    ):
        if not {slow, fast} <= {*options.names}:
            continue
        times = ratio(samples_of[fast], samples_of[slow])  # speed of fast over slow = time of slow over fast
        work = Ratio.of(a / b for a, b in zip(computed[slow], computed[fast], strict=True))
        judged = f"at most {most:.2f}: {'reached' if times.median <= most else 'NOT REACHED'}"
        print(f"{text}: {times} ({judged}); processor time {work}")
    for contender in contenders:
        print(f"  {contender.name}: {1000 * median(s.wall for s in contender.samples):.0f} ms a step")


if __name__ == "__main__":
    guarded(main)

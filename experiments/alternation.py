"""Claim: measured against itself, the harness's 99 % interval of the ratio contains 1 in at least 18 of 20 runs.

    python experiments/alternation.py [--preset fashion] [--batch-size 16] [--runs 20] [--rounds 5] [--threads 2]

Two layouts that are the same one, two towers on two fake devices, each with its own network, measured as `run`
measures: rounds in alternation, a ratio a round. Expected: 18 or more; run it on an idle machine, for an interval
cannot know what comes and goes beside it. The cores that others kept busy meanwhile are printed.
"""

from dataclasses import dataclass

import torch

from splitnet.comparison import WARM_UP, Contender, Training
from splitnet.measure.meter import Layout, OtherLoad, Ratio, alternate, ratio
from splitnet.network.presets import preset, presets
from splitnet.options import check_bounds, guarded, option, parse
from splitnet.parallel.placement import place
from splitnet.training.data import batches, load


@dataclass(frozen=True, kw_only=True)
class Options:
    preset: str = option("fashion", "the network", presets(apart=True))
    batch_size: int = option(16, "images in a step")
    runs: int = option(20, "measurements")
    rounds: int = option(5, "measured steps of each layout in a measurement")
    threads: int = option(2, "CPU threads")

    def __post_init__(self) -> None:
        most = 10**6
        check_bounds(self, {"batch_size": (1, 65536), "runs": (1, most), "rounds": (2, most), "threads": (1, 1024)})


def main() -> None:
    options = parse(Options, "experiments/alternation.py", __doc__ or "")
    torch.set_num_threads(options.threads)
    table = preset(options.preset, 2)
    data = load("fashion-mnist-small" if table.channels == 1 else "synthetic", size=table.size)
    table = table.adapted(data.channels, len(data.classes))
    [batch, *_] = batches(data.train, options.batch_size)
    training = Training([batch] * (WARM_UP + options.runs * options.rounds), "adam", None, seed=0)
    pair = [Contender(name, table, place(table, ["fake:0", "fake:1"]), training) for name in ("one", "other")]
    layouts = [Layout(c.name, c.placement.devices, c.step) for c in pair]
    load_beside, found = OtherLoad(), list[Ratio]()
    for run in range(options.runs):
        first = WARM_UP + run * options.rounds
        samples = [alternate(layouts, first + number) for number in range(options.rounds)]
        found.append(ratio(*([s[name] for s in samples] for name in ("one", "other"))))
        low, high = found[-1].low or 0.0, found[-1].high or 0.0
        print(f"run {run}: {found[-1].median:.3f} ({low:.3f}-{high:.3f})", flush=True)
    holds = sum((r.low or 0) <= 1 <= (r.high or 0) for r in found)
    print(f"the interval contains 1 in {holds} of {options.runs} runs; others kept {load_beside.cores()} cores busy")


if __name__ == "__main__":
    guarded(main)

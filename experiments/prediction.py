"""Claim: the cost on paper is within 20 % of what is measured, for one device, two towers and data parallel.

    python experiments/prediction.py [--preset fashion] [--batch-size 32] [--rounds 5] [--threads 2] [--on fake|cpu]

Every product, operation and update is timed by itself (`splitnet.calibration`); a step's time is put together from them
(`splitnet.costs`). Then steps of the layouts are measured, in alternation with more of the calibration: what else the
machine does meanwhile meets both. On fake devices the step is the devices' clock's (emulated: two compute in turn on
this CPU, the link is a model); on the CPU, one device alone, it is the wall's. Adam for `fashion`, SGD for others.
Expected: ratios of 0.8 to 1.2, of times and of peak memory.
"""

import statistics
from dataclasses import dataclass

import torch

from splitnet.calibration import Calibration
from splitnet.comparison import WARM_UP, Contender, Training
from splitnet.costs import Step, predicted
from splitnet.measure.records import load
from splitnet.network.presets import preset, presets
from splitnet.options import check_bounds, guarded, option, parse
from splitnet.parallel.placement import place
from splitnet.reporting import counted
from splitnet.training.data import batches
from splitnet.training.data import load as load_data

WITHIN = 0.2


@dataclass(frozen=True, kw_only=True)
class Options:
    preset: str = option("fashion", "the network", presets(apart=True))
    batch_size: int = option(32, "images in a step")
    rounds: int = option(5, "measured steps of each layout, and rounds of calibration")
    threads: int = option(2, "CPU threads")
    on: str = option("fake", "two fake devices, or the whole network on the plain CPU", ("fake", "cpu"))

    def __post_init__(self) -> None:
        check_bounds(self, {"batch_size": (2, 65536), "rounds": (1, 10**6), "threads": (1, 1024)})


LAYOUTS = {
    "fake": {"whole": ["fake:0"], "towers": ["fake:0", "fake:1"], "replicas": ["fake:0", "fake:1"]},
    "cpu": {"whole": ["cpu"]},
}


def contenders(options: Options) -> list[Contender]:
    table = preset(options.preset, 2)
    data = load_data("fashion-mnist-small" if table.channels == 1 else "synthetic", size=table.size)
    table = table.adapted(data.channels, len(data.classes))
    [batch, *_] = batches(data.train, options.batch_size)
    optimizer = "adam" if options.preset == "fashion" else "sgd"
    training = Training([batch] * (WARM_UP + options.rounds), optimizer, None, seed=0)
    found = []
    for name, devices in LAYOUTS[options.on].items():
        placement = place(table, ["fake:0", "fake:1"] if name == "replicas" else devices)
        found.append(Contender(name, table, placement, training))
    return found


def measured(contender: Contender) -> float:
    """Seconds of a step: on the devices' clock where there is one."""
    return statistics.median(sample.wall if sample.device is None else sample.device for sample in contender.samples)


def judged(ratio: float) -> str:
    return f"{ratio:.2f}{'' if abs(ratio - 1) <= WITHIN else ' NOT within 20 %'}"


def main() -> None:
    options = parse(Options, "experiments/prediction.py", __doc__ or "")
    torch.set_num_threads(options.threads)
    print(
        f"{options.preset}, batch {options.batch_size}, {counted(options.threads, 'thread')}, load before {load()}",
        flush=True,
    )
    running = contenders(options)
    training = running[0].training
    images = training.batches[0].images
    table, side = running[0].architecture, images.shape[-1]
    calibration = Calibration(table, options.batch_size, training.optimizer, options.threads, side)
    calibration.round()
    for number in range(options.rounds):
        for contender in running:
            contender.measure(WARM_UP + number)
        calibration.round()
    machine = calibration.machine()
    step = Step(options.batch_size, optimizer=training.optimizer, pixels=images[0].numel())
    on_paper = predicted(table, step, machine)
    print(f"products {machine.flops() / 1e9:.1f} GFLOP/s, memory {machine.bytes_per_second / 1e9:.2f} GB/s")
    print(f"{'':10} {'predicted':>12} {'measured':>12}  predicted / measured")
    for contender in running:
        prediction, seconds = on_paper[contender.name], measured(contender)
        times = [f"{1000 * value:9,.0f} ms" for value in (prediction.seconds, seconds)]
        print(f"{contender.name:10} {times[0]} {times[1]}  {judged(prediction.seconds / seconds)}")
        for (device, memory), footprint in zip(contender.memory.items(), prediction.memory, strict=False):
            sizes = [f"{value / 2**20:8,.0f} MiB" for value in (footprint.peak, memory.peak)]
            print(f"  {device:8} {sizes[0]} {sizes[1]}  {judged(footprint.peak / memory.peak)}")
    spread = max(max(times) / min(times) for times in calibration.times.values())
    print(f"load after {load()}; the least steady operation took {spread:.1f} times its shortest")


if __name__ == "__main__":
    guarded(main)

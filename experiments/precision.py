"""Claim: bf16, and casts for the crossing, cost no accuracy that shows.

    python experiments/precision.py [--preset fashion] [--scale 1/4] [--size 96] [--steps 300] [--seeds 3] [--threads 2]

Source: nets 170 and 170-quant of 2012, the second with float16 for all that is communicated: top-1 errors of 0.40528
and 0.40524 in ImageNet's validation set, ten views. Two towers are trained on Fashion-MNIST (the embedded 2,000 images
where the full set is not there) from the same weights in the same order, dropped units alike: in float32, in bf16, and
in float32 with what crosses cast to float16 and to bf16. Printed: mean loss of the last tenth of the steps, test
accuracy, its difference from float32's of the same seed, and the bytes that a step exchanges. Expected: differences
whose 99 % interval lies above a point's loss; otherwise it is not shown, and more seeds are needed.
"""

from dataclasses import dataclass
from fractions import Fraction
from statistics import fmean, stdev

import torch

from splitnet.errors import UsageError
from splitnet.measure.meter import STUDENT_99
from splitnet.network.execution import Execution
from splitnet.network.presets import preset, presets
from splitnet.options import check_bounds, guarded, option, parse
from splitnet.parallel.placement import host, place
from splitnet.training.data import Dataset
from splitnet.training.data import load as load_data
from splitnet.training.loop import evaluate, train
from splitnet.training.optimizer import make_optimizer

WAYS = {
    "float32": Execution(),
    "bf16": Execution("bf16"),
    "float16 on the wire": Execution(wire="float16"),
    "bf16 on the wire": Execution(wire="bf16"),
}
POINTS = 1.0


@dataclass(frozen=True, kw_only=True)
class Options:
    preset: str = option("fashion", "the network", presets())
    scale: str = option("1/4", "width of every row but the last")
    size: int = option(96, "side of the images")
    steps: int = option(300, "steps of each training")
    batch_size: int = option(64, "images in a step")
    seeds: int = option(3, "trainings of each kind")
    images: int = option(2000, "test images")
    threads: int = option(2, "CPU threads")

    def __post_init__(self) -> None:
        check_bounds(
            self,
            {
                "steps": (10, 10**6),
                "seeds": (2, 1000),
                "images": (1, 10**6),
                "batch_size": (1, 65536),
                "threads": (1, 1024),
            },
        )


@dataclass(frozen=True, slots=True)
class Outcome:
    loss: float
    accuracy: float
    bytes: int


def trained(options: Options, data: Dataset, execution: Execution, seed: int) -> Outcome:
    try:
        scale = Fraction(options.scale)
    except ValueError as error:
        raise UsageError(f"--scale {options.scale}: a fraction such as 1/4") from error
    table = preset(options.preset, 2).scaled(scale, options.size).adapted(data.channels, len(data.classes))
    net = host(table, place(table, ["cpu", "cpu"]), seed, execution=execution)
    optimizer = make_optimizer(net.parameters(), "adam")
    steps = list(train(net, data.train, optimizer, batch_size=options.batch_size, seed=seed, steps=options.steps))
    exchanged = net.ledger.bytes() // len(steps)
    last = [step.loss for step in steps[-max(1, len(steps) // 10) :]]
    return Outcome(fmean(last), evaluate(net, data.test, batch_size=200, images=options.images).accuracy, exchanged)


def main() -> None:
    options = parse(Options, "experiments/precision.py", __doc__ or "")
    torch.set_num_threads(options.threads)
    data = load_data("fashion-mnist")
    print(f"{options.preset} x {options.scale}, {options.size} pixels, {options.steps} steps; {data.origin}")
    print(f"{'':20} {'loss':>8} {'accuracy':>9}  {'points from float32':>24} {'bytes a step':>12}")
    reference: list[Outcome] = []
    for name, execution in WAYS.items():
        found = [trained(options, data, execution, seed) for seed in range(options.seeds)]
        reference = reference or found
        points = [100 * (a.accuracy - b.accuracy) for a, b in zip(found, reference, strict=True)]
        middle = fmean(points)
        half = STUDENT_99[min(len(points) - 2, len(STUDENT_99) - 1)] * stdev(points) / len(points) ** 0.5
        verdict = "" if found is reference else "within a point" if middle - half > -POINTS else "not shown"
        told = f"{middle:+.2f} ({middle - half:+.2f} to {middle + half:+.2f})" if found is not reference else ""
        loss, accuracy = fmean(one.loss for one in found), fmean(one.accuracy for one in found)
        print(f"{name:20} {loss:8.4f} {accuracy:9.4f}  {told:>24} {found[0].bytes:12,}  {verdict}", flush=True)
    print(f"n {options.seeds}; in brackets the 99 % interval of the mean (Student's)")


if __name__ == "__main__":
    guarded(main)

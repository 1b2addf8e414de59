"""Claim: with images read ahead, a step waits for them in less than 1 % of its time, where reading is faster than it.

    python experiments/input.py [--images 2000] [--preset alexnet] [--width 4]
        [--size 224] [--batch-size 32] [--steps 12] [--rounds 5] [--workers 4]
        [--threads 2]

Makes a folder of smooth random 256x256 JPEGs, and reads all of it with so many threads, in alternation: images/s of
the loader alone. Then trains a narrow network (of `--width` of the channels, at `--size` pixels) from it, read ahead
by `--workers` threads and read when the step asks, in alternation: the step, and its share of waiting.
"""

import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from splitnet.measure.meter import OtherLoad, Spread
from splitnet.measure.records import load
from splitnet.network.architecture import Architecture
from splitnet.network.presets import preset, presets
from splitnet.options import check_bounds, guarded, option, parse
from splitnet.parallel.placement import build
from splitnet.reporting import counted
from splitnet.training.data import Dataset, batches
from splitnet.training.data import load as load_data
from splitnet.training.loop import Step, train
from splitnet.training.optimizer import make_optimizer

SIDE, CLASSES, QUALITY = 256, 10, 90
WORKERS = (0, 1, 2, 4)
MOST = 0.01
"""Of a step, spent waiting for images."""


@dataclass(frozen=True, kw_only=True)
class Options:
    images: int = option(2000, "files to read")
    preset: str = option("alexnet", "the network", presets())
    width: int = option(4, "it has 1 channel of so many")
    size: int = option(224, "pixels a side that it reads")
    batch_size: int = option(32, "images in a step")
    steps: int = option(12, "steps in a round; the first is left out")
    rounds: int = option(5, "of each kind")
    workers: int = option(4, "threads that read ahead of a step")
    threads: int = option(2, "CPU threads")

    def __post_init__(self) -> None:
        bounds = {"images": (CLASSES, 10**6), "width": (1, 64), "size": (64, 1024), "batch_size": (1, 65536)}
        more = {"steps": (2, 10**6), "rounds": (1, 10**6), "workers": (1, 256), "threads": (1, 1024)}
        check_bounds(self, bounds | more)


def make_folder(folder: Path, images: int) -> None:
    """Smooth random colours with a little noise: as hard to decode as photographs, about 25 kB each."""
    chance = np.random.default_rng(0)
    for place in range(images + CLASSES):
        split = "train" if place < images else "val"
        path = folder / split / f"{place % CLASSES}" / f"{place:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(chance.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = (smooth + chance.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(path, quality=QUALITY)


def reading(data: Dataset, batch_size: int) -> float:
    """Images/s of the loader alone."""
    start = time.perf_counter()
    count = sum(len(batch.labels) for batch in batches(data.train, batch_size))
    return count / (time.perf_counter() - start)


def training(data: Dataset, table: Architecture, options: Options) -> list[Step]:
    """A round's steps but for the first, which has nothing to hide its own images behind."""
    net = build(table, devices=["cpu"])
    optimizer = make_optimizer(net.parameters(), "sgd")
    return list(train(net, data.train, optimizer, batch_size=options.batch_size, seed=0, steps=options.steps))[1:]


def told(values: Iterable[float], digits: int = 1) -> str:
    found = Spread.of(values)
    return f"{found.median:,.{digits}f} ({found.least:,.{digits}f}-{found.greatest:,.{digits}f}, n={found.n})"


def main() -> None:
    options = parse(Options, "experiments/input.py", __doc__ or "")
    torch.set_num_threads(options.threads)
    table = preset(options.preset, 1).scaled(Fraction(1, options.width), size=options.size)
    table = table.adapted(channels=3, classes=CLASSES)
    print(f"{options.images:,} JPEGs of {SIDE}x{SIDE}, {counted(options.threads, 'thread')}, load before {load()}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_folder(folder, options.images)
        sets = {n: load_data("imagefolder", folder, size=options.size, workers=n) for n in {*WORKERS, options.workers}}
        reading(sets[0], options.batch_size)  # the files come into memory
        beside, speeds = OtherLoad(), {workers: list[float]() for workers in WORKERS}
        for _ in range(options.rounds):
            for workers, found in speeds.items():
                found.append(reading(sets[workers], options.batch_size))
        for workers, found in speeds.items():
            print(f"reading alone, --workers {workers}: {told(found)} images/s")
        rounds: dict[int, list[list[Step]]] = {options.workers: [], 0: []}
        for _ in range(options.rounds):
            for workers, done in rounds.items():
                done.append(training(sets[workers], table, options))
        print(f"{table.name}, 1/{options.width} of its channels, {options.size} pixels, batch {options.batch_size}")
        beaten = False
        for workers, done in rounds.items():
            what = "read when the step asks" if workers == 0 else f"read ahead, --workers {workers}"
            times = [statistics.median(step.seconds for step in steps) for steps in done]
            shares = [100 * sum(s.waited for s in steps) / sum(s.seconds for s in steps) for steps in done]
            print(f"{what}: {told(1000 * t for t in times)} ms a step; waits {told(shares, 2)} % of it")
            if workers:
                beaten = statistics.median(shares) < 100 * MOST
        print(f"read ahead, a step waits less than {MOST:.0%} of its time: {'yes' if beaten else 'NO'}")
        pairs = zip(rounds[0], rounds[options.workers], strict=True)
        gains = [sum(s.seconds for s in plain) / sum(s.seconds for s in ahead) for plain, ahead in pairs]
        print(f"when asked / ahead, time: {told(gains, 3)}; other processes kept {beside.cores()} cores busy")


if __name__ == "__main__":
    guarded(main)

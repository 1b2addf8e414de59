"""Claim: profiling off costs nothing that can be measured, on at most 1.15 of a step; a step's trace is under 100 kB.

    python experiments/profiling.py [--preset alexnet] [--batch-size 16] [--rounds 12] [--threads 2]

Training steps (Adam, float32) of two towers on two fake devices in alternation in one run: as they are, with every
span and note taken out of the code, and recorded. Ratios are taken round by round. Then the recorded steps are written
and read again. Expected: medians of at most 1.15 recorded and about 1 otherwise; run it on an idle machine.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from splitnet.comparison import WARM_UP, Contender, Training
from splitnet.measure import traces
from splitnet.measure.meter import Ratio, synchronize
from splitnet.measure.profiler import ACTIVE, Profile
from splitnet.measure.records import load
from splitnet.measure.timeline import Timeline, read
from splitnet.network.presets import preset, presets
from splitnet.options import check_bounds, guarded, option, parse
from splitnet.parallel.placement import place
from splitnet.reporting import counted
from splitnet.training.data import batches
from splitnet.training.data import load as load_data

NOTES = ("kernel", "transfer", "memory", "begin")
SPANS = ("splitnet.network.towers.Span", "splitnet.training.loop.record_function")


@dataclass(frozen=True, kw_only=True)
class Options:
    preset: str = option("alexnet", "the network", presets(apart=True))
    batch_size: int = option(16, "images in a step")
    rounds: int = option(12, "measured steps of each kind")
    threads: int = option(2, "CPU threads")

    def __post_init__(self) -> None:
        check_bounds(self, {"batch_size": (1, 65536), "rounds": (1, 10**6), "threads": (1, 1024)})


@contextmanager
def bare() -> Iterator[None]:
    """The code without its spans and notes."""
    with ExitStack() as stack:
        for name in SPANS:
            stack.enter_context(patch(name, lambda _: nullcontext()))
        for name in NOTES:
            stack.enter_context(patch(f"splitnet.parallel.fake.log.{name}", lambda *_: None))
        yield


def timed(contender: Contender, number: int) -> float:
    synchronize(contender.placement.devices)
    start = time.perf_counter()
    contender.step(number)
    synchronize(contender.placement.devices)
    return time.perf_counter() - start


def contestant(options: Options, steps: int) -> Contender:
    table = preset(options.preset, 2)
    data = load_data("fashion-mnist-small" if table.channels == 1 else "synthetic", size=table.size)
    [batch, *_] = batches(data.train, options.batch_size)
    training = Training([batch] * steps, "adam", None, seed=0)
    table = table.adapted(data.channels, len(data.classes))
    return Contender("towers", table, place(table, ["fake:0", "fake:1"]), training)


def main() -> None:
    options = parse(Options, "experiments/profiling.py", __doc__ or "")
    torch.set_num_threads(options.threads)
    contender = contestant(options, WARM_UP + 3 * options.rounds + ACTIVE + 2)
    kinds: dict[str, Callable[[], Any]] = {
        "off": nullcontext,
        "bare": bare,
        "on": lambda: Profile(contender.placement.devices, steps=1),
    }
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    number = WARM_UP
    for _ in range(options.rounds):
        for kind, context in kinds.items():
            with context():
                found[kind].append(timed(contender, number))
            number += 1
    print(f"{options.preset}, batch {options.batch_size}, {counted(options.threads, 'thread')}, load before {load()}")
    pairs = (("recorded / not", "on", "off"), ("not recorded / without spans and notes", "off", "bare"))
    for text, slow, fast in pairs:
        times = Ratio.of(a / b for a, b in zip(found[slow], found[fast], strict=True))
        print(f"{text}: {times}")
    _sizes(contender, number)


def _sizes(contender: Contender, number: int) -> None:
    with Profile(contender.placement.devices) as profile, tempfile.TemporaryDirectory() as name:
        for step in range(ACTIVE + 2):
            contender.step(number + step)
            profile.step()
        start = time.perf_counter()
        traces.write(profile, Path(name))
        written = time.perf_counter() - start
        for path in (Path(name) / traces.PERFETTO, Path(name) / traces.PLUGIN):
            print(f"{path.name}: {path.stat().st_size / ACTIVE / 1000:.1f} kB a step")
        start = time.perf_counter()
        Timeline(read(Path(name) / traces.PERFETTO)).lanes()
        print(f"{ACTIVE} steps: written in {written:.2f} s, read in {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    guarded(main)

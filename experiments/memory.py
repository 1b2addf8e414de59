"""Claim: of what `alexnet` needs on one device, two towers need at most 0.55 on each, and so reach a larger batch.

    python experiments/memory.py [--preset alexnet] [--batch-size 128] [--capacity-mb 3000] [--threads 2]

Trains on fake devices (SGD with momentum, float32), the whole network on one and its towers on two, and reads the
peak of each device. Then finds, by bisection with a capacity on each device, the largest batch whose two first steps
fit: GTX 580 cards of 2012 had 3 GB. Tensors only: a GPU's context, workspaces and fragmentation come on top.
Expected: 0.52 of the single device on each of two.
"""

from dataclasses import dataclass

import torch

from splitnet.comparison import Contender, Training
from splitnet.network.architecture import Architecture
from splitnet.network.presets import preset, presets
from splitnet.options import option, parse
from splitnet.parallel import fake
from splitnet.parallel.placement import place
from splitnet.training.data import Batch

LAYOUTS = {"one device": ["fake:0"], "two devices": ["fake:0", "fake:1"]}


@dataclass(frozen=True, kw_only=True)
class Options:
    preset: str = option("alexnet", "the network", presets())
    batch_size: int = option(128, "images in a step")
    capacity_mb: int = option(3000, "of each device, in 10**6 bytes; 0 leaves the search out")
    threads: int = option(2, "CPU threads")


def peaks(table: Architecture, devices: list[str], images: int) -> dict[str, int]:
    """Bytes at the peak of each device over two training steps. torch.OutOfMemoryError over the capacity."""
    shape = (images, table.channels, table.size, table.size)
    batch = Batch(torch.zeros(shape, dtype=torch.uint8), torch.zeros(images, dtype=torch.int64), torch.arange(images))
    contender = Contender("", table, place(table, devices), Training([batch] * 2, "sgd", None, seed=0))
    return {device: memory.peak for device, memory in contender.memory.items()}


def fits(table: Architecture, devices: list[str], images: int) -> bool:
    try:
        peaks(table, devices, images)
    except torch.OutOfMemoryError:
        return False
    return True


def largest(table: Architecture, devices: list[str]) -> int:
    """The largest batch that fits, by doubling and bisection."""
    least = 1
    while fits(table, devices, 2 * least):
        least *= 2
    greatest = 2 * least
    while greatest - least > 1:
        middle = (least + greatest) // 2
        least, greatest = (middle, greatest) if fits(table, devices, middle) else (least, middle)
    return least


def main() -> None:
    options = parse(Options, "memory", __doc__ or "")
    torch.set_num_threads(options.threads)
    table = preset(options.preset, 2)
    found = {name: peaks(table, devices, options.batch_size) for name, devices in LAYOUTS.items()}
    [single] = found["one device"].values()
    print(f"{table.name}, batch {options.batch_size}, peak of a training step on fake devices (tensors only)")
    for name, by_device in found.items():
        for device, peak in by_device.items():
            print(f"  {name:12} {device}: {peak / 2**20:8,.0f} MiB  {peak / single:.3f}")
    if options.capacity_mb:
        for index in range(2):
            fake.set_capacity(f"fake:{index}", options.capacity_mb * 10**6)
        for name, devices in LAYOUTS.items():
            print(f"  largest batch within {options.capacity_mb:,} MB on each, {name}: {largest(table, devices):,}")


if __name__ == "__main__":
    main()

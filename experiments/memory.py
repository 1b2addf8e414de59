"""Claim: of what `alexnet` needs on one device, two towers need at most 0.55 on each, and so reach a larger batch.

    python experiments/memory.py [--preset alexnet] [--batch-size 128] [--capacity-mb 3000] [--threads 2]

Trains on fake devices (SGD with momentum, float32), the whole network on one and its towers on two, and reads the
peak of each device. Then finds the largest batch whose first two steps fit a capacity of each device (a GTX 580 of
2012 had 3 GB): peaks at two small batches predict it, and trying it and its neighbours settles it. Tensors only: a
GPU's context, workspaces and fragmentation come on top.
Expected: 0.52 of the single device on each of two.
"""

from dataclasses import dataclass

import torch

from splitnet.comparison import Contender, Training
from splitnet.fitting import DoesNotFitError
from splitnet.network.architecture import Architecture
from splitnet.network.presets import preset, presets
from splitnet.options import LARGEST, check_bounds, guarded, option, parse
from splitnet.parallel import fake
from splitnet.parallel.placement import place
from splitnet.training.data import Batch

LAYOUTS = {"one device": ["fake:0"], "two devices": ["fake:0", "fake:1"]}


@dataclass(frozen=True, kw_only=True)
class Options:
    preset: str = option("alexnet", "the network", presets(apart=True))
    batch_size: int = option(128, "images in a step")
    capacity_mb: int = option(3000, "of each device, in 10**6 bytes; 0 leaves the search out")
    threads: int = option(2, "CPU threads")

    def __post_init__(self) -> None:
        check_bounds(self, {"batch_size": (1, 65536), "capacity_mb": (0, LARGEST), "threads": (1, 1024)})


def peaks(table: Architecture, devices: list[str], images: int) -> dict[str, int]:
    """Bytes at the peak of each device over two training steps. DoesNotFitError over the capacity."""
    shape = (images, table.channels, table.size, table.size)
    batch = Batch(torch.zeros(shape, dtype=torch.uint8), torch.zeros(images, dtype=torch.int64), torch.arange(images))
    contender = Contender("", table, place(table, devices), Training([batch] * 2, "sgd", None, seed=0))
    return {device: memory.peak for device, memory in contender.memory.items()}


def fits(table: Architecture, devices: list[str], images: int) -> bool:
    try:
        peaks(table, devices, images)
    except DoesNotFitError:
        return False
    return True


def largest(table: Architecture, devices: list[str], capacity: int) -> int:
    """The largest batch that fits: predicted, since memory is a line in the batch, then tried."""
    few, more = (max(peaks(table, devices, images).values()) for images in (16, 32))
    images = max(1, 32 + int((capacity - more) * 16 / (more - few)))
    for device in devices:
        fake.set_capacity(device, capacity)
    while images and not fits(table, devices, images):
        images -= 1
    while fits(table, devices, images + 1):
        images += 1
    for device in devices:
        fake.set_capacity(device, None)
    return images


def main() -> None:
    options = parse(Options, "experiments/memory.py", __doc__ or "")
    torch.set_num_threads(options.threads)
    table = preset(options.preset, 2)
    found = {name: peaks(table, devices, options.batch_size) for name, devices in LAYOUTS.items()}
    [single] = found["one device"].values()
    print(f"{table.name}, batch {options.batch_size}, peak of a training step on fake devices (tensors only)")
    for name, by_device in found.items():
        for device, peak in by_device.items():
            print(f"  {name:12} {device}: {peak / 2**20:8,.0f} MiB  {peak / single:.3f}")
    if options.capacity_mb:
        for name, devices in LAYOUTS.items():
            images = largest(table, devices, options.capacity_mb * 10**6)
            print(f"  largest batch within {options.capacity_mb:,} MB on each, {name}: {images:,}", flush=True)


if __name__ == "__main__":
    guarded(main)

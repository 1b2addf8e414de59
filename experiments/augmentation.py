"""Claim: a batch is cut, mirrored and centred at least 3 times as fast as by torchvision's transforms, image by image.

    python experiments/augmentation.py [--batch-size 128] [--rounds 20] [--threads 2]

From uint8 images of 256x256 to a float32 batch of 224x224, on the CPU, in alternation in one run. Ours, minus the mean
image: with a place for each image, with one for each 32 images, and with colour noise, which torchvision does not have.
Theirs: RandomCrop, RandomHorizontalFlip, ToDtype and Normalize on PIL images, which a data set hands out, and on
tensors, and then stacked; and the least that does the same as ours: as on tensors, with the mean image subtracted by
hand in Normalize's place. Ratios are taken round by round, with their 99 % interval; freed memory is kept, as `run` has
it. Expected: medians of 3 and more beside theirs, and about 3 beside the least; run it on an idle machine.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from splitnet.allocator import keep_freed_memory
from splitnet.measure.meter import Layout, Ratio, Sample, alternate, ratio
from splitnet.measure.records import load
from splitnet.options import check_bounds, guarded, option, parse
from splitnet.reporting import counted
from splitnet.training.augment import CUDA_CONVNET2, Noise, View
from splitnet.training.splits import Batch

SIDE, SIZE = 256, 224
WARM_UP = 3
LEAST = 3.0
"""Times as fast."""
Function = Callable[[int], Tensor]


@dataclass(frozen=True, kw_only=True)
class Options:
    batch_size: int = option(128, "images in a batch")
    rounds: int = option(20, "measured batches of each way")
    threads: int = option(2, "CPU threads")

    def __post_init__(self) -> None:
        check_bounds(self, {"batch_size": (1, 4096), "rounds": (2, 10**6), "threads": (1, 1024)})


def ours(images: Tensor, view: View) -> Function:
    """A step's pixels on the CPU, with what is drawn for it; each step is another epoch."""
    places = torch.arange(len(images))
    batch = Batch(images, places, places)
    placed = view.at(lambda mean: [mean], SIZE)
    assert placed.means is not None
    [mean] = placed.means

    def step(epoch: int) -> Tensor:
        drawn = placed.draw(batch, SIZE, 0, epoch, len(images))
        assert drawn is not None
        return placed.pixels(images, SIZE, torch.float32, drawn, mean, drawn.shifts)

    return step


def theirs(images: list[Tensor] | list[Image.Image], *centring: Callable[[Tensor], Tensor]) -> Function:
    """Image by image, as a data set's `transform` does, and stacked, as a DataLoader does."""
    to_tensor = [] if isinstance(images[0], Tensor) else [v2.PILToTensor()]
    transform = v2.Compose([v2.RandomCrop(SIZE), v2.RandomHorizontalFlip(), *to_tensor, *centring])
    return lambda _: torch.stack([transform(image) for image in images])


def ways(options: Options) -> dict[str, Function]:
    images = torch.randint(0, 256, (options.batch_size, 3, SIDE, SIDE), dtype=torch.uint8)
    pictures = [Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()) for image in images]
    mean = images.float().mean(0)
    first = (SIDE - SIZE) // 2
    centre = mean[:, first : first + SIZE, first : first + SIZE].contiguous()
    normal = v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    by_hand = v2.ToDtype(torch.float32), v2.Lambda(lambda x: x - centre)
    noise = Noise(CUDA_CONVNET2, shrinks=True)
    return {
        "ours, a place for each image": ours(images, View(mean, "images", flips=True)),
        "ours, a place for 32 images": ours(images, View(mean, "chunks", flips=True)),
        "ours, each image, with noise": ours(images, View(mean, "images", flips=True, noise=noise)),
        "torchvision on PIL images": theirs(pictures, *normal),
        "torchvision on tensors": theirs(list(images), *normal),
        "torchvision, the least": theirs(list(images), *by_hand),
    }


def told(found: Ratio) -> str:
    low, high = found.low or 0.0, found.high or 0.0
    return f"{found.median:.2f} ({low:.2f}-{high:.2f}, range {found.least:.2f}-{found.greatest:.2f}, n={found.n})"


def main() -> None:
    options = parse(Options, "experiments/augmentation.py", __doc__ or "")
    allocator = keep_freed_memory()
    torch.set_num_threads(options.threads)
    print(f"batch {options.batch_size}, {counted(options.threads, 'thread')}, load before {load()}; {allocator}")
    found = ways(options)
    layouts = [Layout(name, (torch.device("cpu"),), step) for name, step in found.items()]
    samples: dict[str, list[Sample]] = {name: [] for name in found}
    for number in range(-WARM_UP, options.rounds):
        for name, sample in alternate(layouts, number + WARM_UP).items():
            if number >= 0:
                samples[name].append(sample)
    for name, taken in samples.items():
        wall = sorted(sample.wall for sample in taken)
        print(f"{name}: {1000 * wall[len(wall) // 2]:.1f} ms ({1000 * wall[0]:.1f}-{1000 * wall[-1]:.1f})")
    for name, base in samples.items():
        for own, taken in samples.items():
            if name.startswith("torchvision") and own.startswith("ours"):
                found_ratio = ratio(taken, base)
                verdict = "shown" if (found_ratio.low or 0.0) >= LEAST else "not shown"
                print(f"{own} / {name}, speed: {told(found_ratio)}; at least {LEAST:g}: {verdict}")


if __name__ == "__main__":
    guarded(main)

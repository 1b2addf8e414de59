"""Images for the network: the sets by name, the order they are seen in, and their way to pixels.

    fashion-mnist        Debian's or torchvision's files; where there are none, fashion-mnist-small
    fashion-mnist-small  2,000 training and 500 test images that come with the package
    imagefolder          train/<class>/… and val/<class>/… of image files, as ImageNet has it
    synthetic            patterns in noise, made from a seed

Shapes as in `splits`. A set is read the same on every machine: nothing here draws from a generator
or depends on the order in which a file system lists its files.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from splitnet import keyed
from splitnet.errors import UsageError
from splitnet.training import fashion, folder, synthetic
from splitnet.training.splits import Batch, Dataset, HeldSplit, Split, batches

__all__ = [
    "NAMES",
    "Batch",
    "Dataset",
    "HeldSplit",
    "Split",
    "batches",
    "load",
    "order",
    "to_network",
]

NAMES = ("fashion-mnist", "fashion-mnist-small", "imagefolder", "synthetic")

_SHUFFLE = 0x0DE4  # sets these hashes apart from the crops and flips of the same seed, epoch, image


def load(
    name: str,
    data_dir: Path | None = None,
    *,
    size: int = 224,
    seed: int = 0,
    workers: int = 4,
    train: int = 512,
    test: int = 128,
    channels: int = 3,
    classes: int = 10,
) -> Dataset:
    """The data set of that name, for a network that reads images of `size` pixels a side.

    `workers` threads decode an imagefolder's images, ahead of need; 0: whoever reads does. `seed` and the counts of
    training images, test images, channels and classes shape the synthetic set, and no other. UsageError for a set that
    is not there, or not whole.
    """
    if data_dir is not None and name in ("fashion-mnist-small", "synthetic"):
        raise UsageError(f"--data-dir {data_dir}: {name} reads no folder; leave the option out")
    match name:
        case "fashion-mnist":
            return fashion.load(data_dir)
        case "fashion-mnist-small":
            return fashion.embedded()
        case "imagefolder":
            return folder.load(data_dir, size, workers)
        case "synthetic":
            return synthetic.make(size, seed, train=train, test=test, channels=channels, classes=classes)
    raise UsageError(f"--data {name}: the data sets are {', '.join(NAMES)}")


def order(count: int, seed: int, epoch: int) -> Tensor:
    """The places 0 … count - 1, int64, shuffled by the hash of (seed, epoch, place).

    Exact: both rounds of `mix` are bijections of 32 bits, so no two places have the same hash.
    """
    places = torch.arange(count)
    return keyed.mix(keyed.mix(places) ^ keyed.key(_SHUFFLE, seed, epoch)).argsort()


def to_network(images: Tensor, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pixels in 0..1, (B, C, size, size), from uint8 (B, C, H, W), on the device of the images.

    An image that covers the square is cut at its centre: `folder` reads more than the network sees,
    because the original tests on the centre 224 of 256. A smaller one is stretched to it,
    bilinearly with align_corners=False, as `torchvision.transforms.Resize` does.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"to_network takes uint8 images, not {images.dtype}")
    height, width = images.shape[-2:]
    top, left = (height - size) // 2, (width - size) // 2
    exact = torch.promote_types(dtype, torch.float32)  # half precision is rounded to once, at the end
    if min(top, left) >= 0:
        images = images[..., top : top + size, left : left + size]
        pixels = images.to(exact, memory_format=torch.channels_last).div_(255)  # as the first convolution reads them
    else:
        pixels = images.to(exact) / 255
        pixels = F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    return pixels.to(dtype)

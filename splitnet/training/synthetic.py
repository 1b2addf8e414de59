"""Images that need no files: a pattern for each class, under noise. A network can learn them."""

from math import prod

import torch
from torch import Tensor

from splitnet import keyed
from splitnet.errors import UsageError
from splitnet.training.splits import Dataset, HeldSplit

SIDE = 32
"""Pixels a side, where the network does not ask for fewer."""

_CELL = 4  # pixels a side of one grey within a pattern: coarse enough to survive a stride of 4
_PATTERN, _TRAIN, _TEST = range(3)  # what a hash is for


def make(size: int, seed: int, *, train: int = 512, test: int = 128, channels: int = 3, classes: int = 10) -> Dataset:
    """A set of so many images, which are the same on every machine. Image i has label i % classes.

    The images have min(size, 32) pixels a side: enlarging them is the device's work.
    """
    for value, least, what in (
        (train, 1, "training images"),
        (test, 1, "test images"),
        (channels, 1, "channels"),
        (classes, 2, "classes"),
    ):
        if value < least:
            raise UsageError(f"--data synthetic: {value} {what}; it has at least {least}")
    side = min(size, SIDE)
    patterns = _patterns(seed, classes, channels, side)
    return Dataset(
        "synthetic",
        channels,
        tuple(f"class {label}" for label in range(classes)),
        _split(patterns, train, keyed.key(_TRAIN, seed)),
        _split(patterns, test, keyed.key(_TEST, seed)),
        f"synthetic images from seed {seed}: {train:,} training and {test:,} test images",
    )


def _patterns(seed: int, classes: int, channels: int, side: int) -> Tensor:
    """One image for each class, uint8 (classes, C, side, side), of cells of one grey each."""
    cells = -(-side // _CELL)
    coarse = _bytes((classes, channels, cells, cells), keyed.key(_PATTERN, seed))
    fine = coarse.repeat_interleave(_CELL, 2).repeat_interleave(_CELL, 3)
    return fine[..., :side, :side]


def _split(patterns: Tensor, count: int, key: int) -> HeldSplit:
    """Half pattern and half noise, so that no pixel alone tells the class."""
    labels = torch.arange(count) % len(patterns)
    noise = _bytes((count, *patterns.shape[1:]), key)
    return HeldSplit((patterns[labels] // 2) + (noise // 2), labels)


def _bytes(shape: tuple[int, ...], key: int) -> Tensor:
    """Bytes of that shape; what stands in item i depends on the key, i and the shape of an item."""
    items = keyed.mix(torch.arange(shape[0])) ^ key
    places = keyed.mix(torch.arange(prod(shape[1:])))
    hashes = keyed.mix(items[:, None] ^ places)
    return (hashes >> 24).to(torch.uint8).view(shape)

"""What a data set is: two splits that read batches by index, and what is told of them.

Shapes: B images of a batch, N of a split, C channels, H and W pixels. Images are uint8 on the CPU
all the way to the network's device, so that a quarter of the bytes travel; labels are int64.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from splitnet.errors import UsageError


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """Images read together, in the order asked for; `indices` are their places in the split."""

    images: Tensor
    """uint8 (B, C, H, W)."""
    labels: Tensor
    """int64 (B,)."""
    indices: Tensor
    """int64 (B,): what crops and flips are keyed by."""
    number: int = 0
    """Slices of the order that came before."""
    first: int = 0
    """Where replicas share a batch: the place in the global one of the first image here."""
    total: int | None = None
    """And the images of the global batch, over which the loss is the mean; None: just these."""
    padding: int = 0
    """Images at the end that have no label and count for nothing: replicas take equally many."""


class Split(Protocol):
    """Images that are learnt from, or tested on."""

    def __len__(self) -> int: ...

    def read(self, indices: Tensor) -> Batch:
        """The images at these places, int64 (B,), without those that cannot be read."""


@dataclass(frozen=True, eq=False, slots=True)
class HeldSplit:
    """A split that is held in memory: images (N, C, H, W) and labels (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, indices: Tensor) -> Batch:
        return Batch(self.images[indices], self.labels[indices], indices)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Two splits of the same classes."""

    name: str
    """What is read: "fashion-mnist-small" also where "fashion-mnist" was asked for and not found."""
    channels: int
    classes: tuple[str, ...]
    """Names; a label is a place in them."""
    train: Split
    test: Split
    origin: str
    """One line for the user: what is read, and from where."""
    skipped: dict[Path, str] = field(default_factory=dict)
    """Images met so far that could not be read, and why. It grows while splits are read."""


def batches(split: Split, batch_size: int, order: Tensor | None = None, start: int = 0) -> Iterator[Batch]:
    """Read consecutive slices of the order, by default 0, 1, …; the last may be short.

    `start` slices are passed over unread, to resume. An image that cannot be read is missing from
    its batch, and a batch that has none left is not yielded.
    """
    if batch_size < 1:
        raise UsageError(f"--batch-size {batch_size}: a batch has at least 1 image")
    order = torch.arange(len(split)) if order is None else order
    for first in range(start * batch_size, len(order), batch_size):
        batch = split.read(order[first : first + batch_size])
        if len(batch.indices):
            yield replace(batch, number=first // batch_size)

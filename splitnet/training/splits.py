"""What a data set is: two splits that read batches by index, and what is told of them.

Shapes: B images of a batch, N of a split, C channels, H and W pixels. Images are uint8 on the CPU
all the way to the network's device, so that a quarter of the bytes travel; labels are int64.
"""

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from splitnet.errors import UsageError


@dataclass(frozen=True, slots=True)
class Crop:
    """Where images that follow each other in a batch are cut: pixels above it and left of it; and if it is mirrored."""

    count: int
    """Of the images."""
    top: int
    left: int
    mirrored: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Drawn:
    """What chance, or a test, says of a batch."""

    crops: tuple[Crop, ...]
    """In the order of the batch, all of which they cover."""
    shifts: Tensor | None = None
    """What is added to the colours of each image, float32 (B, 3) on the CPU, in the scale of the pixels."""
    divisor: float = 1.0
    """Of the pixels, at the end."""


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
    copies: Sequence[Tensor] | None = None
    """The images on the device of each tower, where they were copied ahead."""
    drawn: Drawn | None = None
    """How they are seen in training; None: as in a test."""

    @property
    def count(self) -> int:
        """Images with a label, of the global batch."""
        return len(self.labels) if self.total is None else self.total


class Split(Protocol):
    """Images that are learnt from, or tested on."""

    def __len__(self) -> int: ...

    def read(self, indices: Tensor) -> Batch:
        """The images at these places, int64 (B,), without those that cannot be read."""


class Pending(Protocol):
    """A batch that is being read, by other threads or by whoever asks for its result."""

    @property
    def ready(self) -> bool:
        """Whether the result is there without waiting."""

    def result(self) -> Batch:
        """The batch, or what reading it raises."""

    def drop(self) -> None:
        """Nobody will ask for the result."""


@runtime_checkable
class ReadsAhead(Split, Protocol):
    """A split that can begin to read what will be asked for."""

    def reading(self) -> AbstractContextManager[object]:
        """Open while batches are read one after another: the threads that read them live as long."""

    def begin(self, indices: Tensor) -> Pending:
        """`read` in two parts; what it notes of images, it notes when the result is asked for."""


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


AHEAD = 2
"""Batches that are being read while another one is used."""


class Reader:
    """A split that is told what will be asked for, in which order, and reads ahead, if the split can.

    Use it as a context: at its end nothing is under way any more, and no thread of its is left.
    """

    def __init__(self, split: Split, upcoming: Iterable[Tensor] = ()) -> None:
        """`upcoming`: indices of the batches, int64 (B,) each, drawn from only AHEAD of what is asked for."""
        self.split = split
        self.waited = 0.0
        """Seconds that whoever asked has waited for batches."""
        self._ahead = split if isinstance(split, ReadsAhead) else None
        self._upcoming = iter(upcoming)
        self._begun: deque[tuple[Tensor, Pending]] = deque()
        self._open = ExitStack()

    def __enter__(self) -> Self:
        if self._ahead is not None:
            self._open.enter_context(self._ahead.reading())
        return self

    def __exit__(self, *_: object) -> None:
        self._forget()
        self._open.close()

    def __len__(self) -> int:
        return len(self.split)

    @property
    def ready(self) -> bool:
        """Whether the next batch costs no waiting: it is read, or is in memory."""
        self._begin(1)
        return self._begun[0][1].ready if self._begun else self._ahead is None

    def read(self, indices: Tensor) -> Batch:
        begun = time.perf_counter()
        try:
            self._begin(1 + AHEAD)
            if not self._begun:
                return self.split.read(indices)
            expected, pending = self._begun.popleft()
            if not torch.equal(expected, indices):
                raise ValueError("batches are asked for in another order than was told")
            return pending.result()
        finally:
            self.waited += time.perf_counter() - begun

    def _begin(self, count: int) -> None:
        """Have that many under way, or all that are left."""
        while self._ahead is not None and len(self._begun) < count:
            indices = next(self._upcoming, None)
            if indices is None:
                return
            self._begun.append((indices, self._ahead.begin(indices)))

    def _forget(self) -> None:
        self._upcoming = iter(())
        while self._begun:
            self._begun.popleft()[1].drop()


def slices(order: Tensor, batch_size: int, start: int = 0) -> Iterator[tuple[int, Tensor]]:
    """Number and places of each consecutive slice of the order from number `start` on; the last may be short."""
    for first in range(start * batch_size, len(order), batch_size):
        yield first // batch_size, order[first : first + batch_size]


def batches(split: Split, batch_size: int, order: Tensor | None = None, start: int = 0) -> Iterator[Batch]:
    """Read consecutive slices of the order, by default 0, 1, …; the last may be short.

    `start` slices are passed over unread, to resume. An image that cannot be read is missing from
    its batch, and a batch that has none left is not yielded.
    """
    if batch_size < 1:
        raise UsageError(f"--batch-size {batch_size}: a batch has at least 1 image")
    order = torch.arange(len(split)) if order is None else order
    with Reader(split, (indices for _, indices in slices(order, batch_size, start))) as reader:
        for number, indices in slices(order, batch_size, start):
            batch = reader.read(indices)
            if len(batch.indices):
                yield replace(batch, number=number)

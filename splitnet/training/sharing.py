"""How replicas share a batch, and how all processes of a job come to one mind after a step."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from splitnet.parallel.ranks import Ranks
from splitnet.training.splits import Batch, Reader, Split, batches, slices


class UnevenReadError(RuntimeError):
    """Towers of one network read different images: their files differ, or one of them could not be read."""


class Interrupted(KeyboardInterrupt):
    """A signal asks for the end. The exit status is 128 and its number, as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.strsignal(number))
        self.number = number

    @property
    def status(self) -> int:
        return 128 + self.number


@dataclass
class Stop:
    """A wish to end after the step under way, which a signal may utter; all processes end after the same one."""

    asked: int = 0
    """Number of the signal that this process got; 0: none."""
    agreed: int = 0
    """Number of the signal that ended the training, wherever it was got."""


def shared_batches(
    split: Split, batch_size: int, order: Tensor, start: int = 0, ranks: Ranks | None = None
) -> Iterator[Batch]:
    """`batches`, of which each replica reads its part: consecutive images, equally many, the last ones fewer.

    Those that read fewer than another are padded with black images that have no label. Alone: `batches` itself.
    """
    if ranks is None:
        yield from batches(split, batch_size, order, start)
        return
    with Reader(split, own_slices(order, batch_size, start, ranks)) as reader:
        for number, indices in slices(order, batch_size, start):
            batch = reader.read(indices[_part(len(indices), ranks)])
            counts = _counts(batch, ranks)  # all processes agree here, in one order, whoever has read ahead
            if any(counts):
                first, total = sum(counts[: ranks.replica]), sum(counts)
                yield _padded(replace(batch, number=number, first=first, total=total), max(counts))


def own_slices(order: Tensor, batch_size: int, start: int = 0, ranks: Ranks | None = None) -> Iterator[Tensor]:
    """The places of each batch that `shared_batches` reads here."""
    for _, indices in slices(order, batch_size, start):
        yield indices if ranks is None else indices[_part(len(indices), ranks)]


def _part(count: int, ranks: Ranks) -> slice:
    """Which of that many images are a replica's."""
    each = -(-count // ranks.replicas)
    return slice(ranks.replica * each, (ranks.replica + 1) * each)


def share_of(batch: Batch, ranks: Ranks) -> Batch:
    """What a replica takes of a global batch that every process has read."""
    total = len(batch.labels)
    part = _part(total, ranks)
    own = replace(batch, images=batch.images[part], labels=batch.labels[part], indices=batch.indices[part])
    return _padded(replace(own, first=min(part.start, total), total=total), part.stop - part.start)


def _counts(batch: Batch, ranks: Ranks) -> list[int]:
    """How many images each replica has read; its towers must have read the same ones."""
    which = int(batch.indices.square().sum()) % 2**50  # of as many images, others have another sum
    found = [(int(count), int(key)) for count, key in ranks.numbers([len(batch.labels), which], "reading images")]
    for rank, (count, key) in enumerate(found):
        first = rank // ranks.towers * ranks.towers
        if count != found[first][0]:
            raise UnevenReadError(
                f"rank {rank} read {count} images of a batch of which rank {first} read {found[first][0]}"
            )
        if key != found[first][1]:
            raise UnevenReadError(f"rank {rank} read other images of a batch than rank {first}")
    return [count for count, _ in found[:: ranks.towers]]


def _padded(batch: Batch, count: int) -> Batch:
    missing = count - len(batch.labels)
    if not missing:
        return batch
    images = torch.cat([batch.images, batch.images.new_zeros(missing, *batch.images.shape[1:])])
    return replace(batch, images=images, padding=missing)


def together(outcome: list[float], stop: Stop, ranks: Ranks | None, what: str) -> list[float]:
    """The sum of all processes' numbers; `stop` is agreed on if one of them was asked to."""
    if ranks is None:
        stop.agreed = stop.asked
        return outcome
    found: list[Any] = ranks.numbers([*outcome, stop.asked], what)
    stop.agreed = int(max(numbers[-1] for numbers in found))
    return [sum(column) for column in list(zip(*found, strict=True))[:-1]]

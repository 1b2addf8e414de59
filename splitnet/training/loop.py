"""The loop: it yields records, and whoever iterates logs them, measures, or stops.

It does not know how many towers there are: it hands the network images and gets logits on one device.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isfinite

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from splitnet import spans
from splitnet.network.towers import SplitNet
from splitnet.training.data import Batch, Split, batches, order, to_network


class DivergedError(ArithmeticError):
    """The loss is not finite any more; the steps before it stand."""


@dataclass(frozen=True, slots=True)
class Step:
    """One update on one batch. `loss` is the mean over the batch, before the update; `accuracy` a share of it."""

    step: int
    epoch: int
    loss: float
    accuracy: float
    images: int
    seconds: float
    """Wall time of the step, with the reading of its images; not of what is done between two steps."""
    ends_epoch: bool = False


@dataclass(frozen=True, slots=True)
class Test:
    """The network on images that it does not learn from, dropout off."""

    __test__ = False  # the name is the field's; pytest need not collect it

    step: int
    """Updates made before."""
    epoch: int
    """Epochs begun before."""
    loss: float
    accuracy: float
    images: int
    seconds: float


def training_step(net: SplitNet, optimizer: torch.optim.Optimizer, batch: Batch) -> Tensor:
    """One update. Returns mean loss and images classified right, (2,), on the logits' device; nothing waits."""
    optimizer.zero_grad(set_to_none=True)
    outcome = _outcome(net, batch)
    with record_function(spans.BACKWARD):
        outcome[0].backward()
    with record_function(spans.OPTIMIZER):
        optimizer.step()
    return outcome.detach()


def _outcome(net: SplitNet, batch: Batch) -> Tensor:
    with record_function(spans.DATA):
        images = network_images(net, batch.images)
    with record_function(spans.FORWARD):
        logits = net(images)
        labels = batch.labels.to(logits.device, non_blocking=True)
        right = (logits.detach().argmax(1) == labels).sum()
        return torch.stack([F.cross_entropy(logits, labels), right.to(logits.dtype)])


def network_images(net: SplitNet, images: Tensor) -> list[Tensor]:
    """uint8 images (B, C, H, W) on the CPU to what each tower reads: copied once to each device, resized there."""
    copies = net.exchange.replicate(images)
    dtype = next(net.parameters()).dtype
    ready = {id(copy): to_network(copy, net.architecture.size, dtype) for copy in copies}  # towers may share one
    return [ready[id(copy)] for copy in copies]


def train(
    net: SplitNet,
    split: Split,
    optimizer: torch.optim.Optimizer,
    *,
    batch_size: int,
    seed: int,
    epochs: int | None = None,
    steps: int | None = None,
) -> Iterator[Step]:
    """Train until `epochs` or `steps` are full. A step's record comes after its update.

    DivergedError at the first loss that is not finite; no record is made of that step.
    """
    net.train()
    clock = time.perf_counter()
    for step, epoch, batch, ends_epoch in _schedule(split, batch_size, seed, epochs, steps):
        net.moment = replace(net.moment, step=step)
        images = len(batch.labels)
        loss, right = training_step(net, optimizer, batch).tolist()  # the step's one copy to the host
        if not isfinite(loss):
            raise DivergedError(f"step {step}: the loss is {loss}; a smaller --lr may help")
        now = time.perf_counter()
        yield Step(step, epoch, loss, right / images, images, now - clock, ends_epoch)
        net.train()  # whoever looked at the step may have tested the network
        clock = time.perf_counter()


def _schedule(
    split: Split, batch_size: int, seed: int, epochs: int | None, steps: int | None
) -> Iterator[tuple[int, int, Batch, bool]]:
    """(step, epoch, batch, whether it ends the epoch): every image once an epoch, keyed by seed and epoch."""
    step = epoch = 0
    while (epochs is None or epoch < epochs) and (steps is None or step < steps):
        for batch, ends in _with_last(batches(split, batch_size, order(len(split), seed, epoch))):
            if steps is not None and step >= steps:
                return
            yield step, epoch, batch, ends
            step += 1
        epoch += 1


def _with_last(found: Iterator[Batch]) -> Iterator[tuple[Batch, bool]]:
    """Each batch, and whether it is the last: only reading on tells, since broken images may leave none."""
    batch = _read(found)
    while batch is not None:
        following = _read(found)
        yield batch, following is None
        batch = following


def _read(found: Iterator[Batch]) -> Batch | None:
    with record_function(spans.DATA):
        return next(found, None)


def evaluate(
    net: SplitNet, split: Split, *, batch_size: int, step: int = 0, epoch: int = 0, images: int | None = None
) -> Test:
    """Loss and accuracy on the first `images` of a split, or on all of it. DivergedError if it is not finite."""
    net.eval()
    start = time.perf_counter()
    total = min(len(split), images or len(split))
    loss = right = seen = 0.0
    with torch.no_grad():
        for batch in batches(split, batch_size, torch.arange(total)):
            mean, correct = _outcome(net, batch).tolist()
            loss, right, seen = loss + mean * len(batch.labels), right + correct, seen + len(batch.labels)
    net.train()
    if not isfinite(loss):
        raise DivergedError(f"after step {step}: the loss on the test set is {loss}; a smaller --lr may help")
    return Test(step, epoch, loss / max(seen, 1), right / max(seen, 1), int(seen), time.perf_counter() - start)

"""The loop: it yields records, and whoever iterates logs them, measures, or stops.

It does not know how many towers there are: it hands the network images and gets logits on one device.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import isfinite

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from splitnet import spans
from splitnet.errors import UsageError
from splitnet.network.towers import SplitNet
from splitnet.parallel.ranks import Ranks
from splitnet.training.data import Batch, Split, order, to_network
from splitnet.training.sharing import Interrupted, Stop, shared_batches, together


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
    batch: int = 0
    """Slices of the epoch's order that came before."""
    padding: int = 0
    """Images of weight 0, with which replicas were made equal, in sum over them."""
    ends_epoch: bool = False

    @property
    def after(self) -> "Position":
        """Where training goes on."""
        if self.ends_epoch:
            return Position(self.step + 1, self.epoch + 1, 0)
        return Position(self.step + 1, self.epoch, self.batch + 1)


@dataclass(frozen=True, slots=True)
class Position:
    """Where training stands: updates made, the epoch, and the slices of its order that were used."""

    step: int = 0
    epoch: int = 0
    batch: int = 0


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
    padding: int = 0


def training_step(
    net: SplitNet, optimizer: torch.optim.Optimizer, batch: Batch, model: nn.Module | None = None
) -> Tensor:
    """One update. Returns mean loss and images classified right, (2,), on the logits' device; nothing waits.

    `model` runs the network (DistributedDataParallel); its gradients must be sums over replicas. Where replicas share
    a batch, the loss is this one's part of the global mean; where tower 0 is in another process, both are 0.
    """
    optimizer.zero_grad(set_to_none=True)
    outcome = _outcome(net, batch, model or net)
    with record_function(spans.BACKWARD):
        outcome[0].backward()
    with record_function(spans.OPTIMIZER):
        optimizer.step()
    return outcome.detach()


def _outcome(net: SplitNet, batch: Batch, model: nn.Module) -> Tensor:
    with record_function(spans.DATA):
        images = network_images(net, batch.images)
    with record_function(spans.FORWARD):
        logits = model(images)
        if not net.home:
            return torch.stack([logits, logits.detach()])
        labels = batch.labels.to(logits.device, non_blocking=True)
        logits = logits[: len(labels)]  # what padding came to is left out
        right = (logits.detach().argmax(1) == labels).sum()
        return torch.stack([_loss(logits, labels, batch.total), right.to(logits.dtype)])


def _loss(logits: Tensor, labels: Tensor, total: int | None) -> Tensor:
    """What these images contribute to the mean over `total`."""
    if total in (None, len(labels)):
        return F.cross_entropy(logits, labels)
    return F.cross_entropy(logits, labels, reduction="sum") / total


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
    start: Position = Position(),
    model: nn.Module | None = None,
    ranks: Ranks | None = None,
    stop: Stop | None = None,
) -> Iterator[Step]:
    """Train from `start` until `epochs` or `steps` are full, or all agree to stop. A record comes after its update.

    With `ranks` every process iterates alike; batches are shared among replicas, and records are of all. DivergedError
    at the first loss that is not finite, in every process; no record is made of that step.
    """
    net.train()
    stop = stop or Stop()
    clock = time.perf_counter()
    for at, batch, ends_epoch in _schedule(split, batch_size, seed, epochs, steps, start, ranks):
        net.moment = replace(net.moment, step=at.step, first_image=batch.first)
        outcome = training_step(net, optimizer, batch, model).tolist()  # the step's one copy to the host
        loss, right, padding = together([*outcome, batch.padding], stop, ranks, f"the end of step {at.step}")
        if not isfinite(loss):
            raise DivergedError(f"step {at.step}: the loss is {loss}; a smaller --lr may help")
        images = len(batch.labels) if batch.total is None else batch.total
        seconds = time.perf_counter() - clock
        # each tower of a replica padded alike
        padding = int(padding) // (1 if ranks is None else ranks.towers)
        yield Step(at.step, at.epoch, loss, right / images, images, seconds, at.batch, padding, ends_epoch)
        if stop.agreed:
            return
        net.train()  # whoever looked at the step may have tested the network
        clock = time.perf_counter()


def _schedule(
    split: Split,
    batch_size: int,
    seed: int,
    epochs: int | None,
    steps: int | None,
    start: Position,
    ranks: Ranks | None,
) -> Iterator[tuple[Position, Batch, bool]]:
    """(where it is, batch, whether it ends the epoch): every image once an epoch, keyed by seed and epoch."""
    step, epoch, first = start.step, start.epoch, start.batch
    while (epochs is None or epoch < epochs) and (steps is None or step < steps):
        found = shared_batches(split, batch_size, order(len(split), seed, epoch), first, ranks)
        before = step
        for batch, ends in _with_last(found):
            if steps is not None and step >= steps:
                return
            yield Position(step, epoch, batch.number), batch, ends
            step += 1
        if step == before and not first:
            raise UsageError(f"epoch {epoch}: none of the {len(split):,} training images can be read any more")
        epoch, first = epoch + 1, 0


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
    net: SplitNet,
    split: Split,
    *,
    batch_size: int,
    step: int = 0,
    epoch: int = 0,
    images: int | None = None,
    ranks: Ranks | None = None,
    stop: Stop | None = None,
) -> Test:
    """Loss and accuracy on the first `images` of a split, or on all of it. DivergedError if it is not finite.

    Interrupted, in every process at the same batch, if one is asked to `stop`.
    """
    net.eval()
    stop = stop or Stop()
    start = time.perf_counter()
    places = torch.arange(min(len(split), images or len(split)))
    loss = right = seen = padding = 0.0
    with torch.no_grad():
        for batch in shared_batches(split, batch_size, places, ranks=ranks):
            mean, correct = _outcome(net, batch, net).tolist()
            count = len(batch.labels) if batch.total is None else batch.total
            loss, right, seen = loss + mean * count, right + correct, seen + count
            padding += batch.padding
            together([], stop, ranks, "a test")
            if stop.agreed:
                raise Interrupted(stop.agreed)
    loss, right, padding = together([loss, right, padding], stop, ranks, "the end of a test")
    net.train()
    if not isfinite(loss):
        raise DivergedError(f"after step {step}: the loss on the test set is {loss}; a smaller --lr may help")
    padding = int(padding) // (1 if ranks is None else ranks.towers)
    return Test(step, epoch, loss / max(seen, 1), right / max(seen, 1), int(seen), time.perf_counter() - start, padding)

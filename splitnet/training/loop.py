"""The loop: it yields records, and whoever iterates logs them, measures, or stops.

It does not know how many towers there are: it hands the network images and gets logits on one device.
"""

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import count, islice
from math import isfinite

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from splitnet import spans
from splitnet.errors import UsageError
from splitnet.network.towers import SplitNet
from splitnet.parallel.ranks import Ranks
from splitnet.training.augment import PLAIN, View, average, credit
from splitnet.training.data import Batch, Split, order
from splitnet.training.prefetch import Ahead
from splitnet.training.sharing import Interrupted, Stop, own_slices, shared_batches, together
from splitnet.training.splits import Drawn, Reader


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
    waited: float = 0.0
    """Of these seconds, those that this process waited for images: the first step's own, and each time the next one's
    that were not there in time."""
    warms_up: bool = False
    """The first, since training began or went on, of a batch of its size: what it makes, or compiles, others reuse."""

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
    top5: float | None = None
    """Share of the images whose class is among the five most likely; None where there are fewer than six."""
    views: int = 1
    """Of each image, each a forward pass of its own."""
    rates: Mapping[str, float] | None = None
    """Learning rates of the epoch before it, by kind of parameters; None before the first step."""


def training_step(
    net: SplitNet,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    model: nn.Module | None = None,
    view: View = PLAIN,
) -> Tensor:
    """One update. Returns mean loss and images classified right, (2,), on the logits' device; nothing waits.

    `model` runs the network (DistributedDataParallel); its gradients must be sums over replicas. Where replicas share
    a batch, the loss is this one's part of the global mean; where tower 0 is in another process, both are 0.
    """
    optimizer.zero_grad(set_to_none=True)
    outcome = _outcome(net, batch, model or net, view)
    with record_function(spans.BACKWARD):
        outcome[0].backward()
    with record_function(spans.OPTIMIZER):
        optimizer.step()
    return outcome.detach()


def _outcome(net: SplitNet, batch: Batch, model: nn.Module, view: View) -> Tensor:
    with record_function(spans.DATA):
        images = network_images(net, batch.images, batch.copies, view, batch.drawn)
    with record_function(spans.FORWARD):
        logits = model(images)
        if not net.home:
            return torch.stack([logits, logits.detach()])
        labels = batch.labels.to(logits.device, non_blocking=True)
        logits = logits[: len(labels)]  # what padding came to is left out
        right = (logits.detach().argmax(1) == labels).sum()
        return torch.stack([_loss(logits, labels, batch.total), right.to(logits.dtype)])


def _tested(net: SplitNet, batch: Batch, view: View) -> Tensor:
    """Mean loss of a batch, and images whose class is the most likely, and among the five most likely: (3,)."""
    copies = net.exchange.replicate(batch.images) if batch.copies is None else batch.copies
    seen = []
    for drawn in view.tests(batch.images, net.architecture.size):
        with record_function(spans.DATA):
            images = network_images(net, batch.images, copies, view, drawn)
        with record_function(spans.FORWARD):
            seen.append(net(images))
    with record_function(spans.FORWARD):
        if not net.home:
            return torch.stack([seen[0]] * 3)
        labels = batch.labels.to(seen[0].device, non_blocking=True)
        scores = average(seen)[: len(labels)]
        right = [credit(scores, labels, most).to(scores.dtype) for most in (1, 5)]
        return torch.stack([_loss(scores, labels, batch.total), *right])


def _loss(logits: Tensor, labels: Tensor, total: int | None) -> Tensor:
    """What these images contribute to the mean over `total`."""
    if total in (None, len(labels)):
        return F.cross_entropy(logits, labels)
    return F.cross_entropy(logits, labels, reduction="sum") / total


def network_images(
    net: SplitNet,
    images: Tensor,
    copies: Sequence[Tensor] | None = None,
    view: View = PLAIN,
    drawn: Drawn | None = None,
) -> list[Tensor]:
    """uint8 images (B, C, H, W) on the CPU to what each tower reads: copied once to each device, worked on there.

    `copies`: they are there already.
    """
    size, replicate = net.architecture.size, net.exchange.replicate
    copies = replicate(images) if copies is None else copies
    none: list[Tensor | None] = [None] * len(copies)
    means = view.at(replicate, size).means or none
    shifts = none if drawn is None or drawn.shifts is None else replicate(drawn.shifts)
    dtype = net.execution.activations or next(net.parameters()).dtype
    ready: dict[int, Tensor] = {}
    for copy, mean, shift in zip(copies, means, shifts, strict=True):
        if id(copy) not in ready:  # towers may share one
            ready[id(copy)] = view.pixels(copy, size, dtype, drawn, mean, shift)
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
    view: View = PLAIN,
    reshuffle: bool = True,
) -> Generator[Step, None, None]:
    """Train from `start` until `epochs` or `steps` are full, or all agree to stop. A record comes after its update.

    Unless `reshuffle`, every epoch reads the first one's order again, as in 2012.

    With `ranks` every process iterates alike; batches are shared among replicas, and records are of all. DivergedError
    at the first loss that is not finite, in every process; no record is made of that step.
    """
    net.train()
    stop, view = stop or Stop(), view.at(net.exchange.replicate, net.architecture.size)
    draw = partial(view.draw, size=net.architecture.size, seed=seed, batch_size=batch_size)
    step, epoch, sizes = start.step, start.epoch, dict[int, int]()
    orders = lru_cache(2)(lambda epoch: order(len(split), seed, epoch if reshuffle else 0))
    upcoming = islice(_upcoming(orders, batch_size, epochs, start, ranks), steps and max(steps - step, 0) + 1)
    with Reader(split, upcoming) as reader:
        clock, waited = time.perf_counter(), 0.0
        ahead = Ahead(net, _schedule(reader, orders, batch_size, epochs, start, ranks, draw), reader, ranks is not None)
        for batch in ahead if steps is None or step < steps else ():
            if batch is None:
                epoch += 1
                continue
            net.moment = replace(net.moment, step=step, first_image=batch.first)
            pending = training_step(net, optimizer, batch, model, view)
            if step + 1 != steps and not stop.asked:
                ahead.get_ready()
            outcome, ends = pending.tolist(), ahead.ends  # the step's one copy to the host waits for the devices here
            loss, right, padding = together([*outcome, batch.padding], stop, ranks, f"the end of step {step}")
            _check_finite(loss, f"step {step}: the loss", net)
            seconds, waited = time.perf_counter() - clock, reader.waited - waited
            padding, images = int(padding) // (1 if ranks is None else ranks.towers), batch.count  # towers pad alike
            accuracy, new = right / images, sizes.setdefault(len(batch.images), step) == step
            yield Step(step, epoch, loss, accuracy, images, seconds, batch.number, padding, ends, waited, new)
            step += 1
            if stop.agreed or step == steps:
                return
            net.train()  # whoever looked at the step may have tested the network
            clock, waited = time.perf_counter(), reader.waited


def _check_finite(loss: float, what: str, net: SplitNet) -> None:
    if not isfinite(loss):
        wider = " or a wider --wire" if net.execution.wire == "float16" else ""
        raise DivergedError(f"{what} is {loss}; a smaller --lr{wider} may help")


Orders = Callable[[int], Tensor]
"""An epoch's order: every place once."""


def _schedule(
    reader: Reader,
    orders: Orders,
    batch_size: int,
    epochs: int | None,
    start: Position,
    ranks: Ranks | None,
    draw: Callable[..., Drawn | None],
) -> Iterator[Batch | None]:
    """Every image once an epoch, with what is drawn for it; None where an epoch ends."""
    for epoch, first in _epochs(epochs, start):
        found = False
        for batch in shared_batches(reader, batch_size, orders(epoch), first, ranks):
            found = True
            yield replace(batch, drawn=draw(batch, epoch=epoch))
        if not found and not first:
            raise UsageError(f"epoch {epoch}: none of the {len(reader):,} training images can be read any more")
        yield None


def _upcoming(
    orders: Orders, batch_size: int, epochs: int | None, start: Position, ranks: Ranks | None
) -> Iterator[Tensor]:
    """The places of the batches that `_schedule` reads here."""
    for epoch, first in _epochs(epochs, start):
        yield from own_slices(orders(epoch), batch_size, first, ranks)


def _epochs(epochs: int | None, start: Position) -> Iterator[tuple[int, int]]:
    """Each epoch, and the slices of its order that are passed over."""
    for epoch in count(start.epoch) if epochs is None else range(start.epoch, epochs):
        yield epoch, start.batch if epoch == start.epoch else 0


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
    view: View = PLAIN,
) -> Test:
    """Loss, accuracy and top-5 accuracy on the first `images` of a split, or on all of it.

    DivergedError if the loss is not finite. Interrupted, in every process at the same batch, if one is asked to `stop`.
    """
    net.eval()
    stop = stop or Stop()
    view = view.at(net.exchange.replicate, net.architecture.size)
    start = time.perf_counter()
    places = torch.arange(min(len(split), images or len(split)))
    loss = right = top5 = seen = padding = 0.0
    with torch.no_grad(), Reader(split, own_slices(places, batch_size, 0, ranks)) as reader:
        found = shared_batches(reader, batch_size, places, ranks=ranks)
        ahead = Ahead(net, found, reader, ranks is not None)
        for batch in filter(None, ahead):
            pending = _tested(net, batch, view)
            if not stop.asked:
                ahead.get_ready()
            mean, first, among = pending.tolist()
            loss, seen = loss + mean * batch.count, seen + batch.count
            right, top5 = right + first, top5 + among
            padding += batch.padding
            if ranks is not None:
                ahead.fetch()
            together([], stop, ranks, "a test")
            if stop.agreed:
                raise Interrupted(stop.agreed)
    loss, right, top5, padding = together([loss, right, top5, padding], stop, ranks, "the end of a test")
    net.train()
    _check_finite(loss, f"after step {step}: the loss on the test set", net)
    padding = int(padding) // (1 if ranks is None else ranks.towers)
    seconds, whole = time.perf_counter() - start, max(seen, 1)
    share = top5 / whole if net.architecture.classes > 5 else None
    return Test(step, epoch, loss / whole, right / whole, int(seen), seconds, padding, share, view.views)

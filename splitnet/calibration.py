"""What the machine at hand can do, measured: each product, operation and update of a table by itself, never a step.

Fully connected rows are timed at the batch and at half of it: a line through both tells what the weights cost and what
each image costs (they read and write all weights for however few images; a convolution's rate hardly depends on the
batch). Everything is in float32, channels last, with the threads asked for. `costs` puts a step together from this.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from splitnet.costs import PIXEL_PASSES, UPDATE, Work, pointwise, products
from splitnet.machines import HERE, Machine
from splitnet.network.architecture import Architecture
from splitnet.network.layers import Block, Moment
from splitnet.parallel.fake.clocks import Link
from splitnet.peaks import Part, parts
from splitnet.training.data import to_network
from splitnet.training.optimizer import make_optimizer

ROUNDS = 3
PARAMETERS = 2**22
"""Of the optimizer that is timed: more than caches hold."""

Timed = Callable[[], object]
Key = tuple[str, str, int]
"""Row ("" for none), name of the work, images."""


@dataclass(slots=True)
class Calibration:
    """Seconds by kind of work, round by round; more rounds may follow, between others' steps."""

    architecture: Architecture
    batch: int
    optimizer: str = "sgd"
    threads: int = 1
    side: int | None = None
    """Of the images as they come; None: as the network sees them."""
    times: dict[Key, list[float]] = field(default_factory=dict)
    works: dict[Key, Work] = field(default_factory=dict)

    def round(self) -> None:
        """Measure everything once. The first round is a warm-up and not kept."""
        torch.set_num_threads(self.threads)
        warm = bool(self.times)
        for key, work, seconds in self._measured():
            self.works[key] = work
            self.times.setdefault(key, []).extend([seconds] if warm else [])

    def _measured(self) -> Iterator[tuple[Key, Work, float]]:
        several = self.architecture.towers > 1 and not self.architecture.norm.across_towers
        held = parts(self.architecture, self.batch, 0 if several else None)
        for part in held:
            halved = self.batch > 1 and not part.row.layer.kernel
            smaller = [replace(part, images=self.batch // 2)] if halved else []
            for sized in (part, *smaller):
                for work, seconds in _products(sized, first=part is held[0]):
                    yield (part.row.name, work.name, sized.images), work, seconds
            for work, seconds in _operations(self.architecture, part):
                yield (part.row.name, work.name, self.batch), work, seconds
        for work, seconds in self._rest():
            yield ("", work.name, self.batch), work, seconds

    def _rest(self) -> Iterator[tuple[Work, float]]:
        table = self.architecture
        side = table.size if self.side is None else self.side
        pixels = torch.zeros(self.batch, table.channels, side, side, dtype=torch.uint8)
        seconds = _seconds(lambda: to_network(pixels, table.size))
        yield Work("images", 0, PIXEL_PASSES * self.batch * table.channels * table.size**2), seconds
        weight = torch.nn.Parameter(torch.zeros(PARAMETERS))
        optimizer = make_optimizer([weight], self.optimizer)
        weight.grad = torch.zeros(PARAMETERS)
        optimizer.step()  # makes its state
        yield Work(self.optimizer, 0, UPDATE[self.optimizer] * 4 * PARAMETERS), _seconds(optimizer.step)
        half = torch.zeros(PARAMETERS // 2)
        yield Work("gather", 0, 2 * 4 * PARAMETERS), _seconds(lambda: torch.cat([half, half]))

    def machine(self, link: Link | None = None) -> Machine:
        """The machine at hand as measured so far; its links are those of the fake devices unless others are said."""
        link = link or Link()
        found = {key: statistics.median(times) for key, times in self.times.items() if times}
        whole = {key: seconds for key, seconds in found.items() if key[2] == self.batch}
        rates: dict[str, float] = {}
        moved: dict[str, list[float]] = {}
        for (row, name, images), seconds in whole.items():
            work = self.works[row, name, images]
            if work.flops:
                rates |= _line(work, seconds, found.get((row, name, images // 2)), images)
            else:
                nbytes, taken = moved.get(name, (0.0, 0.0))
                moved[name] = [nbytes + work.bytes, taken + seconds]
        rates |= {name: nbytes / taken for name, (nbytes, taken) in moved.items()}
        flops = sum(self.works[key].flops for key in whole)
        multiplying = sum(seconds for key, seconds in whole.items() if self.works[key].flops)
        devices = self.architecture.towers
        shared = "the system's" if devices == 1 else f"the system's, over {devices}: fake devices share it"
        return Machine(
            name=HERE,
            gpu=f"this CPU, {self.threads} thread{'s' * (self.threads > 1)}",
            float32=flops / multiplying,
            float32_share=1.0,
            memory_bandwidth=rates["gather"],
            memory_share=1.0,
            memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / devices,
            link=link.bytes_per_second,
            link_share=1.0,
            latency=link.latency,
            launch=0.0,
            measured=rates,
            sources=dict.fromkeys(("float32", "memory_bandwidth"), "measured")
            | dict.fromkeys(("link", "latency", "both_ways"), "the fake devices' link")
            | {"memory": shared, "float32_share": "measured", "memory_share": "measured"}
            | {"link_share": "the fake devices' link", "launch": "in what was measured"},
        )


def here(
    architecture: Architecture,
    batch: int,
    optimizer: str = "sgd",
    threads: int = 1,
    link: Link | None = None,
    rounds: int = ROUNDS,
) -> Machine:
    """The machine at hand, calibrated for a table and a batch with so many threads; takes some ten steps' time."""
    calibration = Calibration(architecture, batch, optimizer, threads)
    for _ in range(rounds + 1):
        calibration.round()
    return calibration.machine(link)


def _line(work: Work, taken: float, half: float | None, images: int) -> dict[str, float]:
    """FLOP/s of the images and bytes/s of the weights, from the seconds of a batch and of half of it, rounded down."""
    small = images // 2
    fixed = 0.0 if half is None else (images * half - small * taken) / (images - small)
    fixed = min(max(fixed, 0.0), 0.9 * taken)  # as noise is kept from saying that a batch is free
    found = {work.name: work.flops / (taken - fixed)}
    return found | ({f"{work.name}, weights": work.weights / fixed} if fixed else {})


def _seconds(run: Timed) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _products(part: Part, first: bool) -> Iterator[tuple[Work, float]]:
    """A row's product on tensors of its shape: forward, and backward for its weights and, but the first, its input."""
    runs = _convolution(part) if part.row.layer.kernel else _linear(part)
    for work, run in list(zip(products(part, 4), runs, strict=True))[: 2 if first else 3]:
        yield work, _seconds(run)


def _convolution(part: Part) -> tuple[Timed, Timed, Timed]:
    row, layer = part.row, part.row.layer
    groups = row.groups if part.tower is None else 1
    out = int(layer.out * part.share)
    before, behind = layer.padding
    side = row.side + (before + behind if before != behind else 0)  # `Block` pads by itself where it must
    padding = [0 if before != behind else before] * 2
    last = torch.channels_last
    x = torch.rand(part.images, row.reads * groups, side, side).to(memory_format=last)
    weight = torch.rand(out, row.reads, layer.kernel or 1, layer.kernel or 1).to(memory_format=last)
    bias, stride = torch.rand(out), [layer.stride] * 2
    gradient = torch.rand_like(F.conv2d(x, weight, bias, stride, padding, groups=groups))

    def backward(mask: list[bool]) -> Timed:
        run = torch.ops.aten.convolution_backward
        return lambda: run(gradient, x, weight, [out], stride, padding, [1, 1], False, [0, 0], groups, mask)

    forward = lambda: F.conv2d(x, weight, bias, stride, padding, groups=groups)  # noqa: E731
    return forward, backward([False, True, True]), backward([True, False, False])


def _linear(part: Part) -> tuple[Timed, Timed, Timed]:
    """As if it were dense: groups of units (`Block.multiply`) are no faster."""
    reads = part.row.weight_shape[1]
    out = int(part.row.layer.out * part.share)
    x, weight = torch.rand(part.images, reads), torch.rand(out, reads)
    bias, gradient = torch.rand(out), torch.rand(part.images, out)
    return lambda: F.linear(x, weight, bias), lambda: gradient.t() @ x, lambda: gradient @ weight


def _operations(architecture: Architecture, part: Part) -> Iterator[tuple[Work, float]]:
    """What follows a row's product, by the row itself, on a product's shape."""
    block = Block(architecture, part.row, range(architecture.towers) if part.tower is None else [part.tower])
    ops = list(part.outputs())
    (_, product_side), *_ = part.row.outputs
    shape = [part.images, int(part.row.layer.out * part.share)] + [product_side] * 2 * bool(part.row.layer.kernel)
    x = torch.rand(shape)
    if part.row.layer.kernel:
        x = x.to(memory_format=torch.channels_last)
    for (op, _), works in zip(ops[1:], pointwise(part, 4), strict=True):
        yield from zip(works, _op(block, op, x), strict=True)
        x = _apply(block, op, x.clone())


def _apply(block: Block, op: str, x: Tensor) -> Tensor:
    return block.drop(x, Moment()) if op == "dropout" else block.apply_op(op, x)  # type: ignore[arg-type]


def _op(block: Block, op: str, x: Tensor) -> tuple[float, float]:
    """Seconds forward and backward."""
    leaf = x.clone().requires_grad_()
    made = leaf.clone()  # relu is in place, which a leaf does not take; a clone's backward is no work
    out: list[Tensor] = []
    forward = _seconds(lambda: out.append(_apply(block, op, made)))
    gradient = torch.rand_like(out[0])
    target = leaf if op in ("relu", "sigmoid", "tanh") else made
    backward = _seconds(lambda: torch.autograd.grad(out[0], target, gradient))
    return forward, backward

"""How towers in one process hand each other activations, and the ledger of what they handed.

    method       forward                            backward
    replicate    the images to every tower          -
    all_gather   every tower gets all channels      reduce-scatter: sum over the readers, own channels home
    gather       tower 0 gets all channels          scatter: own channels home

Between two devices there is one operation: `.to(device, non_blocking=True)`; or, where the link between them is not
to be trusted, two: by way of host memory (`through_host`). What crosses may be cast for it (`Wire`).
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from splitnet.network.architecture import Phase, Transfer
from splitnet.network.layers import Arriving
from splitnet.parallel.overlap import Copy, Lanes, arrive, fork

Link = Literal["device", "host"]
"""How towers reach each other: straight from device to device, or through host memory."""

Carry = Callable[[Tensor, torch.device], Tensor]
"""What brings a tensor to a device."""


class Ledger:
    """What towers handed each other: bytes and count for each (row, phase, from, to)."""

    def __init__(self) -> None:
        self._bytes: Counter[tuple[str, Phase, int, int]] = Counter()
        self._count: Counter[tuple[str, Phase, int, int]] = Counter()
        self._lock = threading.Lock()  # CUDA's autograd runs a thread a device

    def record(self, transfer: Transfer) -> None:
        place = (transfer.row, transfer.phase, transfer.source, transfer.target)
        with self._lock:
            self._bytes[place] += transfer.bytes
            self._count[place] += 1

    def add(self, transfers: Iterable[Transfer]) -> None:
        """Enter what another ledger has."""
        for transfer in transfers:
            self.record(transfer)

    def clear(self) -> None:
        with self._lock:
            self._bytes.clear()
            self._count.clear()

    def transfers(self) -> tuple[Transfer, ...]:
        """The sums, one for each row, phase and pair of towers."""
        return tuple(Transfer(*place, size) for place, size in self._bytes.items())

    def bytes(self, row: str | None = None, phase: Phase | None = None) -> int:
        """What crossed, in all or for one row or phase."""
        return sum(t.bytes for t in self.transfers() if row in (None, t.row) and phase in (None, t.phase))

    @property
    def count(self) -> int:
        """How many tensors were handed over."""
        return self._count.total()


def straight(x: Tensor, device: torch.device) -> Tensor:
    """A copy on the device."""
    return x.to(device, non_blocking=True)


def through_host(x: Tensor, device: torch.device, pin: bool = False) -> Tensor:
    """A copy on the device by way of host memory, pinned if `pin`; `x` itself if it is there already."""
    if x.device == device:
        return x
    # The host waits until all of it is there: the other device knows nothing of this one's queue.
    there = torch.empty_like(x, device="cpu", pin_memory=True).copy_(x) if pin else x.to("cpu")
    return there.to(device, non_blocking=True)


def carrier(link: Link, pin: bool) -> Carry:
    """What brings a tensor to a device over that kind of link."""
    return straight if link == "device" else partial(through_host, pin=pin)


@dataclass(frozen=True, slots=True)
class Wire:
    """What floating-point tensors are cast to while they cross; `dtype` None: as they are.

    Gradients that cross as float16 are multiplied by a power of two not below the number of images: they are those of a
    mean over the batch, and would vanish where those of a sum, as in 2012, do not. What is too large for float16
    (65,504) arrives as infinity.
    """

    dtype: torch.dtype | None = None

    def bytes(self, x: Tensor) -> int:
        """What x weighs on the way."""
        return x.numel() * (self.dtype or x.dtype).itemsize

    def leaving(self, x: Tensor, phase: Phase) -> Tensor:
        if self.dtype is None:
            return x
        if not x.is_floating_point():
            raise TypeError(f"only floating-point tensors cross as {self.dtype}, not {x.dtype}")
        return (x * self._scale(x) if self._scales(phase) else x).to(self.dtype)

    def arrived(self, x: Tensor, dtype: torch.dtype, phase: Phase) -> Tensor:
        x = x.to(dtype)
        return x / self._scale(x) if self.dtype is not None and self._scales(phase) else x

    def _scales(self, phase: Phase) -> bool:
        return phase == "backward" and self.dtype == torch.float16

    @staticmethod
    def _scale(x: Tensor) -> int:
        return 1 << (len(x) - 1).bit_length() if len(x) else 1


class LocalExchange:
    """All towers in this process, tower i on devices[i]; devices may repeat.

    `pin`: images go through pinned memory, from which GPUs fetch them while the host goes on. `link`: what towers
    hand each other goes straight, or through the host; the ledger is the same. `wire`: what it is cast to for that.
    """

    def __init__(
        self, devices: Sequence[torch.device], pin: bool = False, link: Link = "device", wire: Wire = Wire()
    ) -> None:
        self.devices, self.pin, self.wire = tuple(devices), pin, wire
        self.link = link
        self.carry = carrier(link, pin)
        self.lanes = Lanes()
        self.ledger = Ledger()

    def replicate(self, images: Tensor) -> list[Tensor]:
        """The same images for every tower: one copy to each device."""
        if self.pin and images.device.type == "cpu":
            images = images.pin_memory()
        copies = {device: images.to(device, non_blocking=True) for device in dict.fromkeys(self.devices)}
        return [copies[device] for device in self.devices]

    def all_gather(self, xs: list[Tensor], row: str) -> list[Tensor]:
        return self.gather_on(xs, row, range(len(self.devices)))

    def gather(self, xs: list[Tensor], row: str) -> Tensor:
        [x] = self.gather_on(xs, row, [0])
        return x

    def begin_all_gather(self, xs: list[Tensor], row: str) -> Sequence[Tensor | Arriving]:
        return self._begin(xs, row, range(len(self.devices)))

    def begin_gather(self, xs: list[Tensor], row: str) -> Tensor | Arriving:
        return self._begin(xs, row, [0])[0]

    def _begin(self, xs: list[Tensor], row: str, readers: Sequence[int]) -> list[Arriving]:
        """Every copy is asked for before any is waited for."""
        ways = {(o, r): LocalWay(self, x, row, o, r) for o, x in enumerate(xs) for r in readers if o != r}
        own: dict[int, Tensor] = {}
        tokens: dict[tuple[int, int], Tensor] = {}
        for owner, x in enumerate(xs):
            towards = [r for r in readers if r != owner]
            first, *others = fork(x, [ways[owner, r] for r in towards], own=owner in readers)
            if owner in readers:
                own[owner] = first
            else:
                others = [first, *others]
            tokens |= {(owner, r): token for r, token in zip(towards, others, strict=True)}

        def rest(reader: int) -> Iterator[tuple[int, Tensor]]:
            for owner in range(len(xs)):
                if owner != reader:
                    [x] = arrive(tokens[owner, reader], ways[owner, reader])
                    yield owner, x

        return [Arriving(reader, own[reader], partial(rest, reader)) for reader in readers]

    def carry_all(self, xs: Sequence[Tensor], transfers: Sequence[Transfer]) -> tuple[Tensor, ...]:
        """Each tensor on its transfer's way: recorded, cast for it, copied, and cast back."""
        for transfer in transfers:
            self.ledger.record(transfer)
        pairs = list(zip(xs, transfers, strict=True))
        leaving = [self.wire.leaving(x, there.phase) for x, there in pairs]
        carried = [self.carry(x, self.devices[there.target]) for x, there in zip(leaving, transfers, strict=True)]
        return tuple(self.wire.arrived(c, x.dtype, t.phase) for c, (x, t) in zip(carried, pairs, strict=True))

    def collect(self, shares: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]] | None:
        """Every tower's tensors are here already."""
        return list(shares)

    def gather_on(self, xs: list[Tensor], row: str, readers: Sequence[int]) -> list[Tensor]:
        """All channels on each reader's device."""
        sent = self.send(xs, row, readers)
        return [self.join([sent.get((o, r), x) for o, x in enumerate(xs)], row, r) for r in readers]

    def join(self, parts: list[Tensor], row: str, reader: int) -> Tensor:
        """All channels of what is on a reader's device, tower 0's first whoever reads."""
        return torch.cat(parts, dim=1)

    def send(self, xs: list[Tensor], row: str, readers: Sequence[int]) -> dict[tuple[int, int], Tensor]:
        """Every tower's channels on the device of each other reader, by (owner, reader); recorded, and backward again.

        A device copies once it has done what it was asked for before, so every copy is asked for before the first
        that came is worked on. On fake devices both directions of a link then run at once; on GPUs PyTorch lets both
        devices wait for each copy, so that they follow each other (with `--overlap` they run at once there, too).
        """
        transfers = self.transfers(xs, row, readers)
        pairs = [(there.source, there.target) for there in transfers]
        return dict(zip(pairs, _Send.apply(self, transfers, *xs), strict=True)) if pairs else {}

    def transfers(self, xs: Sequence[Tensor], row: str, readers: Sequence[int]) -> list[Transfer]:
        """What is handed on so that each reader has every tower's channels, reader by reader."""
        pairs = [(o, r) for r in readers for o in range(len(xs)) if o != r]
        return [Transfer(row, "forward", o, r, self.wire.bytes(xs[o])) for o, r in pairs]


class SharedDeviceExchange(LocalExchange):
    """All towers on one device, each by itself: the channels are put together once, and every reader gets them."""

    def gather_on(self, xs: list[Tensor], row: str, readers: Sequence[int]) -> list[Tensor]:
        if self.wire.dtype not in (None, xs[0].dtype):  # rounds the others' channels, not a reader's own: none is alike
            return super().gather_on(xs, row, readers)
        return list(_Share.apply(self, self.transfers(xs, row, readers), readers, *xs))


class UndividedExchange(LocalExchange):
    """All towers in one piece on one device: whoever reads all channels has them already."""

    def all_gather(self, xs: list[Tensor], row: str) -> list[Tensor]:
        return xs

    def gather(self, xs: list[Tensor], row: str) -> Tensor:
        [x] = xs
        return x

    def begin_all_gather(self, xs: list[Tensor], row: str) -> Sequence[Tensor | Arriving]:
        return xs

    def begin_gather(self, xs: list[Tensor], row: str) -> Tensor | Arriving:
        return self.gather(xs, row)


class _Send(torch.autograd.Function):
    """Copies to the readers' devices; backward, the gradients' copies to the owners', and their sums."""

    @staticmethod
    def forward(ctx: Any, exchange: LocalExchange, transfers: list[Transfer], *xs: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.exchange, ctx.transfers, ctx.towers = exchange, transfers, len(xs)
        return exchange.carry_all([xs[there.source] for there in transfers], transfers)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        exchange: LocalExchange = ctx.exchange
        found = [(grad, there) for grad, there in zip(grads, ctx.transfers, strict=True) if grad is not None]
        back = [_homewards(there, exchange.wire.bytes(grad)) for grad, there in found]
        totals: list[Tensor | None] = [None] * ctx.towers
        for home, there in zip(exchange.carry_all([grad for grad, _ in found], back), back, strict=True):
            totals[there.target] = _sum(totals[there.target], home)
        return None, None, *totals


class _Share(torch.autograd.Function):
    """One memory for every reader, who only read; backward, the sums of their gradients, in the order of `_Send`'s."""

    @staticmethod
    def forward(
        ctx: Any, exchange: LocalExchange, transfers: list[Transfer], readers: Sequence[int], *xs: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.ledger, ctx.transfers, ctx.readers = exchange.ledger, transfers, readers
        ctx.channels = [x.shape[1] for x in xs]
        exchange.ledger.add(transfers)
        joined = torch.cat(xs, dim=1)
        return joined, *(joined.detach() for _ in readers[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        given = zip(ctx.readers, grads, strict=True)
        parts = {reader: grad.split(ctx.channels, dim=1) for reader, grad in given if grad is not None}
        totals: list[Tensor | None] = [None] * len(ctx.channels)
        for there in ctx.transfers:
            if there.target in parts:
                ctx.ledger.record(_homewards(there, there.bytes))
                totals[there.source] = _sum(totals[there.source], parts[there.target][there.source])
        for reader, own in parts.items():
            totals[reader] = _sum(totals[reader], own[reader])
        return None, None, None, *totals


def _sum(total: Tensor | None, x: Tensor) -> Tensor:
    return x if total is None else total + x


def _homewards(there: Transfer, size: int) -> Transfer:
    return replace(there, phase="backward", source=there.target, target=there.source, bytes=size)


class LocalWay:
    """One tower's channels on their way to one reader, and their gradient back, beside what both devices compute."""

    def __init__(self, exchange: LocalExchange, x: Tensor, row: str, owner: int, reader: int) -> None:
        self.exchange, self.row, self.dtype, self.home = exchange, row, x.dtype, x.device
        self.there = Transfer(row, "forward", owner, reader, exchange.wire.bytes(x))
        exchange.ledger.record(self.there)
        self.copy: Copy | None = self._begun(x.detach(), exchange.devices[reader], "forward")

    def _begun(self, x: Tensor, device: torch.device, phase: Phase) -> Copy:
        x = self.exchange.wire.leaving(x, phase)
        if self.exchange.link == "device":
            return self.exchange.lanes.begin(x, device)
        return Copy(self.exchange.carry(x, device), None)

    def _finished(self, phase: Phase) -> Tensor:
        assert self.copy is not None
        x, self.copy = self.copy.arrived(), None
        return self.exchange.wire.arrived(x, self.dtype, phase)

    def arrived(self) -> tuple[Tensor, ...]:
        x = self._finished("forward")
        return (x,)

    def begin_return(self, grads: Sequence[Tensor]) -> None:
        [grad] = grads
        self.exchange.ledger.record(_homewards(self.there, self.exchange.wire.bytes(grad)))
        self.copy = self._begun(grad, self.home, "backward")

    def returned(self) -> Tensor:
        return self._finished("backward")

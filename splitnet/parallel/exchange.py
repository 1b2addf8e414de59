"""How towers in one process hand each other activations, and the ledger of what they handed.

    method       forward                            backward
    replicate    the images to every tower          -
    all_gather   every tower gets all channels      reduce-scatter: sum over the readers, own channels home
    gather       tower 0 gets all channels          scatter: own channels home

Between two devices there is one operation: `.to(device, non_blocking=True)`; or, where the link between them is not
to be trusted, two: by way of host memory (`through_host`).
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from splitnet.network.architecture import Phase, Transfer

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


class LocalExchange:
    """All towers in this process, tower i on devices[i]; devices may repeat.

    `pin`: images go through pinned memory, from which GPUs fetch them while the host goes on. `link`: what towers
    hand each other goes straight, or through the host; the ledger is the same.
    """

    def __init__(self, devices: Sequence[torch.device], pin: bool = False, link: Link = "device") -> None:
        self.devices, self.pin = tuple(devices), pin
        self.carry = carrier(link, pin)
        self.ledger = Ledger()

    def replicate(self, images: Tensor) -> list[Tensor]:
        """The same images for every tower: one copy to each device."""
        if self.pin and images.device.type == "cpu":
            images = images.pin_memory()
        copies = {device: images.to(device, non_blocking=True) for device in dict.fromkeys(self.devices)}
        return [copies[device] for device in self.devices]

    def all_gather(self, xs: list[Tensor], row: str) -> list[Tensor]:
        return [self.gather_on(xs, row, reader) for reader in range(len(self.devices))]

    def gather(self, xs: list[Tensor], row: str) -> Tensor:
        return self.gather_on(xs, row, reader=0)

    def collect(self, shares: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]] | None:
        """Every tower's tensors are here already."""
        return list(shares)

    def gather_on(self, xs: list[Tensor], row: str, reader: int) -> Tensor:
        """All channels on the reader's device, tower 0's first whoever reads."""
        return torch.cat(self.parts_on(xs, row, reader), dim=1)

    def parts_on(self, xs: list[Tensor], row: str, reader: int) -> list[Tensor]:
        """Every tower's channels on the reader's device: its own as they are, the others' sent."""
        return [x if owner == reader else self.send(x, row, owner, reader) for owner, x in enumerate(xs)]

    def send(self, x: Tensor, row: str, owner: int, reader: int) -> Tensor:
        """One tower's channels on another's device; recorded, and backward again."""
        there = Transfer(row, "forward", owner, reader, x.numel() * x.element_size())
        received: Tensor = _Send.apply(x, self.devices[reader], there, self.ledger, self.carry)
        return received


class UndividedExchange(LocalExchange):
    """All towers in one piece on one device: whoever reads all channels has them already."""

    def all_gather(self, xs: list[Tensor], row: str) -> list[Tensor]:
        return xs

    def gather(self, xs: list[Tensor], row: str) -> Tensor:
        [x] = xs
        return x


class _Send(torch.autograd.Function):
    """A copy to the reader's device; backward, the gradient's copy to the owner's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, device: torch.device, there: Transfer, ledger: Ledger, carry: Carry) -> Tensor:
        ctx.home, ctx.there, ctx.ledger, ctx.carry = x.device, there, ledger, carry
        ledger.record(there)
        return carry(x, device)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        there: Transfer = ctx.there
        size = grad.numel() * grad.element_size()
        ctx.ledger.record(replace(there, phase="backward", source=there.target, target=there.source, bytes=size))
        return ctx.carry(grad, ctx.home), None, None, None, None

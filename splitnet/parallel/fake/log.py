"""What the fake devices did, in order, while somebody looks: what a profiler makes lanes from.

`begun` and `ended` are nanoseconds of `time.time_ns()`, which is torch.profiler's clock too: they tie an entry to
the CPU operation that caused it. `start` and `end` are seconds on the devices' clocks.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any

from splitnet.parallel.fake import clocks
from splitnet.parallel.fake.devices import HOST, Place


@dataclass(slots=True)
class Kernel:
    """An operation of one device."""

    device: int
    name: str
    begun: int
    ended: int
    start: float
    end: float
    kind: str = "kernel"


@dataclass(slots=True)
class Transfer:
    """A copy between two devices, or a device and HOST."""

    source: Place
    target: Place
    bytes: int
    begun: int
    ended: int
    start: float
    end: float
    waited: tuple[float, float]
    """Seconds that source and target had nothing to do before it began."""
    beside: bool
    """Whether it was asked of a stream beside the main one."""
    kind: str = "copy"


@dataclass(slots=True)
class Allocation:
    """Memory taken, or given back where `bytes` is negative; `total` is what is taken then."""

    device: int
    address: int
    bytes: int
    total: int
    begun: int
    start: float
    kind: str = "memory"


@dataclass(slots=True)
class Boundary:
    """All clocks were aligned at `start`; `spent` are each device's sums since the clocks began, in seconds."""

    begun: int
    start: float
    spent: list[clocks.Spent]
    kind: str = "boundary"


Entry = Kernel | Transfer | Allocation | Boundary

entries: list[Entry] | None = None
"""None while nobody looks."""

_begun = 0


def start() -> None:
    """Keep entries from now on."""
    global entries
    entries = []


def stop() -> list[dict[str, Any]]:
    """The entries since `start`, as plain data; none are kept from now on."""
    global entries
    found, entries = entries or [], None
    return [asdict(entry) for entry in found]


def boundary() -> None:
    """Align the clocks, and note that a step ends and another begins here."""
    clocks.synchronize()
    if entries is not None:
        entries.append(Boundary(time.time_ns(), clocks.now(0), clocks.sums()))


def begin() -> None:
    """An operation arrived: what is noted next began now."""
    global _begun
    _begun = time.time_ns()


def kernel(device: int, name: str, span: tuple[float, float]) -> None:
    """Note an operation that takes `span` on its device's clock."""
    if entries is not None:
        entries.append(Kernel(device, name, _begun, time.time_ns(), *span))


def transfer(source: Place, target: Place, nbytes: int, span: tuple[float, float], waited: tuple[float, float]) -> None:
    """Note a copy that takes `span` on both clocks."""
    if entries is not None:
        beside = any(clocks.current(end) is not None for end in (source, target) if end != HOST)
        entries.append(Transfer(source, target, nbytes, _begun, time.time_ns(), *span, waited, beside))


def memory(device: int, address: int, nbytes: int, total: int) -> None:
    """Note `nbytes` more (less, if negative) on a device."""
    if entries is not None:
        entries.append(Allocation(device, address, nbytes, total, time.time_ns(), clocks.now(device)))

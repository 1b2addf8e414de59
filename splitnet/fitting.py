"""What fits: a limit on each device's memory, and one line that says what did not fit and by how much."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from splitnet import spans
from splitnet.errors import UsageError
from splitnet.measure.meter import counters
from splitnet.network.layers import Block
from splitnet.network.towers import SplitNet
from splitnet.options import LARGEST
from splitnet.parallel import fake
from splitnet.parallel.fake.memory import readable
from splitnet.parallel.replicas import GRADIENTS, Replicas

_FACTORS = {
    letter + ending: base**power
    for power, letter in enumerate(["", "k", "m", "g", "t"])
    for ending, base in (("b", 1000), ("ib", 1024))
}
_SIZE = r"([\d.]+) (bytes|KiB|MiB|GiB)"
"""As PyTorch and the fake devices write a size."""


class DoesNotFitError(RuntimeError):
    """A device has too little memory. The message is one line: device, row, what it needs and what is missing."""


def read_size(text: str, option: str = "--memory-limit") -> int:
    """Bytes of "3GiB", "1.5 GB", "512MiB" or "1000000". UsageError names the option where it is no size above 0."""
    found = re.fullmatch(r"(\d{1,30}(?:\.\d{1,30})?) ?([a-z]*)", text.strip().lower(), re.ASCII)
    factor = _FACTORS.get(found[2] or "b") if found else None
    size = int(float(found[1]) * factor) if found and factor else 0
    if not 0 < size <= LARGEST:
        raise UsageError(f"{option} {text}: a size such as 3GiB, 512MiB, 2GB or a number of bytes")
    return size


def read_limit(text: str | None) -> int | None:
    """What --memory-limit says, in bytes; None for none."""
    return None if text is None else read_size(text)


def check(devices: Sequence[torch.device], limit: str | None, snapshot: bool) -> None:
    """UsageError for a --memory-limit that is no size or not for these devices, or a --memory-snapshot without CUDA."""
    names = ", ".join(map(str, dict.fromkeys(devices)))
    if snapshot and not any(device.type == "cuda" for device in devices):
        raise UsageError(f"--memory-snapshot: needs CUDA, not {names}")
    if read_limit(limit) is None:
        return
    for device in devices:
        if device.type not in {"cuda", "fake"}:
            raise UsageError(
                f"--memory-limit {limit}: {device} has no memory counters; fake devices have (--devices fake:0, …)"
            )


@contextmanager
def snapshot(path: Path | None) -> Iterator[None]:
    """Record what CUDA devices allocate inside, and write it to `path`, for pytorch.org/memory_viz; not if None."""
    if path is None:
        yield
        return
    torch.cuda.memory._record_memory_history(stacks="python")
    try:
        yield
    finally:
        torch.cuda.memory._dump_snapshot(str(path))
        torch.cuda.memory._record_memory_history(enabled=None)


class Room:
    """What one network and its optimizer may take of their devices, beside what others hold there.

    Around whatever allocates:

        with Room(devices, limit) as room:
            net = ...; optimizer = ...
            room.watch(net, optimizer)

    Inside, no device holds more than `limit` bytes over what the others held at its beginning (None: as much as
    there is), and torch.OutOfMemoryError becomes DoesNotFitError. It can be entered again for the same network.
    """

    def __init__(self, devices: Iterable[torch.device], limit: int | None) -> None:
        self.devices = [device for device in dict.fromkeys(devices) if counters(device) is not None]
        self.limit = limit
        self.net: SplitNet | Replicas | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self._own = dict.fromkeys(self.devices, 0)
        self._others = dict(self._own)

    def watch(self, net: SplitNet | Replicas, optimizer: torch.optim.Optimizer) -> None:
        """Whose weights, gradients and state say how far a step came."""
        self.net, self.optimizer = net, optimizer

    def __enter__(self) -> "Room":
        self._others = {device: _allocated(device) - own for device, own in self._own.items()}
        if self.limit is not None:
            for device in self.devices:
                _set_capacity(device, self.limit + self._others[device])
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self.limit is not None:
            for device in self.devices:
                _set_capacity(device, None)
        self._own = {device: _allocated(device) - others for device, others in self._others.items()}
        if isinstance(error, torch.OutOfMemoryError):
            raise DoesNotFitError(explain(error, self.limit, self.net, self.optimizer)) from error


def _allocated(device: torch.device) -> int:
    return int(counters(device).memory_allocated(device))


def _set_capacity(device: torch.device, nbytes: int | None) -> None:
    """Let a device hold so many bytes, or as many as there are."""
    if device.type == "fake":
        fake.set_capacity(device, nbytes)
    else:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(1.0 if nbytes is None else min(1.0, nbytes / total), device)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What an out-of-memory message says."""

    device: str
    needed: int
    """Bytes that were asked for."""
    missing: int
    """Bytes more than were to be had; 0 or less where they were there, but in pieces."""
    limited: bool
    """A limit was reached, not the end of the device."""

    @classmethod
    def read(cls, message: str) -> "Refusal | None":
        """From the message of a fake device (exact) or of CUDA (two decimals); None for another."""
        needed = _size_in(message, f"Tried to allocate {_SIZE}")
        device = re.search(r"^(fake:\d+) out of memory|\bGPU (\d+) has", message)
        if needed is None or device is None:
            return None
        if device[1]:
            exact = re.search(r"\(([\d,]+) bytes\) are missing", message)
            return cls(device[1], needed, int(exact[1].replace(",", "")), True) if exact else None
        allowed, free = _size_in(message, f"{_SIZE} allowed;"), _size_in(message, f"of which {_SIZE} is free")
        held = _size_in(message, f"{_SIZE} is allocated by PyTorch") or 0
        held += _size_in(message, f"{_SIZE} is reserved by PyTorch but unallocated") or 0
        if allowed is not None and needed + held > allowed:
            return cls(f"cuda:{device[2]}", needed, needed + held - allowed, True)
        return cls(f"cuda:{device[2]}", needed, needed - (free or 0), False)


def _size_in(message: str, pattern: str) -> int | None:
    """The size at `_SIZE` in a pattern; None where the message does not have it."""
    found = re.search(pattern, message)
    return round(float(found[1]) * _FACTORS[found[2].lower().replace("ytes", "")]) if found else None


def explain(
    error: torch.OutOfMemoryError,
    limit: int | None,
    net: SplitNet | Replicas | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> str:
    """One line: the device, what it was at, what that needs, and how much was missing.

    `net` and `optimizer` are those of the step that failed; None while they are made.
    """
    refusal = Refusal.read(str(error))
    if refusal is None:
        return f"out of memory; a smaller --batch-size needs less ({str(error).partition(chr(10))[0]})"
    what, advice = at_work(error, refusal.device, net, optimizer)
    missing = f"{readable(refusal.missing)} more" if refusal.missing > 0 else "more in one piece"
    there = "is free" if limit is None or not refusal.limited else f"--memory-limit {readable(limit)} leaves"
    return f"{refusal.device}: {what} needs {readable(refusal.needed)}, {missing} than {there}" + advice


def at_work(
    error: BaseException, device: str, net: SplitNet | Replicas | None, optimizer: torch.optim.Optimizer | None
) -> tuple[str, str]:
    """What did not fit on a device, and what would need less.

    Forward, the row has left its name on the error. Backward goes from the last row to the first, and the optimizer
    from the first to the last, so that gradients and state tell how far they came.
    """
    smaller = "; a smaller --batch-size needs less"
    notes = getattr(error, "__notes__", [])
    for row in filter(None, map(spans.exchange_of, notes)):
        return (f"the exchange before {row}", smaller) if row != GRADIENTS else ("the sum of the gradients", "")
    for row in filter(None, map(spans.row_of, notes)):
        return f"forward of {row}", smaller
    if net is None or optimizer is None:
        return "loading the weights", "; more devices hold less each"
    blocks = _blocks_on(net, device)
    names = [row.name for row in net.rows]
    bare = {block.row.name for block in blocks if not _has_gradients(block)}
    if _came_through_backward(error):
        return f"backward of {next((n for n in reversed(names) if n in bare), names[0])}", smaller
    if not bare and (state := _state_at_work(blocks, optimizer)):
        return state, "; --optimizer sgd needs less" if isinstance(optimizer, torch.optim.Adam) else ""
    return "reading the images or their loss", smaller


def _blocks_on(net: SplitNet | Replicas, device: str) -> list[Block]:
    """What has its weights on a device, in the order of the parameters: tower by tower, each down the table."""
    blocks = (module for module in net.modules() if isinstance(module, Block))
    return [block for block in blocks if str(block.weight.device) == device]


def _has_gradients(block: Block) -> bool:
    return all(parameter.grad is not None for parameter in block.parameters())


def _came_through_backward(error: BaseException) -> bool:
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is torch.autograd.backward.__code__:
            return True
        trace = trace.tb_next
    return False


def _state_at_work(blocks: Iterable[Block], optimizer: torch.optim.Optimizer) -> str:
    """Whose state was being made; "" where all have theirs."""
    if not any(optimizer.state.values()):  # SGD's is entered when all of it has been made
        return "the optimizer's state"
    for block in blocks:
        kinds = {frozenset(optimizer.state.get(parameter, ())) for parameter in block.parameters()}
        if len(kinds) > 1 or frozenset() in kinds:
            return f"the optimizer's state of {block.row.name}"
    return ""

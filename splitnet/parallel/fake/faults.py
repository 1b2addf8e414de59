"""Links that fail on demand, so that a test can show that it would notice."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from splitnet.parallel.fake.devices import HOST, Place, index_of

Kind = Literal["zeros", "stale", "flip", "misroute", "slow"]


@dataclass(eq=False)
class Fault:
    """What is wrong with the link, and what it needs to remember."""

    kind: Kind
    source: Place | None
    target: Place | None
    arrives: Place | None
    factor: float
    every: int
    passed: int = 0  # copies that took this link
    earlier: dict[tuple[torch.Size, torch.dtype], Tensor] = field(default_factory=dict)

    def strikes(self, source: Place, target: Place) -> bool:
        """Whether this copy goes wrong."""
        if self.source not in (None, source) or self.target not in (None, target):
            return False
        self.passed += 1
        return self.passed % self.every == 0

    def landing(self, source: Place, target: Place) -> Place:
        """Where a copy from `source` to `target` arrives."""
        if self.kind != "misroute":
            return target
        return source if self.arrives is None else self.arrives

    def spoil(self, data: Tensor) -> None:
        """Change what arrives, in place."""
        if self.kind == "zeros":
            data.zero_()
        elif self.kind == "flip":
            data.copy_(_one_bit_flipped(data))
        elif self.kind == "stale":
            key = data.shape, data.dtype
            fresh = data.clone()
            data.copy_(self.earlier.get(key, fresh))
            self.earlier[key] = fresh


_active: list[Fault] = []


@contextmanager
def fault(
    kind: Kind,
    *,
    source: str | torch.device | None = None,
    target: str | torch.device | None = None,
    arrives: str | torch.device | None = None,
    factor: float = 10.0,
    every: int = 1,
) -> Iterator[Fault]:
    """While it is open, copies from `source` to `target` go wrong; None stands for any device or the host.

    - `"zeros"`: what arrives is zero.
    - `"stale"`: what arrives is what the copy of the same shape and dtype before it should have brought;
      the first arrives as it should.
    - `"flip"`: the lowest bit of the first byte arrives flipped.
    - `"misroute"`: it arrives on `arrives`, by default the device that it came from.
    - `"slow"`: the link needs `factor` times its time.

    Every `every`-th such copy goes wrong. A name that is neither a kind nor a device raises ValueError.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"no fault is called {kind!r}: choose from {', '.join(get_args(Kind))}")
    if every < 1:
        raise ValueError(f"every must be at least 1, not {every}")
    entry = Fault(kind, _place(source), _place(target), _place(arrives), factor, every)
    _active.append(entry)
    try:
        yield entry
    finally:
        if entry in _active:  # `reset` may have been there first
            _active.remove(entry)


def striking(source: Place, target: Place) -> list[Fault]:
    """The faults that this copy runs into; each of them has counted it."""
    return [entry for entry in _active if entry.strikes(source, target)] if _active else []


def any_active() -> bool:
    """Whether a copy may go wrong."""
    return bool(_active)


def reset() -> None:
    """End every fault."""
    _active.clear()


def _place(device: str | torch.device | None) -> Place | None:
    if device is None:
        return None
    index = index_of(device)
    if index is None and str(device) != "cpu":
        raise ValueError(f"a link joins fake devices and the cpu, not {device}")
    return HOST if index is None else index


def _one_bit_flipped(data: Tensor) -> Tensor:
    flipped = data.clone(memory_format=torch.contiguous_format)
    flipped.view(-1)[:1].view(torch.uint8)[:1].bitwise_xor_(1)
    return flipped

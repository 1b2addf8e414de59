"""What is sent over a link under test, and what became of it: tensors that both ends know without sending them.

Contents are integer hashes of a place, the same on every device and in every process (`keyed`). So a device makes
what it sends itself, and the host what it should be: no reference travels over a link that is under test.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from splitnet.keyed import RANGE, key, mix
from splitnet.network.architecture import Architecture

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8, torch.int64)
STAGING = 4 << 20
"""Bytes that drivers are known to copy at once when there is no direct way."""
BRIEFLY = 8 << 20
"""No tensor of a brief check has more bytes."""
ROUNDS, ROUNDS_BRIEFLY = 6, 2
"""Of other contents at the same size: two show a copy that came too late, six one in three that does."""

Kind = Literal["zeros", "stale", "flip", "misroute", "source changed", "garbled"]

WINDOWS = 1 << 16
"""So many different contents of one size there are."""
_STRIDE = 40503  # odd, so that windows repeat after WINDOWS numbers and not before; about WINDOWS / golden ratio
_CHUNK = 1 << 18  # words hashed at once: hashing takes 32 times the chunk's bytes for a moment


class Contents:
    """Tensors of any dtype, up to `largest` bytes, that depend on a seed and a number alone; made on `device`.

    All bytes are random, so floats include NaNs of many payloads. Number n is a window of one sequence, and the
    windows of WINDOWS numbers in a row begin at different places: two tensors hardly agree anywhere.
    """

    def __init__(self, device: torch.device, largest: int, seed: int) -> None:
        words, start = -(-(largest + WINDOWS) // 4), key(seed)
        chunks = [_hashed(first, min(first + _CHUNK, words), start, device) for first in range(0, words, _CHUNK)]
        self.sequence = torch.cat(chunks).view(torch.uint8)

    def make(self, number: int, dtype: torch.dtype, count: int) -> Tensor:
        """A new tensor (count,). Floats, if there are four or more, end with a NaN of all ones and -0.0."""
        first, size = number * _STRIDE % WINDOWS, count * dtype.itemsize
        data = self.sequence[first : first + size].clone()
        if dtype.is_floating_point and count >= 4:
            data[-2 * dtype.itemsize : -dtype.itemsize].fill_(0xFF)
            data[-dtype.itemsize :].fill_(0)
            data[-1:].fill_(0x80)  # the sign: the last byte, as on every machine that PyTorch has GPUs for
        return data.view(dtype)

    def integers(self, number: int, count: int) -> Tensor:
        """Whole numbers (count,) in float32, below 2**20: their sum over 16 towers is exact in any order."""
        return self.make(number, torch.int32, count).remainder(1 << 20).to(torch.float32)


def _hashed(first: int, stop: int, start: int, device: torch.device) -> Tensor:
    places = torch.arange(first, stop, device=device)
    return (mix(places ^ start) - RANGE // 2).to(torch.int32)


@dataclass(frozen=True, slots=True)
class Probe:
    """A tensor to send: `count` elements, other ones each round."""

    dtype: torch.dtype
    count: int
    round: int = 0

    @property
    def bytes(self) -> int:
        return self.count * self.dtype.itemsize

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} x {self.count:,}, round {self.round}"


def crossings(architecture: Architecture, batch: int) -> dict[str, int]:
    """Floats that one tower hands another in front of each row that crosses."""
    return {row.name: batch * row.floats_sent for row in architecture.rows() if row.crosses}


def probes(architecture: Architecture, batch: int, *, brief: bool) -> list[Probe]:
    """Every dtype at one element and at odd sizes; the crossings' sizes, and more than STAGING."""
    large = sorted(set(crossings(architecture, batch).values()))
    if brief:
        found = [(dtype, n) for dtype in (torch.float32, torch.uint8, torch.int64) for n in (1, 4097)]
        found += [(torch.float32, min(n, BRIEFLY // 4)) for n in large[-1:]]
    else:
        found = [(dtype, n) for dtype in DTYPES for n in (1, 257, 65537)]
        found += [(torch.float32, n) for n in (*large, STAGING // 4 + 1021)] + [(torch.uint8, STAGING + 4099)]
    rounds = ROUNDS_BRIEFLY if brief else ROUNDS
    return [Probe(dtype, n, i) for dtype, n in dict.fromkeys(found) for i in range(rounds)]


@dataclass(frozen=True, slots=True)
class Difference:
    """What is wrong with one tensor that arrived."""

    kind: Kind
    tensor: str
    """Dtype, elements and round."""
    detail: str
    size: int
    """Bytes of the tensor."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.tensor}: {self.detail}"


def difference(
    arrived: Tensor, expected: Tensor, tensor: str, earlier: Iterable[Tensor] = (), changed: bool = False
) -> Difference | None:
    """How a tensor on the CPU differs from what it should be, by its bytes; None if it does not.

    `earlier`: what the link carried before, at the same size, the last first. `changed`: it is the source, after it
    was sent.
    """
    found, wanted = (x.contiguous().view(-1).view(torch.uint8) for x in (arrived, expected))
    if torch.equal(found, wanted):
        return None
    wrong = (found != wanted).nonzero().view(-1)
    first = int(wrong[0])
    places = f"{len(wrong):,} of {len(wanted):,} bytes differ, the first is byte {first:,}"
    bits = int(found[first]) ^ int(wanted[first])
    kind: Kind = "garbled"
    if changed:
        kind = "source changed"
    elif len(wrong) == 1 and bits.bit_count() == 1:
        kind, places = "flip", f"bit {bits.bit_length() - 1} of byte {first:,} of {len(wanted):,} is flipped"
    elif not found[wrong].any():
        kind, places = "zeros", f"{places}; all that differ are zero"
    else:
        for back, before in enumerate(earlier, start=1):
            if torch.equal(found, before.view(-1).view(torch.uint8)):
                kind, places = "stale", f"{places}; they are those of {back} before"
                break
    return Difference(kind, tensor, places, len(wanted))


@dataclass(frozen=True, slots=True)
class LinkReport:
    """What one link did, one way, with what was sent over it; or the exchange, in front of one row."""

    source: str
    target: str
    what: str = "copies"
    """Or a row and a phase."""
    tensors: int = 0
    """How many were sent and compared."""
    wrong: int = 0
    """How many of them were not what they should be."""
    bytes: int = 0
    worst: Difference | None = None
    """The largest tensor of those."""
    untested: str = ""
    """Why nothing can be said."""
    avoidable: bool = False
    """Whether host memory is another way."""
    peer_access: bool | None = None
    """Whether one GPU reads the other's memory; None where they are not two GPUs."""
    rates: tuple[float, ...] = ()
    """Bytes/s, of each timed copy of the largest tensor."""
    delays: tuple[float, ...] = ()
    """Seconds, of each timed copy of one float."""

    @property
    def sound(self) -> bool:
        return not self.wrong and not self.untested

    def with_probe(self, size: int, found: Difference | None) -> "LinkReport":
        """After one more tensor."""
        worst = self.worst
        if found is not None and (worst is None or found.size > worst.size):
            worst = found
        counts = self.tensors + 1, self.wrong + (found is not None), self.bytes + size
        return replace(self, tensors=counts[0], wrong=counts[1], bytes=counts[2], worst=worst)

    def __str__(self) -> str:
        """One line."""
        name = f"{self.source} -> {self.target}" + ("" if self.what == "copies" else f", {self.what}")
        if self.worst is not None:
            return f"{name}: {self.wrong:,} of {self.tensors:,} tensors are wrong ({self.worst})"
        return f"{name}: {self.untested or f'all {self.tensors:,} tensors are as they were sent'}"

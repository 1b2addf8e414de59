"""Memory of the fake devices: every storage is counted once, from its first tensor until it is freed.

Only tensors count: there is no context, workspace or fragmentation. A result is computed by the CPU before
it is counted, so that a step over the capacity fails after the operation that caused it, as if it had
failed before: the result is dropped and what was allocated stays as it was.
"""

import torch

from splitnet.parallel.fake import clocks, log

_UNITS = ("bytes", "KiB", "MiB", "GiB")

allocated: list[int] = []
peak: list[int] = []
capacity: list[int | None] = []
early: list[str] = []
"""What was freed too early, in words: what is done next with a fake tensor says it."""


def grow(devices: int) -> None:
    """Start counting for devices up to `devices`."""
    for counts in (allocated, peak):
        counts.extend([0] * (devices - len(counts)))
    capacity.extend([None] * (devices - len(capacity)))


class Block:
    """The memory of one storage. It hangs on the storage object and is released with it.

    As a GPU's allocator has it, it belongs to the stream in which it was allocated, which may write to it again when it
    is released: that stream, or the host, must have waited for what others do with it, or these be recorded.
    """

    __slots__ = ("_arrivals", "_clocks", "_recorded", "_used", "home", "index", "nbytes")

    def __init__(self, index: int, nbytes: int) -> None:
        self.index = index
        self.home = clocks.current(index)
        self._used: dict[clocks.Stream | None, int] = {}
        self._recorded: set[clocks.Stream | None] = set()
        self.nbytes = 0  # nothing to release if the line below raises
        self._arrivals: dict[tuple[int, int], float] = {}  # by the bytes that a copy brought
        self._clocks = clocks.resets
        self.resize(nbytes)

    def arrives(self, data: torch.Tensor, seconds: float) -> None:
        """A copy brings what `data`, CPU data in this memory, spans; it is there at `seconds` on the clock."""
        if self._clocks != clocks.resets:
            self._arrivals.clear()
            self._clocks = clocks.resets
        first, end = _span(data)
        covered = [one for one, at in self._arrivals.items() if first <= one[0] and one[1] <= end and at <= seconds]
        for one in covered:
            del self._arrivals[one]
        self._arrivals[first, end] = seconds

    def ready(self, data: torch.Tensor) -> float:
        """When copies have brought all that `data` spans; 0 if that was before the clocks were reset."""
        if not self._arrivals or self._clocks != clocks.resets:
            return 0.0
        first, end = _span(data)
        return max((at for (one, other), at in self._arrivals.items() if first < other and one < end), default=0.0)

    def used(self) -> None:
        """The device's current stream was asked for something with it."""
        stream = clocks.current(self.index)
        if stream is not self.home:
            self._used[stream] = clocks.last(self.index, stream)

    def record(self, stream: clocks.Stream | None) -> None:
        """Keep it, when it is released, until that stream has done what it was asked for."""
        self._recorded.add(stream)

    def resize(self, nbytes: int) -> None:
        """Count `nbytes` from now on, or raise torch.OutOfMemoryError and count what was counted."""
        index, more = self.index, nbytes - self.nbytes
        limit = capacity[index]
        if limit is not None and more > 0 and allocated[index] + more > limit:
            raise torch.OutOfMemoryError(_refusal(index, more, limit))
        self.nbytes = nbytes
        allocated[index] += more
        peak[index] = max(peak[index], allocated[index])
        log.memory(index, id(self), more, allocated[index])

    def __del__(self) -> None:
        allocated[self.index] -= self.nbytes
        log.memory(self.index, id(self), -self.nbytes, allocated[self.index])
        for stream, number in self._used.items():
            if stream not in self._recorded and not clocks.before(self.index, self.home, stream, number):
                early.append(
                    f"a tensor of {readable(self.nbytes)} on fake:{self.index} was freed while a stream that is not its"
                    " own was still using it: on a GPU its memory would be given away and written over (record_stream)"
                )


def account(storage: torch.UntypedStorage, index: int) -> Block:
    """The block of a CPU storage that stands for memory of device `index`, new where it was not counted yet."""
    known = storage.__dict__
    block = known.get("block")
    if block is None:
        block = known["block"] = Block(index, storage.nbytes())
    return block


def _span(data: torch.Tensor) -> tuple[int, int]:
    """The bytes of its storage from its first element to behind its last; (0, 0) of none."""
    if data.numel() == 0:
        return 0, 0
    first = data.storage_offset()
    end = first + 1 + sum((size - 1) * stride for size, stride in zip(data.shape, data.stride(), strict=True))
    return int(first) * data.itemsize, int(end) * data.itemsize


def reset_peak(index: int) -> None:
    """Let the peak start again from what is allocated now."""
    peak[index] = allocated[index]


def reset() -> None:
    """No capacity, and peaks from here on. What is allocated stays allocated."""
    early.clear()
    for index in range(len(peak)):
        capacity[index] = None
        reset_peak(index)


def readable(nbytes: int) -> str:
    """A size with two digits behind the point, in the largest unit that keeps it above one."""
    size, unit = float(nbytes), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.2f} {_UNITS[unit]}" if unit else f"{nbytes} bytes"


def _refusal(index: int, more: int, limit: int) -> str:
    free, missing = max(limit - allocated[index], 0), allocated[index] + more - limit
    return (
        f"fake:{index} out of memory. Tried to allocate {readable(more)}. The device has a capacity of "
        f"{readable(limit)} of which {readable(free)} is free; {readable(allocated[index])} is allocated. "
        f"{readable(missing)} ({missing:,} bytes) are missing."
    )

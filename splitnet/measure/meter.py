"""Clocks and memory counters: several layouts of a step, measured in alternation in one run.

A layout is a function that makes one step, and the devices that the step uses. Every device is synchronised at
both ends of a measured step. Nothing here asks what kind a device is: `torch.get_device_module` answers for CUDA
and for fake devices alike, and the plain CPU has no counters.
"""

import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Devices = Sequence[torch.device]


@dataclass(frozen=True, slots=True)
class Layout:
    """What is measured: `step(i)` makes step number i."""

    name: str
    devices: tuple[torch.device, ...]
    step: Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of n values, and the least and the greatest."""

    median: float
    least: float
    greatest: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        ordered = sorted(values)
        return cls(statistics.median(ordered), ordered[0], ordered[-1], len(ordered))


# Two-sided 99 % points of Student's distribution for 1, 2, … degrees of freedom (any table of it).
STUDENT_99 = (
    63.657, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169, 3.106, 3.055, 3.012, 2.977, 2.947,
    2.921, 2.898, 2.878, 2.861, 2.845, 2.831, 2.819, 2.807, 2.797, 2.787, 2.779, 2.771, 2.763, 2.756, 2.750,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ratio(Spread):
    """Ratios of pairs, and where their typical one lies: a 99 % interval, None of fewer than two pairs.

    It is Student's interval of the mean of their logarithms, so that a ratio and its inverse have inverse
    intervals. More than 31 pairs are given the slightly wider interval of 31.
    """

    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Iterable[float]) -> "Ratio":
        ratios = list(values)
        logs = [math.log(value) for value in ratios]
        low = high = None
        if len(logs) > 1:
            mean, n = statistics.fmean(logs), len(logs)
            half = STUDENT_99[min(n - 1, len(STUDENT_99)) - 1] * statistics.stdev(logs) / math.sqrt(n)
            low, high = math.exp(mean - half), math.exp(mean + half)
        spread = Spread.of(ratios)
        return cls(spread.median, spread.least, spread.greatest, spread.n, low, high)

    def __str__(self) -> str:
        """`1.013 (0.875-1.038, n=16; 99 % 0.982-1.029)`: the median, the range, and the interval if there is one."""
        inside = "" if self.low is None else f"; 99 % {self.low:.3f}-{self.high:.3f}"
        return f"{self.median:.3f} ({self.least:.3f}-{self.greatest:.3f}, n={self.n}{inside})"


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured step, in seconds."""

    wall: float
    device: float | None
    """On the first device's own clock: emulated for a fake device, None on the plain CPU."""
    exposed: float | None = None
    """Of that, copies between devices beside which nothing was computed, on the device with most of them; None where
    clocks do not tell."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device at the peak of a step.

    What is neither weights, gradients nor the optimizer's is `activations`: the rest of the peak, with the
    workspace of operations.
    """

    peak: int
    parameters: int
    gradients: int
    optimizer: int

    @property
    def activations(self) -> int:
        return self.peak - self.parameters - self.gradients - self.optimizer


def counters(device: torch.device) -> Any:
    """The module with a device's clock and memory counters; None where there are none, as on the plain CPU."""
    module = None if device.type == "cpu" else torch.get_device_module(device)
    return module if hasattr(module, "max_memory_allocated") else None


def synchronize(devices: Devices) -> None:
    """Wait until every device has done what it was given."""
    for device in dict.fromkeys(devices):
        if counters(device) is not None:
            counters(device).synchronize(device)
        elif device.type != "cpu":
            torch.get_device_module(device).synchronize()


def alternate(layouts: Sequence[Layout], number: int) -> dict[str, Sample]:
    """Step `number` of every layout, in turn: round by round that is A B C A B C."""
    return {layout.name: _timed(layout, number) for layout in layouts}


def _timed(layout: Layout, number: int) -> Sample:
    # one clock is enough where all are aligned at both ends; a device without one would take no time on it
    module = counters(layout.devices[0]) if all(map(counters, layout.devices)) else None
    begun, ended = [module.Event(enable_timing=True) for _ in range(2)] if module else (None, None)
    synchronize(layout.devices)
    before = _exposed(layout.devices)
    start = time.perf_counter()
    _record(begun, layout.devices[0])
    layout.step(number)
    synchronize(layout.devices)
    _record(ended, layout.devices[0])
    synchronize(layout.devices)
    wall = time.perf_counter() - start
    exposed = max((b - a for a, b in zip(before, _exposed(layout.devices), strict=True)), default=None)
    return Sample(wall, begun.elapsed_time(ended) / 1000 if begun else None, exposed)


def _exposed(devices: Devices) -> list[float]:
    """Of each device whose clock adds up what it is spent on: fake ones."""
    told = (d for d in dict.fromkeys(devices) if hasattr(counters(d), "exposed"))
    return [counters(device).exposed(device) for device in told]


def _record(event: Any, device: torch.device) -> None:
    if event is not None:
        event.record(counters(device).current_stream(device))


def ratio(samples: Sequence[Sample], base: Sequence[Sample]) -> Ratio:
    """Speed over that of `base`, round by round: above 1 is faster."""
    return Ratio.of(b.wall / a.wall for a, b in zip(samples, base, strict=True))


class OtherLoad:
    """Cores that other processes keep busy from its making on: 0 on a machine that measures and does nothing else."""

    def __init__(self) -> None:
        self._before = _cpu_seconds()

    def own(self) -> float:
        """Seconds that this process has computed so far."""
        now = _cpu_seconds()
        return 0.0 if now is None or self._before is None else now[1] - self._before[1]

    def cores(self, partners: float = 0.0) -> float | None:
        """The mean so far; None where the system does not tell, or too little time has passed.

        `partners`: seconds that processes of the same job have computed on this machine meanwhile.
        """
        now = _cpu_seconds()
        if now is None or self._before is None or now[2] - self._before[2] < SHORTEST:
            return None
        everyone, own, elapsed = (b - a for a, b in zip(self._before, now, strict=True))
        return round(max(everyone - own - partners, 0.0) / elapsed, 2)


SHORTEST = 0.1
"""Seconds; the system counts in hundredths."""


def _cpu_seconds() -> tuple[float, float, float] | None:
    """Seconds that all processes and this one have computed, and the clock."""
    try:
        fields = Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, *interrupts = map(int, fields[:7])
    everyone = (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")
    own = os.times()
    return everyone, own.user + own.system + own.children_user + own.children_system, time.monotonic()


class Peak:
    """Memory that is taken on each device between two moments, over what was taken before.

    Other networks may rest on the same devices: what they hold is not counted, provided they do not move.
    """

    def __init__(self, devices: Devices) -> None:
        self.devices = tuple(device for device in dict.fromkeys(devices) if counters(device) is not None)
        synchronize(self.devices)
        self._before = {device: counters(device).memory_allocated(device) for device in self.devices}
        for device in self.devices:
            counters(device).reset_peak_memory_stats(device)

    def bytes(self) -> dict[torch.device, int]:
        """The peak so far, device by device."""
        synchronize(self.devices)
        return {d: counters(d).max_memory_allocated(d) - self._before[d] for d in self.devices}


def sizes(tensors: Iterable[Tensor]) -> dict[torch.device, int]:
    """Bytes of tensors by device."""
    found: dict[torch.device, int] = {}
    for tensor in tensors:
        found[tensor.device] = found.get(tensor.device, 0) + tensor.numel() * tensor.element_size()
    return found

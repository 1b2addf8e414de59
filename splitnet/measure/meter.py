"""Clocks and memory counters: several layouts of a step, measured in alternation in one run.

A layout is a function that makes one step, and the devices that the step uses. Every device is synchronised at
both ends of a measured step. Nothing here asks what kind a device is: `torch.get_device_module` answers for CUDA
and for fake devices alike, and the plain CPU has no counters.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Sample:
    """One measured step, in seconds."""

    wall: float
    device: float | None
    """On the first device's own clock: emulated for a fake device, None on the plain CPU."""


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
    module = counters(layout.devices[0])
    begun, ended = [module.Event(enable_timing=True) for _ in range(2)] if module else (None, None)
    synchronize(layout.devices)
    start = time.perf_counter()
    _record(begun, layout.devices[0])
    layout.step(number)
    synchronize(layout.devices)
    _record(ended, layout.devices[0])
    synchronize(layout.devices)
    wall = time.perf_counter() - start
    return Sample(wall, begun.elapsed_time(ended) / 1000 if begun else None)


def _record(event: Any, device: torch.device) -> None:
    if event is not None:
        event.record(counters(device).current_stream(device))


def ratio(samples: Sequence[Sample], base: Sequence[Sample]) -> Spread:
    """Speed over that of `base`, round by round: above 1 is faster."""
    return Spread.of(b.wall / a.wall for a, b in zip(samples, base, strict=True))


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

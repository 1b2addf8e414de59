"""Fake devices: several devices on the CPU that compute real values and refuse what GPUs refuse.

    fake.install(2)
    x = torch.ones(3, device="fake:0")
    y = x.to("fake:1")                 # a copy, counted: fake.copies()
    x + y                              # RuntimeError: Expected all tensors to be on the same device, …

Nothing happens before `install`. What it makes is emulated: values are real, times and links are a model
(`clocks`), memory is the tensors' alone (`memory`). `torch.fake` is the counterpart of `torch.cuda` (`runtime`).
"""

import torch

from splitnet.parallel.fake import clocks as _clocks
from splitnet.parallel.fake import devices as _devices
from splitnet.parallel.fake import faults as _faults
from splitnet.parallel.fake import log as log
from splitnet.parallel.fake import memory as _memory
from splitnet.parallel.fake.backend import install, installed
from splitnet.parallel.fake.faults import Fault, fault
from splitnet.parallel.fake.tensor import FakeTensor
from splitnet.parallel.fake.traffic import Copy, clear_copies, copies

__all__ = [
    "Copy",
    "FakeTensor",
    "Fault",
    "clear_copies",
    "clock",
    "copies",
    "fault",
    "install",
    "installed",
    "reset",
    "set_capacity",
    "set_link",
    "set_speed",
]

Device = torch.device | str | int


def set_capacity(device: Device, nbytes: int | None) -> None:
    """Let `device` hold `nbytes` at most, or as much as there is. Over it: torch.OutOfMemoryError."""
    _memory.capacity[_devices.required(device)] = nbytes


def set_link(bytes_per_second: float = 12e9, latency: float = 10e-6) -> None:
    """What every link between two devices, or a device and the host, is like. Latency is in seconds."""
    if bytes_per_second <= 0 or latency < 0:
        raise ValueError(f"no link has {bytes_per_second} bytes/s and a latency of {latency} s")
    _clocks.link.bytes_per_second, _clocks.link.latency = bytes_per_second, latency


def set_speed(device: Device, factor: float) -> None:
    """Let operations on `device` take `1/factor` of the time that they take here."""
    if factor <= 0:
        raise ValueError(f"no device is {factor} times as fast")
    _clocks.speed[_devices.required(device)] = factor


def clock(device: Device) -> float:
    """Seconds on the clock of `device`, emulated: when it has done everything asked of it."""
    return _clocks.now(_devices.required(device))


def reset() -> None:
    """As freshly installed: no copies, faults or capacities, clocks at 0, peaks from what is allocated."""
    clear_copies()
    _faults.reset()
    _memory.reset()
    _clocks.reset()

"""`torch.fake`: what `torch.cuda` is for GPUs, so that code for any device can ask `torch.get_device_module`.

There is one fake device that is current, `fake:0`, and one stream of random numbers for all, the CPU's:
`torch.manual_seed` makes a fake device draw what the CPU would draw.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from splitnet.parallel.fake import clocks, devices, memory
from splitnet.parallel.fake import log as log  # torch.fake.log: what a profiler makes the devices' lanes from

MEMORY = ("memory_allocated", "max_memory_allocated", "reset_peak_memory_stats", "empty_cache")

Device = torch.device | str | int | None
"""A device argument; None is `fake:0`."""


def device_count() -> int:
    """How many fake devices are installed."""
    return devices.count()


def is_available() -> bool:
    """True: this module is only reachable as `torch.fake` after `install`."""
    return devices.count() > 0


def is_initialized() -> bool:
    """There is nothing to initialise later."""
    return True


def current_device() -> int:
    """Always 0."""
    return 0


def set_device(device: Device) -> None:
    """Accepts `fake:0` only: name other devices where you use them."""
    if devices.required(device) != 0:
        raise RuntimeError(f"the current fake device is always fake:0, not {device}: name the device instead")


set_device_index = set_device


@contextmanager
def device(device: Device) -> Iterator[None]:
    """As `set_device`."""
    set_device(device)
    yield


def get_device_name(device: Device = None) -> str:
    """Says that it is emulated."""
    return f"fake device {devices.required(device)} (CPU emulation)"


def synchronize(device: Device = None) -> None:
    """Let every clock wait for `device`'s, or for the latest of all without one."""
    clocks.synchronize(None if device is None else devices.required(device))


def exposed(device: Device = None) -> float:
    """Seconds of copies between devices beside which `device` did nothing, up to its last operation or alignment."""
    return clocks.sums()[devices.required(device)].exposed


def memory_allocated(device: Device = None) -> int:
    """Bytes of the storages that are alive."""
    return memory.allocated[devices.required(device)]


def max_memory_allocated(device: Device = None) -> int:
    """The most bytes that were allocated since the last `reset_peak_memory_stats`."""
    return memory.peak[devices.required(device)]


def reset_peak_memory_stats(device: Device = None) -> None:
    """Let the peak start from what is allocated now."""
    memory.reset_peak(devices.required(device))


def empty_cache() -> None:
    """Does nothing: freed memory is free at once."""


def manual_seed(seed: int) -> None:
    """Seed the stream of random numbers that all fake devices and the CPU share."""
    torch.default_generator.manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    """As `manual_seed`."""
    manual_seed(seed)


def initial_seed() -> int:
    """The seed of that stream."""
    return torch.default_generator.initial_seed()


def get_rng_state(device: Device = None) -> Tensor:
    """The state of that stream, on the CPU."""
    devices.required(device)
    return torch.default_generator.get_state()


def set_rng_state(state: Tensor, device: Device = None) -> None:
    """Set the state of that stream."""
    devices.required(device)
    torch.default_generator.set_state(state)


class Stream:
    """A queue of a fake device. Copies in one that is not the main one run beside the device's work.

    Values are there when a call returns; what is emulated is the time, and two duties. A tensor that a stream is still
    bringing may not be used by another before that one has waited. And memory belongs to the stream in which it was
    allocated: one that is freed while another still uses it must have been told so (`record_stream`).
    """

    def __init__(self, device: Device = None, priority: int = 0) -> None:
        self._index = devices.required(device)
        self.queue: clocks.Stream | None = clocks.Stream(self._index)
        """What the clocks know it by; None: the main one."""

    @property
    def device(self) -> torch.device:
        return devices.fake(self._index)

    @property
    def ready(self) -> float:
        """Seconds on the device's clock at which all that was asked of it is done."""
        return clocks.ready(self._index, self.queue)

    def wait_stream(self, stream: "Stream") -> None:
        """What is asked of this stream from now on begins when all that was asked of the other is done."""
        clocks.wait(self._index, self.queue, stream.ready)
        clocks.learn(self._index, self.queue, clocks.moment(stream._index, stream.queue))

    def wait_event(self, event: "Event") -> None:
        """What is asked of this stream from now on begins after that moment."""
        clocks.wait(self._index, self.queue, event.seconds)
        clocks.learn(self._index, self.queue, event.moment)

    def record_event(self, event: "Event | None" = None) -> "Event":
        """The moment at which all that was asked of this stream is done."""
        event = Event() if event is None else event
        event.record(self)
        return event

    def synchronize(self) -> None:
        """Values are there; what is noted is that the host has waited."""
        clocks.tell_host(clocks.moment(self._index, self.queue))


def current_stream(device: Device = None) -> Stream:
    """The stream of `device` that is asked for what is done now."""
    found = Stream(device)
    found.queue = clocks.current(found._index)
    return found


def default_stream(device: Device = None) -> Stream:
    """The main stream of `device`."""
    found = Stream(device)
    found.queue = None
    return found


@contextmanager
def stream(stream: Stream | None) -> Iterator[None]:
    """Within it, that stream of its device is asked."""
    if stream is None:
        yield
        return
    before = clocks.current(stream._index)
    clocks.use(stream._index, stream.queue)
    try:
        yield
    finally:
        clocks.use(stream._index, before)


class Event:
    """A moment on a fake device's clock."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._enable_timing = enable_timing
        self._seconds: float | None = None
        self.moment: clocks.Moment = {}

    @property
    def seconds(self) -> float:
        """When it is; 0 before it was recorded, as CUDA does not wait for such an event."""
        return self._seconds or 0.0

    def record(self, stream: "Stream | Device" = None) -> None:
        """Remember when a stream, a device's current one without any, will have done what was asked of it so far."""
        found = stream if isinstance(stream, Stream) else current_stream(stream)
        self._seconds, self.moment = found.ready, clocks.moment(found._index, found.queue)

    def wait(self, stream: Stream | None = None) -> None:
        """As `Stream.wait_event`."""
        (stream or current_stream()).wait_event(self)

    def elapsed_time(self, end: "Event") -> float:
        """Milliseconds from this event to `end`, emulated."""
        if not (self._enable_timing and end._enable_timing):
            raise ValueError("both events need enable_timing=True")
        if self._seconds is None or end._seconds is None:
            raise ValueError("both events must be recorded before calculating elapsed time")
        return (end._seconds - self._seconds) * 1e3

    def query(self) -> bool:
        """True: operations are done when the call returns."""
        return True

    def synchronize(self) -> None:
        """Values are there; what is noted is that the host has waited."""
        clocks.tell_host(self.moment)


def get_amp_supported_dtype() -> list[torch.dtype]:
    """None: `torch.autocast("fake")` warns and stays off."""
    return []


def _is_in_bad_fork() -> bool:
    return False


def _lazy_init() -> None:
    pass

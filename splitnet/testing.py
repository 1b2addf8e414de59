"""Two fake devices for a test, fresh each time: a pytest fixture.

In a `conftest.py`, `pytest_plugins = ["splitnet.testing"]`; then a test of anybody's model on two devices is

    def test_model_on_two_devices(fake_devices):
        one, two = fake_devices
        model = MyModel(first=one, second=two)
        loss = model(torch.randn(8, 3, 32, 32, device=one)).mean()
        fake_devices.clear_copies()
        loss.backward()                                   # on one device too few `.to`: RuntimeError, "same device"
        copies = fake_devices.copies()                    # Counter of (source, target, bytes, phase, file, line)
        assert all(copy.phase == "backward" for copy in copies)
        assert fake_devices.memory_peak(two) < 2**30      # bytes

The first test that asks for the fixture installs the devices; the process keeps them (`splitnet.fake.install`).
"""

from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from splitnet.parallel import fake


class FakeDevices(tuple[torch.device, ...]):
    """The devices, and what happened on them since the test began."""

    def copies(self) -> Counter[fake.Copy]:
        """How often each copy between two devices, or a device and the host, happened."""
        return fake.copies()

    def clear_copies(self) -> None:
        """Count copies from here on."""
        fake.clear_copies()

    def bytes_copied(self, source: torch.device | str, target: torch.device | str) -> int:
        """All that travelled from one device to another; either may be "cpu"."""
        wanted = str(source), str(target)
        return sum(copy.bytes * times for copy, times in fake.copies().items() if (copy.source, copy.target) == wanted)

    def memory_peak(self, device: torch.device | str) -> int:
        """The most bytes that the device held at once."""
        return int(torch.get_device_module(device).max_memory_allocated(device))


@pytest.fixture
def fake_devices() -> Iterator[FakeDevices]:
    """`fake:0` and `fake:1`, with no copies, faults or limits and clocks at zero, before the test and after."""
    fake.install(2)
    fake.reset()
    yield FakeDevices((torch.device("fake", 0), torch.device("fake", 1)))
    fake.reset()

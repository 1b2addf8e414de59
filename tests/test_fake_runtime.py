"""`torch.fake` answers what `torch.cuda` answers, so that code for devices needs no case for it."""

import pytest
import torch

from splitnet.parallel.fake import clocks
from splitnet.testing import fake_devices  # noqa: F401

ONE, TWO = "fake:0", "fake:1"

pytestmark = pytest.mark.usefixtures("fake_devices")


def test_it_is_the_device_s_module() -> None:
    assert torch.get_device_module(TWO) is torch.get_device_module(torch.device(TWO)) is torch.fake
    assert torch.fake.is_available()
    assert torch.fake.is_initialized()
    assert torch.fake.device_count() >= 2
    assert torch.fake.get_device_name(TWO) == "fake device 1 (CPU emulation)"


def test_every_function_has_a_counterpart_in_cuda() -> None:
    from splitnet.parallel.fake import runtime

    own = {
        name
        for name, value in vars(runtime).items()
        if callable(value) and not name.startswith("_") and getattr(value, "__module__", "") == runtime.__name__
    }
    extra = {"exposed", "get_amp_supported_dtype", "set_device_index"}  # PyTorch asks other backends for the first
    assert {name for name in own if not hasattr(torch.cuda, name)} <= extra
    assert len(own) > 15


@pytest.mark.parametrize("device", [None, 0, ONE, "fake", torch.device("cpu", 0)], ids=str)
def test_functions_take_every_form_of_a_device(device: object) -> None:
    if device == torch.device("cpu", 0):
        with pytest.raises(ValueError, match="expected a fake device, but got cpu:0"):
            torch.fake.memory_allocated(device)
        return
    x = torch.ones(256, device=ONE)
    assert torch.fake.memory_allocated(device) >= 1024
    assert torch.fake.max_memory_allocated(device) >= x.nbytes
    torch.fake.reset_peak_memory_stats(device)
    torch.fake.synchronize(device)
    torch.fake.empty_cache()


def test_there_is_no_other_current_device() -> None:
    assert torch.fake.current_device() == 0
    with torch.fake.device(ONE):
        torch.fake.set_device("fake")
    for change in (
        torch.fake.set_device,
        torch.accelerator.set_device_index,
        lambda d: torch.fake.device(d).__enter__(),
    ):
        with pytest.raises(RuntimeError, match="always fake:0"):
            change(1)


def test_seeds() -> None:
    for function in (torch.manual_seed, torch.fake.manual_seed, torch.fake.manual_seed_all):
        function(5)
        x = torch.randn(3, device=TWO)
        function(5)
        assert torch.equal(x, torch.randn(3, device=TWO))
        assert torch.fake.initial_seed() == 5


def test_the_state_of_chance() -> None:
    state = torch.fake.get_rng_state(TWO)
    x = torch.randn(3, device=TWO)
    torch.fake.set_rng_state(state, TWO)
    assert torch.equal(x, torch.randn(3, device=TWO))
    with torch.random.fork_rng(range(2), device_type="fake"):
        torch.randn(3, device=ONE)
    torch.fake.set_rng_state(state)
    assert torch.equal(x, torch.randn(3, device=TWO))


def test_events_read_the_clock() -> None:
    start, end = (torch.fake.Event(enable_timing=True) for _ in range(2))
    start.record(TWO)
    clocks.compute(1, 0.25)
    end.record(TWO)
    end.synchronize()
    assert end.query()
    assert start.elapsed_time(end) == pytest.approx(250)


def test_events_that_cannot_tell() -> None:
    timed = torch.fake.Event(enable_timing=True)
    with pytest.raises(ValueError, match="must be recorded"):
        timed.elapsed_time(timed)
    with pytest.raises(ValueError, match="enable_timing"):
        torch.fake.Event().elapsed_time(timed)


def test_the_accelerator_s_functions() -> None:
    assert str(torch.accelerator.current_accelerator()) == "fake"
    assert torch.accelerator.device_count() == torch.fake.device_count()
    assert torch.accelerator.current_device_index() == 0
    clocks.compute(0, 1.0)
    torch.accelerator.synchronize()
    assert clocks.now(0) == clocks.now(1)
    assert torch.accelerator.memory_allocated(ONE) == torch.fake.memory_allocated(ONE)
    assert torch.accelerator.max_memory_allocated(ONE) == torch.fake.max_memory_allocated(ONE)
    torch.accelerator.reset_peak_memory_stats(ONE)
    torch.accelerator.empty_cache()

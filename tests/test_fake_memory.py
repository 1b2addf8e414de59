"""Memory of a device: what is alive, the most there was, and what happens where there is no more."""

import copy
import gc

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from splitnet.parallel import fake
from splitnet.testing import fake_devices  # noqa: F401

ONE, TWO = "fake:0", "fake:1"
KIB = 1024

pytestmark = pytest.mark.usefixtures("fake_devices")


class Meter:
    """Bytes on a device, more than there were when it was made."""

    def __init__(self, device: str = ONE) -> None:
        gc.collect()
        self.device = device
        torch.fake.reset_peak_memory_stats(device)
        self.start = torch.fake.memory_allocated(device)

    @property
    def now(self) -> int:
        return torch.fake.memory_allocated(self.device) - self.start

    @property
    def peak(self) -> int:
        return torch.fake.max_memory_allocated(self.device) - self.start


def _kib(n: int, device: str = ONE) -> Tensor:
    return torch.zeros(n * KIB // 4, device=device)


def test_storages_are_counted_once_and_until_they_are_freed() -> None:
    meter, other = Meter(), Meter(TWO)
    x = _kib(4)
    views = [x.view(2, -1), x[3:], x.detach(), x.expand(5, -1), x.data, *x.chunk(2)]
    assert meter.now == 4 * KIB
    del x
    assert meter.now == 4 * KIB
    del views
    assert (meter.now, meter.peak, other.peak) == (0, 4 * KIB, 0)


def test_the_peak_starts_again() -> None:
    meter = Meter()
    x = _kib(2)
    del x
    assert meter.peak == 2 * KIB
    torch.fake.reset_peak_memory_stats(ONE)
    assert meter.peak == 0


def test_in_place_operations_take_nothing() -> None:
    x = _kib(4)
    meter = Meter()
    x.add_(1).relu_().t()
    torch.add(x, x, out=x)
    assert meter.peak == 0


def test_copies_are_on_their_device() -> None:
    x = _kib(4)
    meter, other = Meter(), Meter(TWO)
    y = x.to(TWO)
    assert (meter.peak, other.now) == (0, 4 * KIB)
    y.cpu()
    assert other.peak == 4 * KIB


def test_storages_that_change_their_size() -> None:
    meter = Meter()
    x = _kib(1)
    view = x[:10]
    x.resize_(2 * KIB // 4)
    assert meter.now == 2 * KIB
    x.set_(_kib(3))
    assert meter.now == 5 * KIB  # the view holds the old storage
    del view
    assert meter.now == 3 * KIB
    torch.add(_kib(8), 1, out=x.resize_(0))
    assert meter.now == 8 * KIB
    x.data = _kib(1)
    assert meter.now == 1 * KIB


def test_what_autograd_keeps_is_counted_until_backward() -> None:
    w = _kib(4).requires_grad_()
    meter = Meter()
    loss = w.exp().sin().sum()  # keeps the result of exp, which is also the input of sin
    assert meter.now == 4 * KIB + 4
    loss.backward()
    assert meter.now == 4 * KIB + 4  # the gradient, and the loss
    assert meter.peak <= 3 * 4 * KIB + 8
    del loss
    w.grad = None
    assert meter.now == 0


def test_a_step_takes_the_memory_that_its_tensors_take() -> None:
    """Weights 8, gradients 8; nothing lingers, and gradients are not copied when they become `.grad`."""
    net = nn.Sequential(nn.Linear(32, 32, bias=False), nn.Tanh(), nn.Linear(32, 32, bias=False)).to(ONE)
    meter = Meter()
    for _ in range(3):
        net(torch.ones(32, 32, device=ONE)).sum().backward()
        gradients = sum(p.numel() * 4 for p in net.parameters())
        assert meter.now == gradients == 8 * KIB
        net.zero_grad()
        assert meter.now == 0
    # input, two results of layers and tanh's; backward frees them as it goes
    assert meter.peak <= 6 * 4 * KIB + 8 * KIB


def test_checkpoints_save_memory() -> None:
    def deep(x: Tensor) -> Tensor:
        for _ in range(8):
            x = x.exp()
        return x

    peaks = []
    for run in (deep, lambda x: checkpoint(deep, x, use_reentrant=False)):
        x = _kib(4).requires_grad_()
        meter = Meter()
        y = run(x)
        peaks.append(meter.now)
        del y
    assert peaks == [8 * 4 * KIB, 4 * KIB]


def test_a_full_device_refuses_and_goes_on() -> None:
    meter = Meter()
    x = _kib(4)
    fake.set_capacity(ONE, meter.start + 6 * KIB)
    message = r"fake:0 out of memory\. Tried to allocate 4\.00 KiB\. The device has a capacity of .* is allocated\."
    for too_much in (x.clone, lambda: _kib(4), lambda: _kib(4, TWO).to(ONE), lambda: torch.ones(1024).to(ONE)):
        with pytest.raises(torch.OutOfMemoryError, match=message):
            too_much()
        assert meter.now == 4 * KIB
    x.add_(1)
    del x
    assert _kib(6)[0].item() == 0
    fake.set_capacity(ONE, None)
    assert _kib(9).numel()


def test_a_backward_that_does_not_fit_leaves_nothing_behind() -> None:
    w = _kib(4).requires_grad_()
    meter = Meter()
    fake.set_capacity(ONE, meter.start + 6 * KIB)
    for _ in range(3):
        with pytest.raises(torch.OutOfMemoryError):
            w.exp().sum().backward()
        assert w.grad is None
        assert meter.now == 0


def test_what_cannot_grow_stays_as_it_was() -> None:
    x, y = _kib(1), _kib(1)
    meter = Meter()
    fake.set_capacity(ONE, meter.start + 1)
    for grow in (lambda: x.resize_(4 * KIB), lambda: torch.cat([y, y], out=x[:0])):
        with pytest.raises(torch.OutOfMemoryError):
            grow()
        assert x.shape == (KIB // 4,)
        assert (meter.now, x.untyped_storage().nbytes()) == (0, KIB)
        assert x[0].item() == x[-1].item() == 0


def test_loaded_and_copied_tensors_are_counted() -> None:
    meter = Meter()
    x = _kib(2)
    twin = copy.deepcopy(x)
    assert meter.now == 4 * KIB
    twin.data = x
    assert meter.now == 2 * KIB


def test_reset_forgets_limits_and_peaks() -> None:
    x = _kib(2)
    fake.set_capacity(ONE, 1)
    fake.reset()
    assert torch.fake.max_memory_allocated(ONE) == torch.fake.memory_allocated(ONE)
    assert (x + 1).numel()

"""Faulty links do what they say, to the copies that they are told to, as long as they are told to."""

import pytest
import torch
from torch import Tensor

from splitnet.parallel import fake
from splitnet.parallel.fake import clocks
from splitnet.testing import fake_devices  # noqa: F401

ONE, TWO, HOST = "fake:0", "fake:1", "cpu"

pytestmark = pytest.mark.usefixtures("fake_devices")


def _x(start: float = 1.0, device: str = ONE) -> Tensor:
    return torch.arange(start, start + 3).to(device)


def test_zeros() -> None:
    x = _x()
    with fake.fault("zeros"):
        assert x.to(TWO)._data.tolist() == [0, 0, 0]
        assert torch.ones(3, device=TWO).copy_(x)._data.tolist() == [0, 0, 0]
        assert x.cpu().tolist() == [0, 0, 0]
        assert x[0].item() == 0
    assert x.tolist() == [1, 2, 3]
    assert x.to(TWO).tolist() == [1, 2, 3]


def test_stale() -> None:
    with fake.fault("stale", source=ONE, target=TWO):
        got = [_x(start).to(TWO).tolist() for start in (1, 4, 7)]
    assert got == [[1, 2, 3], [1, 2, 3], [4, 5, 6]]


def test_flip() -> None:
    x = _x()
    with fake.fault("flip", target=TWO):
        y, z = x.to(TWO), torch.tensor([4, 5], device=ONE).to(TWO)
    assert (y.view(torch.int32) - x.to(TWO).view(torch.int32)).tolist() == [1, 0, 0]
    assert z.tolist() == [5, 5]
    assert x.tolist() == [1, 2, 3]


def test_misroute() -> None:
    with fake.fault("misroute", source=ONE, target=TWO):
        y = _x().to(TWO)
        assert str(y.device) == ONE
        with pytest.raises(RuntimeError, match="same device"):
            y + torch.ones(3, device=TWO)
        into = torch.zeros(3, device=TWO).copy_(_x())
    assert into.tolist() == [0, 0, 0]
    with fake.fault("misroute", arrives=TWO):
        assert str(_x(device=HOST).to(ONE).cpu().device) == TWO


def test_slow() -> None:
    x = torch.ones(500, device=ONE)
    fake.set_link(1000, 0)
    for factor, seconds in ((3.0, 6), (1.0, 2)):
        start = max(fake.clock(ONE), fake.clock(TWO))
        with fake.fault("slow", source=ONE, factor=factor):
            assert x.to(TWO).tolist is not None
        assert fake.clock(TWO) - start == pytest.approx(seconds)


def test_only_the_named_link_and_direction() -> None:
    with fake.fault("zeros", source=ONE, target=TWO):
        assert _x(device=TWO).to(ONE).tolist() == [1, 2, 3]
        assert _x(device=HOST).to(TWO).tolist() == [1, 2, 3]
        assert _x().to(TWO).tolist() == [0, 0, 0]
    with fake.fault("zeros", source=HOST):
        assert _x(device=HOST).to(TWO).tolist() == [0, 0, 0]
        assert torch.tensor([1.0], device=ONE).tolist() == [0]


def test_every_so_many_copies() -> None:
    with fake.fault("zeros", target=TWO, every=3):
        got = [_x().to(TWO)._data.sum().item() for _ in range(6)]
    assert got == [6, 6, 0, 6, 6, 0]


def test_backward_takes_the_same_links() -> None:
    x = _x().requires_grad_()
    with fake.fault("zeros", source=TWO, target=ONE):
        (x.to(TWO) * 2).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 0]


def test_faulty_copies_are_counted_like_others() -> None:
    x = _x()
    fake.clear_copies()
    with fake.fault("zeros"):
        x.to(TWO)
    assert [(c.source, c.target, c.bytes) for c in fake.copies()] == [(ONE, TWO, 12)]


def test_faults_end_with_the_context_even_when_it_fails() -> None:
    with pytest.raises(KeyError), fake.fault("zeros"):
        raise KeyError
    assert _x().to(TWO).tolist() == [1, 2, 3]
    with fake.fault("zeros"):
        fake.reset()
        assert _x().to(TWO).tolist() == [1, 2, 3]


def test_strides_survive() -> None:
    x = torch.arange(6.0, device=ONE).reshape(2, 3).t()
    for kind in ("zeros", "stale", "flip"):
        with fake.fault(kind):
            assert x.to(TWO).stride() == x.stride()


def test_wrong_names_are_refused() -> None:
    with pytest.raises(ValueError, match="choose from zeros, stale, flip"), fake.fault("lost"):  # type: ignore[arg-type]
        pass
    with pytest.raises(ValueError, match="not meta"), fake.fault("zeros", source="meta"):
        pass
    with pytest.raises(ValueError, match="every"), fake.fault("zeros", every=0):
        pass
    assert clocks.link == clocks.Link()


def test_a_copy_into_memory_that_is_there_takes_no_other() -> None:
    x, y = torch.ones(1000, device=ONE), torch.zeros(1000, device=TWO)
    torch.fake.reset_peak_memory_stats(TWO)
    with fake.fault("slow"):
        y.copy_(x)
    assert torch.fake.max_memory_allocated(TWO) == torch.fake.memory_allocated(TWO)
    assert list(y._data.untyped_storage().__dict__["block"]._arrivals) == [(0, 4000)]  # what reads it waits


def test_a_copy_that_is_misrouted_changes_nothing_that_is_there() -> None:
    y = torch.zeros(3, device=TWO)
    with fake.fault("misroute"):
        y.copy_(_x())
    assert y.tolist() == [0, 0, 0]
    assert not y._data.untyped_storage().__dict__["block"]._arrivals

"""The devices' clocks: each advances by its own work, copies take the link, and waiting aligns them."""

from collections.abc import Callable

import pytest
import torch

from splitnet.parallel import fake
from splitnet.parallel.fake import clocks
from splitnet.testing import fake_devices  # noqa: F401

ONE, TWO = "fake:0", "fake:1"

pytestmark = pytest.mark.usefixtures("fake_devices")


@pytest.fixture
def _slow_link() -> None:
    """A second for each kilobyte: nothing that is measured matters beside it."""
    fake.set_link(bytes_per_second=1000, latency=0.5)


def _timed(device: str, work: Callable[[], object]) -> float:
    start = fake.clock(device)
    work()
    return fake.clock(device) - start


def test_work_advances_its_own_device() -> None:
    x = torch.ones(200, 200, device=ONE)
    other = fake.clock(TWO)
    assert _timed(ONE, lambda: x @ x) > 0
    assert fake.clock(TWO) == other


@pytest.mark.parametrize(
    "free",
    [
        lambda x: x.view(-1),
        lambda x: x.t(),
        lambda x: x[0],
        lambda x: x.detach(),
        lambda x: x.expand(3, 4, 4),
        lambda x: x.split(2),
        lambda x: torch.empty(5, device=ONE),
        lambda x: torch.empty_like(x),
        lambda x: x.new_empty(3),
        lambda x: torch.empty_strided((2, 2), (1, 2), device=ONE),
    ],
)
def test_views_and_empty_tensors_are_free(free: Callable[[torch.Tensor], object]) -> None:
    x = torch.ones(4, 4, device=ONE)
    assert _timed(ONE, lambda: free(x)) == 0


def test_a_faster_device_takes_less_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(4, device=ONE)
    ticks = iter(range(100))
    monkeypatch.setattr("splitnet.parallel.fake.execute.time.perf_counter", lambda: float(next(ticks)))
    assert _timed(ONE, lambda: x + x) == 1
    fake.set_speed(ONE, 4)
    assert _timed(ONE, lambda: x + x) == 0.25
    with pytest.raises(ValueError, match="0 times as fast"):
        fake.set_speed(ONE, 0)


@pytest.mark.usefixtures("_slow_link")
def test_a_copy_takes_the_link_and_both_ends() -> None:
    x = torch.ones(500, device=ONE)
    clocks.reset()
    fake.set_link(1000, 0.5)
    x.to(TWO)
    assert fake.clock(ONE) == fake.clock(TWO) == pytest.approx(2.5)
    x.to(TWO)
    assert fake.clock(TWO) == pytest.approx(5.0)


def _at_zero(bytes_per_second: float = 1000, latency: float = 0.5) -> None:
    clocks.reset()
    fake.set_link(bytes_per_second, latency)


def test_both_directions_run_at_once() -> None:
    x, y = torch.ones(500, device=ONE), torch.ones(250, device=TWO)
    _at_zero()
    x.to(TWO)
    y.to(ONE)
    assert fake.clock(ONE) == fake.clock(TWO) == pytest.approx(2.5)


def test_a_copy_waits_for_both_ends_and_for_its_data() -> None:
    fake.install(3)
    x = torch.ones(500, device=ONE)
    _at_zero()
    clocks.compute(1, 1.0)
    y = x.to(TWO)  # from 1.0 to 3.5
    assert fake.clock(TWO) == pytest.approx(3.5)
    y.to("fake:2")  # not before it has arrived
    assert fake.clock("fake:2") == pytest.approx(6.0)


def test_a_copy_waits_for_no_other_part_of_its_memory() -> None:
    x, y = torch.ones(1000, device=ONE), torch.ones(1000, device=TWO)
    _at_zero()
    y[:500].copy_(x[:500])  # as the second half of an all-reduce: each brings the other a half of the same memory
    x[500:].copy_(y[500:])
    assert fake.clock(ONE) == fake.clock(TWO) == pytest.approx(2.5)
    y[499:].to(ONE)  # its first element was brought
    assert fake.clock(ONE) == pytest.approx(2.5 + 0.5 + 501 * 4 / 1000)


def test_copies_to_the_same_memory_are_forgotten_by_later_ones() -> None:
    y = torch.ones(100, device=TWO)
    _at_zero()
    for i in range(100):
        y[i : i + 1].copy_(torch.ones(1, device=ONE))
    y.copy_(torch.ones(100, device=ONE))
    assert len(y._data.untyped_storage().__dict__["block"]._arrivals) == 1


def test_work_waits_for_copies() -> None:
    x = torch.ones(500, device=ONE)
    _at_zero()
    y = x.to(TWO)
    x.add_(1)
    y.add_(1)
    assert 2.5 < fake.clock(ONE) < 3.5
    assert 2.5 < fake.clock(TWO) < 3.5


def test_the_host_has_links_too_and_holds_everything_back_while_it_waits() -> None:
    x = torch.ones(500)
    _at_zero()
    y = x.to(ONE)
    assert (fake.clock(ONE), fake.clock(TWO)) == (pytest.approx(2.5), 0)
    y[0].item()
    assert fake.clock(TWO) == fake.clock(ONE) == pytest.approx(2.5 + 0.504)


def test_synchronize_aligns_the_clocks() -> None:
    clocks.compute(0, 5.0)
    clocks.compute(1, 2.0)
    torch.fake.synchronize(TWO)
    assert fake.clock(ONE) == pytest.approx(5.0, abs=1)
    latest = fake.clock(ONE)
    torch.fake.synchronize()
    assert fake.clock(ONE) == fake.clock(TWO) == latest


def test_the_default_link() -> None:
    x = torch.ones(3_000_000, device=ONE)
    clocks.reset()
    x.to(TWO)
    assert fake.clock(TWO) == pytest.approx(1e-3 + 10e-6)


@pytest.mark.parametrize(("bytes_per_second", "latency"), [(0, 0), (1, -1)])
def test_an_impossible_link_is_refused(bytes_per_second: float, latency: float) -> None:
    with pytest.raises(ValueError, match="no link"):
        fake.set_link(bytes_per_second, latency)


def test_reset_starts_again() -> None:
    fake.set_speed(ONE, 3)
    fake.set_link(1, 1)
    torch.ones(3, device=ONE).to(TWO)
    fake.reset()
    assert fake.clock(ONE) == fake.clock(TWO) == 0
    assert (clocks.speed[0], clocks.link) == (1, clocks.Link())


def _sums(index: int) -> tuple[float, float, float, float]:
    spent = clocks.sums()[index]
    return spent.busy, spent.exposed, spent.input, spent.idle


def test_a_clock_says_what_its_time_went_to() -> None:
    """Known answers: work of 1 s and 3 s, copies of 2 s each way at once, 1 s from the host."""
    _at_zero(1000, 0)
    clocks.compute(0, 1.0)
    clocks.compute(1, 3.0)
    assert clocks.transfer(0, 1, 2000) == (3.0, 5.0)
    assert clocks.transfer(1, 0, 2000) == (3.0, 5.0)
    clocks.compute(0, 1.0)
    clocks.transfer(-1, 0, 1000)
    clocks.synchronize()
    assert fake.clock(ONE) == fake.clock(TWO) == 7.0
    assert _sums(0) == (2.0, 2.0, 1.0, 2.0)
    assert _sums(1) == (3.0, 2.0, 0.0, 2.0)


def test_a_copy_from_the_host_hides_behind_one_between_devices() -> None:
    _at_zero(1000, 0)
    clocks.transfer(0, 1, 3000)
    clocks.transfer(-1, 0, 1000)
    clocks.transfer(-1, 1, 4000)
    clocks.synchronize()
    assert _sums(0) == (0.0, 3.0, 0.0, 1.0)
    assert _sums(1) == (0.0, 3.0, 1.0, 0.0)


def test_a_copy_waits_for_the_host_that_reads() -> None:
    """What the host asks for after it has read starts when it has read, on every device and link."""
    _at_zero(1000, 0)
    assert clocks.transfer(0, -1, 2000) == (0.0, 2.0)
    assert clocks.transfer(-1, 1, 1000) == (2.0, 3.0)
    clocks.synchronize()
    assert _sums(1) == (0.0, 0.0, 1.0, 2.0)


class Beside:
    """A copy asked of streams beside the main ones of both devices."""

    def __init__(self, x: torch.Tensor, target: str) -> None:
        module = torch.get_device_module(x.device)
        self.module, here, there = module, module.Stream(x.device), module.Stream(target)
        here.wait_stream(module.current_stream(x.device))
        with module.stream(here), module.stream(there):
            self.copied = x.to(target, non_blocking=True)
        x.record_stream(here)
        self.target, self.event = target, there.record_event()

    def arrived(self) -> torch.Tensor:
        self.module.current_stream(self.target).wait_event(self.event)
        return self.copied


def _spent(device: str) -> clocks.Spent:
    torch.get_device_module(device).synchronize()
    return clocks.sums()[torch.device(device).index]


def _computes(device: str, seconds: float) -> None:
    clocks.compute(torch.device(device).index, seconds)


def test_a_copy_beside_the_main_stream_is_hidden_by_work():
    x = torch.ones(250, device=ONE)
    _at_zero()
    copy = Beside(x, TWO)  # 1000 bytes: from 0 to 1.5
    _computes(ONE, 1.0)
    _computes(TWO, 2.0)
    assert fake.clock(TWO) == 2.0
    copy.arrived()
    _computes(TWO, 1.0)
    assert fake.clock(TWO) == 3.0
    assert _spent(TWO) == clocks.Spent(busy=3.0)
    assert _spent(ONE) == clocks.Spent(busy=1.0, exposed=0.5, idle=1.5)


def test_what_work_does_not_hide_is_exposed():
    x = torch.ones(250, device=ONE)
    _at_zero()
    copy = Beside(x, TWO)
    _computes(TWO, 1.0)
    copy.arrived()
    _computes(TWO, 1.0)
    assert fake.clock(TWO) == 2.5
    assert _spent(TWO) == clocks.Spent(busy=2.0, exposed=0.5)


def test_copies_of_one_stream_come_one_after_the_other_and_wait_for_what_it_waits_for():
    x = torch.ones(250, device=ONE)
    _at_zero()
    _computes(ONE, 1.0)
    first, second = Beside(x, TWO), Beside(x, TWO)  # the link has one copy at a time: 1.0 to 2.5, 2.5 to 4.0
    assert [first.event.seconds, second.event.seconds] == [2.5, 4.0]
    first.arrived()
    _computes(TWO, 1.0)
    assert clocks.ready(1) == 3.5
    assert fake.clock(TWO) == 4.0  # all that was asked of the device


def test_nothing_starts_before_it_was_asked_for():
    """A stream that waits for nothing is still asked by a host, which has waited for all devices."""
    x = torch.ones(250)
    _at_zero()
    _computes(ONE, 5.0)
    module = torch.get_device_module(ONE)
    module.synchronize()
    with module.stream(module.Stream(ONE)):
        x.to(ONE, non_blocking=True)
    assert fake.clock(ONE) == 6.5


def test_waiting_for_one_device_closes_no_others_books():
    """Device 1 is ahead; a copy beside it that begins before then is still counted."""
    x = torch.ones(250)
    _at_zero()
    _computes(ONE, 1.0)
    _computes(TWO, 1.0)
    module = torch.get_device_module(ONE)
    clocks.wait(1, None, 9.0)  # it has nothing to do until then
    module.synchronize(ONE)
    with module.stream(module.Stream(TWO)):
        x.to(TWO, non_blocking=True)  # from 1.0 to 2.5
    assert _spent(TWO) == clocks.Spent(busy=1.0, input=1.5, idle=6.5)


def test_an_event_is_of_the_current_stream_alone():
    x = torch.ones(250, device=ONE)
    _at_zero()
    copy = Beside(x, TWO)
    event = torch.get_device_module(TWO).Event()
    event.record(TWO)
    assert (event.seconds, copy.event.seconds) == (0.0, 1.5)


def test_what_has_not_arrived_may_not_be_used():
    x = torch.ones(250, device=ONE)
    _at_zero()
    copy = Beside(x, TWO)
    _computes(TWO, 10.0)  # on a GPU it would be luck that it is there by now
    with pytest.raises(RuntimeError, match=r"mul on fake:1 uses a tensor that another stream is still copying"):
        copy.copied * 2
    copy.copied.view(-1)  # nothing is read
    torch.ones_like(copy.copied)
    copy.copied[9:9] * 2
    with pytest.raises(RuntimeError, match="still copying"):
        copy.copied[:3].sum()
    assert torch.equal((copy.arrived() * 2).cpu(), torch.full((250,), 2.0))
    other = Beside(x, TWO)
    torch.get_device_module(TWO).synchronize()
    other.copied * 2


TOO_EARLY = r"a tensor of 1000 bytes on {} was freed while a stream that is not its own was still using it"


def test_what_a_stream_still_copies_from_may_not_be_freed_unless_it_is_recorded():
    for recorded in (False, True):
        x, other = torch.ones(250, device=ONE), torch.ones(1, device=ONE)
        _at_zero()
        module = torch.get_device_module(ONE)
        here, there = module.Stream(ONE), module.Stream(TWO)
        with module.stream(here), module.stream(there):
            copied = x.to(TWO, non_blocking=True)
        if recorded:
            x.record_stream(here)
        del x
        if recorded:
            other * 2
            continue
        with pytest.raises(RuntimeError, match=TOO_EARLY.format(ONE)):
            other * 2
        other * 2  # it is said once
    del copied
    other * 2  # its own stream brought it


def test_what_a_stream_has_waited_for_may_be_freed():
    x, other = torch.ones(250, device=ONE), torch.ones(1, device=ONE)
    _at_zero()
    module = torch.get_device_module(ONE)
    here, there = module.Stream(ONE), module.Stream(TWO)
    with module.stream(here), module.stream(there):
        x.to(TWO, non_blocking=True)
    module.current_stream(ONE).wait_stream(here)
    del x
    other * 2


def test_what_arrived_in_another_stream_may_not_be_freed_while_the_main_one_works_on_it():
    for recorded in (False, True):
        x, other = torch.ones(250, device=ONE), torch.ones(1, device=TWO)
        _at_zero()
        copy = Beside(x, TWO)
        arrived = copy.arrived()
        if recorded:
            arrived.record_stream(copy.module.current_stream(TWO))
        arrived * 2
        del arrived, copy
        if recorded:
            other * 2
            continue
        with pytest.raises(RuntimeError, match=TOO_EARLY.format(TWO)):
            other * 2


def test_it_is_no_luck_whether_memory_is_freed_too_early():
    """By the clocks the other stream would be done."""
    x, y, other = (torch.ones(250, device=ONE) for _ in range(3))
    _at_zero()
    module = torch.get_device_module(ONE)
    here, there = module.Stream(ONE), module.Stream(TWO)
    with module.stream(here), module.stream(there):
        x.to(TWO, non_blocking=True)
    _computes(ONE, 10.0)
    del x
    with pytest.raises(RuntimeError, match=TOO_EARLY.format(ONE)):
        other * 2
    with module.stream(here):
        y * 2  # as long as it takes, the device computes nothing else
    del y
    with pytest.raises(RuntimeError, match=TOO_EARLY.format(ONE)):
        other.cpu()


def test_what_another_stream_has_waited_for_in_between_may_be_freed():
    """By an event, and by a third stream that has waited for the second."""
    module = torch.get_device_module(ONE)
    for third in (False, True):
        x, other = torch.ones(250, device=ONE), torch.ones(1, device=ONE)
        side, between = module.Stream(ONE), module.Stream(ONE)
        with module.stream(side):
            x * 2
        waited = between if third else side
        if third:
            between.wait_event(side.record_event())
        module.current_stream(ONE).wait_event(waited.record_event())
        del x
        other * 2
    x = torch.ones(250, device=ONE)
    with module.stream(side):
        x * 2
    side.synchronize()
    del x
    other * 2


def test_a_lane_that_brought_more_meanwhile_knows_nothing_of_the_main_stream():
    first, second, other = torch.ones(250, device=ONE), torch.ones(250, device=ONE), torch.ones(1, device=TWO)
    _at_zero()
    module = torch.get_device_module(ONE)
    here, there = module.Stream(ONE), module.Stream(TWO)
    with module.stream(here), module.stream(there):
        one = first.to(TWO, non_blocking=True)
    module.current_stream(TWO).wait_event(there.record_event())
    one * 2
    with module.stream(here), module.stream(there):
        two = second.to(TWO, non_blocking=True)
    del one
    with pytest.raises(RuntimeError, match=TOO_EARLY.format(TWO)):
        other * 2
    first.record_stream(here)
    second.record_stream(here)
    del two


def test_forward_in_another_stream_and_backward_in_the_main_one_is_no_race():
    """CUDA's autograd computes each gradient in the stream of its forward."""
    module, weight = torch.get_device_module(ONE), torch.ones(3, device=ONE, requires_grad=True)
    side = module.Stream(ONE)
    side.wait_stream(module.current_stream(ONE))
    with module.stream(side):
        loss = ((weight * 2).exp() * 3).sum()
    module.current_stream(ONE).wait_stream(side)
    loss.backward()
    del loss
    assert torch.allclose(weight.grad.cpu(), 6 * torch.tensor(2.0).exp().expand(3))


def test_what_the_host_has_waited_for_may_be_freed():
    x, other = torch.ones(250, device=ONE), torch.ones(1, device=TWO)
    _at_zero()
    copy = Beside(x, TWO)
    arrived = copy.arrived()
    arrived * 2
    copy.module.synchronize()
    del arrived, copy
    other * 2


def test_what_was_copied_before_a_reset_is_there():
    x = torch.ones(250, device=ONE)
    copied = Beside(x, TWO).copied
    _at_zero()
    other = Beside(x, TWO)
    copied * 2
    with pytest.raises(RuntimeError, match="still copying"):
        other.copied * 2


def test_a_stream_that_was_used_is_left_again_after_an_error():
    module = torch.get_device_module(ONE)
    side = module.Stream(ONE)
    with pytest.raises(ZeroDivisionError), module.stream(side):
        _ = 1 // (module.current_stream(ONE).queue is not side.queue)
    assert module.current_stream(ONE).queue is None
    assert module.default_stream(ONE).ready == fake.clock(ONE)
    with module.stream(None):
        pass


def test_work_in_a_side_stream_takes_the_device():
    x = torch.ones(4, device=ONE)
    _at_zero()
    module = torch.get_device_module(ONE)
    side = module.Stream(ONE)
    with module.stream(side):
        _computes(ONE, 1.0)
    _computes(ONE, 1.0)
    assert fake.clock(ONE) == 2.0
    event = module.Event()
    event.wait()  # never recorded: nothing to wait for
    side.record_event(event)
    event.wait(module.current_stream(TWO))
    side.synchronize()
    assert event.seconds == 1.0
    x + x

"""Hand over forward, sum and hand back backward; and a ledger of both."""

from itertools import product

import pytest
import torch
from layouts import small
from quick import quick

from splitnet.equality import attempt, compare, identical, images
from splitnet.network.architecture import Transfer
from splitnet.network.execution import Execution
from splitnet.parallel import fake
from splitnet.parallel.exchange import (
    Ledger,
    LocalExchange,
    SharedDeviceExchange,
    UndividedExchange,
    Wire,
    through_host,
)
from splitnet.parallel.placement import host, place

fake.install(2)
PAIRS = [("cpu", "cpu"), ("fake:0", "fake:1"), ("fake:0", "fake:0")]


def leaves(devices):
    return [
        (torch.arange(4.0).view(2, 2) + 10 * tower).to(device).requires_grad_() for tower, device in enumerate(devices)
    ]


@pytest.mark.parametrize(
    ("kind", "devices"),
    [
        *((LocalExchange, pair) for pair in PAIRS),
        *((SharedDeviceExchange, pair) for pair in PAIRS if len({*pair}) == 1),
    ],
)
def test_every_tower_gets_all_channels_and_each_gradient_is_the_sum_over_readers(kind, devices):
    devices = [torch.device(d) for d in devices]
    xs, exchange = leaves(devices), kind(devices)
    received = exchange.all_gather(xs, "conv3")
    whole = torch.tensor([[0.0, 1, 10, 11], [2, 3, 12, 13]])
    for tensor, device in zip(received, devices, strict=True):
        assert tensor.device == device
        assert torch.equal(tensor.cpu(), whole)
    weights = [torch.tensor([[1.0, 2, 3, 4]]), torch.tensor([[10.0, 20, 30, 40]])]
    losses = [(r * w.to(r.device)).sum() for r, w in zip(received, weights, strict=True)]
    (losses[0] + losses[1].to(devices[0])).backward()
    assert torch.equal(xs[0].grad.cpu(), torch.tensor([[11.0, 22]] * 2))
    assert torch.equal(xs[1].grad.cpu(), torch.tensor([[33.0, 44]] * 2))
    assert set(exchange.ledger.transfers()) == {
        Transfer("conv3", "forward", 1, 0, 16),
        Transfer("conv3", "forward", 0, 1, 16),
        Transfer("conv3", "backward", 0, 1, 16),
        Transfer("conv3", "backward", 1, 0, 16),
    }


def test_gather_brings_all_to_tower_0_and_scatters_gradients_home():
    devices = [torch.device("fake:0"), torch.device("fake:1")]
    xs, exchange = leaves(devices), LocalExchange(devices)
    gathered = exchange.gather(xs, "fc8")
    assert gathered.device == devices[0]
    (gathered * torch.tensor([1.0, 2, 3, 4]).to(devices[0])).sum().backward()
    assert torch.equal(xs[0].grad.cpu(), torch.tensor([[1.0, 2]] * 2))
    assert torch.equal(xs[1].grad.cpu(), torch.tensor([[3.0, 4]] * 2))
    assert xs[1].grad.device == devices[1]
    assert {(t.phase, t.source, t.target) for t in exchange.ledger.transfers()} == {
        ("forward", 1, 0),
        ("backward", 0, 1),
    }


@pytest.mark.parametrize("device", ["cpu", "fake:0"])
def test_towers_on_one_device_read_the_same_memory(device):
    devices = [torch.device(device)] * 4
    received = SharedDeviceExchange(devices).all_gather(leaves(devices), "conv3")
    assert len({tensor.untyped_storage().data_ptr() for tensor in received}) == 1
    same = SharedDeviceExchange(devices, wire=Wire(torch.float32)).all_gather(leaves(devices), "conv3")
    assert len({tensor.untyped_storage().data_ptr() for tensor in same}) == 1  # a cast that rounds nothing
    apart = SharedDeviceExchange(devices, wire=Wire(torch.bfloat16)).all_gather(leaves(devices), "conv3")
    assert len({tensor.untyped_storage().data_ptr() for tensor in apart}) == 4  # each has its own channels unrounded


@pytest.mark.parametrize("reads", [(0, 1, 2, 3), (0, 2), (3,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_sharing_sums_and_records_to_the_bit_as_copies_do(layout, dtype, reads):
    """Four towers: sums of floating-point numbers depend on their order. Some readers may have no gradient."""
    devices, generator = [torch.device("cpu")] * 4, torch.Generator().manual_seed(0)
    first = [torch.randn(8, 3, 5, 5, generator=generator).to(dtype, memory_format=layout) for _ in devices]
    weights = [torch.randn(8, 12, 5, 5, generator=generator) for _ in devices]
    found, ledgers = [], []
    for kind in (LocalExchange, SharedDeviceExchange):
        exchange = kind(devices)
        xs, ys = ([x.clone().requires_grad_() for x in first] for _ in range(2))
        received, gathered = exchange.all_gather(xs, "conv3"), exchange.gather(ys, "fc8")
        sum((received[r] * weights[r]).sum() for r in reads).backward()
        (gathered * weights[0]).sum().backward()
        found.append([gathered, *received, *(x.grad for x in xs if x.grad is not None), *(y.grad for y in ys)])
        ledgers.append(set(exchange.ledger.transfers()))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert ledgers[0] == ledgers[1]


SHARED = ["cpu,cpu", "cpu,cpu:0", "cpu,cpu,cpu,cpu", "fake:0,fake:0"]


@pytest.mark.parametrize(
    ("name", "devices"),
    quick(
        product(["fashion", "alexnet"], SHARED),
        *(("alexnet", "cpu,cpu,cpu,cpu"), ("fashion", "cpu,cpu:0"), ("alexnet", "fake:0,fake:0")),
    ),
)
def test_towers_that_share_a_device_share_what_they_read(name, devices):
    """Placed so by `host`; the same towers on devices of their own agree to the bit, gradients included."""
    devices = devices.split(",")
    table = small(name, towers=len(devices))
    net = host(table, place(table, devices), 0)
    assert type(net.exchange) is SharedDeviceExchange
    other = host(table, place(table, [f"fake:{tower % 2}" for tower in range(len(devices))]), 0)
    assert type(other.exchange) is LocalExchange
    together, spread = (attempt(n, *images(table, 4, 0, torch.float32)) for n in (net, other))
    assert identical(together, spread) == []


@pytest.mark.parametrize("how", [{"link": "host"}, {"execution": Execution(overlap=True)}], ids=["host", "overlap"])
def test_towers_that_share_a_device_do_so_over_any_link_and_with_overlap(how):
    table = small("alexnet")
    nets = [host(table, place(table, ["cpu", "cpu"]), 0, **more) for more in ({}, how)]
    assert type(nets[1].exchange) is SharedDeviceExchange
    trials = [attempt(net, *images(table, 4, 0, torch.float64)) for net in (net.double() for net in nets)]
    assert all(difference < 1e-12 for row in compare(table, *trials) for difference in row.differences.values())


def test_what_readers_share_is_as_it_was_after_a_step(monkeypatch):
    """Every row begins with a product, so nobody writes to what was gathered."""
    table, seen = small("alexnet"), []
    gather = SharedDeviceExchange.gather_on

    def noted(self, *args):
        received = gather(self, *args)
        seen.extend((x, x.detach().clone()) for x in received)
        return received

    monkeypatch.setattr(SharedDeviceExchange, "gather_on", noted)
    attempt(host(table, place(table, ["cpu", "cpu"]), 0), *images(table, 4, 0, torch.float32))
    assert len(seen) > 4
    assert all(torch.equal(now, before) for now, before in seen)


def exposed():
    """Seconds that each device has waited for copies so far."""
    torch.fake.synchronize()
    return [torch.fake.exposed(index) for index in range(2)]


def gathered(exchange, xs):
    """All channels for each reader, by what does not wait for them."""
    found = []
    for arriving in exchange.begin_all_gather(xs, "conv3"):
        parts = {arriving.tower: arriving.own} | dict(arriving.rest())
        found.append(torch.cat([parts[tower] for tower in sorted(parts)], dim=1))
    return found


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("towers", [2, 4])
def test_copies_of_a_row_are_asked_for_together(towers, overlap):
    """Both directions of a link run at once, forward and backward: nobody's copy waits for what another worked on."""
    devices = [torch.device(f"fake:{tower % 2}") for tower in range(towers)]
    xs, exchange = leaves(devices), LocalExchange(devices)
    fake.set_link(1e30, 1.0)
    each_way = towers**2 // 4  # a link takes one after another
    try:
        begun = exposed()
        received = gathered(exchange, xs) if overlap else exchange.all_gather(xs, "conv3")
        there = exposed()
        assert [b - a for a, b in zip(begun, there, strict=True)] == pytest.approx([each_way] * 2, rel=0.01)
        torch.autograd.backward(received, [torch.ones_like(x) for x in received])
        back = [b - a for a, b in zip(there, exposed(), strict=True)]
        assert back == pytest.approx([each_way] * 2, rel=0.01)
    finally:
        fake.reset()
    assert all(torch.equal(x.grad.cpu(), torch.full((2, 2), float(towers))) for x in xs)


def test_images_travel_once_to_each_device():
    fake.clear_copies()
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    names = ["fake:0", "fake:1", "fake:0", "fake:1"]
    copies = LocalExchange([torch.device(n) for n in names]).replicate(images)
    assert [str(copy.device) for copy in copies] == names
    assert sum(fake.copies().values()) == 2
    assert {copy.bytes for copy in fake.copies()} == {96}


def test_each_tower_copies_are_fake_copies_of_this_file():
    fake.clear_copies()
    devices = [torch.device("fake:0"), torch.device("fake:1")]
    xs = leaves(devices)
    fake.clear_copies()
    LocalExchange(devices).gather(xs, "fc8").sum().backward()
    assert {(c.source, c.target, c.phase, c.bytes) for c in fake.copies()} == {
        ("fake:1", "fake:0", "forward", 16),
        ("fake:0", "fake:1", "backward", 16),
    }
    assert all(copy.file.endswith("parallel/exchange.py") for copy in fake.copies())


def test_one_piece_hands_itself_on():
    x = torch.ones(1)
    exchange = UndividedExchange([torch.device("cpu")])
    assert exchange.all_gather([x], "conv3")[0] is x
    assert exchange.gather([x], "fc8") is x
    assert exchange.ledger.count == 0


def test_a_ledger_sums_by_row_and_phase():
    ledger = Ledger()
    for _ in range(3):
        ledger.record(Transfer("conv3", "forward", 0, 1, 5))
    ledger.record(Transfer("fc6", "backward", 1, 0, 7))
    assert ledger.bytes() == 22
    assert (ledger.bytes("conv3"), ledger.bytes(phase="backward"), ledger.bytes("fc7")) == (15, 7, 0)
    assert ledger.count == 4
    assert ledger.transfers()[0] == Transfer("conv3", "forward", 0, 1, 15)
    ledger.clear()
    assert (ledger.bytes(), ledger.count) == (0, 0)


def test_tests_send_nothing_back():
    devices = [torch.device("fake:0"), torch.device("fake:1")]
    exchange = LocalExchange(devices)
    with torch.no_grad():
        exchange.all_gather(leaves(devices), "fc6")
    assert exchange.ledger.bytes(phase="backward") == 0
    assert exchange.ledger.bytes(phase="forward") == 32


# By way of the host


def crossed(devices, link, kind="all_gather"):
    """What towers receive, the gradients that come home, and the ledger."""
    devices = [torch.device(d) for d in devices]
    exchange, xs = LocalExchange(devices, link=link), leaves(devices)
    received = exchange.all_gather(xs, "conv3") if kind == "all_gather" else [exchange.gather(xs, "fc8")]
    weights = [torch.tensor([[1.0, 2, 3, 4]]) * 10**reader for reader in range(len(received))]
    torch.autograd.backward(received, [w.expand(2, 4).to(x.device) for w, x in zip(weights, received, strict=True)])
    return received, [x.grad for x in xs], set(exchange.ledger.transfers())


@pytest.mark.parametrize("kind", ["all_gather", "gather"])
@pytest.mark.parametrize("devices", PAIRS, ids="-".join)
def test_through_the_host_the_same_arrives_and_the_ledger_is_the_same(devices, kind):
    straight, around = (crossed(devices, link, kind) for link in ("device", "host"))
    assert straight[2] == around[2]
    for found, wanted in zip(around[0] + around[1], straight[0] + straight[1], strict=True):
        assert found.device == wanted.device
        assert torch.equal(found.cpu(), wanted.cpu())


def test_through_the_host_nothing_goes_straight():
    fake.clear_copies()
    devices = [torch.device("fake:0"), torch.device("fake:1")]
    xs = leaves(devices)
    fake.clear_copies()
    LocalExchange(devices, link="host").gather(xs, "fc8").sum().backward()
    assert {(c.source, c.target, c.phase, c.bytes): n for c, n in fake.copies().items()} == {
        ("fake:1", "cpu", "forward", 16): 1,
        ("cpu", "fake:0", "forward", 16): 1,
        ("fake:0", "cpu", "backward", 16): 1,
        ("cpu", "fake:1", "backward", 16): 1,
    }


def test_through_the_host_the_memory_format_stays():
    x = torch.arange(48.0).view(1, 3, 4, 4).to("fake:0", memory_format=torch.channels_last)
    assert through_host(x, torch.device("fake:1")).stride() == x.stride()
    assert through_host(x, x.device) is x


@pytest.mark.parametrize("preset", quick(["fashion", "alexnet"], "fashion"))
def test_networks_train_alike_over_either_link(preset):
    one, other = (trial(preset, link) for link in ("device", "host"))
    assert identical(other, one) == []


@pytest.fixture(scope="module")
def sound():
    return trial("fashion", "device")


FORTH, BACK = ("fake:0", "fake:1"), ("fake:1", "fake:0")


@pytest.mark.parametrize(
    ("kind", "way"),
    quick(product(["flip", "zeros", "stale"], [FORTH, BACK]), ("flip", FORTH), ("stale", BACK)),
)
def test_a_bad_link_spoils_training_that_takes_it_and_no_other(sound, kind, way):
    with fake.fault(kind, source=way[0], target=way[1]):
        assert identical(trial("fashion", "host"), sound) == []
        assert identical(trial("fashion", "device"), sound) != []


def trial(preset, link):
    """Three steps of training, and all that was computed."""
    table = small(preset)
    placement = place(table, ["fake:0", "fake:1"])
    net = host(table, placement, seed=0)
    net.exchange = LocalExchange(placement.devices, link=link)
    return attempt(net, *images(table, 4, 0, torch.float32))

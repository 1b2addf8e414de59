"""Crossings under way: the same sums, begun before they are waited for, and hidden by what is computed meanwhile."""

import pytest
import torch
import torch.nn.functional as F
from layouts import batch, relative, run, small
from quick import quick

from splitnet.network.architecture import Transfer
from splitnet.network.layers import Arriving
from splitnet.network.weights import join
from splitnet.parallel import fake
from splitnet.parallel.exchange import LocalExchange, UndividedExchange, Wire
from splitnet.parallel.fake import clocks, log
from splitnet.parallel.overlap import Lanes, fork
from splitnet.parallel.placement import build

fake.install(4)
PAIRS = [("cpu", "cpu"), ("fake:0", "fake:1"), ("fake:0", "fake:0")]


@pytest.fixture(autouse=True)
def _fresh():
    yield
    fake.reset()


def trained_once(table, devices, dtype=torch.float64, **how):
    net = build(table, devices=devices, **how).to(dtype)
    images, labels = batch(table)
    logits = net(images.to(dtype))
    F.cross_entropy(logits, labels.to(logits.device)).backward()
    shares = [{name: p.grad for name, p in tower.named_parameters()} for tower in net.hosted]
    return logits.detach().cpu(), join(table, shares), net


@pytest.mark.parametrize("devices", PAIRS, ids="-".join)
@pytest.mark.parametrize("name", quick(["fashion", "alexnet", "alexnet-isolated"], "fashion", "alexnet"))
def test_overlap_computes_the_same_function_and_gradients(name, devices):
    table = small(name)
    expected, gradients, _ = run(table, ["cpu"])
    logits, found, net = trained_once(table, devices, overlap=True)
    assert relative(logits, expected) < 1e-12
    assert all(relative(found[key], gradients[key]) < 1e-12 for key in gradients)
    waiting = run(table, devices)[2]
    assert sorted(net.ledger.transfers(), key=str) == sorted(waiting.ledger.transfers(), key=str)


def test_four_towers_overlap_too():
    table = small("alexnet", 4)
    expected, gradients, _ = run(table, ["cpu"])
    logits, found, net = trained_once(table, [f"fake:{i}" for i in range(4)], overlap=True)
    assert relative(logits, expected) < 1e-12
    assert all(relative(found[key], gradients[key]) < 1e-12 for key in gradients)
    assert set(net.ledger.transfers()) == set(table.transfers(6, itemsize=8))


def test_overlap_by_way_of_the_host_hands_over_the_same():
    exchange = LocalExchange([torch.device("fake:0"), torch.device("fake:1")], link="host")
    xs = [torch.ones(2, 3, device=d, requires_grad=True) for d in exchange.devices]
    for reader, arriving in enumerate(exchange.begin_all_gather(xs, "fc6")):
        [(owner, x)] = arriving.rest()
        assert (owner, x.device, arriving.tower) == (1 - reader, exchange.devices[reader], reader)
        (x * (reader + 2)).sum().backward()
    assert [x.grad.cpu().unique().tolist() for x in xs] == [[3.0], [2.0]]
    assert all("cpu" in (copy.source, copy.target) for copy in fake.copies())


def test_what_nobody_reads_gives_no_gradient():
    exchange = LocalExchange([torch.device("cpu")] * 2)
    xs = [torch.ones(2, 3, requires_grad=True) for _ in range(2)]
    first, second = exchange.begin_all_gather(xs, "fc6")
    first.own.sum().backward()
    assert xs[0].grad.tolist() == [[1.0] * 3] * 2
    assert xs[1].grad is None
    [(_, x)] = second.rest()
    x.sum().backward()
    assert xs[0].grad.tolist() == [[2.0] * 3] * 2
    assert [(t.phase, t.source, t.target) for t in exchange.ledger.transfers()] == [
        ("forward", 0, 1),
        ("forward", 1, 0),
        ("backward", 1, 0),
    ]


def test_one_piece_has_nothing_under_way():
    exchange = UndividedExchange([torch.device("cpu")])
    x = torch.ones(2, 3)
    assert exchange.begin_all_gather([x], "conv3") == [x]
    assert exchange.begin_gather([x], "fc8") is x


def test_the_host_takes_no_stream():
    x = torch.ones(2, device="fake:0")
    copy = Lanes().begin(x, torch.device("cpu"))
    assert copy.event is None
    assert copy.arrived().tolist() == [1.0, 1.0]


def measured(overlap, bytes_per_second=1e9):
    """A step's network, log and exposed seconds on each device."""
    table = small("alexnet")
    net = build(table, devices=["fake:0", "fake:1"], overlap=overlap)
    images, labels = batch(table)
    fake.reset()
    fake.set_link(bytes_per_second, 0.0)
    log.start()
    loss = F.cross_entropy(net(images.float()), labels.to("fake:0"))
    loss.backward()
    torch.get_device_module("fake:0").synchronize()
    return net, log.stop(), [spent.exposed for spent in clocks.sums()[:2]]


@pytest.fixture
def _steady(monkeypatch):
    """Every operation takes a millisecond."""
    monkeypatch.setattr(
        "splitnet.parallel.fake.execute.clocks.compute", lambda index, _, real=clocks.compute: real(index, 1e-3)
    )


@pytest.mark.usefixtures("_steady")
def test_copies_begin_before_they_are_waited_for_and_work_hides_them():
    _, _, waiting = measured(overlap=False, bytes_per_second=4e7)
    _, entries, hidden = measured(overlap=True, bytes_per_second=4e7)
    assert min(waiting) > 1e-3
    assert all(after < before / 2 for after, before in zip(hidden, waiting, strict=True))
    copies = [e for e in entries if e["kind"] == "copy" and -1 not in (e["source"], e["target"])]
    kernels = [e for e in entries if e["kind"] == "kernel"]
    assert len(copies) == 14
    beside = [
        any(k["device"] == c["target"] and k["start"] < c["end"] and k["end"] > c["start"] for k in kernels)
        for c in copies
    ]
    assert sum(beside) >= 12  # fc8's way back ends at fc7's tower 1, which has nothing else to do


@pytest.mark.usefixtures("_steady")
def test_on_an_infinitely_fast_link_nothing_is_exposed():
    assert measured(overlap=True, bytes_per_second=1e30)[2] == pytest.approx([0.0, 0.0], abs=1e-12)


def test_a_wait_left_out_is_refused_by_fake_devices(monkeypatch):
    """As on a GPU it would be read half arrived: this is what the streams of fake devices are for."""
    monkeypatch.setattr("splitnet.parallel.overlap.Copy.arrived", lambda self: self.tensor)
    with pytest.raises(RuntimeError, match="another stream is still copying"):
        measured(overlap=True, bytes_per_second=1.0)


def test_a_network_can_be_used_twice_and_without_gradients():
    table = small("alexnet")
    net = build(table, devices=["fake:0", "fake:1"], overlap=True).eval()
    images, _ = batch(table)
    with torch.no_grad():
        first = net(images.float())
    assert not first.requires_grad
    second = net(images.float())
    assert torch.equal(first.cpu(), second.detach().cpu())
    second.sum().backward()
    before = net.hosted[0]["conv1"].weight.grad.clone()
    net(images.float()).sum().backward()
    assert torch.equal(net.hosted[0]["conv1"].weight.grad.cpu(), 2 * before.cpu())


def test_fork_hands_out_one_activation_for_each_reader():
    x = torch.ones(3, requires_grad=True)
    [own] = fork(x, [])
    own.sum().backward()
    assert x.grad.tolist() == [1.0] * 3


# The wire


@pytest.mark.parametrize("devices", PAIRS, ids="-".join)
@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(("wire", "dtype"), [("float16", torch.float16), ("bf16", torch.bfloat16)])
def test_only_what_crosses_is_rounded_and_bytes_halve(devices, overlap, wire, dtype):
    devices = [torch.device(d) for d in devices]
    exchange = LocalExchange(devices, wire=Wire(dtype))
    value, gradient = 1 + 2**-20, 1.0003e-3  # neither is a number of 16 bits
    xs = [torch.full((2, 3), value, device=d).requires_grad_() for d in devices]
    for reader in range(2):
        if overlap:
            arriving = exchange.begin_all_gather(xs, "conv3")[reader]
            assert isinstance(arriving, Arriving)
            [(_, x)] = arriving.rest()
            parts = [arriving.own, x]
        else:
            parts = exchange.all_gather(xs, "conv3")[reader].split(3, dim=1)
            parts = parts if reader == 0 else parts[::-1]
        assert [part.dtype for part in parts] == [torch.float32] * 2
        assert parts[0].unique().item() == pytest.approx(value, abs=1e-7)
        assert parts[1].unique().item() == 1.0
    parts[1].backward(torch.full_like(parts[1], gradient))
    arrived = xs[0].grad.unique().item()
    assert arrived != gradient
    assert arrived == pytest.approx(gradient, rel=2**-8)
    backward = [t for t in exchange.ledger.transfers() if t.phase == "backward"]
    assert backward == [Transfer("conv3", "backward", 1, 0, 12)]
    assert {t.bytes % 12 for t in exchange.ledger.transfers()} == {0}


def test_float16_keeps_gradients_of_a_mean_over_the_batch():
    wire, images = Wire(torch.float16), 100
    gradient = torch.full((images, 2), 2e-8)
    there = wire.leaving(gradient, "backward")
    assert there.dtype == torch.float16
    assert wire.arrived(there, torch.float32, "backward").unique().item() == pytest.approx(2e-8, rel=0.02)
    assert gradient.to(torch.float16).unique().item() == 0
    assert wire.leaving(torch.ones(images, 2), "forward").unique().item() == 1
    assert Wire(torch.bfloat16).leaving(torch.ones(images, 2), "backward").unique().item() == 1
    empty = torch.empty(0, 2)
    assert wire.arrived(wire.leaving(empty, "backward"), torch.float32, "backward").shape == (0, 2)


def test_whole_numbers_are_not_rounded_on_the_wire():
    exchange = LocalExchange([torch.device("cpu")] * 2, wire=Wire(torch.float16))
    with pytest.raises(TypeError, match=r"only floating-point tensors cross as torch.float16, not torch.int64"):
        exchange.all_gather([torch.ones(2, 3, dtype=torch.int64)] * 2, "conv3")
    assert Wire().leaving(torch.ones(2, dtype=torch.int64), "forward").dtype == torch.int64


@pytest.mark.parametrize("how", [{"wire": "float16"}, {"wire": "bf16"}, {"wire": "float32"}, {"precision": "bf16"}])
def test_the_ledger_is_the_tables_with_the_wires_itemsize(how):
    table = small("alexnet")
    _, _, net = trained_once(table, ["fake:0", "fake:1"], torch.float32, **how)
    assert net.execution.itemsize == (4 if how == {"wire": "float32"} else 2)
    assert set(net.ledger.transfers()) == set(table.transfers(6, net.execution.itemsize))
    between = [copy for copy in fake.copies().elements() if "cpu" not in (copy.source, copy.target)]
    assert sum(copy.bytes for copy in between) == net.ledger.bytes()

"""Towers and the whole network are one function: outputs, gradients, dropped units."""

from fractions import Fraction
from itertools import product

import pytest
import torch
from layouts import SPLIT, batch, relative, run, small
from quick import few, quick

from splitnet.errors import UsageError
from splitnet.network.architecture import Architecture, Layer
from splitnet.network.presets import preset
from splitnet.parallel.placement import build

DEVICES = [["cpu", "cpu"], ["fake:0", "fake:1"]]


@pytest.mark.parametrize("devices", DEVICES, ids="-".join)
@pytest.mark.parametrize(
    ("name", "crosses"),
    quick(
        product(SPLIT, [None, "all"]),
        ("alexnet", "all"),
        *((name, None) for name in ("alexnet", "alexnet-paper", "fashion")),
    ),
)
def test_towers_equal_the_whole_network(name, crosses, devices):
    table = small(name, 2, crosses)
    logits, gradients, _ = run(table, devices)
    whole_logits, whole_gradients, _ = run(table, devices[:1])
    assert relative(logits, whole_logits) < 1e-12
    for parameter in whole_gradients:
        assert relative(gradients[parameter], whole_gradients[parameter]) < 1e-12, parameter


@pytest.mark.parametrize("name", quick(SPLIT, "alexnet", "fashion"))
def test_fake_devices_equal_the_plain_cpu_bit_for_bit(name):
    table = small(name)
    layouts = [["cpu", "cpu"], ["fake:0", "fake:1"], ["fake:0", "fake:0"]]
    (logits, gradients, _), *others = [run(table, devices, torch.float32) for devices in layouts]
    for other_logits, other_gradients, _ in others:
        assert torch.equal(other_logits, logits)
        assert all(torch.equal(other_gradients[p], gradients[p]) for p in gradients)


def test_a_table_may_have_a_single_row():
    table = Architecture("logistic", (Layer("fc", 10, after=(), home=True),), channels=1, size=4)
    assert build(table, devices=["cpu"])(torch.rand(2, 1, 4, 4)).shape == (2, 10)


def test_images_that_towers_share_are_padded_once():
    net = build(small("alexnet"), devices=["cpu", "cpu"])
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        net(torch.rand(2, 3, 96, 96))
    assert [event.name for event in profile.events()].count("aten::constant_pad_nd") == 1


@pytest.mark.parametrize("other", ["fake:0", "fake:1"])
def test_without_gradients_nothing_is_kept_of_rows_that_are_done(other):
    """Of a test's memory: in front of a row there is what it reads, and nothing that others read or prepared."""
    net = build(small("alexnet"), devices=["fake:0", other]).eval()
    images = batch(net.architecture)[0].float().to("fake:0")
    start, more, read = torch.fake.memory_allocated("fake:0"), [], []

    def before(_block, inputs):
        more.append(torch.fake.memory_allocated("fake:0") - start)
        read.append(inputs[0].nbytes)

    rows = [row.name for row in net.rows[1:]]
    for name in rows:
        net.hosted[0][name].register_forward_pre_hook(before)
    with torch.no_grad():
        net(images)
    if other == "fake:0":  # the other tower reads as much, or the same: what was gathered
        read = [n if row.crosses else 2 * n for n, row in zip(read, net.rows[1:], strict=True)]
    assert dict(zip(rows, more, strict=True)) == dict(zip(rows, read, strict=True))


def test_towers_without_crossings_equal_the_whole_network():
    table = small("alexnet", 2, "none")
    logits, gradients, _ = run(table, ["cpu", "cpu"])
    whole_logits, whole_gradients, _ = run(table, ["cpu"])
    assert relative(logits, whole_logits) < 1e-12
    assert max(relative(gradients[p], whole_gradients[p]) for p in gradients) < 1e-12


def test_four_towers_equal_the_whole_network():
    table = small("alexnet", 4)
    logits, gradients, net = run(table, ["fake:0", "fake:1", "fake:0", "fake:1"])
    whole_logits, whole_gradients, _ = run(table, ["fake:0"])
    assert relative(logits, whole_logits) < 1e-12
    assert max(relative(gradients[p], whole_gradients[p]) for p in gradients) < 1e-12
    assert set(net.ledger.transfers()) == set(table.transfers(6, itemsize=8))


def test_all_crossings_are_the_dense_network():
    table = small("fashion", 2, "all")
    logits, _, _ = run(table, ["cpu", "cpu"])
    dense = build(small("fashion", 1), devices=["cpu"]).double().eval()
    split = build(table, devices=["cpu", "cpu"]).double().eval()
    images, _ = batch(table)
    assert relative(split(images), dense(images)) < 1e-12
    assert logits.shape == (6, 10)


def test_the_ledger_of_a_step_is_the_tables():
    table = small("alexnet")
    _, _, net = run(table, ["cpu", "cpu"], torch.float32)
    assert set(net.ledger.transfers()) == set(table.transfers(6))
    assert net.ledger.bytes() == table.bytes_exchanged(6)
    assert net.ledger.bytes("conv3", "forward") == 4 * 6 * 32 * 5 * 5  # two towers of 16 channels of 5x5
    net.ledger.clear()
    assert net.ledger.bytes() == 0


def test_one_piece_exchanges_nothing():
    _, _, net = run(small("alexnet"), ["cpu"])
    assert net.ledger.bytes() == 0


def test_dropped_units_are_another_half_each_step_and_none_in_tests():
    net = build(small("alexnet-no-norm"), devices=["cpu", "cpu"]).double()
    images, _ = batch(net.architecture)
    again = net(images)
    assert torch.equal(net(images), again)  # the same moment drops the same units
    net.moment = net.moment.__class__(seed=net.moment.seed, step=1)
    assert not torch.equal(net(images), again)
    net.eval()
    first = net(images)
    net.moment = net.moment.__class__(seed=5, step=9)
    assert torch.equal(net(images), first)


def test_whole_state_goes_between_layouts():
    table = small("alexnet")
    two, one = build(table, devices=["fake:0", "fake:1"], seed=3), build(table, devices=["cpu"], seed=4)
    one.load_whole_state_dict(two.whole_state_dict())
    state = one.whole_state_dict()
    assert list(state)[:2] == ["conv1.weight", "conv1.bias"]
    assert list(state)[-1] == "fc8.bias"
    assert all(torch.equal(tensor, two.whole_state_dict()[name]) for name, tensor in state.items())
    assert state["conv2.weight"].shape == (32, 6, 5, 5)
    assert all(tensor.device.type == "cpu" for tensor in state.values())


def test_full_shapes_are_pytorchs():
    state = build("alexnet", towers=2, devices=["cpu"], classes=1000, channels=3).whole_state_dict()
    assert state["conv2.weight"].shape == (256, 48, 5, 5)
    assert state["conv3.weight"].shape == (384, 256, 3, 3)
    assert state["fc6.weight"].shape == (4096, 9216)


def test_towers_start_as_chunks_of_one_network():
    table = small("fashion")
    whole = build(table, devices=["cpu"], seed=7).whole_state_dict()
    net = build(table, devices=["cpu", "cpu"], seed=7)
    for index, tower in enumerate(net.hosted):
        conv4 = dict(tower.named_parameters())["conv4.weight"]
        assert torch.equal(conv4, whole["conv4.weight"].chunk(2)[index])
    assert "fc8" in net.hosted[0]
    assert "fc8" not in net.hosted[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("conv3.bias"), "conv3.bias is missing"),
        (
            lambda s: s.update({"conv2.weight": torch.zeros(32, 12, 5, 5)}),
            r"conv2.weight is \(32, 12, 5, 5\), not \(32, 6, 5, 5\)",
        ),
        (lambda s: s.update({"conv9.weight": torch.zeros(1)}), "conv9.weight has no place"),
    ],
)
def test_weights_of_another_network_are_refused_by_name_and_shape(change, message):
    net = build(small("alexnet"), devices=["cpu", "cpu"])
    state = net.whole_state_dict()
    change(state)
    with pytest.raises(UsageError, match=message):
        net.load_whole_state_dict(state)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "width"), few(product(["alexnet", "fashion"], [1, 4]), ("alexnet", 4), ("fashion", 4))
)
def test_whole_images_in_float64(name, width):
    """At its full width, and with a channel of four."""
    table = preset(name, 2).scaled(Fraction(1, width))
    logits, gradients, _ = run(table, ["fake:0", "fake:1"], count=2)
    whole_logits, whole_gradients, _ = run(table, ["cpu"], count=2)
    assert relative(logits, whole_logits) < 1e-12
    assert max(relative(gradients[p], whole_gradients[p]) for p in gradients) < 1e-12

"""Cost on paper, against figures worked by hand, its limits, and what the project measures."""

import gc
from dataclasses import replace
from itertools import product
from math import inf

import pytest
import torch
from quick import quick

from splitnet import costs, peaks
from splitnet.comparison import Contender, Training, crossings
from splitnet.costs import Step, Work, crossover, largest_batch, largest_batches, predict, predicted, products
from splitnet.errors import UsageError
from splitnet.machines import MACHINES, Machine
from splitnet.network.architecture import Architecture, Layer
from splitnet.network.execution import Execution
from splitnet.network.presets import PRESETS, preset
from splitnet.parallel.placement import place
from splitnet.parallel.replicas import BUCKET, Replicas
from splitnet.peaks import Footprint, footprint, parts
from splitnet.testing import fake_devices  # noqa: F401
from splitnet.training.data import Batch

ALEXNET = preset("alexnet", 2)
GTX = MACHINES["gtx580-pcie2"]

# A network whose costs fit on a page: 4 images of 1x4x4, a 3x3 convolution without padding, two rows of units.
TINY = Architecture(
    "tiny",
    (Layer("conv1", 4, 3), Layer("fc2", 8, crosses=True), Layer("fc3", 2, after=(), crosses=True, home=True)),
    channels=1,
    size=4,
    towers=2,
)


def machine(**figures):
    """1 FLOP/s and 1 byte/s of everything, unless said."""
    plain = {"float32": 1.0, "memory_bandwidth": 1.0, "memory": 1e9, "link": 1.0, "latency": 0.0, "launch": 0.0}
    ideal = {"float32_share": 1.0, "memory_share": 1.0, "link_share": 1.0, "tensor_share": 1.0}
    return Machine(name="unit", **plain | ideal | figures)


def test_bytes_are_the_papers():
    assert ALEXNET.bytes_exchanged(1, "forward") == 234_496
    step = predict("towers", ALEXNET, Step(128), GTX, 2)
    assert step.exchanged == {"conv3": 44_302_336, "fc6": 9_437_184, "fc7": 4_194_304, "fc8": 2_097_152}
    assert step.bytes == 2 * 128 * 234_496
    assert predict("towers", ALEXNET, Step(128, wire="float16"), GTX, 2).bytes == 128 * 234_496
    assert predict("whole", ALEXNET, Step(128), GTX, 1).exchanged == {}
    assert predict("replicas", ALEXNET, Step(128), GTX, 2).exchanged == {"gradients": 2 * 60_965_224 * 4}


def test_bytes_are_what_a_comparison_derives():
    assert predict("towers", ALEXNET, Step(16), GTX, 2).exchanged == crossings(ALEXNET, 16)
    assert peaks.BUCKET == BUCKET


def test_flops_are_the_papers():
    whole = parts(ALEXNET, 1)
    assert sum(part.multiply_adds for part in whole) == ALEXNET.multiply_adds == 724_406_816
    towers = [sum(part.multiply_adds for part in parts(ALEXNET, 1, tower)) for tower in (0, 1)]
    assert towers == [364_251_408, 360_155_408]
    forward, to_weights, to_input = products(whole[0], 4)
    assert forward.flops == to_weights.flops == to_input.flops == 2 * 105_415_200


def test_every_device_keeps_what_its_parameters_take():
    for tower, parameters in ((None, 60_965_224), (0, 32_531_112), (1, 28_434_112)):
        sgd, adam = (footprint(ALEXNET, 2, name, tower=tower) for name in ("sgd", "adam"))
        assert (sgd.parameters, sgd.gradients, sgd.optimizer) == (4 * parameters,) * 3
        assert adam.optimizer == 8 * parameters
        assert adam.peak - sgd.peak == 4 * parameters


def test_a_step_by_hand():
    """Arithmetic alone: forward 2 MACs, backward twice that but for the first row's input."""
    step = predict("whole", TINY, Step(4), machine(memory_bandwidth=inf, link=inf), 1)
    conv1, fc2, fc3 = 4 * 9 * 4, 16 * 8, 8 * 2  # 4 kernels of 3x3 on 2x2 places; the flattened 16 to 8; 8 to 2
    assert step.seconds == 4 * 2 * (2 * conv1 + 3 * fc2 + 3 * fc3)
    tower = predict("towers", TINY, Step(4), machine(memory_bandwidth=inf, link=inf), 2)
    assert tower.seconds == 4 * 2 * (2 * conv1 / 2 + 3 * fc2 / 2 + 3 * fc3)


def test_memory_traffic_by_hand():
    free = machine(float32=inf, memory_bandwidth=1.0, link=inf)
    images = 4 * 16 * costs.PIXEL_PASSES
    conv1 = 4 * (4 * 16 + 36 + 4 * 16)  # in, weights, out: forward, and backward for the weights
    fc2, fc3 = (4 * (4 * i + i * o + 4 * o) for i, o in ((16, 8), (8, 2)))
    relus = 4 * (2 + 3) * (4 * 16 + 4 * 8)
    update = 5 * 4 * ((36 + 4) + (128 + 8) + (16 + 2))
    step = predict("whole", TINY, Step(4), free, 1)
    assert step.seconds == images + 2 * conv1 + 3 * fc2 + 3 * fc3 + relus + update


def test_an_operation_takes_the_longer_of_its_two_sides_and_its_launch():
    both = machine(float32=2.0, memory_bandwidth=5.0, launch=0.5)
    assert Work("x", 8, 10).seconds(both) == 8 / 2 + 0.5
    assert Work("x", 2, 10).seconds(both) == 10 / 5 + 0.5
    assert Work("x", 0, 10).seconds(both) == 10 / 5 + 0.5
    measured = replace(both, measured={"x": 4.0, "x, weights": 3.0, "y": 10.0})
    assert Work("x", 8, 10, weights=6).seconds(measured) == 8 / 4 + 6 / 3 + 0.5
    assert Work("y", 0, 10).seconds(measured) == 10 / 10 + 0.5


def test_exposed_communication_by_hand():
    """fc2's maps, 2 channels of 2x2 each way, forward and backward; fc3's 4 units, one way."""
    instant = machine(float32=inf, memory_bandwidth=inf, latency=100.0)
    step = predict("towers", TINY, Step(4), instant, 2)
    assert step.exposed == 2 * (100 + 4 * 4 * 8) + 2 * (100 + 4 * 4 * 4)
    assert (
        predict("towers", TINY, Step(4), replace(instant, both_ways=False), 2).exposed == step.exposed + 2 * 4 * 4 * 8
    )


def test_overlap_hides_a_transfer_behind_the_products_of_ones_own_channels():
    slow = machine(float32=8.0, memory_bandwidth=inf, link=1.0)
    plain, overlapped = (predict("towers", TINY, Step(4), slow, 2, overlap) for overlap in (False, True))
    own = [
        4 * 2 / 8 * work for work in (128 / 2 / 2, 128 / 2, 16 / 2, 16)
    ]  # half of fc2's and fc3's, forward, backward
    sent = [4 * 4 * 8, 4 * 4 * 8, 4 * 4 * 4, 4 * 4 * 4]
    assert overlapped.exposed == sum(s - o for s, o in zip(sent, own, strict=True)) > 0
    assert plain.exposed == sum(sent)
    assert plain.busy == overlapped.busy


def test_replicas_ring_by_hand():
    three = predict("replicas", TINY, Step(6), machine(float32=inf, memory_bandwidth=inf, latency=10.0), 3)
    assert three.exposed == pytest.approx(4 * 10 + 4 / 3 * 4 * TINY.parameters)
    assert three.bytes == 2 * 2 * 4 * TINY.parameters
    assert len(three.memory) == three.devices == 3


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize("preset_name", ["fashion", "alexnet", "alexnet-isolated"])
def test_overlap_is_never_slower(name, preset_name):
    table = PRESETS[preset_name].split(2)
    for batch in (1, 7, 128, 4096):
        for layout in ("towers", "replicas"):
            plain, hidden = (predict(layout, table, Step(batch), MACHINES[name], 2, o) for o in (False, True))
            assert hidden.seconds <= plain.seconds
            assert hidden.exposed <= plain.exposed


def test_an_infinitely_fast_link_exposes_nothing():
    fast = replace(GTX, link=inf, latency=0.0)
    for layout in ("towers", "replicas"):
        assert predict(layout, ALEXNET, Step(128), fast, 2).exposed == 0
    towers, whole = (predict(name, ALEXNET, Step(64), fast, 2) for name in ("towers", "whole"))
    assert 0.5 < towers.seconds / whole.seconds < 0.56


@pytest.mark.parametrize("layout", ["whole", "towers", "replicas"])
def test_costs_grow_with_the_batch_and_shrink_with_the_machine(layout):
    batches = [predict(layout, ALEXNET, Step(batch), GTX, 2) for batch in (1, 2, 32, 33, 256)]
    assert [s.seconds for s in batches] == sorted(s.seconds for s in batches)
    assert [s.peak for s in batches] == sorted(s.peak for s in batches)
    base = batches[-1].seconds
    for figure in ("float32", "memory_bandwidth", "link", "host_link"):
        faster = replace(GTX, **{figure: 2 * getattr(GTX, figure)})
        assert predict(layout, ALEXNET, Step(256), faster, 2).seconds <= base
    for figure in ("latency", "launch"):
        assert predict(layout, ALEXNET, Step(256), replace(GTX, **{figure: 1e-3}), 2).seconds > base


def test_towers_halve_time_and_memory():
    of = predicted(ALEXNET, Step(128), GTX)
    assert 0.5 < of["towers"].seconds / of["whole"].seconds < 0.55
    assert 0.5 < of["towers"].peak / of["whole"].peak < 0.6
    first, second = of["towers"].memory
    assert first.peak - second.peak == pytest.approx(3 * 4 * 4_097_000, rel=0.05)  # fc8, its gradients, its momentum
    assert of["dense"].seconds > of["whole"].seconds > of["half"].seconds > of["towers"].seconds


def test_layouts_are_those_that_there_are():
    assert set(predicted(ALEXNET, Step(2), GTX)) == {"towers", "whole", "replicas", "dense", "half"}
    assert set(predicted(preset("fashion", 1), Step(2), GTX)) == {"dense", "replicas", "half"}
    assert set(predicted(PRESETS["torchvision"], Step(2), GTX)) == {"dense", "replicas"}
    assert set(predicted(PRESETS["caffe"], Step(2), GTX)) == {"whole", "replicas"}
    assert set(predicted(PRESETS["alexnet-isolated"], Step(2), GTX)) == {"towers", "whole", "replicas"}
    assert len(predicted(preset("fashion", 4), Step(8), GTX)["towers"].memory) == 4


def test_precision_changes_what_it_should():
    h100 = MACHINES["h100-pcie4"]
    f32, tf32, bf16 = (predicted(ALEXNET, Step(128, p), h100)["towers"] for p in ("float32", "tf32", "bf16"))
    assert f32.seconds > tf32.seconds > bf16.seconds
    assert f32.bytes == tf32.bytes == 2 * bf16.bytes
    assert f32.peak == tf32.peak > bf16.peak
    assert bf16.memory[0].parameters == f32.memory[0].parameters
    with pytest.raises(UsageError, match="--precision bf16: gtx580-pcie2 has no such units"):
        predicted(ALEXNET, Step(2, "bf16"), GTX)


def test_replicas_catch_up_where_the_search_says():
    for overlap in (False, True):
        at = crossover(ALEXNET, Step(1), GTX, overlap)
        towers, replicas = (
            [predict(layout, ALEXNET, Step(batch), GTX, 2, overlap).seconds for batch in range(2, at + 40, 2)]
            for layout in ("towers", "replicas")
        )
        beaten = [two <= one for one, two in zip(towers, replicas, strict=True)]
        assert beaten == [batch >= at for batch in range(2, at + 40, 2)]  # an odd one costs a whole image more
    assert crossover(ALEXNET, Step(1), GTX, True) < crossover(ALEXNET, Step(1), GTX)
    waiting = replace(GTX, link=1e18, latency=1.0)  # 8 crossings against 18 rounds of a ring
    assert crossover(ALEXNET, Step(1), waiting) is None


def test_the_largest_batch_fits_and_the_next_does_not():
    for towers, tower in ((False, None), (True, 0)):
        batch = largest_batch(ALEXNET, Step(1), 3e9, towers)
        assert footprint(ALEXNET, batch, tower=tower).peak <= 3e9 < footprint(ALEXNET, batch + 1, tower=tower).peak
    assert largest_batch(ALEXNET, Step(1), 3e9, True) > 1.8 * largest_batch(ALEXNET, Step(1), 3e9, False)
    assert largest_batch(ALEXNET, Step(1), 1e6, False) == 0
    held = footprint(ALEXNET, 1, tower=0).peak  # where weights are most of it, their gradients in parts show
    assert largest_batch(ALEXNET, Step(1), held, True) == 1
    assert largest_batch(ALEXNET, Step(1), held, True, overlap=True) == 0


def test_as_dict_is_what_compare_json_takes():
    found = predict("towers", ALEXNET, Step(128), GTX, 2).as_dict()
    assert found["step_ms"] == pytest.approx(found["busy_ms"] + found["exposed_ms"] + found["input_ms"])
    assert found["images_per_second"] == pytest.approx(128_000 / found["step_ms"])
    assert len(found["peak"]) == 2
    assert Footprint(10, 1, 2, 3).activations == 4


PAIR = ("fake:0", "fake:1")


@pytest.mark.parametrize(
    ("optimizer", "devices", "overlap"),
    quick(
        [
            *product(["sgd", "adam"], [("fake:0",), PAIR], [False]),
            ("sgd", PAIR, True),
        ],
        ("sgd", PAIR, False),
        ("sgd", PAIR, True),
    ),
)
@pytest.mark.usefixtures("fake_devices")
def test_memory_is_what_fake_devices_measure(optimizer, devices, overlap):
    """A quarter as wide, on small images, without response norms: to 1.5 %."""
    gc.collect()  # others' networks may not go away meanwhile
    table = preset("alexnet-no-norm", 2).scaled(1 / 4, size=96).adapted(classes=10)
    pixels = torch.zeros(8, 3, 96, 96, dtype=torch.uint8)
    batch = Batch(pixels, torch.zeros(8, dtype=torch.int64), torch.arange(8))
    training = Training([batch] * 2, optimizer, None, seed=0, execution=Execution(overlap=overlap))
    contender = Contender("", table, place(table, devices), training)
    for tower, memory in enumerate(contender.memory.values()):
        expected = footprint(table, 8, optimizer, tower=None if len(devices) == 1 else tower, overlap=overlap)
        assert (expected.parameters, expected.gradients) == (memory.parameters, memory.gradients)
        assert expected.optimizer == pytest.approx(memory.optimizer, abs=200)  # counters of steps
        assert expected.peak == pytest.approx(memory.peak, rel=0.015)


@pytest.mark.usefixtures("fake_devices")
def test_memory_in_bf16_with_overlap_is_not_more_than_on_paper():
    gc.collect()
    table = preset("alexnet-no-norm", 2).scaled(1 / 4, size=96).adapted(classes=10)
    batch = Batch(torch.zeros(2, 3, 96, 96, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    execution = Execution(precision="bf16", overlap=True)
    contender = Contender("", table, place(table, PAIR), Training([batch] * 2, "sgd", None, 0, execution=execution))
    for tower, memory in enumerate(contender.memory.values()):
        assert memory.peak <= footprint(table, 2, "sgd", 2, tower, overlap=True).peak


@pytest.mark.parametrize("scale", [1 / 4, 1 / 2])
@pytest.mark.usefixtures("fake_devices")
def test_memory_of_replicas_is_what_fake_devices_measure(scale, monkeypatch):
    """Where few images leave most of it to the sum of the gradients: of one large one, or of many small ones."""
    gc.collect()
    monkeypatch.setattr(peaks, "BUCKET", 2**20)
    monkeypatch.setattr(Replicas.__init__, "__defaults__", (2**20,))
    table = preset("alexnet-no-norm", 2).scaled(scale, size=67).adapted(classes=10)
    batch = Batch(torch.zeros(2, 3, 67, 67, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), torch.arange(2))
    contender = Contender("replicas", table, place(table, PAIR), Training([batch] * 2, "sgd", None, seed=0))
    for memory in contender.memory.values():
        expected = footprint(table, 1, "sgd", replicas=2)
        assert expected.peak > 1.03 * (expected.parameters + expected.gradients + expected.optimizer)
        assert expected.peak == pytest.approx(memory.peak, rel=0.015)


@pytest.mark.parametrize("overlap", [False, True])
def test_every_layout_has_its_largest_batch(overlap):
    largest = largest_batches(ALEXNET, Step(1), 3e9, overlap)
    assert set(largest) == set(predicted(ALEXNET, Step(1), GTX))
    for layout, batch in largest.items():
        fits, does_not = (predicted(ALEXNET, Step(b), GTX, overlap)[layout].peak for b in (batch, batch + 1))
        assert fits <= 3e9 < does_not, layout
    assert largest["replicas"] == 2 * largest["whole"]

"""The tables: published sizes to the unit, and arithmetic that holds for any table."""

from fractions import Fraction
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitnet.errors import UsageError
from splitnet.network.architecture import Architecture, Layer, Pool
from splitnet.network.presets import PRESETS, preset, presets

PARAMETERS = {  # preset: dense, two towers; None where there is no such network
    "fashion": (46_764_746, 45_351_626),
    "alexnet": (62_378_344, 60_965_224),
    "alexnet-paper": (62_378_344, 60_965_224),
    "alexnet-half": (59_798_312, None),
    "alexnet-isolated": (None, 60_714_408),
    "alexnet-no-norm": (62_378_344, 60_965_224),
    "alexnet-plain-pool": (62_378_344, 60_965_224),
    "caffe": (None, 60_965_224),
    "torchvision": (61_100_840, None),
    "lenet": (44_426, None),
}


def test_presets_are_those_published_with_the_default_first():
    assert set(presets()) == set(PARAMETERS)
    assert presets()[0] == "fashion"


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_to_the_unit(name):
    for towers, expected in zip((1, 2), PARAMETERS[name], strict=True):
        if expected is None:
            with pytest.raises(UsageError, match=rf"--towers {towers}: .*{name if towers == 1 else ''}"):
                preset(name, towers)
        else:
            assert preset(name, towers).parameters == expected


def test_tower_0_holds_fc8():
    alexnet = preset("alexnet", 2)
    assert [alexnet.parameters_on(tower) for tower in (0, 1)] == [32_531_112, 28_434_112]


@pytest.mark.parametrize(("name", "forward"), [("alexnet", 234_496), ("fashion", 197_632), ("alexnet-isolated", 8_192)])
def test_bytes_of_an_image_across_the_towers(name, forward):
    table = preset(name, 2)
    assert table.bytes_exchanged(1, "forward") == table.bytes_exchanged(1, "backward") == forward
    assert table.bytes_exchanged(128) == 2 * 128 * forward
    assert table.bytes_exchanged(1, "forward", itemsize=2) == forward // 2


def test_each_crossing_of_2012():
    each_way = {t.row: t.bytes for t in preset("alexnet", 2).transfers(1)}
    assert each_way == {"conv3": 86_528, "fc6": 18_432, "fc7": 8_192, "fc8": 8_192}
    into_fc8 = {(t.phase, t.source, t.target) for t in preset("alexnet", 2).transfers(1) if t.row == "fc8"}
    assert into_fc8 == {("forward", 1, 0), ("backward", 0, 1)}


def test_multiply_adds_and_activations_of_2012():
    by_row = {row.name: row.multiply_adds // 2 for row in preset("alexnet", 2).rows()}  # for one tower
    assert by_row["conv1"] == 52_707_600
    assert by_row["conv2"] == 111_974_400
    assert by_row["conv3"] == 74_760_192
    assert by_row["fc6"] == 18_874_368
    assert preset("alexnet-half", 1).multiply_adds == pytest.approx(391.5e6, rel=1e-4)
    assert preset("alexnet", 2).multiply_adds == pytest.approx(724.4e6, rel=1e-4)
    assert preset("alexnet", 2).activation_bytes / 2 == pytest.approx(3.72e6, rel=2e-3)  # for one GPU
    conv1 = preset("alexnet", 2).rows()[0]
    assert conv1.activations == 2 * (145_200 + 145_200 + 34_992 + 34_992)  # product, norm, pool, relu


def test_maps_of_the_textbook():
    assert [row.outputs[-1][1] for row in preset("fashion", 2).rows()][:5] == [26, 12, 12, 12, 5]
    assert preset("fashion", 1).rows()[0].outputs[0] == ("product", 54)


def test_maps_that_do_not_overlap_overhang_by_one():
    assert [row.outputs[-1][1] for row in preset("alexnet-plain-pool", 2).rows()][:5] == [28, 13, 13, 13, 6]


def test_crossings_can_be_chosen():
    assert [row.name for row in preset("alexnet", 2, "conv2, fc6").rows() if row.crosses] == ["conv2", "fc6", "fc8"]
    assert [row.name for row in preset("alexnet", 2, "none").rows() if row.crosses] == ["fc8"]
    dense = preset("alexnet", 2, "all")
    assert dense.parameters == preset("alexnet", 1).parameters
    assert not any(row.crosses for row in preset("alexnet", 1, "all").rows())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("alexnot", 2), r"--preset alexnot: no such preset \(there are fashion, alexnet, .*lenet\)"),
        (
            ("fashion", 3),
            r"--towers 3: conv2 has 256 channels, .*not divide \(fashion takes 1, 2, 4, 8\)",
        ),
        (("fashion", 0), r"--towers 0: at least 1"),
        (("alexnet-half", 2), r"--towers 2: alexnet-half .* has one tower"),
        (("caffe", 1), r"--towers 1: caffe .* two towers"),
        (("alexnet", 2, "conv3,fc9"), r"--crosses fc9: fc9 is no row of alexnet \(rows that can cross: conv2, .*fc8\)"),
        (("alexnet", 2, "conv1"), r"--crosses conv1: conv1 reads the images, which every tower has"),
        (("alexnet", 2, ""), r"--crosses : a name is missing"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(arguments, message):
    with pytest.raises(UsageError, match=message) as refusal:
        preset(*arguments)
    assert "\n" not in str(refusal.value)


def test_images_too_small_are_refused():
    with pytest.raises(UsageError, match="images of side 40 are too small for fashion: conv5"):
        preset("fashion", 2).scaled(1 / 8, size=60).scaled(1, size=40).rows()


def test_variants_leave_the_original_alone():
    before = PRESETS["alexnet"]
    small = before.scaled(1 / 8, size=64).adapted(channels=1, classes=10).without("norm")
    assert (small.channels, small.classes, small.size) == (1, 10, 64)
    assert [layer.out for layer in small.layers] == [12, 32, 48, 48, 32, 512, 512, 10]
    assert not any(op in layer.after for layer in small.layers for op in ("norm", "cnorm"))
    assert before.classes == 1000
    assert before.layers[0].after == ("norm", "pool", "relu")


@given(
    towers=st.sampled_from([1, 2, 4]),
    width=st.sampled_from([Fraction(1, 24), Fraction(1, 16), Fraction(1, 8), Fraction(1, 3), Fraction(1)]),
    size=st.integers(96, 256),
    crossed=st.sets(st.sampled_from(["conv2", "conv3", "conv4", "conv5", "fc6", "fc7"])),
    name=st.sampled_from(["fashion", "alexnet", "alexnet-paper", "alexnet-plain-pool"]),
    batch=st.integers(1, 300),
)
def test_sizes_add_up_for_any_table(towers, width, size, crossed, name, batch):
    table = PRESETS[name].split(towers).scaled(width, size).crossing(crossed)
    rows = table.rows()
    assert sum(table.parameters_on(tower) for tower in range(towers)) == table.parameters
    for row, before in zip(rows[1:], rows, strict=False):
        assert row.channels == before.layer.out
        assert row.side == before.outputs[-1][1]
        assert row.weight_shape[1] * row.groups == row.channels * (1 if row.layer.kernel else row.side**2)
    transfers = table.transfers(batch)
    assert sum(t.bytes for t in transfers) == batch * table.bytes_exchanged(1)
    forward = {(t.row, t.source, t.target, t.bytes) for t in transfers if t.phase == "forward"}
    assert forward == {(t.row, t.target, t.source, t.bytes) for t in transfers if t.phase == "backward"}
    names = {t.row for t in transfers}
    assert names == ({*crossed, "fc8"} if towers > 1 else set())
    for row in rows[:-1]:  # each reader gets all that it does not make itself
        received = sum(t.bytes for t in transfers if (t.row, t.phase, t.target) == (row.name, "forward", 0))
        assert received == (4 * batch * row.channels * row.side**2 * (towers - 1) // towers if row.crosses else 0)


@given(side=st.integers(1, 60), kernel=st.integers(1, 5), stride=st.integers(1, 4), ceil=st.booleans())
def test_pool_is_torchs(side, kernel, stride, ceil):
    import torch.nn.functional as F
    from torch import zeros

    if side < kernel or (ceil and stride > kernel):  # PyTorch drops windows that begin beyond the map
        return
    expected = F.max_pool2d(zeros(1, 1, side, side), kernel, stride, ceil_mode=ceil).shape[-1]
    assert Pool(kernel, stride, ceil).side(side) in {expected, expected + 1 if ceil else expected}
    if (side - kernel) % stride == 0 or not ceil:
        assert Pool(kernel, stride, ceil).side(side) == expected


def test_a_row_knows_its_weights():
    table = Architecture("two", (Layer("conv1", 4, 3), Layer("fc2", 6), Layer("fc3", 2, after=(), home=True)), 1, 5)
    shapes = [row.weight_shape for row in table.split(2).rows()]
    assert shapes == [(4, 1, 3, 3), (6, 18), (2, 6)]  # fc2 reads 2 of 4 channels of 3x3
    assert [row.parameters for row in table.split(2).rows()] == [prod(s) + s[0] for s in shapes]

"""Orders and constants of the sources, at activations of order 100: at order 1 a norm's constants do not show."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from layouts import batch, relative, small

from splitnet.network.architecture import Norm
from splitnet.network.layers import Block, Moment, kept_units
from splitnet.network.presets import PRESETS, preset
from splitnet.network.response_norm import response_norm, spatial_response_norm
from splitnet.parallel.placement import build

ORDERS = {  # preset: what follows the products of conv1, conv2 and conv5
    "alexnet": (("norm", "pool", "relu"), ("relu", "norm", "cnorm", "pool"), ("pool", "relu")),
    "alexnet-paper": (("relu", "norm", "pool"), ("relu", "norm", "pool"), ("relu", "pool")),
    "caffe": (("relu", "norm", "pool"), ("relu", "norm", "pool"), ("relu", "pool")),
    "alexnet-no-norm": (("pool", "relu"), ("relu", "pool"), ("pool", "relu")),
    "fashion": (("relu", "pool"), ("relu", "pool"), ("relu", "pool")),
}


@pytest.mark.parametrize("name", ORDERS)
def test_orders_of_the_sources(name):
    layers = {layer.name: layer.after for layer in PRESETS[name].layers}
    assert (layers["conv1"], layers["conv2"], layers["conv5"]) == ORDERS[name]


def activations(channels=6, side=7):
    return 100 * torch.randn(2, channels, side, side, dtype=torch.float64)


def by_hand(x, size, alpha, beta, k):
    """The window's sum written out, channel by channel."""
    out = torch.empty_like(x)
    for i in range(x.shape[1]):
        window = x[:, max(0, i - size // 2) : i + size // 2 + 1]
        out[:, i] = x[:, i] * (k + alpha * (window**2).sum(1)) ** -beta
    return out


@pytest.mark.parametrize(
    ("name", "alpha", "k"),
    [("alexnet", 1e-4 / 5, 2.0), ("alexnet-paper", 1e-4, 2.0), ("caffe", 1e-4 / 5, 1.0)],
)
def test_response_norm_has_the_constants_of_its_source(name, alpha, k):
    x = activations()
    assert relative(response_norm(x, PRESETS[name].norm), by_hand(x, 5, alpha, 0.75, k)) < 1e-13
    others = {(1e-4 / 5, 2.0), (1e-4, 2.0), (1e-4 / 5, 1.0)} - {(alpha, k)}
    assert all(relative(by_hand(x, 5, a, 0.75, c), by_hand(x, 5, alpha, 0.75, k)) > 1e-2 for a, c in others)


def test_cnorm2_sums_a_square_of_one_map_clipped_at_its_edge():
    x, norm = activations(), PRESETS["alexnet"].cnorm
    padded = F.pad(x**2, (2, 2, 2, 2))
    squares = sum(padded[..., i : i + 7, j : j + 7] for i in range(5) for j in range(5))
    expected = x * (1 + 1e-3 / 25 * squares) ** -0.75
    assert relative(spatial_response_norm(x, norm), expected) < 1e-13
    assert norm == Norm(5, alpha=1e-3, beta=0.75, k=1.0)


def test_norms_do_not_cross_the_seam_except_caffes():
    images, _ = batch(small("alexnet"))
    x = F.relu(torch.randn(2, 12, 9, 9, dtype=torch.float64)) * 100
    for name, joint in (("alexnet-paper", False), ("caffe", True)):
        table = PRESETS[name].split(2).scaled(1 / 8)
        block = Block(table, table.rows()[0], range(2))
        halves = torch.cat([by_hand(half, 5, table.norm.alpha / 5, 0.75, table.norm.k) for half in x.chunk(2, 1)], 1)
        whole = by_hand(x, 5, table.norm.alpha / 5, 0.75, table.norm.k)
        assert relative(block.normalise(x), whole if joint else halves) < 1e-13
        differ = (whole != halves).flatten(2).any(2).any(0).nonzero().flatten().tolist()
        assert differ == [4, 5, 6, 7]  # only the two channels on each side of the seam
    assert images.abs().mean() > 50


def test_conv1_of_2012_reads_three_zeros_at_the_right_and_the_bottom():
    table = preset("alexnet", 1)
    block = Block(table, table.rows()[0], [0])
    torch.nn.init.normal_(block.weight), torch.nn.init.normal_(block.bias)
    x = torch.randn(1, 3, 224, 224)
    out = block.product(block.prepare(x), block.weight, block.bias)
    assert out.shape == (1, 96, 55, 55)
    assert torch.allclose(out[..., :54, :54], F.conv2d(x, block.weight, block.bias, stride=4), atol=1e-4)
    edge = F.conv2d(F.pad(x[..., 216:, 216:], (0, 3, 0, 3)), block.weight, block.bias)
    assert torch.allclose(out[..., 54:, 54:], edge, atol=1e-4)


@pytest.mark.slow
def test_torchvision_is_torchvisions():
    ours, theirs = build("torchvision", towers=1, devices=["cpu"]).double(), torchvision.models.alexnet().double()
    names = list(ours.whole_state_dict())
    ours.load_whole_state_dict(dict(zip(names, theirs.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 224, 224, dtype=torch.float64)
    ours.eval(), theirs.eval()
    mine, expected = ours(images), theirs(images)
    assert relative(mine, expected) < 1e-12
    mine.square().sum().backward(), expected.square().sum().backward()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert relative(a.grad, b.grad) < 1e-12
    drops = [index for index, module in enumerate(theirs.classifier) if isinstance(module, torch.nn.Dropout)]
    assert drops == [0, 3]  # before fc6 and before fc7
    dropping = [layer.name for layer in PRESETS["torchvision"].layers if "dropout" in layer.after]
    assert dropping == ["conv5", "fc6"]


def test_lenet_is_the_textbooks():
    from torch import nn

    theirs = nn.Sequential(
        *(nn.Conv2d(1, 6, 5), nn.Sigmoid(), nn.MaxPool2d(2, 2), nn.Conv2d(6, 16, 5), nn.Sigmoid(), nn.MaxPool2d(2, 2)),
        *(nn.Flatten(), nn.Linear(256, 120), nn.Sigmoid(), nn.Linear(120, 84), nn.Sigmoid(), nn.Linear(84, 10)),
    ).double()
    ours = build("lenet", towers=1, devices=["cpu"]).double()
    ours.load_whole_state_dict(dict(zip(ours.whole_state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.randn(3, 1, 28, 28, dtype=torch.float64)
    assert relative(ours(images), theirs(images)) < 1e-13


def test_initial_weights_are_pytorchs_own():
    state = build("lenet", towers=1, devices=["cpu"]).whole_state_dict()
    for name, inputs in (("conv2", 150), ("fc3", 256)):
        bound = inputs**-0.5
        for tensor in (state[f"{name}.weight"], state[f"{name}.bias"]):
            assert tensor.abs().max() <= bound
        assert state[f"{name}.weight"].std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def keep(tower=0, row=5, step=0, seed=0, images=64, units=512, first=0, chance=0.5):
    from splitnet import keyed

    rows = torch.arange(images) + first
    return kept_units(rows, torch.arange(units), keyed.key(seed, step, row, tower), chance)


def test_towers_rows_steps_and_seeds_drop_independently():
    base = keep()
    assert base.float().mean().item() == pytest.approx(0.5, abs=0.01)
    for other in (keep(tower=1), keep(row=6), keep(step=1), keep(seed=1), keep(first=64)):
        assert (base == other).float().mean().item() == pytest.approx(0.5, abs=0.01)  # agree as chance does
    assert keep(chance=0.1).float().mean().item() == pytest.approx(0.9, abs=0.01)


def test_units_and_images_are_dropped_without_pattern():
    mask = keep(images=256, units=1024).float() - 0.5
    for by_axis in (mask.mean(0), mask.mean(1)):  # every unit, and every image, about half of the time
        assert by_axis.abs().max() < 0.5 * 5.5 / min(mask.shape) ** 0.5
    images = mask @ mask.T / mask.shape[1]
    assert (images - images.diag().diag()).abs().max() < 0.25 * 5.5 / mask.shape[1] ** 0.5
    quads = (mask[::2, ::2] * mask[1::2, ::2] * mask[::2, 1::2] * mask[1::2, 1::2]).mean() * 16
    assert abs(quads) < 5 / (mask.numel() / 4) ** 0.5


def test_a_unit_is_dropped_by_its_images_place_in_the_global_batch():
    assert torch.equal(keep(images=64)[32:], keep(images=32, first=32))


def test_what_lives_is_doubled():
    table = small("fashion", 1)
    block = Block(table, table.rows()[5], [0])
    x = torch.ones(8, 512)
    assert set(block.drop(x, Moment()).unique().tolist()) == {0.0, 2.0}


def test_masks_are_the_same_on_a_fake_device():
    table = small("alexnet")
    whole, tower = Block(table, table.rows()[5], range(2)), Block(table, table.rows()[5], [1])
    moment = Moment(seed=3, step=4, first_image=7)
    both = whole.kept(torch.zeros(5, 512), moment)
    build(table, devices=["fake:0", "fake:1"])
    second = tower.kept(torch.zeros(5, 256, device="fake:1"), moment)
    assert torch.equal(second.cpu(), both[:, 256:])


def test_grouped_units_read_their_own_towers_features():
    table = small("alexnet-isolated")
    row = next(row for row in table.rows() if row.name == "fc6")
    block = Block(table, row, range(2)).double()
    torch.nn.init.normal_(block.weight), torch.nn.init.normal_(block.bias)
    x = torch.randn(3, row.channels * row.side**2, dtype=torch.float64)
    parts = zip(x.chunk(2, 1), block.weight.chunk(2), block.bias.chunk(2), strict=True)
    expected = torch.cat([F.linear(*part) for part in parts], dim=1)
    assert relative(block.product(x, block.weight, block.bias), expected) < 1e-14

"""The whole network looked at row by row, and without one tower."""

import pytest
import torch
from layouts import SPLIT, batch, relative, small
from quick import quick

from splitnet.errors import UsageError
from splitnet.network.activations import handed_over, passes, whole
from splitnet.network.weights import draw
from splitnet.parallel.placement import build


def doubled(architecture, seed=0):
    """A state in float64, with biases that matter."""
    return {name: tensor.double() for name, tensor in draw(architecture, seed).items()}


def outputs(architecture, state, images, silence=False):
    return {row.name: x for row, x in passes(architecture, whole(architecture, state), images, silence)}


def without(architecture, state, tower):
    """The state with 0 for all weights and biases of a tower, but for the home row."""
    found = {name: tensor.clone() for name, tensor in state.items()}
    for row in architecture.rows():
        for kind in ("weight", "bias") if not row.layer.home else ():
            found[f"{row.name}.{kind}"].chunk(architecture.towers)[tower].zero_()
    return found


def logits(architecture, state, images, devices):
    net = build(architecture, devices=devices).double()
    net.load_whole_state_dict(state)
    return net.eval()(images).detach()


@pytest.mark.parametrize(
    ("name", "towers", "crosses"),
    quick(
        [*((name, 2, None) for name in SPLIT), ("alexnet", 4, None), ("fashion", 2, "all")],
        *(("alexnet", 2, None), ("alexnet", 4, None), ("fashion", 2, "all")),
    ),
)
def test_a_silenced_tower_is_one_whose_weights_are_zero(name, towers, crosses):
    architecture = small(name, towers, crosses)
    images, _ = batch(architecture)
    state = doubled(architecture)
    found = outputs(architecture, state, images, silence=True)["fc8"]
    assert found.shape == (1 + towers, len(images), 10)
    for variant, tensors in enumerate([state, *(without(architecture, state, tower) for tower in range(towers))]):
        for devices in (["cpu"], ["cpu"] * towers):
            assert relative(found[variant], logits(architecture, tensors, images, devices)) < 1e-12
    assert min(relative(found[0], found[1 + tower]) for tower in range(towers)) > 1e-4


def test_silencing_does_not_change_the_network():
    architecture = small("alexnet")
    images, _ = batch(architecture)
    state = doubled(architecture)
    plain, silenced = (outputs(architecture, state, images, silence) for silence in (False, True))
    for name, x in plain.items():
        assert x.shape[0] == 1
        assert relative(silenced[name][0], x[0]) < 1e-12


def test_a_silenced_tower_hands_over_zeros_and_the_others_their_own():
    architecture = small("alexnet")
    found = outputs(architecture, doubled(architecture), batch(architecture)[0], silence=True)
    for name, x in found.items():
        assert x.shape[0] == (1 if name in ("conv1", "conv2") else 3)
        if x.shape[0] == 3 and name != "fc8":
            own = x.flatten(2).unflatten(2, (2, -1))
            assert [[bool(part.any()) for part in variant.unbind(1)] for variant in own] == [
                [True, True],
                [False, True],
                [True, False],
            ]


@pytest.mark.parametrize(
    ("name", "towers", "crosses", "rows"),
    [
        ("alexnet", 2, None, ("conv2", "conv5", "fc6", "fc7")),
        ("alexnet", 1, None, ()),
        ("alexnet", 2, "none", ("fc7",)),
        ("fashion", 2, "all", ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7")),
    ],
)
def test_what_is_handed_over_is_in_front_of_crossings(name, towers, crosses, rows):
    assert handed_over(small(name, towers, crosses)) == rows


def test_the_state_is_left_as_it_was():
    architecture = small("alexnet")
    state = draw(architecture, 0)
    before = {name: tensor.clone() for name, tensor in state.items()}
    outputs(architecture, state, batch(architecture)[0].float(), silence=True)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.items())


def test_another_networks_state_is_refused():
    with pytest.raises(UsageError, match="weights of another network"):
        whole(small("alexnet", 1), draw(small("alexnet", 2), 0))

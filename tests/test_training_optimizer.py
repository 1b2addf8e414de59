"""The update of 2012, replayed by hand over changes of its rate."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from layouts import small
from torch import nn

from splitnet.options import parse
from splitnet.parallel.placement import build
from splitnet.recipes import FIELDS, RecipeOptions, defaults
from splitnet.training.optimizer import SGD, Update, make_optimizer, set_rates
from splitnet.training.schedule import Schedule, plateaus

RATES = (0.01, 0.01, 0.01, 0.001, 0.001, 0.0, 0.0, 0.0001, 0.0001)
"""Of the steps replayed; at 0 a weight is frozen."""


def gradients(shape, steps):
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape) for _ in range(steps)]


def by_hand(weight, rates, momentum, decay):
    """src/weights.cu of 2012, in NumPy: g is the gradient of the log-probability, so upwards."""
    velocity, weight = np.zeros_like(weight), weight.copy()
    for rate, downwards in zip(rates, gradients(weight.shape, len(rates)), strict=True):
        if rate > 0:
            velocity = momentum * velocity + rate * -downwards
            velocity = velocity - decay * rate * weight
            weight = weight + velocity
    return weight


def replayed(optimizer, weight, rates):
    for rate, gradient in zip(rates, gradients(weight.shape, len(rates)), strict=True):
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.from_numpy(gradient)
        optimizer.step()
    return weight.detach().numpy()


@pytest.mark.parametrize("decay", [0.0, 0.0005])
def test_the_velocity_holds_the_rate(decay):
    start = np.random.default_rng(1).standard_normal((5, 7))
    weight = nn.Parameter(torch.from_numpy(start.copy()))
    found = replayed(SGD([weight], 0.01, 0.9, decay), weight, RATES)
    assert np.abs(found - by_hand(start, RATES, 0.9, decay)).max() < 1e-15


def test_pytorchs_velocity_does_not():
    """What the class is there for: without it the step after a change of rate is another one."""
    start = np.random.default_rng(1).standard_normal((5, 7))
    weight = nn.Parameter(torch.from_numpy(start.copy()))
    found = replayed(torch.optim.SGD([weight], 0.01, 0.9), weight, RATES[:5])
    assert np.abs(found - by_hand(start, RATES[:5], 0.9, 0.0)).max() > 1e-3


def test_a_rate_that_is_constant_is_pytorchs_sgd():
    start = torch.randn(6, 3)
    ours, theirs = (nn.Parameter(start.clone()) for _ in range(2))
    optimizers = SGD([ours], 0.01), torch.optim.SGD([theirs], 0.01, 0.9, fused=True)
    for gradient in gradients(start.shape, 4):
        for optimizer, weight in zip(optimizers, (ours, theirs), strict=True):
            weight.grad = torch.from_numpy(gradient).float()
            optimizer.step()
    assert torch.equal(ours, theirs)


def groups(update, towers=2):
    net = build(small("fashion", towers), devices=["cpu"] * towers)
    names = {id(parameter): name.partition(".")[2].partition(".")[2] for name, parameter in net.named_parameters()}
    return [
        (group.get("kind"), group["lr"], group["weight_decay"], {names[id(p)] for p in group["params"]})
        for group in update.start(net).param_groups
    ]


def test_biases_have_their_own_rate_and_no_decay():
    first, weights, biases = groups(Update("sgd", 0.01, 0.02, weight_decay=0.0005))
    assert first == ("first weight", 0.01, 0.0005, {"conv1.weight"})
    assert weights[:3] == ("weights", 0.01, 0.0005)
    assert weights[3] == {f"{row}.weight" for row in ("conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")}
    assert biases[:3] == ("biases", 0.02, 0.0)
    assert len(biases[3]) == 8


def test_the_paper_decays_biases_as_well():
    assert [decay for _, _, decay, _ in groups(Update("sgd", weight_decay=0.0005, decay_biases=True))] == [0.0005] * 3


def test_all_in_one_group_where_all_are_alike():
    [(kind, lr, _, names)] = groups(Update("adam"))
    assert (kind, lr, len(names)) == (None, 0.001, 16)


SAID_2012 = {name: value for name, value in defaults("2012", set()).items() if name in FIELDS}
RECIPE_2012 = parse(RecipeOptions, "run", "", [], SAID_2012)
EPOCHS_2012 = [
    (0, 1e-2, 1e-2),
    (24, 1e-2, 1e-2),
    (25, 1e-3, 1e-3),
    (50, 1e-3, 1e-3),
    (51, 1e-4, 1e-4),
    (66, 1e-4, 1e-4),
    (67, 1e-5, 1e-4),
    (71, 1e-5, 1e-4),
    (72, 0.0, 1e-4),
    (79, 0.0, 1e-5),
    (90, 0.0, 1e-5),
]
"""Rates of the first weights and of the others."""


@pytest.mark.parametrize(("epoch", "first", "weights"), EPOCHS_2012)
def test_rates_of_2012(epoch, first, weights):
    """Those of `--recipe 2012`: biases have 0.02 to the end."""
    rates = RECIPE_2012.schedule.rates(RECIPE_2012.update, epoch)
    assert rates == pytest.approx({"first weight": first, "weights": weights, "biases": 0.02}, rel=1e-12)


@pytest.mark.parametrize(("epoch", "first", "weights"), EPOCHS_2012)
def test_rates_of_2012_with_drops_of_the_biases_own(epoch, first, weights):
    rates = replace(RECIPE_2012.schedule, bias_drops=(25,)).rates(RECIPE_2012.update, epoch)
    assert (rates["first weight"], rates["weights"]) == pytest.approx((first, weights), rel=1e-12)
    assert rates["biases"] == pytest.approx(0.02 if epoch < 25 else 0.002, rel=1e-12)


def test_rates_reach_the_groups():
    net = build(small("fashion"), devices=["cpu", "cpu"])
    update, schedule = RECIPE_2012.update, RECIPE_2012.schedule
    optimizer = update.start(net)
    set_rates(optimizer, schedule.rates(update, 72))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.0, 1e-4, 0.02], rel=1e-12)
    alike = make_optimizer(net.parameters(), "adam")
    set_rates(alike, Schedule((1,)).rates(Update("adam"), 1))
    assert alike.param_groups[0]["lr"] == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("errors", "drops"),
    [
        ([], 0),
        ([0.5, 0.4, 0.3, 0.2], 0),
        ([0.5, 0.5, 0.5], 0),
        ([0.5, 0.5, 0.5, 0.6], 1),
        ([0.5, 0.6, 0.6, 0.4, 0.5, 0.5, 0.5], 1),
        ([0.5] * 7, 2),
        ([0.5] * 100, 3),
    ],
)
def test_a_plateau_is_three_epochs_without_a_lower_error_and_three_are_all(errors, drops):
    assert plateaus(errors) == drops
    assert Schedule("plateau").rates(Update("sgd"), 99, errors)["weights"] == pytest.approx(0.01 / 10**drops)

"""A product by blocks of its inputs: the whole product, values and every gradient."""

import weakref

import pytest
import torch
import torch.nn.functional as F

from splitnet.network.column_products import ColumnProducts


def by_blocks(x, weight, bias, order):
    return added(x.chunk(len(order), dim=1), weight, bias, order)


def added(parts, weight, bias, order):
    product, (first, *others) = ColumnProducts(len(order)), order
    y = product(parts[first], weight, first, bias)
    for block in others:
        y.add_(product(parts[block], weight, block, None))
    return y


@pytest.fixture
def given():
    sizes = ((3, 12), (5, 12), (5,))
    return [torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in sizes]


@pytest.mark.parametrize("order", [(0,), (0, 1), (1, 0), (2, 0, 1)])
def test_it_is_the_whole_product(given, order):
    y, expected = by_blocks(*given, order), F.linear(*given)
    assert torch.allclose(y, expected, rtol=1e-12)
    out = torch.randn_like(y)
    for found, wanted in zip(*(torch.autograd.grad(z, given, out) for z in (y, expected)), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-12)


def test_gradients_are_those_of_differences(given):
    assert torch.autograd.gradcheck(lambda *xs: by_blocks(*xs, (1, 0)), given)


def test_backward_may_run_again(given):
    y = by_blocks(*given, (0, 1)).sum()
    first, second = (torch.autograd.grad(y, given, retain_graph=again) for again in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    first[1].zero_()  # and its gradients are not the first run's memory
    assert second[1].abs().min() > 0


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("asked", [0, 1])
def test_a_backward_pass_for_one_input_alone_leaves_nothing_to_the_next(given, order, asked):
    x, weight, bias = given
    parts = [part.detach().requires_grad_() for part in x.chunk(2, dim=1)]
    y = added(parts, weight, bias, order).square().sum()
    torch.autograd.grad(y, parts[asked], retain_graph=True)
    y.backward()
    [expected] = torch.autograd.grad(F.linear(torch.cat(parts, dim=1), weight, bias).square().sum(), [weight])
    assert torch.allclose(weight.grad, expected, rtol=1e-12)


def test_it_may_be_asked_for_under_autocast(given):
    x, weight, bias = (tensor.detach().float().requires_grad_() for tensor in given)
    with torch.autocast("cpu", torch.bfloat16):
        y = by_blocks(x, weight, bias, (0, 1))
    y.float().sum().backward()
    assert torch.allclose(weight.grad, x.detach().sum(0).expand_as(weight), rtol=0.02, atol=0.02)


def test_nothing_is_kept_when_backward_is_over(given):
    x, weight, bias = given
    cast = (weight * 1).bfloat16()
    kept, y = weakref.ref(cast), by_blocks(x.bfloat16(), cast, bias.bfloat16(), (0, 1)).sum()
    del cast
    y.backward()
    assert kept() is None


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_is_frozen_has_no_gradient(given, frozen):
    given[frozen].requires_grad_(False)
    by_blocks(*given, (0, 1)).sum().backward()
    assert [x.grad is None for x in given] == [i == frozen for i in range(3)]


def test_the_weights_gradient_is_made_in_one_memory():
    """As large as the weight, and nothing as large beside it."""
    x, weight = torch.randn(2, 64), torch.randn(512, 64, requires_grad=True)
    y = by_blocks(x, weight, None, (0, 1)).sum()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        y.backward()
    made = sum(event.self_cpu_memory_usage for event in profile.events() if event.self_cpu_memory_usage > 0)
    assert weight.grad.is_contiguous()
    assert made < 1.5 * weight.nbytes

"""A fake device computes what the CPU computes, bit for bit and in the same memory format, forward and backward."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from splitnet.testing import fake_devices  # noqa: F401

ONE, TWO = "fake:0", "fake:1"

pytestmark = pytest.mark.usefixtures("fake_devices")


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads cost small operations more than they give."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


Step = Callable[[Tensor, Tensor], Tensor]
"""A step of a program: the tensor so far (N, 4, H, W), and a weight (4, 4, 3, 3)."""


def _set_rows(x: Tensor, w: Tensor) -> Tensor:
    x = x.clone()
    x[:, 1] = x[:, 0] * 2
    x[..., 0].mul_(0.5)
    return x


def _into_result(x: Tensor, w: Tensor) -> Tensor:
    with torch.no_grad():
        result = torch.empty(0, device=x.device)
        torch.add(x, 1, out=result)
    return x + result


STEPS: dict[str, Step] = {
    "conv": lambda x, w: F.conv2d(x, w, padding=1),
    "strided conv": lambda x, w: F.conv2d(x, w, stride=2, padding=2),
    "grouped conv": lambda x, w: F.conv2d(x, w[:, :2], padding=1, groups=2),
    "relu": lambda x, w: x.relu(),
    "relu_": lambda x, w: x.clone().relu_(),
    "pool": lambda x, w: F.max_pool2d(x, 3, stride=2, padding=1),
    "average": lambda x, w: F.adaptive_avg_pool2d(x, (5, 4)),
    "local norm": lambda x, w: F.local_response_norm(x, 3),
    "batch norm": lambda x, w: F.batch_norm(x, None, None, training=True),
    "group norm": lambda x, w: F.group_norm(x, 2),
    "softmax": lambda x, w: x.softmax(1),
    "linear": lambda x, w: F.linear(x.movedim(1, -1), w[..., 0, 0]).movedim(-1, 1),
    "matmul": lambda x, w: torch.einsum("nchw,dc->ndhw", x, w[..., 1, 1]),
    "flip": lambda x, w: x.flip(3),
    "roll": lambda x, w: x.roll(1, 2),
    "transpose": lambda x, w: x.transpose(2, 3),
    "slice": lambda x, w: x[:, :, 1:, :] if x.shape[2] > 2 else x,
    "pad": lambda x, w: F.pad(x, (1, 0, 0, 2)),
    "chunk and cat": lambda x, w: torch.cat(x.chunk(2, dim=1)[::-1], dim=1),
    "split and stack": lambda x, w: torch.stack(x.unbind(1), dim=1),
    "where": lambda x, w: torch.where(x > 0, x, 0.1),
    "mask": lambda x, w: x.masked_fill(x > 1, 0.5),
    "index": lambda x, w: x[:, torch.tensor([3, 0, 1, 1], device=x.device)],
    "set rows": _set_rows,
    "result": _into_result,
    "normalise": lambda x, w: x / (1 + x.std(dim=(2, 3), keepdim=True)),
    "double": lambda x, w: x.double().mul(1 / 3).float(),
    "half": lambda x, w: x.bfloat16().float(),
    "complex": lambda x, w: torch.view_as_real(torch.complex(x, x).conj() * (1 + 2j))[..., 1],
    "channels last": lambda x, w: x.contiguous(memory_format=torch.channels_last),
    "contiguous": lambda x, w: x.contiguous(),
    "dropout": lambda x, w: F.dropout(x, 0.3),
    "noise": lambda x, w: x + torch.rand_like(x) + torch.randn(x.shape, device=x.device),
    "checkpoint": lambda x, w: checkpoint(lambda y: F.dropout(y, 0.5).tanh(), x, use_reentrant=False),
}


def _elsewhere(x: Tensor) -> Tensor:
    return x.to(TWO if str(x.device) == ONE else ONE)


def _program(steps: list[str], x: Tensor, w: Tensor, *, move: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The result and the gradients of `x` and `w`."""
    torch.manual_seed(0)
    x, w = x.clone().requires_grad_(), w.clone().requires_grad_()
    y, weight = x, w
    for step in steps:
        if step == "move":
            y, weight = move(y), move(weight)
        else:
            y = STEPS[step](y, weight)
    y.square().mean().backward()
    assert x.grad is not None
    return [y.detach(), x.grad, torch.zeros_like(w) if w.grad is None else w.grad]


def _same(actual: Tensor, expected: Tensor) -> bool:
    return actual.stride() == expected.stride() and torch.equal(actual.cpu(), expected)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([*STEPS, "move"]), min_size=1, max_size=6),
    st.sampled_from([torch.contiguous_format, torch.channels_last]),
)
def test_random_programs_equal_the_cpu_s(steps: list[str], memory_format: torch.memory_format) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 6, 6, generator=generator).contiguous(memory_format=memory_format)
    w = torch.randn(4, 4, 3, 3, generator=generator)
    expected = _program(steps, x, w, move=lambda y: y.to(y.device, copy=True))
    actual = _program(steps, x.to(ONE), w.to(ONE), move=_elsewhere)
    assert [_same(*pair) for pair in zip(actual, expected, strict=True)] == [True, True, True]


@pytest.mark.parametrize("step", STEPS)
def test_each_step_equals_the_cpu_s(step: str) -> None:
    x, w = torch.randn(2, 4, 6, 6), torch.randn(4, 4, 3, 3)
    expected = _program([step], x, w, move=Tensor.clone)
    actual = _program([step], x.to(ONE), w.to(ONE), move=_elsewhere)
    assert [_same(*pair) for pair in zip(actual, expected, strict=True)] == [True, True, True]


RANDOM: dict[str, Callable[[torch.device], Tensor]] = {
    "rand": lambda d: torch.rand(5, device=d),
    "randn": lambda d: torch.randn(5, device=d),
    "randint": lambda d: torch.randint(9, (5,), device=d),
    "randperm": lambda d: torch.randperm(9, device=d),
    "normal": lambda d: torch.normal(torch.zeros(5, device=d), 2.0),
    "bernoulli": lambda d: torch.full((9,), 0.4, device=d).bernoulli(),
    "bernoulli_": lambda d: torch.empty(9, device=d).bernoulli_(0.3),
    "uniform_": lambda d: torch.empty(9, device=d).uniform_(1, 2),
    "multinomial": lambda d: torch.ones(9, device=d).multinomial(3),
    "exponential_": lambda d: torch.empty(9, device=d).exponential_(),
    "dropout": lambda d: F.dropout(torch.rand(99, device=d), 0.71),
    "dropout2d": lambda d: F.dropout2d(torch.ones(9, 9, 2, 2, device=d), 0.3),
    "alpha_dropout": lambda d: F.alpha_dropout(torch.ones(99, device=d), 0.3, training=True),
    "rrelu": lambda d: F.rrelu(-torch.ones(9, device=d), training=True),
    "weights": lambda d: nn.Conv2d(2, 3, 3, device=d).weight.detach(),
    "orthogonal": lambda d: nn.init.orthogonal_(torch.empty(4, 4, device=d)),
}


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.inference_mode], ids=["grad", "inference"])
@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_are_the_cpu_s(name: str, mode: type) -> None:
    with mode():
        torch.manual_seed(3)
        expected = RANDOM[name](torch.device("cpu"))
        torch.manual_seed(3)
        actual = RANDOM[name](torch.device(ONE))
        assert str(actual.device) == ONE
        assert torch.equal(actual.cpu(), expected)


@pytest.mark.parametrize("p", [0.0, 0.3, 0.71, 1.0])  # the fused kernel rounds otherwise at 0.71
@pytest.mark.parametrize("training", [True, False])
def test_dropout_is_the_cpu_s(p: float, training: bool) -> None:
    x = torch.randn(50, requires_grad=True)
    y = x.detach().to(ONE).requires_grad_()
    for tensor in (x, y):
        torch.manual_seed(0)
        F.dropout(tensor, p, training).square().sum().backward()
    assert x.grad is not None
    assert y.grad is not None
    assert torch.equal(y.grad.cpu(), x.grad)


class Hop(torch.autograd.Function):
    """To the other device forward, and back in backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.home = x.device
        return x.to(TWO)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.to(ctx.home)


def test_a_function_may_move_in_both_directions() -> None:
    x = torch.randn(4)
    y = x.to(ONE).requires_grad_()
    Hop.apply(y).square().sum().backward()
    assert y.grad is not None
    assert y.grad.device == y.device
    assert torch.equal(y.grad.cpu(), 2 * x)


def test_an_unused_output_gives_a_function_zeros() -> None:
    class Two(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
            return x * 2, x * 3

        @staticmethod
        def backward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
            return a + b

    x = torch.ones(3, device=ONE, requires_grad=True)
    Two.apply(x)[0].sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1, 1]


def test_double_backward_across_devices() -> None:
    results = []
    for one, two in (("cpu", "cpu"), (ONE, TWO)):
        x = torch.linspace(0, 1, 5).to(one).requires_grad_()
        (gradient,) = torch.autograd.grad(x.sin().to(two).pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), x)
        results.append(second.cpu())
    assert torch.equal(*results)


def test_hooks_and_retained_gradients() -> None:
    x = torch.ones(3, device=ONE, requires_grad=True)
    y = x * 2
    y.retain_grad()
    seen = []
    y.register_hook(lambda grad: grad * 10)
    x.register_post_accumulate_grad_hook(lambda leaf: seen.append(leaf.grad.tolist()))
    y.sum().backward()
    assert seen == [[20, 20, 20]]
    assert y.grad is not None
    assert y.grad.tolist() == [10, 10, 10]


def test_in_place_on_views_reaches_the_base_and_its_gradient() -> None:
    results = []
    for device in ("cpu", ONE):
        x = torch.arange(6.0, device=device).requires_grad_()
        y = (x * 1).view(2, 3)
        y[0].mul_(3)
        y.t()[1].add_(1)
        (y.square().sum() + y.detach().sum()).backward()
        assert x.grad is not None
        results.append(torch.cat([y.detach().flatten().cpu(), x.grad.cpu()]))
    assert torch.equal(*results)


def test_a_change_behind_autograd_s_back_is_noticed() -> None:
    x = torch.ones(3, device=ONE, requires_grad=True)
    y = x.exp()
    y.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_batch_norm_keeps_running_statistics() -> None:
    plain, there = nn.BatchNorm2d(3), nn.BatchNorm2d(3).to(ONE)
    images = torch.randn(4, 3, 5, 5)
    for module in (plain, there):
        module(images.to(module.weight.device))
        module.eval()(images.to(module.weight.device))
    assert torch.equal(there.running_var.cpu(), plain.running_var)
    assert there.num_batches_tracked.item() == 1


def test_gradients_are_clipped_across_devices() -> None:
    norms = []
    for one, two in (("cpu", "cpu"), (ONE, TWO)):
        parameters = [nn.Parameter(torch.ones(3, device=device)) for device in (one, two)]
        for parameter in parameters:
            parameter.grad = torch.full((3,), 2.0, device=parameter.device)
        norms.append(nn.utils.clip_grad_norm_(parameters, 1.0).cpu())
        norms.append(torch.cat([parameter.grad.cpu() for parameter in parameters if parameter.grad is not None]))
    assert torch.equal(norms[0], norms[2])
    assert torch.equal(norms[1], norms[3])


def test_functional_transforms() -> None:
    x = torch.linspace(0, 1, 4)
    for transform in (torch.func.grad, torch.func.jacrev):
        function = transform(lambda y: (y * y * y).sum())
        assert torch.equal(function(x.to(ONE)).cpu(), function(x))
    assert torch.equal(torch.vmap(torch.sin)(x.to(ONE)).cpu(), torch.vmap(torch.sin)(x))


@pytest.mark.slow  # for what PyTorch imports
@pytest.mark.filterwarnings("ignore::FutureWarning")  # in what it imports
def test_second_derivatives_forward_over_reverse() -> None:
    x = torch.linspace(0, 1, 4)
    hessian = torch.func.hessian(lambda y: (y * y * y).sum())
    assert torch.equal(hessian(x.to(ONE)).cpu(), hessian(x))


def test_zeros_without_memory_are_zeros_with_memory() -> None:
    zeros = torch._efficientzerotensor(3, device=ONE)
    assert not zeros._is_zerotensor()
    assert not zeros._data._is_zerotensor()
    assert zeros.untyped_storage().nbytes() == 12
    assert zeros.add_(1).tolist() == [1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int64, torch.bool, torch.complex64])
def test_dtypes(dtype: torch.dtype) -> None:
    x = torch.tensor([0, 1, 2, 3]).to(dtype)
    y = x.to(ONE)
    assert y.dtype == dtype
    assert torch.equal((y + y).cpu(), x + x)
    assert torch.equal(y.to(TWO, torch.complex128).cpu(), x.to(torch.complex128))


def test_attention_equals_the_cpu_s_to_rounding() -> None:
    query = torch.randn(2, 3, 5, 4)
    expected = F.scaled_dot_product_attention(query, query, query)
    on_device = query.to(ONE)
    actual = F.scaled_dot_product_attention(on_device, on_device, on_device)
    torch.testing.assert_close(actual.cpu(), expected)


def test_recurrent_layers_equal_the_cpu_s_to_rounding() -> None:
    layer, x = nn.LSTM(3, 4, num_layers=2), torch.randn(5, 2, 3)
    with torch.no_grad():  # a graph that is alive would keep the parameters from moving
        expected = layer(x)[0]
    torch.testing.assert_close(layer.to(ONE)(x.to(ONE))[0].cpu(), expected)

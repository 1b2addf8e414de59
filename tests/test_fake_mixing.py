"""No operation takes tensors from two devices: every one says so in CUDA's words, and where it happened."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splitnet.testing import fake_devices  # noqa: F401

X = torch.linspace(0.1, 0.9, 16).reshape(4, 4)
MASK = X > 0.5
INDEX = torch.tensor([0, 1, 2, 3])
IMAGES = torch.linspace(0, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
KERNEL = torch.linspace(-1, 1, 4 * 3 * 3 * 3).reshape(4, 3, 3, 3)

Operation = Callable[[Tensor, Tensor], object]

# Each takes one tensor on each of two devices. Where the second argument needs another value than X, it is made
# from it on its own device.
OPERATIONS: dict[str, tuple[Operation, Tensor, Tensor]] = {
    # arithmetic and comparison
    "add": (torch.add, X, X),
    "sub": (torch.sub, X, X),
    "mul": (torch.mul, X, X),
    "div": (torch.div, X, X),
    "pow": (torch.pow, X, X),
    "fmod": (torch.fmod, X, X),
    "remainder": (torch.remainder, X, X),
    "atan2": (torch.atan2, X, X),
    "maximum": (torch.maximum, X, X),
    "fmin": (torch.fmin, X, X),
    "hypot": (torch.hypot, X, X),
    "logaddexp": (torch.logaddexp, X, X),
    "xlogy": (torch.xlogy, X, X),
    "clamp": (lambda x, y: torch.clamp(x, min=y), X, X),
    "lerp": (lambda x, y: torch.lerp(x, y, 0.5), X, X),
    "addcmul": (lambda x, y: torch.addcmul(x, y, x), X, X),
    "addcdiv": (lambda x, y: torch.addcdiv(x, x, y), X, X),
    "eq": (torch.eq, X, X),
    "lt": (lambda x, y: x < y, X, X),
    "isclose": (torch.isclose, X, X),
    "allclose": (torch.allclose, X, X),
    "equal": (torch.equal, X, X),
    "logical_and": (torch.logical_and, MASK, MASK),
    "bitwise_xor": (lambda x, y: x ^ y, INDEX, INDEX),
    "complex": (torch.complex, X, X),
    "broadcast": (lambda x, y: x + y, X, X[0]),
    # products
    "matmul": (torch.matmul, X, X),
    "mm": (torch.mm, X, X),
    "mv": (torch.mv, X, X[0]),
    "dot": (torch.dot, X[0], X[0]),
    "outer": (torch.outer, X[0], X[0]),
    "bmm": (lambda x, y: torch.bmm(x[None], y[None]), X, X),
    "addmm": (lambda x, y: torch.addmm(x, x, y), X, X),
    "baddbmm": (lambda x, y: torch.baddbmm(x[None], x[None], y[None]), X, X),
    "einsum": (lambda x, y: torch.einsum("ij,kj->ik", x, y), X, X),
    "tensordot": (torch.tensordot, X, X),
    "kron": (torch.kron, X, X),
    "cross": (torch.linalg.cross, X[:3, :3], X[:3, :3]),
    "cdist": (torch.cdist, X, X),
    "dist": (torch.dist, X, X),
    "solve": (lambda x, y: torch.linalg.solve(x + 4 * torch.eye(4, device=x.device), y), X, X),
    # layers
    "conv2d": (F.conv2d, IMAGES, KERNEL),
    "conv2d bias": (lambda x, y: F.conv2d(x, KERNEL.to(x.device), y), IMAGES, X[0]),
    "conv_transpose2d": (lambda x, y: F.conv_transpose2d(x, y.transpose(0, 1)), IMAGES, KERNEL),
    "linear": (F.linear, X, X),
    "linear bias": (lambda x, y: F.linear(x, x, y), X, X[0]),
    "bilinear": (lambda x, y: F.bilinear(x, x, y[None]), X, X),
    "embedding": (F.embedding, INDEX, X),
    "embedding_bag": (lambda i, x: F.embedding_bag(i[None], x), INDEX, X),
    "batch_norm": (lambda x, y: F.batch_norm(x, y[0], y[1], training=True), X, X),
    "layer_norm": (lambda x, y: F.layer_norm(x, (4,), y), X, X[0]),
    "group_norm": (lambda x, y: F.group_norm(x, 2, y), X, X[0]),
    "prelu": (F.prelu, X, X[0]),
    "attention": (lambda q, k: F.scaled_dot_product_attention(q[None], k[None], k[None]), X, X),
    "grid_sample": (lambda x, y: F.grid_sample(x, y.reshape(2, 2, 2, 2), align_corners=False), IMAGES, X),
    "gru": (lambda x, y: nn.GRU(4, 4, device=x.device)(y), X, X),
    # losses
    "cross_entropy": (F.cross_entropy, X, INDEX),
    "nll_loss": (F.nll_loss, X, INDEX),
    "mse_loss": (F.mse_loss, X, X),
    "l1_loss": (F.l1_loss, X, X),
    "smooth_l1_loss": (F.smooth_l1_loss, X, X),
    "huber_loss": (F.huber_loss, X, X),
    "bce": (F.binary_cross_entropy, X, X),
    "bce logits": (F.binary_cross_entropy_with_logits, X, X),
    "kl_div": (lambda x, y: F.kl_div(x, y, reduction="sum"), X, X),
    "cosine_similarity": (F.cosine_similarity, X, X),
    # joining and choosing
    "cat": (lambda x, y: torch.cat([x, y]), X, X),
    "stack": (lambda x, y: torch.stack([x, y]), X, X),
    "vstack": (lambda x, y: torch.vstack([x, y]), X, X),
    "block_diag": (torch.block_diag, X, X),
    "where": (lambda x, y: torch.where(x > 0, x, y), X, X),
    "where mask": (lambda x, m: torch.where(m, x, x), X, MASK),
    "masked_fill": (lambda x, m: x.masked_fill(m, 0.0), X, MASK),
    "masked_select": (torch.masked_select, X, MASK),
    "masked_scatter": (lambda x, y: x.masked_scatter(x > 0, y), X, X),
    "index_select": (lambda x, i: x.index_select(0, i), X, INDEX),
    "index_add": (lambda x, y: x.index_add(0, INDEX.to(x.device), y), X, X),
    "index_copy": (lambda x, i: x.index_copy(0, i, x), X, INDEX),
    "gather": (lambda x, i: x.gather(0, i[None]), X, INDEX),
    "scatter": (lambda x, i: x.scatter(0, i[None], 1.0), X, INDEX),
    "scatter_add": (lambda x, y: x.scatter_add(0, INDEX.to(x.device)[None], y), X, X),
    "take": (torch.take, X, INDEX),
    "put value": (lambda x, y: x.clone().index_put_((INDEX.to(x.device),), y), X, X),
    "repeat_interleave": (lambda x, i: x.repeat_interleave(i, dim=0), X, INDEX),
    "searchsorted": (torch.searchsorted, X[0], X[0]),
    "bucketize": (torch.bucketize, X, X[0]),
    "bincount": (torch.bincount, INDEX, X[0]),
    # in place, and into a result that is there
    "add_": (lambda x, y: x.clone().add_(y), X, X),
    "mul_": (lambda x, y: x.clone().mul_(y), X, X),
    "set_": (lambda x, y: x.clone().set_(y), X, X),
    "masked_fill_": (lambda x, m: x.clone().masked_fill_(m, 0.0), X, MASK),
    "out of add": (lambda x, y: torch.add(x, x, out=y.clone()), X, X),
    "out of matmul": (lambda x, y: torch.matmul(x, x, out=y.clone()), X, X),
    "out of cat": (lambda x, y: torch.cat([x, x], out=torch.cat([y, y])), X, X),
    "foreach": (lambda x, y: torch._foreach_add([x, x], [x, y]), X, X),
}

ONE, TWO, HOST = "fake:0", "fake:1", "cpu"


@pytest.mark.usefixtures("fake_devices")
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("places", [(ONE, TWO), (TWO, ONE), (ONE, HOST), (HOST, ONE)], ids="-".join)
def test_tensors_on_two_devices_are_refused(name: str, places: tuple[str, str]) -> None:
    operation, first, second = OPERATIONS[name]
    with pytest.raises(RuntimeError, match="same device"):
        operation(first.to(places[0]), second.to(places[1]))


@pytest.mark.usefixtures("fake_devices")
@pytest.mark.parametrize("name", OPERATIONS)
def test_on_one_device_the_same_operation_works(name: str) -> None:
    operation, first, second = OPERATIONS[name]
    operation(first.to(ONE), second.to(ONE))


TWO_ON_CPU = torch.tensor(2.0)

# What a GPU takes from the host beside its own tensors: 0-dim tensors where it would take a number, and indices.
ACCEPTED: dict[str, tuple[Operation, Tensor, Tensor]] = {
    "add": (torch.add, X, TWO_ON_CPU),
    "from the left": (lambda x, y: y - x, X, TWO_ON_CPU),
    "mul_": (lambda x, y: x.clone().mul_(y), X, TWO_ON_CPU),
    "where": (lambda x, y: torch.where(x > 0.5, x, y), X, TWO_ON_CPU),
    "masked_fill": (lambda x, y: x.masked_fill(x > 0.5, y), X, TWO_ON_CPU),
    "fill_": (lambda x, y: x.clone().fill_(y), X, TWO_ON_CPU),
    "foreach": (lambda x, y: torch._foreach_mul([x], y)[0], X, TWO_ON_CPU),
    "addcmul value": (lambda x, y: torch.addcmul(x, x, y), X, TWO_ON_CPU),
    "mse_loss": (lambda x, y: torch.ops.aten.mse_loss(x, y), X, TWO_ON_CPU),
    "index": (lambda x, i: x[i], X, INDEX),
    "mask": (lambda x, m: x[m], X, MASK),
    "index and slice": (lambda x, i: x[:, i], X, INDEX),
    "set by index": (lambda x, i: x.clone().index_put_((i,), torch.tensor(1.0)), X, INDEX),
    "view_as": (lambda x, y: x.view_as(y), X, X),
    "expand_as": (lambda x, y: x[:1].expand_as(y), X, X),
}

# 0-dim tensors that a GPU refuses all the same: these kernels are not built for numbers.
NOT_ACCEPTED: dict[str, tuple[Operation, Tensor, Tensor]] = {
    "clamp": (lambda x, y: torch.clamp(x, min=y), X, TWO_ON_CPU),
    "logaddexp": (torch.logaddexp, X, TWO_ON_CPU),
    "stack": (lambda x, y: torch.stack([x[0, 0], y]), X, TWO_ON_CPU),
    "sigmoid_backward": (torch.ops.aten.sigmoid_backward, X, TWO_ON_CPU),
    "take index": (torch.take, X, torch.tensor(0)),
    "in place on the host": (lambda x, y: y.clone().add_(x[0, 0]), X, TWO_ON_CPU),
    "indexed host": (lambda x, y: y.expand(4)[x[0].long()], X, TWO_ON_CPU),
}


@pytest.mark.usefixtures("fake_devices")
@pytest.mark.parametrize("grad", [torch.enable_grad, torch.inference_mode], ids=["grad", "inference"])
@pytest.mark.parametrize("name", ACCEPTED)
def test_the_host_s_numbers_and_indices_are_accepted(name: str, grad: type) -> None:
    operation, first, second = ACCEPTED[name]
    with grad():
        result = operation(first.to(ONE), second)
        assert isinstance(result, Tensor)
        assert str(result.device) == ONE
        assert torch.equal(result.cpu(), operation(first, second))


@pytest.mark.usefixtures("fake_devices")
@pytest.mark.parametrize("name", NOT_ACCEPTED)
def test_other_numbers_of_the_host_are_refused(name: str) -> None:
    operation, first, second = NOT_ACCEPTED[name]
    with pytest.raises(RuntimeError, match="same device"):
        operation(first.to(ONE), second)


@pytest.mark.usefixtures("fake_devices")
def test_a_number_on_another_fake_device_is_refused() -> None:
    with pytest.raises(RuntimeError, match="fake:0 and fake:1"):
        X.to(ONE) + TWO_ON_CPU.to(TWO)


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleList(nn.ModuleDict({"conv3": nn.Conv2d(3, 4, 3, device=d)}) for d in (ONE, TWO))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([tower["conv3"](x) for tower in self.towers])


@pytest.mark.usefixtures("fake_devices")
def test_the_module_where_it_happened_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"fake:0 and fake:1! \(convolution in towers\.1\.conv3 \(Conv2d\)\)"):
        Towers()(IMAGES.to(ONE))


@pytest.mark.usefixtures("fake_devices")
def test_code_of_the_outermost_module_is_named_by_its_class() -> None:
    towers = Towers()
    towers.towers[1]["conv3"].forward = lambda x: x.to(TWO)
    with pytest.raises(RuntimeError, match=r"\(cat in Towers\)"):
        towers(IMAGES.to(ONE))


@pytest.mark.usefixtures("fake_devices")
def test_backward_is_named_by_its_node() -> None:
    class Stray(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:
            return grad + torch.ones(4, 4, device=TWO)

    with pytest.raises(RuntimeError, match=r"same device.*\(add in backward of Stray"):
        Stray.apply(X.to(ONE).requires_grad_()).sum().backward()


@pytest.mark.usefixtures("fake_devices")
def test_gradients_stay_on_their_device() -> None:
    x = X.to(ONE).requires_grad_()
    with pytest.raises(RuntimeError, match="device"):
        x.grad = X.to(TWO)
    with pytest.raises(RuntimeError, match="device"):
        x.grad = X
    with pytest.raises(RuntimeError, match="device"):
        (x * 2).backward(X.to(TWO))

    x.grad = None
    (x * 2).backward(X)  # nothing here meets a tensor on the device, so that nothing can object …
    with pytest.raises(RuntimeError, match="same device"):
        x.grad.mul_(2)  # … before somebody looks at the gradient
    x.grad = None

    class Stray(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:
            return grad.to(TWO)

    with pytest.raises(RuntimeError, match="device"):
        Stray.apply(x).sum().backward()


@pytest.mark.usefixtures("fake_devices")
@pytest.mark.parametrize("make", [torch.optim.SGD, torch.optim.Adam])
def test_an_optimizer_s_state_stays_with_its_parameter(make: type[torch.optim.Optimizer]) -> None:
    x = nn.Parameter(X.to(ONE))
    optimizer = make([x], **({"momentum": 0.9} if make is torch.optim.SGD else {}))
    for _ in range(2):
        x.grad = torch.ones_like(x)
        optimizer.step()
    for state in optimizer.state.values():
        for name in state:
            if isinstance(state[name], Tensor) and state[name].dim():
                state[name] = state[name].to(TWO)
    with pytest.raises(RuntimeError, match="same device"):
        optimizer.step()


@pytest.mark.usefixtures("fake_devices")
def test_the_meta_device_is_no_host() -> None:
    with pytest.raises(RuntimeError, match="fake:0 and meta"):
        X.to(ONE) + torch.zeros((), device="meta")

"""Response norms as operators: x / (k + alpha/n * (sum of n squares around x)) ** beta, and its gradient.

PyTorch's formula passes over the map about ten times in memory, which on a CPU takes longer than the convolution
before it. Here blocks that fit in the cache pass, and the backward computes the sums once more: of the forward only x
is kept. `splitnet::response_norm` and `splitnet::spatial_response_norm` are one operation each to a profiler, to a
compiler and to a device, and so are their gradients (`…_backward`).

Both are one computation on a tensor seen as (rows, *lengths, inner) in the order of its memory: a window runs over
each of the `lengths`. Over channels that is (B*S*S*towers, C/towers, 1) or (B*towers, C/towers, S*S), over places
(B, S, S, C) or (B*C, S, S, 1): channels-last and contiguous. Half precision is computed in float32 and rounded once.
"""

from functools import cache
from importlib.util import find_spec
from math import prod
from shutil import which
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from splitnet.network.architecture import Norm

BLOCK = 1 << 18
"""Numbers in a buffer of a block on a CPU, 1 MiB of float32; elsewhere 64 times as many."""


def response_norm(x: Tensor, norm: Norm, towers: int = 1) -> Tensor:
    """Over channels of (B, C, S, S) [i - size//2, i + (size-1)//2], each of the `towers` parts of C by itself."""
    return torch.ops.splitnet.response_norm(x, norm.size, norm.alpha, norm.beta, norm.k, towers)


def spatial_response_norm(x: Tensor, norm: Norm) -> Tensor:
    """Over size*size places of one channel: "cnorm2" of 2012, which the paper does not mention."""
    return torch.ops.splitnet.spatial_response_norm(x, norm.size, norm.alpha, norm.beta, norm.k)


# The formulas, for tests to compare with.


def reference_response_norm(x: Tensor, norm: Norm, towers: int = 1) -> Tensor:
    """As `response_norm`, in PyTorch's operations."""
    if towers > 1:
        return torch.cat([reference_response_norm(part, norm) for part in x.chunk(towers, dim=1)], dim=1)
    before, behind = norm.size // 2, (norm.size - 1) // 2
    squares = F.pad((x * x).flatten(2).unsqueeze(1), (0, 0, before, behind))  # (B, 1, C + n - 1, S * S)
    # not F.local_response_norm: it pools in three dimensions, which has no deterministic backward on CUDA
    means = F.avg_pool2d(squares, (norm.size, 1), stride=1).view(x.shape)
    return x / (norm.k + norm.alpha * means) ** norm.beta


def reference_spatial_response_norm(x: Tensor, norm: Norm) -> Tensor:
    """As `spatial_response_norm`, in PyTorch's operations."""
    means = F.avg_pool2d(x * x, norm.size, stride=1, padding=norm.size // 2)
    return x / (norm.k + norm.alpha * means[..., : x.shape[2], : x.shape[3]]) ** norm.beta  # even sizes: one too many


# The operators.


@torch.library.custom_op("splitnet::response_norm", mutates_args=())
def _over_channels(x: Tensor, size: int, alpha: float, beta: float, k: float, towers: int) -> Tensor:
    return _run(x, None, Norm(size, alpha, beta, k), towers)


@torch.library.custom_op("splitnet::response_norm_backward", mutates_args=())
def _over_channels_backward(
    grad: Tensor, x: Tensor, size: int, alpha: float, beta: float, k: float, towers: int
) -> Tensor:
    return _run(x, grad, Norm(size, alpha, beta, k), towers)


@torch.library.custom_op("splitnet::spatial_response_norm", mutates_args=())
def _over_places(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    return _run(x, None, Norm(size, alpha, beta, k), None)


@torch.library.custom_op("splitnet::spatial_response_norm_backward", mutates_args=())
def _over_places_backward(grad: Tensor, x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
    return _run(x, grad, Norm(size, alpha, beta, k), None)


def _register(forward: Any, backward: Any) -> None:
    """Tie two operators together, and tell what their results look like."""

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *ctx.numbers = inputs
        ctx.save_for_backward(x)

    def differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return backward(grad, *ctx.saved_tensors, *ctx.numbers), *[None] * len(ctx.numbers)

    def refuse(ctx: Any, grad: Tensor) -> NoReturn:
        raise RuntimeError("response norms can be differentiated once, not twice")

    def like_x(x: Tensor, size: int, alpha: float, beta: float, k: float, towers: int | None = None) -> Tensor:
        return _like(x, size, towers)

    forward.register_autograd(differentiate, setup_context=keep)
    backward.register_autograd(refuse)
    forward.register_fake(like_x)
    backward.register_fake(lambda grad, *rest: like_x(*rest))


_register(_over_channels, _over_channels_backward)
_register(_over_places, _over_places_backward)


def _run(x: Tensor, grad: Tensor | None, norm: Norm, towers: int | None) -> Tensor:
    """The norm of x, or the gradient of x; over places where `towers` is None."""
    result = _like(x, norm.size, towers)
    layout = _layout(x)
    gradient = None if grad is None else _view(grad, layout, towers)
    _best(x.device)(_view(x, layout, towers), gradient, _view(result, layout, towers), norm)
    return result


@cache
def has_triton(device: torch.device) -> bool:
    """Whether Triton can build kernels for a device: the package, a C compiler for its launchers, Volta or later."""
    if device.type != "cuda" or not find_spec("triton"):
        return False
    compilers = map(which, ("gcc", "clang", "cc"))
    return any(compilers) and torch.get_device_module(device).get_device_capability(device) >= (7, 0)


def _best(device: torch.device) -> Any:
    """What fills a result there: kernels in Triton, or blocks."""
    if has_triton(device):
        from splitnet.network.response_norm_kernels import fill

        return fill
    return _blocks


def _like(x: Tensor, size: int, towers: int | None) -> Tensor:
    """An empty tensor for the result, in x's memory format. Refuses what cannot be normed."""
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"a response norm takes floats of (B, C, S, S), not {x.dtype} of {tuple(x.shape)}")
    if size < 1:
        raise ValueError(f"a response norm has a window of at least 1, not {size}")
    if towers is not None and (towers < 1 or x.shape[1] % towers):
        raise ValueError(f"{towers} towers do not divide {x.shape[1]} channels")
    return torch.empty_like(x, memory_format=_layout(x))


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.stride(1) == 1 else torch.contiguous_format


def _view(x: Tensor, layout: torch.memory_format, towers: int | None) -> Tensor:
    """(rows, *lengths, inner); a copy where x is not dense in that layout."""
    B, C, H, W = x.shape
    x, last = x.contiguous(memory_format=layout), layout is torch.channels_last
    x = x.permute(0, 2, 3, 1) if last else x
    if towers is None:
        return x if last else x.view(B * C, H, W, 1)
    return x.view(B * H * W * towers, C // towers, 1) if last else x.view(B * towers, C // towers, H * W)


# On any device, in PyTorch's operations.


def _blocks(x: Tensor, grad: Tensor | None, result: Tensor, norm: Norm) -> None:
    """Fill `result`, as many rows at a time as a block holds.

    With s the sum that x is divided by the power of, and a = alpha/n, the gradient is
    grad * s**-beta - 2*a*beta * x * (sum of grad * x * s**-(beta+1) over the places whose windows hold x).
    """
    sums = _Sums(x, norm.size, backward=grad is not None)
    a = norm.alpha / norm.size ** len(sums.lengths)
    k = x.new_full((), norm.k, dtype=sums.dtype)
    in_place = result.dtype == sums.dtype
    for start in range(0, len(x), sums.rows):
        xs, ys = (t[start : start + sums.rows] for t in (x, result))
        xs = xs.to(sums.dtype)
        torch.mul(xs, xs, out=sums.around(xs))
        total, *free = sums.window()
        s, power, spare = sums.flat(free[0]), sums.flat(free[1]), sums.flat(total)
        torch.add(k, spare, alpha=a, out=s)
        _inverse_power(s, norm.beta, power, spare)
        if grad is None:
            torch.mul(xs, sums.inside(power, xs), out=ys)
            continue
        gs = grad[start : start + sums.rows].to(sums.dtype)
        direct = torch.mul(gs, sums.inside(power, xs), out=ys if in_place else None)
        inner = torch.mul(direct, xs, out=sums.around(xs, mirrored=True))
        inner.div_(sums.inside(s, xs))
        total, *_ = sums.window(mirrored=True)
        torch.addcmul(direct, xs, sums.inside(total, xs), value=-2 * a * norm.beta, out=direct)
        if not in_place:
            ys.copy_(direct)


def _inverse_power(s: Tensor, beta: float, out: Tensor, spare: Tensor) -> None:
    """Fill `out` with s ** -beta: for the 0.75 of all tables not by a general power, which is slow."""
    if beta == 0.75:
        torch.rsqrt(s, out=out)
        out.mul_(torch.sqrt(out, out=spare))
    else:
        torch.pow(s, -beta, out=out)


class _Sums:
    """Sums over windows in a block of rows, by adding the whole block to itself a few places on.

    Zeros between the rows, `size // 2` of them after each row of every length, keep windows from reaching a
    neighbour: one gap serves both. Adding never meets a NaN of another window, as a product with a band would.
    """

    def __init__(self, x: Tensor, size: int, backward: bool) -> None:
        self.size = size
        self.dtype = torch.promote_types(x.dtype, torch.float32)
        rows, *self.lengths, inner = x.shape
        self.padded = [length + size // 2 for length in self.lengths] + [inner]
        block = BLOCK if x.device.type == "cpu" else 64 * BLOCK
        self.rows = max(1, min(rows, block // max(1, prod(self.padded))))
        self.steps = [prod(self.padded[i + 1 :]) for i in range(len(self.lengths))]
        self.count = self.rows * prod(self.padded)
        whole = self.count + (size - 1) * sum(self.steps)
        # windows of even size reach further before than behind, and mirrored the other way: a buffer for each
        self.sources = [x.new_zeros(whole, dtype=self.dtype) for _ in range(1 + backward)]
        self.buffers = [x.new_empty(whole, dtype=self.dtype) for _ in range(3)]

    def around(self, rows: Tensor, mirrored: bool = False) -> Tensor:
        """Where the numbers to be summed go, with zeros around: `window` then leaves sums where `inside` looks."""
        before = ((self.size - 1) // 2 if mirrored else self.size // 2) * sum(self.steps)
        return self.inside(self.sources[mirrored][before:], rows)

    def inside(self, flat: Tensor, rows: Tensor) -> Tensor:
        """A buffer without the gaps, for as many rows as are given (the last block has fewer)."""
        found = self.flat(flat).view(self.rows, *self.padded)[: len(rows)]
        for axis, length in enumerate(self.lengths, 1):
            found = found.narrow(axis, 0, length)
        return found

    def flat(self, buffer: Tensor) -> Tensor:
        return buffer[: self.count]

    def window(self, mirrored: bool = False) -> list[Tensor]:
        """The buffer with the sums (of a window of 1 it is where they were), and those that are free."""
        total = self.sources[mirrored]
        for step in reversed(self.steps):
            total = self._along(step, total)
        return [total, *self._free(total)]

    def _along(self, step: int, source: Tensor) -> Tensor:
        """Sums of `size` numbers `step` apart, by the binary digits of `size`: for 5, 1 + 1, 2 + 2, 4 + 1."""
        total, width, free = source, 1, self._free(source)
        for digit in f"{self.size:b}"[1:]:
            target = free.pop(0)
            _add(total, total[width * step :], target)
            if width > 1:
                free.append(total)
            total, width = target, 2 * width
            if digit == "1":
                _add(total, source[width * step :], total)
                width += 1
        return total

    def _free(self, used: Tensor) -> list[Tensor]:
        return [buffer for buffer in self.buffers if buffer is not used]


def _add(x: Tensor, shifted: Tensor, out: Tensor) -> None:
    torch.add(x[: len(shifted)], shifted, out=out[: len(shifted)])

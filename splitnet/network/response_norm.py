"""Response norms as operators: x / (k + alpha/n * (sum of n squares around x)) ** beta, and its gradient.

PyTorch's formula passes over the map about ten times in memory, which on a CPU takes longer than the convolution
before it. Here blocks that fit in the cache pass, and the backward computes the sums once more: of the forward only x
is kept. `splitnet::response_norm` and `splitnet::spatial_response_norm` are one operation each to a profiler, to a
compiler and to a device, and so are their gradients (`…_backward`).

Both are one computation on a tensor seen as (rows, *lengths, inner) in the order of its memory: a window runs over
each of the `lengths`. Over channels that is (B*S*S*towers, C/towers, 1) or (B*towers, C/towers, S*S), over places
(B, S, S, C) or (B*C, S, S, 1): channels-last and contiguous. Half precision is computed in float32 and rounded once.
"""

import sysconfig
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from math import prod
from pathlib import Path
from shutil import which
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from splitnet.network.architecture import Norm

BLOCK = 1 << 18
"""Numbers in a buffer of a block on a CPU, a MiB of float32; elsewhere 64 times as many. At least a row."""


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
    """Whether Triton can build kernels for a device, Volta or later: there must be all that it builds launchers with.

    That is the package, a C compiler by one of the names it looks for, and Python's headers.
    """
    if device.type != "cuda" or not find_spec("triton"):
        return False
    compiler = which("gcc") or which("clang")
    headers = Path(sysconfig.get_path("include"), "Python.h")
    builds = compiler is not None and headers.is_file()
    return builds and torch.get_device_module(device).get_device_capability(device) >= (7, 0)


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
    grad / s**beta - 2*a*beta * x * (sum of grad * x / s**(beta+1) over the places whose windows hold x).
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    places = norm.size ** (x.dim() - 2)
    a, part = norm.alpha / places, x.new_full((), norm.k / places, dtype=dtype)  # the parts of a window add up to k
    in_place = result.dtype == dtype
    rows = _rows(x, norm.size)
    block = None
    for start in range(0, len(x), rows):
        xs, ys = x[start : start + rows].to(dtype), result[start : start + rows]
        if block is None or block.rows != len(xs):
            block = _Block(xs.shape, norm.size, part)
        torch.addcmul(part, xs, xs, value=a, out=block.squares.around)
        block.squares.add()
        _power(block.s, norm.beta, block.power, block.spare)
        if grad is None:
            torch.div(xs, block.inside_power, out=ys)
            continue
        gs = grad[start : start + rows].to(dtype)
        direct = torch.div(gs, block.inside_power, out=ys if in_place else None)
        torch.mul(direct, xs, out=block.mirrored.around)
        block.mirrored.around.div_(block.inside_s)
        block.mirrored.add()
        torch.addcmul(direct, xs, block.inside_mirrored, value=-2 * a * norm.beta, out=direct)
        if not in_place:
            ys.copy_(direct)


def _power(s: Tensor, beta: float, out: Tensor, spare: Tensor) -> None:
    """Fill `out` with s ** beta: for the 0.75 of all tables not by a general power, which is slow.

    The product of two roots is never larger than s, as that of s and its root would be.
    """
    if beta == 0.75:
        torch.sqrt(s, out=spare)
        torch.sqrt(spare, out=out)
        out.mul_(spare)
    else:
        torch.pow(s, beta, out=out)


def _rows(x: Tensor, size: int) -> int:
    """How many rows a block holds."""
    block = BLOCK if x.device.type == "cpu" else 64 * BLOCK
    return max(1, min(len(x), block // max(1, prod(_padded(x.shape, size)))))


def _padded(shape: Sequence[int], size: int) -> list[int]:
    """(*lengths, inner) of a row, with the gap that follows each length."""
    _, *lengths, inner = shape
    return [length + size // 2 for length in lengths] + [inner]


class _Block:
    """Buffers for a block of rows, and views of them: made once, for thousands of small operations use them.

    Between the rows are gaps, `size // 2` of them after each row of every length, which keep windows from reaching a
    neighbour: one gap serves both. Adding never meets a NaN of another window, as a product with a band would.
    """

    def __init__(self, shape: torch.Size, size: int, part: Tensor) -> None:
        self.rows, *self.lengths, _ = shape
        self.padded = _padded(shape, size)
        self.count = self.rows * prod(self.padded)
        steps = [prod(self.padded[i + 1 :]) for i in range(len(self.lengths))]
        whole = self.count + (size - 1) * sum(steps)
        buffers = [part.new_empty(whole) for _ in range(3)]
        # windows of even size reach further before than behind, and mirrored the other way: a source for each
        self.squares = self._windows(part.expand(whole).clone(), size // 2 * sum(steps), buffers, steps, size)
        self.mirrored = self._windows(part.new_zeros(whole), (size - 1) // 2 * sum(steps), buffers, steps, size)
        power, spare, *_ = (buffer for buffer in buffers if buffer is not self.squares.total)
        self.s, self.power, self.spare = (buffer[: self.count] for buffer in (self.squares.total, power, spare))
        self.inside_s, self.inside_power = self.inside(self.s), self.inside(self.power)
        self.inside_mirrored = self.inside(self.mirrored.total)

    def _windows(
        self, source: Tensor, before: int, buffers: Sequence[Tensor], steps: Sequence[int], size: int
    ) -> "_Windows":
        return _Windows(source, self.inside(source[before:]), buffers, steps, size)

    def inside(self, buffer: Tensor) -> Tensor:
        """A buffer without the gaps."""
        found = buffer[: self.count].view(self.rows, *self.padded)
        for axis, length in enumerate(self.lengths, 1):
            found = found.narrow(axis, 0, length)
        return found


class _Windows:
    """Sums over windows in a source, by adding all of it to itself a few places on: in `total`, where windows begin.

    `around` is where the numbers to be summed go, so that sums stand where a block looks for them.
    """

    def __init__(
        self, source: Tensor, around: Tensor, buffers: Sequence[Tensor], steps: Sequence[int], size: int
    ) -> None:
        self.around, self.buffers = around, buffers
        self.additions: list[tuple[Tensor, Tensor, Tensor]] = []
        self.total = source
        for step in reversed(steps):
            self.total = self._along(step, self.total, size)

    def add(self) -> None:
        """Fill `total`."""
        for x, shifted, out in self.additions:
            torch.add(x, shifted, out=out)

    def _along(self, step: int, source: Tensor, size: int) -> Tensor:
        """Sums of `size` numbers `step` apart, by the binary digits of `size`: for 5, 1 + 1, 2 + 2, 4 + 1."""
        total, width, free = source, 1, [buffer for buffer in self.buffers if buffer is not source]
        for digit in f"{size:b}"[1:]:
            target = free.pop(0)
            self._plan(total, total[width * step :], target)
            if width > 1:
                free.append(total)
            total, width = target, 2 * width
            if digit == "1":
                self._plan(total, source[width * step :], total)
                width += 1
        return total

    def _plan(self, x: Tensor, shifted: Tensor, out: Tensor) -> None:
        self.additions.append((x[: len(shifted)], shifted, out[: len(shifted)]))

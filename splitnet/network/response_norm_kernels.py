"""Response norms on CUDA, in Triton: every place reads its window. No atomics, so the same bits each time.

Tensors are seen as in `response_norm`: (rows, *lengths, inner), a window along each of the lengths. Kernels always have
two of those; the first may be 1.
"""

from math import prod

import torch
import triton
import triton.language as tl
from torch import Tensor

from splitnet.network.architecture import Norm

PLACES = 512
"""Of one program."""


@triton.jit
def window_sum(numbers, at, start, squared, mirrored, L1, step1, size1, L2, step2, size2):  # type: ignore[no-untyped-def]
    """`start`, and the numbers or their squares in the windows of the places `at`, along two lengths."""
    row, column = at // step1 % L1, at // step2 % L2
    for i in tl.static_range(size1):
        for j in tl.static_range(size2):
            down = i - ((size1 - 1) // 2 if mirrored else size1 // 2)
            right = j - ((size2 - 1) // 2 if mirrored else size2 // 2)
            there = (row + down >= 0) & (row + down < L1) & (column + right >= 0) & (column + right < L2)
            value = tl.load(numbers + at + down * step1 + right * step2, mask=there, other=0.0).to(start.dtype)
            start += value * value if squared else value
    return start


@triton.jit  # type: ignore[untyped-decorator]
def scale(  # type: ignore[no-untyped-def]
    top, x, out, inner, n,
    a: tl.constexpr, beta: tl.constexpr, k: tl.constexpr, backward: tl.constexpr,
    dtype: tl.constexpr, places: tl.constexpr,
    L1: tl.constexpr, step1: tl.constexpr, size1: tl.constexpr,
    L2: tl.constexpr, step2: tl.constexpr, size2: tl.constexpr,
):  # fmt: skip
    """Set out = top * s**-beta and, for the backward, inner = out * x / s."""
    at = tl.cast(tl.program_id(0), tl.int64) * places + tl.arange(0, places)
    here = at < n
    at = tl.where(here, at, 0)
    s = k + a * window_sum(x, at, tl.zeros([places], dtype), True, False, L1, step1, size1, L2, step2, size2)
    if beta == 0.75:
        root = tl.rsqrt(s)
        power = root * tl.sqrt(root)
    else:
        power = tl.exp2(-beta * tl.log2(s))
    scaled = tl.load(top + at).to(dtype) * power
    tl.store(out + at, scaled, mask=here)
    if backward:
        tl.store(inner + at, scaled * tl.load(x + at).to(dtype) / s, mask=here)


@triton.jit  # type: ignore[untyped-decorator]
def gather(  # type: ignore[no-untyped-def]
    direct, x, out, inner, n,
    factor: tl.constexpr, dtype: tl.constexpr, places: tl.constexpr,
    L1: tl.constexpr, step1: tl.constexpr, size1: tl.constexpr,
    L2: tl.constexpr, step2: tl.constexpr, size2: tl.constexpr,
):  # fmt: skip
    """Set out = direct + factor * x * (sum of inner over the places whose windows hold this one)."""
    at = tl.cast(tl.program_id(0), tl.int64) * places + tl.arange(0, places)
    here = at < n
    at = tl.where(here, at, 0)
    total = window_sum(inner, at, tl.zeros([places], dtype), False, True, L1, step1, size1, L2, step2, size2)
    found = tl.load(direct + at) + factor * tl.load(x + at).to(dtype) * total
    tl.store(out + at, found, mask=here)


def fill(x: Tensor, grad: Tensor | None, result: Tensor, norm: Norm) -> None:
    """Fill `result` with the norm of x or, with `grad`, with the gradient of x: a kernel, or two."""
    with torch.get_device_module(x.device).device(x.device):  # kernels start on the current device
        launch(x, grad, result, norm)


def launch(x: Tensor, grad: Tensor | None, result: Tensor, norm: Norm) -> None:
    if not x.numel():
        return
    _, *lengths, inner = x.shape
    a, steps = norm.alpha / norm.size ** len(lengths), [prod(lengths[i + 1 :]) * inner for i in range(len(lengths))]
    axes = [number for axis in zip(lengths, steps, strict=True) for number in (*axis, norm.size)]
    wide = torch.promote_types(x.dtype, torch.float32)
    how = tl.float64 if wide is torch.float64 else tl.float32, PLACES, *[1, 1, 1, *axes][-6:]
    grid, n = (-(-x.numel() // PLACES),), x.numel()
    if grad is None:
        scale[grid](x, x, result, result, n, a, norm.beta, norm.k, False, *how)
        return
    direct, products = (torch.empty_like(x, dtype=wide) for _ in range(2))
    scale[grid](grad, x, direct, products, n, a, norm.beta, norm.k, True, *how)
    gather[grid](direct, x, result, products, n, -2 * a * norm.beta, *how)

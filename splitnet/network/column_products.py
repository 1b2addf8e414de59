"""A matrix product by blocks of its inputs, which come one after the other, with one gradient for the whole weight.

    y = x_0 W[:, :n].T + x_1 W[:, n:2n].T + …        x_i (B, n), W (out, blocks * n)

Slices of the weight would have a gradient each, which autograd puts together: of fc6 tens of megabytes written and read
once more, in every step and whatever the batch. Here every block writes its own columns of one gradient.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class ColumnProducts:
    """The products of one weight (out, blocks * n) in one forward pass. Each block is to be asked for once."""

    def __init__(self, weight: Tensor, blocks: int) -> None:
        self.weight, self.blocks = weight, blocks
        self.columns = weight.shape[1] // blocks
        self._gradient: Tensor | None = None
        self._written = 0

    def __call__(self, x: Tensor, block: int, bias: Tensor | None) -> Tensor:
        """(B, n) to (B, out): this block's part of the product, with the bias if there is one."""
        out: Tensor = _ColumnProduct.apply(x, self.weight, bias, self, block)
        return out

    def of(self, weight: Tensor, block: int) -> Tensor:
        """A block's columns."""
        return weight[:, block * self.columns : (block + 1) * self.columns]

    def write(self, block: int, grad: Tensor, x: Tensor) -> Tensor | None:
        """Write a block's columns of the gradient. The last one gets all of it, to hand it on; the others nothing."""
        if self._gradient is None:
            self._gradient = torch.empty_like(self.weight, requires_grad=False)
        torch.mm(grad.t(), x, out=self.of(self._gradient, block))
        self._written += 1
        if self._written < self.blocks:
            return None
        whole, self._gradient, self._written = self._gradient, None, 0
        return whole


class _ColumnProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, products: ColumnProducts, block: int
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.products, ctx.block, ctx.biased = products, block, bias is not None
        return F.linear(x, products.of(weight, block), bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        return (
            grad @ ctx.products.of(weight, ctx.block) if needs_x else None,
            ctx.products.write(ctx.block, grad, x) if needs_weight else None,
            grad.sum(0) if ctx.biased and needs_bias else None,
            None,
            None,
        )

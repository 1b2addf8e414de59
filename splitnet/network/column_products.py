"""A matrix product by blocks of its inputs, which come one after the other, with one gradient for the whole weight.

    y = x_0 W[:, :n].T + x_1 W[:, n:2n].T + …        x_i (B, n), W (out, blocks * n)

Slices of the weight would have a gradient each, which autograd puts together: of fc6 tens of megabytes written and read
once more, in every step and whatever the batch. Here every block writes its own columns of one gradient.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


class ColumnProducts:
    """The products of one weight (out, blocks * n) in one forward pass. Each block is to be asked for once."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self._gradient: Tensor | None = None
        self._written = 0
        self._run = -1  # of the backward pass that it is of

    def __call__(self, x: Tensor, weight: Tensor, block: int, bias: Tensor | None) -> Tensor:
        """(B, n) to (B, out): this block's part of the product, with the bias if there is one."""
        out: Tensor = _ColumnProduct.apply(x, weight, bias, self, block)
        return out

    def of(self, weight: Tensor, block: int) -> Tensor:
        """A block's columns."""
        columns = weight.shape[1] // self.blocks
        return weight[:, block * columns : (block + 1) * columns]

    def write(self, block: int, grad: Tensor, x: Tensor, weight: Tensor) -> Tensor | None:
        """Write a block's columns of the gradient. The last one gets all of it, to hand it on; the others nothing.

        A backward pass that asks for the gradient of the weight comes by every block; one that asks for that of some
        inputs alone may not, and leaves nothing to the next.
        """
        run = torch._C._current_graph_task_id()
        if run != self._run:
            self._gradient, self._written, self._run = None, 0, run
        if self._gradient is None:
            self._gradient = torch.empty_like(weight, requires_grad=False)
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
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grad.to(weight.dtype)  # under autocast the product was of another
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        return (
            grad @ ctx.products.of(weight, ctx.block) if needs_x else None,
            ctx.products.write(ctx.block, grad, x, weight) if needs_weight else None,
            grad.sum(0) if ctx.biased and needs_bias else None,
            None,
            None,
        )

"""One row of the table made a module, for one tower or for all of them in one piece.

Shapes: B images, C channels, S the side of the map. A block's parameters are `weight` and `bias`, as in PyTorch.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splitnet import keyed
from splitnet.network.architecture import Architecture, Op, Row
from splitnet.network.column_products import ColumnProducts
from splitnet.network.execution import Execution
from splitnet.network.response_norm import response_norm, spatial_response_norm


@dataclass(frozen=True, slots=True)
class Moment:
    """When and where in the training a forward pass happens: all that dropout depends on."""

    seed: int = 0
    step: int = 0
    first_image: int = 0
    """Place in the global batch of the first image given."""


@dataclass(frozen=True, slots=True)
class Arriving:
    """All towers' channels, of which so far only one tower's are here."""

    tower: int
    """The tower that reads them."""
    own: Tensor
    """Its own channels."""
    rest: Callable[[], Iterable[tuple[int, Tensor]]]
    """Waits for the others', tower by tower."""


class Block(nn.Module):
    """One row: its product, and what follows.

    `towers` are the towers whose share it holds: one, or all in order (the whole network on one device).
    """

    def __init__(
        self, architecture: Architecture, row: Row, towers: Sequence[int], execution: Execution = Execution()
    ) -> None:
        super().__init__()
        self.row, self.architecture, self.execution = row, architecture, execution
        self.towers = (0,) if row.layer.home else tuple(towers)
        ops = in_order(row.layer.after)
        drops = ops.index("dropout") if "dropout" in ops else len(ops)
        self.ops, self.ops_from_dropout = ops[:drops], ops[drops:]
        self.compute, self.finish = Block._compute, Block._finish
        if execution.compiled:
            self.compute, self.finish = (compiled(part, row.name) for part in (self.compute, self.finish))
        self.place = architecture.layers.index(row.layer)
        out, *inner = row.weight_shape
        out = out * len(self.towers) // row.holders
        self.groups = row.groups if len(self.towers) > 1 else 1
        self.weight = nn.Parameter(torch.empty(out, *inner))
        self.bias = nn.Parameter(torch.empty(out))

    def forward(self, x: Tensor | Arriving, moment: Moment, prepared: bool = False) -> Tensor:
        """`prepared`: x is what `prepare` made."""
        x = self.compute(self, x, prepared) if isinstance(x, Tensor) else self.compute_by_parts(x)
        for op in self.ops_from_dropout:  # never compiled: what is dropped depends on the step
            x = self.drop(x, moment) if op == "dropout" else self.apply_op(op, x)
        return x

    def prepare(self, x: Tensor) -> Tensor:
        """Make of x what the product reads: cast, and padded where PyTorch's convolution cannot."""
        x = x.to(self.execution.activations or self.weight.dtype)
        before, behind = self.row.layer.padding
        return x if before == behind else F.pad(x, (before, behind, before, behind))

    def _compute(self, x: Tensor, prepared: bool) -> Tensor:
        """All but dropout, and what follows it."""
        return self._finish(self.product(x if prepared else self.prepare(x), self.weight, self.bias))

    def compute_by_parts(self, x: Arriving) -> Tensor:
        """The same: a product for each tower's channels, in the order in which they are here, and their sum."""
        part = self._convolutions() if self.row.layer.kernel else self._products()
        y = part(x.own, x.tower, self.bias)
        for tower, channels in x.rest():
            y.add_(part(channels, tower, None))  # no product needs its result for backward
        return self.finish(self, y)

    def _convolutions(self) -> Callable[[Tensor, int, Tensor | None], Tensor]:
        columns = self.weight.chunk(self.row.towers, dim=1)
        return lambda x, tower, bias: self.product(self.prepare(x), columns[tower], bias)

    def _products(self) -> Callable[[Tensor, int, Tensor | None], Tensor]:
        dtype = self.execution.activations or self.weight.dtype
        weight, product = self.weight.to(dtype), ColumnProducts(self.row.towers)

        def part(x: Tensor, tower: int, bias: Tensor | None) -> Tensor:
            return product(x.flatten(1).to(dtype), weight, tower, None if bias is None else bias.to(dtype))

        return part

    def _finish(self, y: Tensor) -> Tensor:
        """What follows the product, up to dropout."""
        for op in self.ops:
            y = self.apply_op(op, y)
        return y

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """A convolution or matrix product of prepared (B, C, S, S), or of whatever flattens to it, in its dtype."""
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
        if not self.row.layer.kernel:
            return self.multiply(x.flatten(1), weight, bias)
        before, behind = self.row.layer.padding
        padding = before if before == behind else 0
        return F.conv2d(x, weight, bias, self.row.layer.stride, padding, groups=self.groups)

    def multiply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(B, in) to (B, out); with groups, each tower's units read their own part of the input."""
        if self.groups == 1:
            return F.linear(x, weight, bias)
        assert bias is not None
        x = x.unflatten(1, (self.groups, -1)).transpose(0, 1)  # (G, B, in/G)
        weight = weight.unflatten(0, (self.groups, -1)).transpose(1, 2)  # (G, in/G, out/G)
        bias = bias.unflatten(0, (self.groups, 1, -1))
        return torch.baddbmm(bias, x, weight).transpose(0, 1).flatten(1)

    def apply_op(self, op: Op, x: Tensor) -> Tensor:
        pool = self.architecture.pool
        match op:
            case "relu":
                return F.relu_(x)  # nothing before it in any table needs its own output for backward
            case "sigmoid":
                return torch.sigmoid(x)
            case "tanh":
                return torch.tanh(x)
            case "norm":
                return self.normalise(x)
            case "cnorm":
                return spatial_response_norm(x, self.architecture.cnorm)
            case "pool":
                return F.max_pool2d(x, pool.kernel, pool.stride, ceil_mode=pool.ceil)
        raise AssertionError(f"{op} needs to know the step")

    def normalise(self, x: Tensor) -> Tensor:
        """Each tower's channels by themselves, unless the table's norm runs across the towers."""
        norm = self.architecture.norm
        return response_norm(x, norm, towers=1 if norm.across_towers else len(self.towers))

    def drop(self, x: Tensor, moment: Moment) -> Tensor:
        chance, in_training = self.architecture.dropout, self.architecture.dropout_scales == "training"
        if not self.training:
            return x if in_training else x * (1 - chance)
        return torch.where(self.kept(x, moment), x * (1 / (1 - chance)) if in_training else x, 0.0)

    def kept(self, x: Tensor, moment: Moment) -> Tensor:
        """Which units of x live: a mask of its shape, each tower's units by their own key."""
        flat = x.flatten(1)
        images = torch.arange(len(x), device=x.device) + moment.first_image
        units = torch.arange(flat.shape[1] // len(self.towers), device=x.device)
        masks = [
            kept_units(images, units, keyed.key(moment.seed, moment.step, self.place, tower), self.architecture.dropout)
            for tower in self.towers
        ]
        return torch.cat(masks, dim=1).view(x.shape) if len(masks) > 1 else masks[0].view(x.shape)


def in_order(after: Sequence[Op]) -> tuple[Op, ...]:
    """The same ops, but a relu in front of a pool comes behind it: they commute, and the pooled map is smaller.

    To the bit, backward included: where the largest of a window is positive, it is that of the rectified window too,
    and elsewhere both give 0 and pass no gradient.
    """
    ops = list(after)
    for i in range(len(ops) - 1):
        if ops[i : i + 2] == ["relu", "pool"]:
            ops[i : i + 2] = ["pool", "relu"]
    return tuple(ops)


def compiled(function: Any, row: str) -> Any:
    """A function compiled by itself: torch.compile counts by code object how often it may, so each row gets its own.

    Not a bound method, which would keep its block alive, and the block it.
    """
    code = function.__code__.replace(co_name=f"{function.__name__.strip('_')}_{row}")
    own = FunctionType(code, function.__globals__, code.co_name, None, function.__closure__)
    return torch.compile(own, dynamic=False)


def kept_units(images: Tensor, units: Tensor, key: int, chance: float) -> Tensor:
    """(B, units) bools, True with probability 1 - chance, by the hash of (key, image, unit)."""
    rows = keyed.mix(keyed.mix(images) ^ key)
    columns = keyed.mix((units + keyed.key(key)) % keyed.RANGE)
    return keyed.mix(rows[:, None] ^ columns[None, :]) >= round(chance * keyed.RANGE)

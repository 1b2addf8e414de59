"""One row of the table made a module, for one tower or for all of them in one piece.

Shapes: B images, C channels, S the side of the map. A block's parameters are `weight` and `bias`, as in PyTorch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from splitnet import keyed
from splitnet.network.architecture import Architecture, Norm, Op, Row


@dataclass(frozen=True, slots=True)
class Moment:
    """When and where in the training a forward pass happens: all that dropout depends on."""

    seed: int = 0
    step: int = 0
    first_image: int = 0
    """Place in the global batch of the first image given."""


class Block(nn.Module):
    """One row: its product, and what follows.

    `towers` are the towers whose share it holds: one, or all in order (the whole network on one device).
    """

    def __init__(self, architecture: Architecture, row: Row, towers: Sequence[int]) -> None:
        super().__init__()
        self.row, self.architecture = row, architecture
        self.towers = (0,) if row.layer.home else tuple(towers)
        self.place = architecture.layers.index(row.layer)
        out, *inner = row.weight_shape
        out = out * len(self.towers) // row.holders
        self.groups = row.groups if len(self.towers) > 1 else 1
        self.weight = nn.Parameter(torch.empty(out, *inner))
        self.bias = nn.Parameter(torch.empty(out))

    def forward(self, x: Tensor, moment: Moment) -> Tensor:
        x = self.convolve(x) if self.row.layer.kernel else self.multiply(x.flatten(1))
        for op in self.row.layer.after:
            x = self.apply_op(op, x, moment)
        return x

    def convolve(self, x: Tensor) -> Tensor:
        layer = self.row.layer
        before, behind = layer.padding
        if before != behind:
            x = F.pad(x, (before, behind, before, behind))
            before = 0
        return F.conv2d(x, self.weight, self.bias, layer.stride, before, groups=self.groups)

    def multiply(self, x: Tensor) -> Tensor:
        """(B, in) to (B, out); with groups, each tower's units read their own part of the input."""
        if self.groups == 1:
            return F.linear(x, self.weight, self.bias)
        x = x.unflatten(1, (self.groups, -1)).transpose(0, 1)  # (G, B, in/G)
        weight = self.weight.unflatten(0, (self.groups, -1)).transpose(1, 2)  # (G, in/G, out/G)
        bias = self.bias.unflatten(0, (self.groups, 1, -1))
        return torch.baddbmm(bias, x, weight).transpose(0, 1).flatten(1)

    def apply_op(self, op: Op, x: Tensor, moment: Moment) -> Tensor:
        pool = self.architecture.pool
        match op:
            case "relu":
                return F.relu_(x)  # nothing before it in any table needs its own output for backward
            case "sigmoid":
                return torch.sigmoid(x)
            case "norm":
                return self.normalise(x)
            case "cnorm":
                return spatial_response_norm(x, self.architecture.cnorm)
            case "pool":
                return F.max_pool2d(x, pool.kernel, pool.stride, ceil_mode=pool.ceil)
            case "dropout":
                return self.drop(x, moment) if self.training else x

    def normalise(self, x: Tensor) -> Tensor:
        """Each tower's channels by themselves, unless the table's norm runs across the towers."""
        norm = self.architecture.norm
        if len(self.towers) == 1 or norm.across_towers:
            return response_norm(x, norm)
        return torch.cat([response_norm(part, norm) for part in x.chunk(len(self.towers), dim=1)], dim=1)

    def drop(self, x: Tensor, moment: Moment) -> Tensor:
        chance = self.architecture.dropout
        return torch.where(self.kept(x, moment), x * (1 / (1 - chance)), 0.0)

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


def kept_units(images: Tensor, units: Tensor, key: int, chance: float) -> Tensor:
    """(B, units) bools, True with probability 1 - chance, by the hash of (key, image, unit)."""
    rows = keyed.mix(keyed.mix(images) ^ key)
    columns = keyed.mix((units + keyed.key(key)) % keyed.RANGE)
    return keyed.mix(rows[:, None] ^ columns[None, :]) >= round(chance * keyed.RANGE)


def response_norm(x: Tensor, norm: Norm) -> Tensor:
    """Return x / (k + alpha/n * (sum of squares over n channels)) ** beta, on (B, C, S, S)."""
    before, behind = norm.size // 2, (norm.size - 1) // 2
    squares = F.pad((x * x).flatten(2).unsqueeze(1), (0, 0, before, behind))  # (B, 1, C + n - 1, S * S)
    # not F.local_response_norm: it pools in three dimensions, which has no deterministic backward on CUDA
    means = F.avg_pool2d(squares, (norm.size, 1), stride=1).view(x.shape)
    return x / (norm.k + norm.alpha * means) ** norm.beta


def spatial_response_norm(x: Tensor, norm: Norm) -> Tensor:
    """The same over n*n places of one channel: "cnorm2" of 2012, which the paper does not mention."""
    squares = F.avg_pool2d(x * x, norm.size, stride=1, padding=norm.size // 2)
    return x / (norm.k + norm.alpha * squares) ** norm.beta

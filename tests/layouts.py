"""Small networks, and a way to run one in every layout."""

import torch
import torch.nn.functional as F

from splitnet.network.architecture import Architecture
from splitnet.network.presets import PRESETS, preset
from splitnet.network.weights import join
from splitnet.parallel.placement import build

SPLIT = tuple(name for name, table in PRESETS.items() if table.divides(2) and name != "caffe")
"""Presets that two towers on two devices can share."""

SIZES = {"lenet": 28}


def small(name: str, towers: int = 2, crosses: str | None = None) -> Architecture:
    """A preset an eighth as wide, on images of 96 pixels, for ten classes."""
    table = preset(name, towers, crosses).adapted(classes=10)
    return table if name == "lenet" else table.scaled(1 / 8, size=96)


def batch(architecture: Architecture, count: int = 6, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (count, C, S, S) of order 100, where response norms show, and labels."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, architecture.channels, architecture.size, architecture.size)
    return 100 * torch.randn(shape, generator=generator, dtype=torch.float64), torch.arange(
        count
    ) % architecture.classes


def run(architecture, devices, dtype=torch.float64, seed=0, count=6):
    """Logits, and every gradient in whole-network shapes, on the CPU, dropout on."""
    net = build(architecture, devices=devices, seed=seed).to(dtype)
    images, labels = batch(architecture, count)
    logits = net(images.to(dtype))
    F.cross_entropy(logits, labels.to(logits.device)).backward()
    shares = [{name: p.grad for name, p in tower.named_parameters()} for tower in net.hosted]
    return logits.detach().cpu(), join(architecture, shares), net


def relative(a, b):
    """Difference over the norm of b."""
    return ((a - b).norm() / b.norm()).item()

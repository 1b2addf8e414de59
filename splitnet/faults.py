"""The mistakes that a split invites, made on purpose: `verify` must find each of them.

The forward pass of most of them looks right: reduce-scatter left out leaves the loss equal to the last bit.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from splitnet.errors import UsageError
from splitnet.network.architecture import Architecture
from splitnet.network.layers import Block
from splitnet.network.towers import SplitNet
from splitnet.parallel.exchange import LocalExchange, Wire

FAULTS = {
    "reduce-scatter": "a tower's gradient counts its own reader only, not the sum over both",
    "swap-halves": "every tower reads its own channels first",
    "lrn-across": "the reference normalises across the seam between the towers",
    "dropout-per-consumer": "the reader of an activation draws its own mask, not the maker",
}


class SplitBackward(LocalExchange):
    """Hands the channels over, but no gradient back."""

    def send(self, xs: list[Tensor], row: str, readers: Sequence[int]) -> dict[tuple[int, int], Tensor]:
        return super().send([x.detach() for x in xs], row, readers)


class OwnFirst(LocalExchange):
    """Puts the reader's own channels in front."""

    def join(self, parts: list[Tensor], row: str, reader: int) -> Tensor:
        return torch.cat([*parts[reader:], *parts[:reader]], dim=1)


class DropoutPerConsumer(LocalExchange):
    """Drops units where they are read: the makers' dropout is switched off, and every reader draws."""

    def __init__(self, devices: Sequence[torch.device], wire: Wire, net: SplitNet) -> None:
        super().__init__(devices, wire=wire)
        self.net = net
        self.before = _dropped_before_crossings(net.architecture)
        for tower in net.hosted:
            for row in self.before.values():
                tower[row].drop = lambda x, moment: x  # type: ignore[assignment]

    def join(self, parts: list[Tensor], row: str, reader: int) -> Tensor:
        if row in self.before:
            parts = [self._dropped(x, row, owner, reader) for owner, x in enumerate(parts)]
        return super().join(parts, row, reader)

    def _dropped(self, x: Tensor, row: str, owner: int, reader: int) -> Tensor:
        block = self.net.hosted[owner][self.before[row]]
        assert isinstance(block, Block)
        moment = self.net.moment if owner == reader else replace(self.net.moment, seed=self.net.moment.seed + 1)
        return Block.drop(block, x, moment)


def _dropped_before_crossings(architecture: Architecture) -> dict[str, str]:
    """Crossing row -> the row in front of it, where that one ends in dropout."""
    rows = architecture.rows()
    pairs = zip(rows[1:], rows, strict=False)
    return {row.name: front.name for row, front in pairs if row.crosses and front.layer.after[-1:] == ("dropout",)}


def check_has_place(fault: str, architecture: Architecture) -> None:
    """UsageError if nothing in this network could go wrong in that way."""
    gathers = [row for row in architecture.rows() if row.crosses and not row.layer.home]
    norms = any("norm" in layer.after for layer in architecture.layers)
    missing = {
        "reduce-scatter": not gathers and "no row that all towers read",
        "swap-halves": not gathers and "no row that all towers read",
        "lrn-across": not norms and "no response norm",
        "dropout-per-consumer": not any(row.name in _dropped_before_crossings(architecture) for row in gathers)
        and "no dropped activation that two towers read",
    }[fault]
    if missing:
        raise UsageError(f"--break {fault}: {architecture.name} has {missing}")


def broken(fault: str, net: SplitNet, devices: Sequence[torch.device]) -> SplitNet:
    """The network with that mistake in its exchange ("lrn-across" is one of the table, not of the exchange)."""
    wire = Wire(net.execution.crosses_as)
    if fault == "reduce-scatter":
        net.exchange = SplitBackward(devices, wire=wire)
    elif fault == "swap-halves":
        net.exchange = OwnFirst(devices, wire=wire)
    elif fault == "dropout-per-consumer":
        net.exchange = DropoutPerConsumer(devices, wire, net)
    return net

"""Data parallelism in one process: the network whole on each of several devices, each on its share of the images.

    forward     replica r reads images [r * n : (r + 1) * n] of the global batch, n = ceil(B / R)
    backward    each has the gradients of its images' part of the global mean loss
    reduce      reduce-scatter: the owner of a piece of the gradients gets the others' and sums; all-gather: all get it

All replicas then hold the same gradients, bit for bit. They are reduced when backward is over, with nothing beside it.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from splitnet import spans
from splitnet.network.architecture import Architecture, Transfer
from splitnet.network.execution import Execution
from splitnet.network.towers import Span, SplitNet
from splitnet.parallel.exchange import Ledger
from splitnet.parallel.placement import Placement, host

GRADIENTS = "gradients"
"""What stands in the ledger in a row's place."""

BUCKET = 25 * 2**20
"""Bytes up to which gradients are collected to be sent together: few copies, and little room beside the gradients."""


def summed_bytes(parameters: int, replicas: int, itemsize: int = 4) -> int:
    """Bytes that all replicas together send to sum their gradients once: R - 1 pieces each way for every gradient."""
    return 2 * (replicas - 1) * parameters * itemsize


class Replicas(nn.Module):
    """Copies of one network, each whole on a device of its own; `nets` hold the same weights."""

    def __init__(self, nets: Sequence[SplitNet], bucket: int = BUCKET) -> None:
        super().__init__()
        self.nets = list(nets)
        self.replicas = nn.ModuleList(self.nets)  # registers them; `nets` keeps their type
        self.architecture = self.nets[0].architecture
        self.rows = self.nets[0].rows
        self.moment = self.nets[0].moment
        self.bucket = bucket
        self.ledger = Ledger()

    def load_whole_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The same weights for every replica. UsageError names the first name or shape that differs."""
        for net in self.nets:
            net.load_whole_state_dict(state)

    def bytes_exchanged(self) -> int:
        """What one step sends in all: R - 1 pieces of every gradient are summed, and R - 1 copies of the sum made."""
        itemsize = next(self.parameters()).element_size()
        return summed_bytes(self.architecture.parameters, len(self.nets), itemsize)

    def divide(self, images: int) -> Iterator[tuple[SplitNet, slice]]:
        """Each replica and its share of a global batch; who gets no image is left out.

        Its moment is set, so that it drops the units that the whole network drops.
        """
        size = -(-images // len(self.nets))
        for net, start in zip(self.nets, range(0, images, size), strict=False):
            net.moment = replace(self.moment, first_image=self.moment.first_image + start)
            yield net, slice(start, min(start + size, images))

    def backward(self, losses: Sequence[Tensor]) -> None:
        """Give every replica the gradients of the sum of these losses, of which each has made one or none."""
        torch.autograd.backward(losses)
        with Span(spans.exchange(GRADIENTS)):
            for bucket in self._buckets():
                self._all_reduce([_flattened(parameters) for parameters in bucket])

    def _buckets(self) -> Iterator[list[list[nn.Parameter]]]:
        """For each replica the same parameters: small ones together in order, large ones by themselves."""
        together: list[list[nn.Parameter]] = [[] for _ in self.nets]
        for same in zip(*(net.parameters() for net in self.nets), strict=True):
            if _bytes(same[:1]) >= self.bucket:
                yield [[parameter] for parameter in same]
                continue
            for own, parameter in zip(together, same, strict=True):
                own.append(parameter)
            if _bytes(together[0]) >= self.bucket:
                yield together
                together = [[] for _ in self.nets]
        if together[0]:
            yield together

    def _all_reduce(self, flats: Sequence[Tensor]) -> None:
        """In place, one flat tensor a replica: each becomes the sum of all, which is made once for each piece."""
        pieces = [flat.tensor_split(len(flats)) for flat in flats]
        received = [
            (own[reader], [self._sent(other[reader], i, reader) for i, other in enumerate(pieces) if i != reader])
            for reader, own in enumerate(pieces)
        ]
        for piece, others in received:
            for other in others:
                piece.add_(other)
        for owner, own in enumerate(pieces):
            for reader, theirs in enumerate(pieces):
                if reader != owner:
                    self._record(own[owner], owner, reader)
                    theirs[owner].copy_(own[owner], non_blocking=True)

    def _sent(self, piece: Tensor, owner: int, reader: int) -> Tensor:
        self._record(piece, owner, reader)
        return piece.to(next(self.nets[reader].parameters()).device, non_blocking=True)

    def _record(self, piece: Tensor, owner: int, reader: int) -> None:
        self.ledger.record(Transfer(GRADIENTS, "backward", owner, reader, _bytes([piece])))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _flattened(parameters: Sequence[nn.Parameter]) -> Tensor:
    """All gradients in one piece, of which they are views from now on; zeros of a replica that had no image."""
    first, *others = parameters
    if not others and first.grad is not None and first.grad.stride() == first.stride():
        return first.grad.as_strided((first.numel(),), (1,))  # a large one is not copied
    flat = first.new_empty(sum(p.numel() for p in parameters))
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        view = part.as_strided(parameter.shape, parameter.stride())  # as the weights lie, which the optimizer wants
        if parameter.grad is None:
            view.zero_()
        else:
            view.copy_(parameter.grad)
        parameter.grad = view
    return flat


def replicate(
    architecture: Architecture, devices: Sequence[torch.device], seed: int, execution: Execution = Execution()
) -> Replicas:
    """The whole network on each of these devices, with PyTorch's own initial weights drawn from `seed`."""
    places = [Placement((device,), "a replica") for device in devices]
    return Replicas([host(architecture, place, seed, execution=execution) for place in places])

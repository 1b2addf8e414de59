"""Crossings under way while the reader computes with what it has: a fork where an activation is made, and its arrival.

    forward     fork: the activation goes out to its readers      arrival: a reader waits for it
    backward    fork: waits for the gradients that come home,     arrival: a reader sends the gradient home
                and adds them to its own tower's

Autograd runs the arrival's backward before that of the reader's own product, because it was reached later, and the
fork's after it: in between, gradients travel while the own product's are computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.profiler import record_function

from splitnet import spans


class Way(Protocol):
    """One exchange that was begun: there, and for the gradients back."""

    row: str

    def arrived(self) -> tuple[Tensor, ...]:
        """Wait for what comes; each tensor is one tower's channels."""

    def begin_return(self, grads: Sequence[Tensor]) -> None:
        """Send each tower the gradient of its channels."""

    def returned(self) -> Tensor:
        """Wait for the gradient that comes home."""


def fork(x: Tensor, ways: Sequence[Way], own: bool = True) -> tuple[Tensor, ...]:
    """The activation for its own tower's row, if `own`; for each way a token that stands for it until it arrives."""
    return _Fork.apply(x, own, *ways)


def arrive(token: Tensor, way: Way) -> tuple[Tensor, ...]:
    """Wait for what `way` brings."""
    with record_function(spans.exchange(way.row)):
        return _Arrive.apply(token, way)


class _Fork(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, own: bool, *ways: Way) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.own, ctx.ways = own, ways
        return tuple(x.view_as(x) for _ in range(own + len(ways)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        total = grads[0] if ctx.own else None
        for way, token in zip(ctx.ways, grads[ctx.own :], strict=True):
            if token is not None:  # else nobody used what arrived
                home = way.returned()
                total = home if total is None else total + home
        return total, None, *(None for _ in ctx.ways)


class _Arrive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, token: Tensor, way: Way) -> tuple[Tensor, ...]:
        ctx.way, ctx.like = way, token.new_empty(())
        ctx.shape = token.shape
        return way.arrived()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.way.begin_return(grads)
        # The gradient itself is under way, where autograd may not touch it: this stands for it.
        return ctx.like.expand(ctx.shape), None


@dataclass(slots=True)
class Copy:
    """A tensor on its way to another device."""

    tensor: Tensor
    event: Any
    """The moment at which it is there; None: it is."""

    def arrived(self) -> Tensor:
        """Let the device's current stream wait for it."""
        if self.event is not None:
            current = torch.get_device_module(self.tensor.device).current_stream(self.tensor.device)
            current.wait_event(self.event)
            self.tensor.record_stream(current)
        return self.tensor


Direction = Literal["out", "in"]


class Lanes:
    """Two streams for copies on each device that has streams, beside the one that computes.

    A copy takes a stream of both devices: with one for each direction, both directions of a link run at once.
    """

    def __init__(self) -> None:
        self._streams: dict[tuple[torch.device, Direction], Any] = {}

    def begin(self, x: Tensor, device: torch.device) -> Copy:
        """Copy x to `device` when the current stream has made it, beside what streams do meanwhile."""
        if x.device == device or "cpu" in (x.device.type, device.type):
            return Copy(x.to(device), None)  # nothing to do, or the host takes part
        here, there = self._stream(x.device, "out"), self._stream(device, "in")
        module = torch.get_device_module(device)
        here.wait_stream(torch.get_device_module(x.device).current_stream(x.device))
        with torch.get_device_module(x.device).stream(here), module.stream(there):
            copy = x.to(device, non_blocking=True)
        x.record_stream(here)  # its memory is not given away before the copy has read it
        return Copy(copy, there.record_event())

    def _stream(self, device: torch.device, direction: Direction) -> Any:
        if (device, direction) not in self._streams:
            self._streams[device, direction] = torch.get_device_module(device).Stream(device)
        return self._streams[device, direction]

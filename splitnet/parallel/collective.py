"""How towers in separate processes hand each other activations: the collectives of torch.distributed.

    method       forward       backward
    all_gather   all_gather    reduce_scatter: sum over the readers, own channels home
    gather       gather        scatter: own channels home

Each process hosts one tower. Its ledger has what this tower sent; the sum over the group is the table's.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import record_function

from splitnet import spans
from splitnet.network.architecture import Phase, Transfer
from splitnet.parallel.exchange import Ledger

Notice = Callable[[str], object]


class LostRankError(RuntimeError):
    """A collective broke off: a process died, hangs or cannot be reached."""


@contextmanager
def carried(what: str, notice: Notice | None = None) -> Iterator[None]:
    """Around a collective: says what is under way, and turns torch.distributed's errors into LostRankError."""
    if notice is not None:
        notice(what)
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # gloo raises it bare, NCCL its subclass DistBackendError
        raise LostRankError(f"{what}: {error}") from error


class CollectiveExchange:
    """One tower in each process of `group`, in the order of its ranks; this process's on `device`.

    `via_host`: what crosses goes through host memory and a CPU backend. `collects`: whether `collect` gathers at all
    (copies of a network need it once). `notice` is told of every collective before it begins.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        device: torch.device,
        *,
        via_host: bool = False,
        collects: bool = True,
        notice: Notice | None = None,
    ) -> None:
        self.group, self.device, self.collects, self.notice = group, device, collects, notice
        self.via_host = via_host and device.type != "cpu"
        self.tower, self.towers = group.rank(), group.size()
        self.ledger = Ledger()

    def replicate(self, images: Tensor) -> list[Tensor]:
        """The images for the tower hosted here; every process has read them for itself."""
        if self.device.type == "cuda" and images.device.type == "cpu":
            images = images.pin_memory()
        return [images.to(self.device, non_blocking=True)]

    def all_gather(self, xs: list[Tensor], row: str) -> list[Tensor]:
        [x] = xs
        return [_AllGather.apply(x, self, row)]

    def gather(self, xs: list[Tensor], row: str) -> Tensor:
        """All channels where tower 0 is; elsewhere a zero, (), by which the backward pass gets there."""
        [x] = xs
        gathered: Tensor = _Gather.apply(x, self, row)
        return gathered

    def collect(self, shares: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]] | None:
        """Every tower's tensors, on the CPU and in order, where tower 0 is; None elsewhere.

        Towers have tensors of the same names and shapes, and tower 0 may have more.
        """
        if not self.collects:
            return None
        [share] = shares
        share = {name: tensor.detach().cpu().contiguous() for name, tensor in share.items()}
        with carried("collecting weights", self.notice):
            names: list[Any] = [None] * self.towers
            dist.all_gather_object(names, list(share), group=self.group)
            everywhere = set(names[0]).intersection(*names)
            found = [share, *({} for _ in range(1, self.towers))] if self.tower == 0 else None
            for name in (name for name in names[0] if name in everywhere):
                parts = [torch.empty_like(share[name]) for _ in range(self.towers)] if found else None
                dist.gather(share[name], parts, group=self.group, group_dst=0)
                for tower, part in zip(found or (), parts or (), strict=True):
                    tower[name] = part
        return found

    # What the autograd functions below are made of: plain tensors in, plain tensors out.

    def gathered_from_all(self, x: Tensor, row: str) -> list[Tensor]:
        with self._collective("all_gather", row, "forward"):
            self._record(row, "forward", x, [reader for reader in range(self.towers) if reader != self.tower])
            x = self._leaving(x)
            parts = [torch.empty_like(x) for _ in range(self.towers)]
            dist.all_gather(parts, x, group=self.group)
            return [self._arrived(part) for part in parts]

    def summed_home(self, parts: Sequence[Tensor], row: str) -> Tensor:
        """The sum over all readers of their gradients for this tower's channels."""
        with self._collective("reduce_scatter", row, "backward"):
            for owner, part in enumerate(parts):
                self._record(row, "backward", part, [owner] if owner != self.tower else [])
            leaving = [self._leaving(part) for part in parts]
            own = torch.empty_like(leaving[0])
            dist.reduce_scatter(own, leaving, group=self.group)
            return self._arrived(own)

    def gathered_home(self, x: Tensor, row: str) -> list[Tensor] | None:
        with self._collective("gather", row, "forward"):
            self._record(row, "forward", x, [0] if self.tower != 0 else [])
            x = self._leaving(x)
            parts = [torch.empty_like(x) for _ in range(self.towers)] if self.tower == 0 else None
            dist.gather(x, parts, group=self.group, group_dst=0)
            return None if parts is None else [self._arrived(part) for part in parts]

    def scattered(self, parts: Sequence[Tensor] | None, own: Tensor, row: str) -> Tensor:
        """Fill `own` with its part of the gradient that tower 0 has."""
        with self._collective("scatter", row, "backward"):
            for owner, part in enumerate(parts or ()):
                self._record(row, "backward", part, [owner] if owner != self.tower else [])
            leaving = None if parts is None else [self._leaving(part) for part in parts]
            own = self._leaving(own)
            dist.scatter(own, leaving, group=self.group, group_src=0)
            return self._arrived(own)

    @contextmanager
    def _collective(self, kind: str, row: str, phase: Phase) -> Iterator[None]:
        """Named in the trace, and its failure named. In the forward pass the network has opened the span."""
        with carried(f"{kind} of {row}", self.notice):
            if phase == "forward":
                yield
            else:
                with record_function(spans.exchange(row)):
                    yield

    def _record(self, row: str, phase: Phase, x: Tensor, targets: Sequence[int]) -> None:
        for target in targets:
            self.ledger.record(Transfer(row, phase, self.tower, target, x.numel() * x.element_size()))

    def _leaving(self, x: Tensor) -> Tensor:
        """In the order of memory, as collectives want it."""
        x = x.contiguous()
        return x.cpu() if self.via_host else x

    def _arrived(self, x: Tensor) -> Tensor:
        return x.to(self.device) if self.via_host else x


def _channels_last(x: Tensor) -> bool:
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _dense(x: Tensor, channels_last: bool) -> Tensor:
    """A map in the order in which it lies in memory, (B, S, S, C) where channels are last; nothing is copied."""
    return x.permute(0, 2, 3, 1) if channels_last else x


def _shaped(x: Tensor, channels_last: bool) -> Tensor:
    return x.permute(0, 3, 1, 2) if channels_last else x


class _AllGather(torch.autograd.Function):
    """All towers' channels, tower 0's first; backward, the sum of what the readers say of this tower's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: CollectiveExchange, row: str) -> Tensor:
        # Backward keeps to the forward pass's order of memory: all readers must send alike, whatever their gradients'.
        ctx.exchange, ctx.row, ctx.last = exchange, row, _channels_last(x)
        parts = exchange.gathered_from_all(_dense(x, ctx.last), row)
        return torch.cat([_shaped(part, ctx.last) for part in parts], dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        parts = [_dense(part, ctx.last) for part in grad.chunk(ctx.exchange.towers, dim=1)]
        return _shaped(ctx.exchange.summed_home(parts, ctx.row), ctx.last), None, None


class _Gather(torch.autograd.Function):
    """All towers' channels where tower 0 is; backward, each its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: CollectiveExchange, row: str) -> Tensor:
        ctx.exchange, ctx.row, ctx.last = exchange, row, _channels_last(x)
        x = _dense(x, ctx.last)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        parts = exchange.gathered_home(x, row)
        return x.new_zeros(()) if parts is None else torch.cat([_shaped(part, ctx.last) for part in parts], dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        exchange: CollectiveExchange = ctx.exchange
        home = exchange.tower == 0
        parts = [_dense(part, ctx.last) for part in grad.chunk(exchange.towers, dim=1)] if home else None
        own = torch.empty(ctx.shape, dtype=ctx.dtype, device=grad.device)
        return _shaped(exchange.scattered(parts, own, ctx.row), ctx.last), None, None

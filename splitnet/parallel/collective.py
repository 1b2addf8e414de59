"""How towers in separate processes hand each other activations: the collectives of torch.distributed.

    method       forward       backward
    all_gather   all_gather    reduce_scatter: sum over the readers, own channels home
    gather       gather        scatter: own channels home

Each process hosts one tower. Its ledger has what this tower sent; the sum over the group is the table's.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import record_function

from splitnet import spans
from splitnet.network.architecture import Phase, Transfer
from splitnet.network.layers import Arriving
from splitnet.parallel.exchange import Ledger, Wire
from splitnet.parallel.overlap import arrive, fork

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
    (copies of a network need it once). `notice` is told of every collective before it begins. `wire`: what crosses is
    cast to that for the way.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        device: torch.device,
        *,
        via_host: bool = False,
        collects: bool = True,
        notice: Notice | None = None,
        wire: Wire = Wire(),
    ) -> None:
        self.group, self.device, self.collects, self.notice = group, device, collects, notice
        self.wire = wire
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

    def begin_all_gather(self, xs: list[Tensor], row: str) -> Sequence[Tensor | Arriving]:
        [x] = xs
        return [self._arriving(x, GatherWay(self, x, row, all_read=True))]

    def begin_gather(self, xs: list[Tensor], row: str) -> Tensor | Arriving:
        """Where tower 0 is; the others have nothing to do meanwhile."""
        [x] = xs
        return self._arriving(x, GatherWay(self, x, row, all_read=False)) if self.tower == 0 else self.gather(xs, row)

    def _arriving(self, x: Tensor, way: "GatherWay") -> Arriving:
        own, token = fork(x, [way])

        def rest() -> Iterator[tuple[int, Tensor]]:
            others = [tower for tower in range(self.towers) if tower != self.tower]
            yield from zip(others, arrive(token, way), strict=True)

        return Arriving(self.tower, own, rest)

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

    def gathered_from_all(self, x: Tensor, row: str, begin: bool = False) -> "UnderWay":
        """Every tower's channels."""
        with self.collective("all_gather", row, "forward"):
            self._record(row, "forward", x, [reader for reader in range(self.towers) if reader != self.tower])
            leaving = self._leaving(x, "forward")
            parts = [torch.empty_like(leaving) for _ in range(self.towers)]
            work = dist.all_gather(parts, leaving, group=self.group, async_op=begin)
            return UnderWay(parts, work, leaving)

    def summed_home(self, parts: Sequence[Tensor], row: str, begin: bool = False) -> "UnderWay":
        """The sum over all readers of their gradients for this tower's channels."""
        with self.collective("reduce_scatter", row, "backward"):
            for owner, part in enumerate(parts):
                self._record(row, "backward", part, [owner] if owner != self.tower else [])
            leaving = [self._leaving(part, "backward") for part in parts]
            own = torch.empty_like(leaving[0])
            work = dist.reduce_scatter(own, leaving, group=self.group, async_op=begin)
            return UnderWay([own], work, leaving)

    def gathered_home(self, x: Tensor, row: str, begin: bool = False) -> "UnderWay":
        """Every tower's channels where tower 0 is; elsewhere nothing."""
        with self.collective("gather", row, "forward"):
            self._record(row, "forward", x, [0] if self.tower != 0 else [])
            leaving = self._leaving(x, "forward")
            parts = [torch.empty_like(leaving) for _ in range(self.towers)] if self.tower == 0 else None
            work = dist.gather(leaving, parts, group=self.group, group_dst=0, async_op=begin)
            return UnderWay(parts or [], work, leaving)

    def scattered(self, parts: Sequence[Tensor] | None, own: Tensor, row: str, begin: bool = False) -> "UnderWay":
        """Fill `own` with its part of the gradient that tower 0 has."""
        with self.collective("scatter", row, "backward"):
            for owner, part in enumerate(parts or ()):
                self._record(row, "backward", part, [owner] if owner != self.tower else [])
            leaving = None if parts is None else [self._leaving(part, "backward") for part in parts]
            own = self._leaving(own, "backward")
            work = dist.scatter(own, leaving, group=self.group, group_src=0, async_op=begin)
            return UnderWay([own], work, leaving)

    def arrived(self, found: "UnderWay", dtype: torch.dtype, phase: Phase) -> list[Tensor]:
        """Wait for what is under way; on this tower's device and in the dtype that it had before."""
        if found.work is not None:
            found.work.wait()
        return [self.wire.arrived(x.to(self.device), dtype, phase) for x in found.tensors]

    def kept_apart(self, grads: list[Tensor]) -> Tensor | None:
        """Its own gradient, where crossing would round it: a zero stays in its place. None where it would not."""
        if self.wire.dtype is None:
            return None
        own, grads[self.tower] = grads[self.tower], torch.zeros_like(grads[self.tower])
        return own

    @contextmanager
    def collective(self, kind: str, row: str, phase: Phase) -> Iterator[None]:
        """Named in the trace, and its failure named. In the forward pass the network has opened the span."""
        with carried(f"{kind} of {row}", self.notice):
            if phase == "forward":
                yield
            else:
                with record_function(spans.exchange(row)):
                    yield

    def _record(self, row: str, phase: Phase, x: Tensor, targets: Sequence[int]) -> None:
        for target in targets:
            self.ledger.record(Transfer(row, phase, self.tower, target, self.wire.bytes(x)))

    def _leaving(self, x: Tensor, phase: Phase) -> Tensor:
        """In the order of memory, as collectives want it."""
        x = self.wire.leaving(x.contiguous(), phase)
        return x.cpu() if self.via_host else x


@dataclass(slots=True)
class UnderWay:
    """A collective that was begun."""

    tensors: list[Tensor]
    """What it fills."""
    work: Any
    """To wait for; None: it is over."""
    leaving: Any
    """What it sends, which must live as long as it may be read."""


class GatherWay:
    """The other towers' channels on their way here, and their gradients back, while this process computes."""

    def __init__(self, exchange: CollectiveExchange, x: Tensor, row: str, all_read: bool) -> None:
        self.exchange, self.row, self.all_read = exchange, row, all_read
        self.last, self.dtype = _channels_last(x), x.dtype
        x = _dense(x.detach(), self.last)
        gather = exchange.gathered_from_all if all_read else exchange.gathered_home
        self.kind = "all_gather" if all_read else "gather"
        self.found: UnderWay | None = gather(x, row, begin=True)

    def _finished(self, kind: str, phase: Phase) -> list[Tensor]:
        assert self.found is not None
        with self.exchange.collective(kind, self.row, phase):
            found, self.found = self.exchange.arrived(self.found, self.dtype, phase), None
        return [_shaped(x, self.last) for x in found]

    def arrived(self) -> tuple[Tensor, ...]:
        parts = self._finished(self.kind, "forward")
        return tuple(part for tower, part in enumerate(parts) if tower != self.exchange.tower)

    def begin_return(self, grads: Sequence[Tensor]) -> None:
        """With a zero in the place of this tower's own gradient, which is not there yet and need not travel."""
        parts = [_dense(grad, self.last) for grad in grads]
        parts.insert(self.exchange.tower, torch.zeros_like(parts[0]))
        if self.all_read:
            self.found = self.exchange.summed_home(parts, self.row, begin=True)
        else:
            self.found = self.exchange.scattered(parts, torch.empty_like(parts[0]), self.row, begin=True)

    def returned(self) -> Tensor:
        [home] = self._finished("reduce_scatter" if self.all_read else "scatter", "backward")
        return home


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
        found = exchange.gathered_from_all(_dense(x, ctx.last), row)
        parts = [_shaped(part, ctx.last) for part in exchange.arrived(found, x.dtype, "forward")]
        parts[exchange.tower] = x  # which did not cross, so it is not cast
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        exchange: CollectiveExchange = ctx.exchange
        parts = [_dense(part, ctx.last) for part in grad.chunk(exchange.towers, dim=1)]
        own = exchange.kept_apart(parts)
        [home] = exchange.arrived(exchange.summed_home(parts, ctx.row), grad.dtype, "backward")
        return _shaped(home if own is None else own + home, ctx.last), None, None


class _Gather(torch.autograd.Function):
    """All towers' channels where tower 0 is; backward, each its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, exchange: CollectiveExchange, row: str) -> Tensor:
        ctx.exchange, ctx.row, ctx.last = exchange, row, _channels_last(x)
        x = _dense(x, ctx.last)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        parts = exchange.arrived(exchange.gathered_home(x, row), x.dtype, "forward")
        if not parts:
            return x.new_zeros(())
        parts[exchange.tower] = x
        return torch.cat([_shaped(part, ctx.last) for part in parts], dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        exchange: CollectiveExchange = ctx.exchange
        home = exchange.tower == 0
        parts = [_dense(part, ctx.last) for part in grad.chunk(exchange.towers, dim=1)] if home else None
        own = None if parts is None else exchange.kept_apart(parts)
        room = torch.empty(ctx.shape, dtype=ctx.dtype, device=grad.device)
        [received] = exchange.arrived(exchange.scattered(parts, room, ctx.row), ctx.dtype, "backward")
        return _shaped(received if own is None else own, ctx.last), None, None

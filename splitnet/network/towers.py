"""The table made into towers, and the one forward pass over those that are hosted here."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from splitnet import spans
from splitnet.network.architecture import Architecture, Phase, Transfer
from splitnet.network.execution import Execution
from splitnet.network.layers import Arriving, Block, Moment
from splitnet.network.weights import chunk, fill, join


class Record(Protocol):
    """What was exchanged so far."""

    def transfers(self) -> tuple[Transfer, ...]: ...
    def bytes(self, row: str | None = None, phase: Phase | None = None) -> int: ...
    def clear(self) -> None: ...


class Exchange(Protocol):
    """How the hosted towers reach the others. One tensor for each hosted tower in and out.

    | method     | forward                           | backward                                    |
    |------------|-----------------------------------|---------------------------------------------|
    | replicate  | the images to every hosted tower  | -                                           |
    | all_gather | every tower gets all channels     | sum over the readers, each its own channels |
    | gather     | tower 0 gets all channels         | each its own channels                       |

    What was gathered is not to be written to: readers on one device may share its memory.
    Where tower 0 is in another process, `gather` gives a zero, (), that carries the backward pass there. The two that
    `begin` return before the others' channels have come, and hand back gradients likewise. `collect` brings tensors by
    name from every tower to where tower 0 is, and gives None elsewhere.
    """

    @property
    def ledger(self) -> Record: ...
    def replicate(self, images: Tensor) -> list[Tensor]: ...
    def all_gather(self, xs: list[Tensor], row: str) -> list[Tensor]: ...
    def gather(self, xs: list[Tensor], row: str) -> Tensor: ...
    def begin_all_gather(self, xs: list[Tensor], row: str) -> Sequence[Tensor | Arriving]: ...
    def begin_gather(self, xs: list[Tensor], row: str) -> Tensor | Arriving: ...
    def collect(self, shares: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]] | None: ...


class Span(record_function):
    """A span in a trace; where a device is full inside it, the error carries the span's name as a note."""

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            error.add_note(self.name)
        super().__exit__(kind, error, trace)


class Tower(nn.ModuleDict):
    """The rows that one tower holds, or all towers in one piece, by name."""

    def __init__(self, architecture: Architecture, towers: Sequence[int], execution: Execution = Execution()) -> None:
        rows = [row for row in architecture.rows() if not row.layer.home or 0 in towers]
        super().__init__({row.name: Block(architecture, row, towers, execution) for row in rows})
        self.indices = tuple(towers)


class SplitNet(nn.Module):
    """The towers hosted here, and the exchange that joins them to the rest."""

    def __init__(
        self,
        architecture: Architecture,
        hosted: Sequence[Tower],
        exchange: Exchange,
        execution: Execution = Execution(),
    ) -> None:
        super().__init__()
        self.architecture, self.execution = architecture, execution
        self.rows = architecture.rows()
        self.hosted = list(hosted)
        self.towers = nn.ModuleList(self.hosted)  # registers them; `hosted` keeps their type
        self.exchange = exchange
        self.moment = Moment()

    @property
    def ledger(self) -> Record:
        """What the towers handed each other since it was cleared."""
        return self.exchange.ledger

    @property
    def home(self) -> bool:
        """Whether tower 0, which has the last row and the loss, is hosted here."""
        return 0 in self.hosted[0].indices

    def forward(self, images: Tensor | list[Tensor]) -> Tensor:
        """Images (B, C, S, S) anywhere, or already one tensor a tower, to logits (B, classes) on tower 0.

        In a process without tower 0, to a zero, (), whose backward pass is the towers'. Logits have the weights' dtype.
        """
        xs = images if isinstance(images, list) else self.exchange.replicate(images)
        *rows, last = self.rows
        for row in rows:
            with Span(spans.row(row.name)):
                if not row.crosses and len(set(map(id, xs))) < len(xs):
                    xs = self._shared(row.name, xs)
                    continue
                read = self._all_gather(xs, row.name) if row.crosses else xs
                del xs  # where nothing is kept for backward, no row holds what those before it read
                xs = [tower[row.name](x, self.moment) for tower, x in zip(self.hosted, read, strict=True)]
                del read
        with Span(spans.row(last.name)):
            x = self._gather(xs, last.name)
            del xs
            if isinstance(x, Tensor) and not self.home:
                return x
            return self.hosted[0][last.name](x, self.moment).to(next(self.parameters()).dtype)

    def _shared(self, row: str, xs: list[Tensor]) -> list[Tensor]:
        """A row whose towers read the same tensor, as those that share a device do of images: it is prepared once."""
        ready: dict[int, Tensor] = {}
        ys = []
        for tower, x in zip(self.hosted, xs, strict=True):
            block = tower[row]
            assert isinstance(block, Block)
            if id(x) not in ready:
                ready[id(x)] = block.prepare(x)
            ys.append(block(ready[id(x)], self.moment, prepared=True))
        return ys

    def _all_gather(self, xs: list[Tensor], row: str) -> Sequence[Tensor | Arriving]:
        with Span(spans.exchange(row)):
            exchange = self.exchange
            return exchange.begin_all_gather(xs, row) if self.execution.overlap else exchange.all_gather(xs, row)

    def _gather(self, xs: list[Tensor], row: str) -> Tensor | Arriving:
        with Span(spans.exchange(row)):
            exchange = self.exchange
            return exchange.begin_gather(xs, row) if self.execution.overlap else exchange.gather(xs, row)

    def whole_state_dict(self) -> dict[str, Tensor]:
        """The whole network's weights on the CPU, by its own names: conv1.weight … fc8.bias.

        Where towers are in several processes, each calls; the first receives, and the others get none.
        """
        shares = self.exchange.collect([dict(tower.named_parameters()) for tower in self.hosted])
        return {} if shares is None else join(self.architecture, shares)

    def load_whole_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take what any layout wrote. UsageError names the first name or shape that differs."""
        for tower in self.hosted:
            fill(tower, chunk(self.architecture, state, tower.indices))

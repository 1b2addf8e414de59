"""The table made into towers, and the one forward pass over those that are hosted here."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from splitnet import spans
from splitnet.network.architecture import Architecture, Phase, Transfer
from splitnet.network.layers import Block, Moment
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
    """

    @property
    def ledger(self) -> Record: ...
    def replicate(self, images: Tensor) -> list[Tensor]: ...
    def all_gather(self, xs: list[Tensor], row: str) -> list[Tensor]: ...
    def gather(self, xs: list[Tensor], row: str) -> Tensor: ...


class Span(record_function):
    """A span in a trace; where a device is full inside it, the error carries the span's name as a note."""

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, torch.OutOfMemoryError):
            error.add_note(self.name)
        super().__exit__(kind, error, trace)


class Tower(nn.ModuleDict):
    """The rows that one tower holds, or all towers in one piece, by name."""

    def __init__(self, architecture: Architecture, towers: Sequence[int]) -> None:
        rows = [row for row in architecture.rows() if not row.layer.home or 0 in towers]
        super().__init__({row.name: Block(architecture, row, towers) for row in rows})
        self.indices = tuple(towers)


class SplitNet(nn.Module):
    """The towers hosted here, and the exchange that joins them to the rest."""

    def __init__(self, architecture: Architecture, hosted: Sequence[Tower], exchange: Exchange) -> None:
        super().__init__()
        self.architecture = architecture
        self.rows = architecture.rows()
        self.hosted = list(hosted)
        self.towers = nn.ModuleList(self.hosted)  # registers them; `hosted` keeps their type
        self.exchange = exchange
        self.moment = Moment()

    @property
    def ledger(self) -> Record:
        """What the towers handed each other since it was cleared."""
        return self.exchange.ledger

    def forward(self, images: Tensor | list[Tensor]) -> Tensor:
        """Images (B, C, S, S) anywhere, or already one tensor a tower, to logits (B, classes) on tower 0."""
        xs = images if isinstance(images, list) else self.exchange.replicate(images)
        *rows, last = self.rows
        for row in rows:
            with Span(spans.row(row.name)):
                if row.crosses:
                    with Span(spans.exchange(row.name)):
                        xs = self.exchange.all_gather(xs, row.name)
                xs = [tower[row.name](x, self.moment) for tower, x in zip(self.hosted, xs, strict=True)]
        with Span(spans.row(last.name)):
            with Span(spans.exchange(last.name)):
                x = self.exchange.gather(xs, last.name)
            logits: Tensor = self.hosted[0][last.name](x, self.moment)
        return logits

    def whole_state_dict(self) -> dict[str, Tensor]:
        """The whole network's weights on the CPU, by its own names: conv1.weight … fc8.bias."""
        return join(self.architecture, [dict(tower.named_parameters()) for tower in self.hosted])

    def load_whole_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take what any layout wrote. UsageError names the first name or shape that differs."""
        for tower in self.hosted:
            fill(tower, chunk(self.architecture, state, tower.indices))

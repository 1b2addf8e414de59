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

    Where tower 0 is in another process, `gather` gives a zero, (), that carries the backward pass there. `collect`
    brings tensors by name from every tower to where tower 0 is, and gives None elsewhere.
    """

    @property
    def ledger(self) -> Record: ...
    def replicate(self, images: Tensor) -> list[Tensor]: ...
    def all_gather(self, xs: list[Tensor], row: str) -> list[Tensor]: ...
    def gather(self, xs: list[Tensor], row: str) -> Tensor: ...
    def collect(self, shares: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]] | None: ...


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

    @property
    def home(self) -> bool:
        """Whether tower 0, which has the last row and the loss, is hosted here."""
        return 0 in self.hosted[0].indices

    def forward(self, images: Tensor | list[Tensor]) -> Tensor:
        """Images (B, C, S, S) anywhere, or already one tensor a tower, to logits (B, classes) on tower 0.

        In a process without tower 0, to a zero, (), whose backward pass is the towers'.
        """
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
            return self.hosted[0][last.name](x, self.moment) if self.home else x

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

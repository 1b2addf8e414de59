"""The same training steps in several layouts, side by side: what a run measures when it is over."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from splitnet.measure.meter import Layout, Memory, Peak, Sample, Spread, alternate, ratio, sizes
from splitnet.network.architecture import Architecture
from splitnet.network.presets import PRESETS
from splitnet.network.weights import fits
from splitnet.parallel.audit import UnknownCopyError
from splitnet.parallel.placement import Placement, host
from splitnet.training.data import Batch
from splitnet.training.loop import training_step
from splitnet.training.optimizer import make_optimizer

WARM_UP = 2
"""Steps thrown away before measuring; the second one is the first with optimizer state, and shows the peak."""


@dataclass(frozen=True, slots=True)
class Training:
    """What all layouts do alike."""

    batches: Sequence[Batch]
    optimizer: str
    lr: float | None
    seed: int
    state: Mapping[str, Tensor] | None = None
    """Weights to start from, where they fit; None draws them."""


@dataclass
class Contender:
    """One layout, with its own network and optimizer, on the same batches as the others."""

    name: str
    architecture: Architecture
    placement: Placement
    training: Training
    outcomes: list[Tensor] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        peak = Peak(self.placement.devices)
        self.net = host(self.architecture, self.placement, self.training.seed)
        if self.training.state is not None and fits(self.architecture, self.training.state):
            self.net.load_whole_state_dict(self.training.state)
        self.optimizer = make_optimizer(self.net.parameters(), self.training.optimizer, self.training.lr)
        for number in range(WARM_UP):
            self.step(number)
        self.memory = {str(d): self._memory(d, bytes_) for d, bytes_ in peak.bytes().items()}

    def step(self, number: int) -> None:
        self.net.moment = replace(self.net.moment, step=number)
        self.outcomes.append(training_step(self.net, self.optimizer, self.training.batches[number]))

    def _memory(self, device: torch.device, peak: int) -> Memory:
        parameters = list(self.net.parameters())
        state = [t for s in self.optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
        gradients = [p.grad for p in parameters if p.grad is not None]
        held = (sizes(tensors).get(device, 0) for tensors in (parameters, gradients, state))
        return Memory(peak, *held)

    def losses(self) -> list[float]:
        return [outcome.tolist()[0] for outcome in self.outcomes]

    def result(self, base: "Contender") -> dict[str, Any]:
        """The layout's column in compare.json."""
        images = len(self.training.batches[0].labels)
        emulated = [s.device for s in self.samples if s.device is not None]
        return {
            "layout": self.name,
            "towers": self.architecture.towers,
            "devices": [str(device) for device in self.placement.devices],
            "parameters": self.architecture.parameters,
            "images_per_second": Spread.of(images / s.wall for s in self.samples),
            "step_ms": Spread.of(1000 * s.wall for s in self.samples),
            "samples": self.samples,
            "device_step_ms": Spread.of(1000 * seconds for seconds in emulated) if emulated else None,
            "ratio": ratio(self.samples, base.samples),
            "memory": {d: {"activations": m.activations} | asdict(m) for d, m in self.memory.items()},
            "exchanged": list(self.exchanged()),
            "loss_differences": self._loss_differences(base),
            "losses": self.losses(),
        }

    def _loss_differences(self, base: "Contender") -> list[float] | None:
        """From the same function's losses, step by step; None against itself and against another function."""
        if self is base or self.architecture != base.architecture:
            return None
        return [abs(a - b) for a, b in zip(self.losses(), base.losses(), strict=True)]

    def exchanged(self) -> Iterator[dict[str, Any]]:
        """Bytes a step for each crossing, measured beside derived."""
        ledger, steps = self.net.ledger, len(self.outcomes)
        expected = () if self.placement.whole else self.architecture.transfers(len(self.training.batches[0].labels))
        for row in dict.fromkeys(t.row for t in expected):
            measured, derived = ledger.bytes(row) / steps, sum(t.bytes for t in expected if t.row == row)
            if measured != derived:
                raise UnknownCopyError(f"{row}: {measured:,} bytes a step were exchanged, the table says {derived:,}")
            yield {"row": row, "measured": measured, "derived": derived}


def contestants(architecture: Architecture, placement: Placement) -> Iterator[tuple[str, Architecture, Placement]]:
    """The run's own layout, the same function whole on its first device, and the dense network there."""
    single = Placement(placement.devices[:1], "the first of the run's devices")
    if not placement.whole:
        yield "towers", architecture, placement
    if architecture.towers > 1:
        yield "whole", architecture, single
    dense = PRESETS.get(architecture.name)
    if dense is not None and dense.divides(1):
        yield "dense", replace(architecture, towers=1), single


def compare(
    architecture: Architecture, placement: Placement, training: Training, rounds: int
) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Says what it does as (text, None), and last ("", the comparison).

    Every layout starts from the same weights and makes the same WARM_UP + rounds steps.
    """
    contenders = []
    for name, table, where in contestants(architecture, placement):
        yield f"warming up: {name}", None
        contenders.append(Contender(name, table, where, training))
    layouts = [Layout(c.name, c.placement.devices, c.step) for c in contenders]
    for number in range(rounds):
        yield f"measuring in alternation: round {number + 1} of {rounds}", None
        samples = alternate(layouts, WARM_UP + number)
        for contender in contenders:
            contender.samples.append(samples[contender.name])
    base = next((c for c in contenders if c.name == "whole"), contenders[0])
    columns = [contender.result(base) for contender in contenders]
    yield "", {"base": base.name, "rounds": rounds, "warm_up": WARM_UP, "layouts": columns}

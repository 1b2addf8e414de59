"""The same training steps in several layouts, side by side: what a run measures when it is over."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import repeat
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from splitnet import spans
from splitnet.fitting import DoesNotFitError, Room
from splitnet.measure.meter import Layout, Memory, OtherLoad, Peak, Sample, Spread, alternate, ratio, sizes
from splitnet.measure.summary import heading
from splitnet.network.architecture import Architecture
from splitnet.network.execution import Execution
from splitnet.network.presets import PRESETS
from splitnet.network.towers import Record, SplitNet
from splitnet.network.weights import Initial, draw, fits
from splitnet.parallel.audit import UnknownCopyError
from splitnet.parallel.exchange import Link
from splitnet.parallel.placement import Placement, host
from splitnet.parallel.replicas import GRADIENTS, Replicas, replicate
from splitnet.training.augment import PLAIN, View
from splitnet.training.data import Batch
from splitnet.training.loop import network_images, training_step
from splitnet.training.optimizer import Update

WAITING = "waiting"
"""The run's own layout without overlap, where the run has it."""

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
    link: Link = "device"
    """What towers use."""
    execution: Execution = Execution()
    update: Update | None = None
    """What `optimizer` and `lr` are said with, where there is more to say."""
    view: View = PLAIN
    """What networks see of images."""
    init: Initial = "pytorch"
    """How weights are drawn."""


@dataclass
class Contender:
    """One layout, with its own network and optimizer, on the same batches as the others.

    It may take `limit` bytes of each device, beside what the others hold there. DoesNotFitError where that is too
    little.
    """

    name: str
    architecture: Architecture
    placement: Placement
    training: Training
    limit: int | None = None
    outcome: Sequence[Tensor] = ()
    """What the last step's loss is the sum of, not yet read."""
    losses: list[float] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.room = Room(self.placement.devices, self.limit)
        with self.room:
            self._warm_up()

    def _warm_up(self) -> None:
        peak = Peak(self.placement.devices)
        self.net = self._network()
        self.view = self.training.view
        if isinstance(self.net, SplitNet):
            self.view = self.view.at(self.net.exchange.replicate, self.architecture.size)
        else:
            self.views = [self.view.at(net.exchange.replicate, self.architecture.size) for net in self.net.nets]
        if self.training.state is not None and fits(self.architecture, self.training.state):
            self.net.load_whole_state_dict(self.training.state)
        elif self.training.init != "pytorch":
            self.net.load_whole_state_dict(draw(self.architecture, self.training.seed, self.training.init))
        update = self.training.update or Update(self.training.optimizer, self.training.lr)
        self.optimizer = update.start(self.net)
        self.room.watch(self.net, self.optimizer)
        for number in range(WARM_UP):
            self.step(number)
            self._keep_loss()
        self.memory = {str(d): self._memory(d, bytes_) for d, bytes_ in peak.bytes().items()}

    def _network(self) -> SplitNet | Replicas:
        if self.name == "replicas":
            return replicate(self.architecture, self.placement.devices, self.training.seed, self.execution)
        return host(self.architecture, self.placement, self.training.seed, self.training.link, self.execution)

    @property
    def execution(self) -> Execution:
        """That of the run, in all but what the layout is there to show."""
        execution = self.training.execution
        return replace(execution, overlap=False) if self.name == WAITING else execution

    def step(self, number: int) -> None:
        batch, self.net.moment = self.training.batches[number], replace(self.net.moment, step=number)
        if isinstance(self.net, Replicas):
            self.outcome = replicated_step(self.net, self.optimizer, batch, self.views, self.drawn)
        else:
            self.outcome = [training_step(self.net, self.optimizer, self.drawn(batch), view=self.view)[0]]

    def drawn(self, batch: Batch) -> Batch:
        """With what chance makes of it, the same in every layout."""
        count = len(batch.labels) if batch.total is None else batch.total
        return replace(batch, drawn=self.view.draw(batch, self.architecture.size, self.training.seed, 0, count))

    def measure(self, number: int) -> None:
        """Make a step, and keep what it cost."""
        with self.room:
            self.samples.append(alternate([Layout(self.name, self.placement.devices, self.step)], number)[self.name])
            self._keep_loss()

    def _keep_loss(self) -> None:
        """Read a step's loss when its time has been taken: reading waits for the device."""
        self.losses.append(sum(part.item() for part in self.outcome))
        self.outcome = ()

    def _memory(self, device: torch.device, peak: int) -> Memory:
        parameters = list(self.net.parameters())
        state = [t for s in self.optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
        gradients = [p.grad for p in parameters if p.grad is not None]
        held = (sizes(tensors).get(device, 0) for tensors in (parameters, gradients, state))
        return Memory(peak, *held)

    def result(self, base: "Contender", ratios: bool) -> dict[str, Any]:
        """The layout's column in compare.json; without `ratios`, its speed is not set against the base's."""
        images = len(self.training.batches[0].labels)
        emulated = [s.device for s in self.samples if s.device is not None]
        exposed = [s.exposed for s in self.samples if s.exposed is not None]
        return self.described() | {
            "images_per_second": Spread.of(images / s.wall for s in self.samples),
            "step_ms": Spread.of(1000 * s.wall for s in self.samples),
            "samples": self.samples,
            "device_step_ms": Spread.of(1000 * seconds for seconds in emulated) if emulated else None,
            "exposed_ms": Spread.of(1000 * seconds for seconds in exposed) if exposed else None,
            "ratio": ratio(self.samples, base.samples) if ratios else None,
            "memory": {d: {"activations": m.activations} | asdict(m) for d, m in self.memory.items()},
            "exchanged": list(self.exchanged()),
            "loss_differences": self._loss_differences(base),
            "losses": self.losses,
        }

    def described(self) -> dict[str, Any]:
        own = described(self.name, self.architecture, list(map(str, self.placement.devices)))
        return own | ({"overlap": True} if self.name == "towers" and self.execution.overlap else {})

    def _loss_differences(self, base: "Contender") -> list[float] | None:
        """From the same function's losses, step by step; None against itself and against another function."""
        if self is base or self.architecture != base.architecture:
            return None
        return [abs(a - b) for a, b in zip(self.losses, base.losses, strict=True)]

    def exchanged(self) -> Iterator[dict[str, Any]]:
        """Bytes a step for each crossing, or for the gradients, measured beside derived."""
        ledger, steps = self._ledger(), len(self.losses)
        for row, derived in self._derived().items():
            measured = ledger.bytes(row) / steps
            if measured != derived:
                raise UnknownCopyError(f"{row}: {measured:,} bytes a step were exchanged, the table says {derived:,}")
            yield {"row": row, "measured": measured, "derived": derived}

    def _ledger(self) -> Record:
        return self.net.ledger

    def _derived(self) -> dict[str, int]:
        if isinstance(self.net, Replicas):
            return {GRADIENTS: self.net.bytes_exchanged()}
        images = len(self.training.batches[0].labels)
        return {} if self.placement.whole else crossings(self.architecture, images, self.execution.itemsize)


def crossings(architecture: Architecture, images: int, itemsize: int = 4) -> dict[str, int]:
    """Bytes that a step exchanges in front of each row, by the table."""
    found: dict[str, int] = {}
    for t in architecture.transfers(images, itemsize):
        found[t.row] = found.get(t.row, 0) + t.bytes
    return found


def replicated_step(
    replicas: Replicas,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    views: Iterable[View] = repeat(PLAIN),
    draw: Callable[[Batch], Batch] = lambda part: part,
) -> list[Tensor]:
    """One update of all replicas on a global batch. Returns the parts of its mean loss; nothing waits.

    `views`: each replica's, with the mean image on its device.
    """
    optimizer.zero_grad(set_to_none=True)
    count, losses = len(batch.labels), []
    for (net, share), view in zip(replicas.divide(count), views, strict=False):
        with record_function(spans.DATA):
            part = replace(batch, images=batch.images[share], labels=batch.labels[share], indices=batch.indices[share])
            drawn = draw(replace(part, first=share.start, total=count)).drawn
            images = network_images(net, part.images, None, view, drawn)
        with record_function(spans.FORWARD):
            logits = net(images)
            labels = part.labels.to(logits.device, non_blocking=True)
            losses.append(F.cross_entropy(logits, labels, reduction="sum") / count)
    with record_function(spans.BACKWARD):
        replicas.backward(losses)
    with record_function(spans.OPTIMIZER):
        optimizer.step()
    return [loss.detach() for loss in losses]


def contestants(
    architecture: Architecture, placement: Placement, overlap: bool = False
) -> Iterator[tuple[str, Architecture, Placement]]:
    """The run's own layout, the same function whole on its first device, and the dense network there.

    Where the run has two devices, also two replicas of the same function: data parallelism, what towers compete with.
    Where its towers overlap, also towers that wait.
    """
    single = Placement(placement.devices[:1], "the first of the run's devices")
    if not placement.whole:
        yield "towers", architecture, placement
        if overlap:
            yield WAITING, architecture, placement
    if architecture.towers > 1:
        yield "whole", architecture, single
    if len(distinct := tuple(dict.fromkeys(placement.devices))) > 1:
        yield "replicas", architecture, Placement(distinct[:2], "the first two of the run's devices")
    dense = PRESETS.get(architecture.name)
    if dense is not None and dense.divides(1):
        yield "dense", replace(architecture, towers=1), single


def described(name: str, architecture: Architecture, devices: Sequence[str]) -> dict[str, Any]:
    """What a column of compare.json says of every layout, whether it fits or not."""
    return {
        "layout": name,
        "towers": architecture.towers,
        "devices": list(devices),
        "parameters": architecture.parameters,
    } | ({"replicas": len(devices)} if name == "replicas" else {})


def compare(
    architecture: Architecture, placement: Placement, training: Training, rounds: int, limit: int | None = None
) -> Iterator[tuple[str, dict[str, Any] | None]]:
    """Says what it does as (text, None), and last ("", the comparison).

    Every layout starts from the same weights and makes the same WARM_UP + rounds steps. One that does not fit in
    `limit` bytes of each device (None: in what is there) is left out, and its column says why; where the whole
    network is, no speed is set against another. DoesNotFitError if no layout fits.
    """
    overlap = training.execution.overlap
    entrants = {name: (name, table, where) for name, table, where in contestants(architecture, placement, overlap)}
    running: dict[str, Contender] = {}
    left_out: dict[str, str] = {}
    for name, entrant in entrants.items():
        _, table, where = entrant
        printed = heading(described(name, table, list(map(str, where.devices))) | {"devices": ()})
        yield f"warming up: {printed}", None
        try:
            running[name] = Contender(*entrant, training, limit)
        except DoesNotFitError as error:
            left_out[name] = str(error)
    beside = OtherLoad()
    for number in range(rounds):
        yield f"measuring in alternation: round {number + 1} of {rounds}", None
        for name, contender in list(running.items()):
            try:
                contender.measure(WARM_UP + number)
            except DoesNotFitError as error:  # on a GPU, free memory may be in pieces that are too small
                left_out[name] = str(error)
                del running[name], contender
    other_load = beside.cores()
    left = {
        name: described(name, table, list(map(str, where.devices))) | {"does_not_fit": left_out[name]}
        for name, table, where in entrants.values()
        if name in left_out
    }
    yield "", concluded(list(entrants), running, left, rounds, other_load)


def concluded(
    order: Sequence[str],
    running: Mapping[str, Contender],
    left_out: Mapping[str, dict[str, Any]],
    rounds: int,
    other_load: float | None,
) -> dict[str, Any]:
    """The comparison as compare.json has it. DoesNotFitError if no layout fits."""
    if not running:
        raise DoesNotFitError(next(iter(left_out.values()))["does_not_fit"])
    base = running.get("whole") or next(iter(running.values()))
    ratios = "whole" not in left_out
    layouts = [left_out[name] if name in left_out else running[name].result(base, ratios) for name in order]
    settings = {"base": base.name, "rounds": rounds, "warm_up": WARM_UP, "other_load": other_load}
    return settings | {"layouts": layouts}

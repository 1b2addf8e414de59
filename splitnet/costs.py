"""A training step on paper: seconds and bytes of each layout, from the table and a machine alone.

An operation takes the longer of its arithmetic and its memory traffic, and at least the machine's `launch` on top:
max(FLOPs / reached FLOP/s, bytes / reached bytes/s) + launch. Assumed:

- FLOPs are those of the products, two a multiply-add: forward once, backward twice (weights and input), but the first
  row's input has no gradient. All else is bound by memory, with the passes of `PASSES`;
- an exchange in front of a row takes latency + bytes / bandwidth, both directions at once, a link for each pair of
  devices, as the fake devices' clocks have it. Nothing else runs beside it but with overlap: then a reader multiplies
  its own tower's channels meanwhile, and exposed is what is longer than that; adding up costs what joining would;
- images come from the host before each step as uint8, and nothing hides that (training fetches ahead, a comparison
  does not);
- tower 0 holds the last row and the loss, and is the last to be done: a step takes its time;
- replicas hold the whole network on ceil(batch / replicas) images. A ring sums gradients: each device sends
  2 (R - 1) / R of their bytes, in 2 (R - 1) rounds a bucket, after backward; with overlap beside backward,
  as DistributedDataParallel does, and exposed is what is longer than all of backward;
- Python, the loss, synchronisation and the loading of images cost nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from splitnet.machines import Machine
from splitnet.network.architecture import Architecture
from splitnet.network.presets import half
from splitnet.peaks import BUCKET, KEPT_FOR_EACH, Footprint, Part, footprint, parts

PASSES = {
    # op: (forward: over its input, over its output), (backward: over its input's gradient, over its output's)
    "relu": ((1, 1), (1, 2)),  # reads and writes; backward reads what it made and the gradient
    "sigmoid": ((1, 1), (1, 2)),
    "tanh": ((1, 1), (1, 2)),
    "norm": ((1, 1), (7, 1)),  # `network.response_norm` on GPUs: backward reads x and the gradient, writes two
    "cnorm": ((1, 1), (7, 1)),  # sums, and reads them and x again; windows are read from a cache
    "pool": ((1, 1), (2, 1)),  # backward clears the gradient, then adds
    "dropout": ((1, 1), (1, 1)),
    "gather": ((1, 1), (1, 2)),  # joins what came; backward adds up what the readers send
}
"""How often an operation goes over its tensors. What it keeps (`peaks.KEPT_FOR_EACH`) is written once and read once."""

HASH = 12
"""Passes of 8 bytes over each unit that a dropout mask's hash takes."""

UPDATE = {"adam": 7, "sgd": 5}
"""Passes of a fused optimizer over 4 bytes a parameter: weight, moments, and weight's and moments' new values."""

PIXEL_PASSES = 13
"""Bytes for each pixel that becomes a float: read 1, write 4, read and write 4 to scale it."""

ITEMSIZE = {"float32": 4, "tf32": 4, "bf16": 2, "float16": 2}
LARGEST_BATCH = 65536


@dataclass(frozen=True, slots=True)
class Step:
    """What is asked of a training step."""

    batch: int
    precision: str = "float32"
    wire: str | None = None
    """What crosses; None: as it is computed."""
    optimizer: str = "sgd"
    pixels: int | None = None
    """Bytes of one image as it comes from the host; None: as the network sees it."""

    @property
    def itemsize(self) -> int:
        """Bytes of an activation."""
        return ITEMSIZE[self.precision]

    @property
    def crossing(self) -> int:
        """Bytes of an activation under way between towers."""
        return ITEMSIZE[self.wire or self.precision]


@dataclass(frozen=True, slots=True)
class Prediction:
    """One layout's step. Times in seconds, of the device that is done last."""

    layout: str
    batch: int
    devices: int
    busy: float
    """Computing."""
    exposed: float
    """Waiting for another device's data."""
    input: float
    """Waiting for images."""
    exchanged: dict[str, int]
    """Bytes that all devices together send each other in a step, by crossing."""
    memory: tuple[Footprint, ...]
    """Device by device."""

    @property
    def seconds(self) -> float:
        return self.busy + self.exposed + self.input

    @property
    def images_per_second(self) -> float:
        return self.batch / self.seconds

    @property
    def bytes(self) -> int:
        return sum(self.exchanged.values())

    @property
    def peak(self) -> int:
        """Bytes on the fullest device."""
        return max(memory.peak for memory in self.memory)

    def as_dict(self) -> dict[str, Any]:
        """For compare.json, beside what was measured."""
        return {
            "step_ms": 1000 * self.seconds,
            "images_per_second": self.images_per_second,
            "busy_ms": 1000 * self.busy,
            "exposed_ms": 1000 * self.exposed,
            "input_ms": 1000 * self.input,
            "exchanged": self.exchanged,
            "peak": [memory.peak for memory in self.memory],
        }


@dataclass(frozen=True, slots=True)
class Work:
    """One operation, or several alike: what it computes and moves."""

    name: str
    """By which a calibrated machine knows its rate."""
    flops: float
    bytes: float
    weights: float = 0.0
    """Bytes of a product's weights, which it reads or writes whatever the batch."""

    def seconds(self, machine: Machine, precision: str = "float32") -> float:
        """On a calibrated machine a product takes what its weights take, and then what its images take."""
        known = machine.measured.get(self.name)
        if not self.flops:
            return self.bytes / (known or machine.bytes_per_second) + machine.launch
        if known is None or precision != "float32":
            return max(self.flops / machine.flops(precision), self.bytes / machine.bytes_per_second) + machine.launch
        fixed = machine.measured.get(f"{self.name}, weights")
        return self.flops / known + (self.weights / fixed if fixed else 0.0) + machine.launch


def products(part: Part, itemsize: int) -> tuple[Work, Work, Work]:
    """A row's product forward, and backward for its weights and for its input."""
    flops, weights = 2 * part.multiply_adds, part.weights
    made = next(part.outputs())[1]
    moved = itemsize * (part.inputs + weights + made)
    cast = 0 if itemsize == 4 else weights * (4 + itemsize)  # float32 weights are read and written smaller, or back
    forward, to_weights, to_input = (f"{part.row.name} {phase}" for phase in ("forward", "weights", "input"))
    return (
        Work(forward, flops, moved + cast, 4 * weights),
        Work(to_weights, flops, moved + cast, 4 * weights),
        Work(to_input, flops, moved, 4 * weights),
    )


def pointwise(part: Part, itemsize: int) -> Iterator[tuple[Work, Work]]:
    """What follows the product, each forward and backward."""
    (_, before), *ops = part.outputs()
    for op, made in ops:
        (into, out), (back_into, back_out) = PASSES[op]
        kept = KEPT_FOR_EACH.get(op, 0) * made + (HASH * 8 * made if op == "dropout" else 0)
        read = KEPT_FOR_EACH.get(op, 0) * made
        forward = itemsize * (into * before + out * made) + kept
        backward = itemsize * (back_into * before + back_out * made) + read
        yield Work(f"{op} forward", 0, forward), Work(f"{op} backward", 0, backward)
        before = made


def predict(
    layout: str, architecture: Architecture, step: Step, machine: Machine, devices: int, overlap: bool = False
) -> Prediction:
    """One layout: "towers" (on as many devices), "replicas" (whole on each of `devices`), or whole on one device."""
    towers, replicas = layout == "towers", devices if layout == "replicas" else 1
    tower = 0 if towers else None
    images = -(-step.batch // replicas)
    held = parts(architecture, images, tower)
    item = step.itemsize
    backward = exposed = 0.0
    busy = _seconds(machine, [Work("images", 0, PIXEL_PASSES * images * architecture.channels * architecture.size**2)])
    for part in held:
        forward, *gradients = products(part, item)
        if part is held[0]:
            gradients.pop()
        there, back = (_seconds(machine, works, step.precision) for works in ([forward], gradients))
        ops = [work for pair in pointwise(part, item) for work in pair]
        if part.gathers:
            size = step.crossing * part.row.floats_sent * images
            own = [phase / architecture.towers if overlap else 0.0 for phase in (there, back)]
            crossing = machine.transfer(size, answered=not part.row.layer.home)
            exposed += sum(max(0.0, crossing - beside) for beside in own)
            passes = sum(sum(phase) for phase in PASSES["gather"])
            ops.append(Work("gather", 0, item * passes * part.inputs))
        backward += back
        busy += there + back + _seconds(machine, ops)
    parameters = 4 * sum(part.parameters for part in held)
    busy += _seconds(machine, [Work(step.optimizer, 0, UPDATE[step.optimizer] * parameters)])
    if replicas > 1:
        busy += _seconds(machine, [Work("gather", 0, 3 * parameters * (replicas - 1) / replicas)])
        exposed = max(0.0, _ring(machine, parameters, replicas) - (backward if overlap else 0.0))
    tower_list = range(architecture.towers) if towers else [None] * replicas
    pixels = images * (step.pixels or architecture.channels * architecture.size**2)
    return Prediction(
        layout,
        step.batch,
        len(tower_list),
        busy,
        exposed,
        machine.latency + pixels / machine.host_bytes_per_second,
        _exchanged(architecture, step, towers, replicas, parameters),
        tuple(
            footprint(architecture, images, step.optimizer, item, which, towers and overlap, replicas)
            for which in tower_list
        ),
    )


def _seconds(machine: Machine, works: Sequence[Work], precision: str = "float32") -> float:
    return sum(work.seconds(machine, precision) for work in works)


def _ring(machine: Machine, nbytes: int, replicas: int) -> float:
    """Seconds of an all-reduce."""
    rounds = 2 * (replicas - 1) * max(1, nbytes // BUCKET)
    return rounds * machine.latency + 2 * (replicas - 1) / replicas * nbytes / machine.link_bytes_per_second


def _exchanged(architecture: Architecture, step: Step, towers: bool, replicas: int, nbytes: int) -> dict[str, int]:
    if replicas > 1:
        return {"gradients": 2 * (replicas - 1) * nbytes}
    found: dict[str, int] = {}
    for transfer in architecture.transfers(step.batch, step.crossing) if towers else ():
        found[transfer.row] = found.get(transfer.row, 0) + transfer.bytes
    return found


def layouts(architecture: Architecture, replicas: int | None = None) -> dict[str, tuple[Architecture, int]]:
    """Every layout that there is of a table, by `comparison`'s names, and "half": the half network on one device.

    With the table that each of them computes, and its devices.
    """
    towers, found = architecture.towers, {}
    if towers > 1 and not architecture.norm.across_towers:
        found["towers"] = (architecture, towers)
    found["whole" if towers > 1 else "dense"] = (architecture, 1)
    found["replicas"] = (architecture, replicas or max(2, towers))
    if towers > 1 and architecture.divides(1):
        found["dense"] = (replace(architecture, towers=1), 1)
    if architecture.divides(1) and architecture.divides(2):
        found["half"] = (half(architecture), 1)
    return found


def predicted(
    architecture: Architecture, step: Step, machine: Machine, overlap: bool = False, replicas: int | None = None
) -> dict[str, Prediction]:
    """Every layout's step, by its name. UsageError if the machine does not compute in that precision."""
    machine.flops(step.precision)
    return {
        layout: predict(layout, table, step, machine, devices, overlap)
        for layout, (table, devices) in layouts(architecture, replicas).items()
    }


def crossover(architecture: Architecture, step: Step, machine: Machine, overlap: bool = False) -> int | None:
    """The smallest batch at which as many replicas are at least as fast as the towers; None up to LARGEST_BATCH.

    What towers exchange grows with the batch, what replicas exchange does not. Only batches that replicas share equally
    are looked at: one image more is a whole image more for one of them, and for all that wait for it.
    """
    count = architecture.towers

    def beaten(share: int) -> bool:
        at = replace(step, batch=count * share)
        towers = predict("towers", architecture, at, machine, count, overlap)
        return predict("replicas", architecture, at, machine, count, overlap).seconds <= towers.seconds

    share = _first(beaten, LARGEST_BATCH // count)
    return None if share is None else count * share


def largest_batches(architecture: Architecture, step: Step, memory: float, overlap: bool = False) -> dict[str, int]:
    """The largest batch of every layout, by its name, whose step fits `memory` bytes of each device; 0 if none does."""
    return {
        layout: largest_batch(table, step, memory, layout == "towers", overlap, devices if layout == "replicas" else 1)
        for layout, (table, devices) in layouts(architecture).items()
    }


def largest_batch(
    architecture: Architecture, step: Step, memory: float, towers: bool, overlap: bool = False, replicas: int = 1
) -> int:
    """That of one layout."""

    def too_large(batch: int) -> bool:
        which = range(architecture.towers) if towers else [None]
        images, item = -(-batch // replicas), step.itemsize
        held = (footprint(architecture, images, step.optimizer, item, w, overlap and towers, replicas) for w in which)
        return any(footprint.peak > memory for footprint in held)

    first = _first(too_large, LARGEST_BATCH)
    return LARGEST_BATCH if first is None else first - 1


def _first(holds: Callable[[int], bool], most: int) -> int | None:
    """The smallest number, up to `most`, from which something holds, by bisection."""
    if not holds(most):
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high

"""Memory on paper: what a device holds at the peak of a training step, from the table alone.

A step is followed tensor by tensor, forward and backward, as autograd keeps and frees them. Assumed:

- tensors alone: no context, workspace of kernels, or fragmentation, which a GPU has on top;
- relu is in place; a response norm is one operation that keeps its input alone; a pool keeps its input and 8 bytes for
  each output (where the maximum was), dropout 1 byte (what lives); a product keeps its input and, where activations are
  not float32, its cast weights;
- gradients are made in backward and freed before the next forward pass; weights, their gradients and optimizer state
  are float32;
- with overlap the gradient of a crossing convolution's weights is put together from a part for each tower's channels;
- replicas sum gradients when backward is over: one bucket at a time, whose pieces of the others stand beside it, and
  small gradients are put together in a bucket first.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from splitnet.network.architecture import Architecture, Row

STATE = {"adam": 2, "sgd": 1}
"""float32 numbers that the optimizer keeps for each parameter: two moments, one momentum."""

IN_PLACE = {"relu"}
SAVES_INPUT = {"product", "norm", "cnorm", "pool"}
SAVES_OUTPUT = {"relu", "sigmoid", "tanh"}
KEPT_FOR_EACH = {"pool": 8, "dropout": 1}
"""Bytes that an operation keeps for each number that it makes, beside the numbers."""


BUCKET = 25 * 2**20
"""Bytes of gradients that replicas sum together (`parallel.replicas.BUCKET`)."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one device has of a row, for its images."""

    row: Row
    images: int
    tower: int | None
    """None: all towers in one piece."""

    @property
    def share(self) -> float:
        """Of the row's channels: all of them, or one tower's."""
        return 1.0 if self.tower is None else 1 / self.row.holders

    @property
    def gathers(self) -> bool:
        return self.tower is not None and self.row.crosses

    @property
    def weights(self) -> int:
        return int(prod(self.row.weight_shape) * self.share)

    @property
    def parameters(self) -> int:
        return self.row.parameters if self.tower is None else self.row.parameters_on(self.tower)

    @property
    def multiply_adds(self) -> float:
        return self.row.multiply_adds * self.share * self.images

    @property
    def inputs(self) -> float:
        """Numbers that the product reads."""
        reads = self.row.channels if self.tower is None or self.row.groups == 1 else self.row.reads
        return reads * self.row.side**2 * self.images

    def outputs(self) -> Iterator[tuple[str, float]]:
        """("product", numbers that it makes), then each op; a relu in front of a pool comes behind it."""
        ops = list(self.row.outputs)
        for i in range(len(ops) - 1):
            (before, _), (behind, side) = ops[i : i + 2]
            if (before, behind) == ("relu", "pool"):  # they commute, and the pooled map is smaller
                ops[i : i + 2] = [("pool", side), ("relu", side)]
        for op, side in ops:
            yield op, self.row.layer.out * self.share * side**2 * self.images


def parts(architecture: Architecture, images: int, tower: int | None = None) -> list[Part]:
    """The rows of a device: of one tower, or of all in one piece."""
    rows = architecture.rows()
    return [Part(row, images, tower) for row in rows if not (tower and row.layer.home)]


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes on one device at the peak of a step, as `measure.meter.Memory` has them measured."""

    peak: int
    parameters: int
    gradients: int
    optimizer: int

    @property
    def activations(self) -> int:
        """The rest: what is kept for backward, and what is under way."""
        return self.peak - self.parameters - self.gradients - self.optimizer


@dataclass(slots=True)
class _Op:
    """One operation: bytes that it reads, makes and keeps."""

    name: str
    reads: float
    makes: float
    keeps: float
    frees_input: bool
    """Nobody needs its input for backward."""
    frees: float = 0.0
    """What its backward frees."""
    gradient: float = 0.0
    """Of its weights."""
    first: bool = False
    """Its input has no gradient."""
    parts: float = 0.0
    """Its weights' gradient once more: what it is put together from."""


def footprint(
    architecture: Architecture,
    images: int,
    optimizer: str = "sgd",
    itemsize: int = 4,
    tower: int | None = None,
    overlap: bool = False,
    replicas: int = 1,
) -> Footprint:
    """What a device with one tower holds, or with all towers in one piece, which may be one of several replicas."""
    held = parts(architecture, images, tower)
    parameters = 4 * sum(part.parameters for part in held)
    state = STATE[optimizer] * parameters
    ops = _operations(architecture, held, itemsize, overlap)
    pixels = architecture.channels * architecture.size**2 * images
    live: float = parameters + state + (4 + (itemsize if itemsize != 4 else 0)) * pixels
    peak = live + 4 * pixels
    for op in ops:
        live += op.makes + op.keeps
        peak = max(peak, live)
        live -= op.reads if op.frees_input else 0.0
    if ops[0].name == "pad":
        live -= itemsize * pixels  # the forward pass is over, and only the padded ones are needed
    flow = ops[-1].makes
    live += flow
    for op in reversed(ops):
        back = 0.0 if op.first else op.reads
        live += back + op.gradient
        peak = max(peak, live)
        live -= flow + op.frees
        peak = max(peak, live - back + op.parts)  # by then what the others sent has been answered
        flow = back
    summing = _summing(held, replicas) if replicas > 1 else 0.0
    return Footprint(int(max(peak, 2 * parameters + state + summing)), parameters, parameters, state)


def _summing(held: list[Part], replicas: int) -> float:
    """Bytes beside the gradients while they are summed, in the buckets of `parallel.replicas`."""
    most = together = 0.0
    for numbers in (n for part in held for n in (part.weights, part.parameters - part.weights)):
        size = 4.0 * numbers
        if size >= BUCKET:
            most = max(most, size * (replicas - 1) / replicas)
            continue
        together += size
        most = max(most, together)  # put together while all of its gradients are still there
        together = 0.0 if together >= BUCKET else together
    return most


def _operations(architecture: Architecture, held: list[Part], itemsize: int, overlap: bool) -> list[_Op]:
    """All of a device's operations in the order of the forward pass."""
    found: list[_Op] = []
    saved = True  # the images are kept
    size: float = architecture.channels * architecture.size**2 * held[0].images * itemsize
    for part in held:
        before, behind = part.row.layer.padding
        copies = []
        if part.gathers:
            copies.append("gather")
        if before != behind:
            copies.append("pad")
        if part.row.layer.kernel is None and part.row.side > 1:
            copies.append("flatten")  # maps lie channels last, weights channels first
        for name in copies:
            padded = (part.row.side + before + behind) ** 2 / part.row.side**2 if name == "pad" else 1
            makes = part.inputs * itemsize * padded
            # its backward frees what the copy's reader has kept: the copy itself, which stands with the product
            found.append(_Op(name, size, makes, 0.0, frees_input=not saved, first=not found))
            saved, size = False, makes
        for op, numbers in part.outputs():
            made = 0.0 if op in IN_PLACE else numbers * itemsize
            needless = not saved and op not in SAVES_INPUT | IN_PLACE
            entry = _Op(op, size, made, KEPT_FOR_EACH.get(op, 0) * numbers, needless)
            if op == "product":
                entry.gradient, entry.first = 4.0 * part.parameters, part is held[0]
                entry.keeps = part.weights * itemsize if itemsize != 4 else 0.0
                entry.parts = 4.0 * part.weights if overlap and part.gathers and part.row.layer.kernel else 0.0
            entry.frees = entry.keeps
            if op in SAVES_INPUT and not saved:
                entry.frees += size  # it was the only one to keep its input
            if op in SAVES_OUTPUT:
                entry.frees += numbers * itemsize
            found.append(entry)
            saved, size = op in SAVES_OUTPUT, numbers * itemsize
    return found

"""What each network is: one row a layer, and the sizes that follow. Integers only.

A table says everything: `crosses` marks the rows that read every tower's channels, so it is all there
is to know about communication; `after` is the order of what follows a product. Sizes are of the whole
network; tower i of G holds chunk i of every row, except that a `home` row is tower 0's alone.
Where a figure or an order comes from is said in `presets`.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import Any, Literal, Self

from splitnet.errors import UsageError

Op = Literal["relu", "sigmoid", "tanh", "norm", "cnorm", "pool", "dropout"]
Phase = Literal["forward", "backward"]


@dataclass(frozen=True, slots=True)
class Layer:
    """One row of a table, in sizes of the whole network."""

    name: str
    out: int
    """Channels, or units, over all towers."""
    kernel: int | None = None
    """Side of the square kernel; None makes the row fully connected."""
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    """Zeros before (left and top) and behind (right and bottom) the map."""
    after: tuple[Op, ...] = ("relu",)
    """What follows the product, in order."""
    crosses: bool = False
    """Reads the channels of every tower, not only its own."""
    home: bool = False
    """Held by tower 0 whole, and so reads every tower; the last row of every table."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Max pooling; `ceil` lets the last window overhang the map, as in cuda-convnet."""

    kernel: int = 3
    stride: int = 2
    ceil: bool = False

    def side(self, side: int) -> int:
        """Side of the pooled map; 0 or less if the map is smaller than the window."""
        steps = side - self.kernel
        return (-(-steps // self.stride) if self.ceil else steps // self.stride) + 1


@dataclass(frozen=True, slots=True)
class Norm:
    """Response norm: x / (k + alpha / n * (sum of n squares around x)) ** beta.

    n is `size` channels for "norm" and size*size places for "cnorm"; both are clipped at the edges.
    """

    size: int
    alpha: float
    beta: float
    k: float
    across_towers: bool = False
    """The window runs over all towers' channels (Caffe), not over one tower's."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """One tensor handed from a tower to another, and what it weighs."""

    row: str
    phase: Phase
    source: int
    target: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Row:
    """A layer with the sizes that its table implies for one image."""

    layer: Layer
    towers: int
    groups: int
    """1 where every kernel reads all channels, else the number of towers."""
    channels: int
    """Channels of the map that the row reads, over all towers."""
    side: int
    """Side of the square map that the row reads; 1 once flattened."""
    outputs: tuple[tuple[str, int], ...]
    """What the row makes, in order: ("product", side), then each op with the side it leaves."""

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def crosses(self) -> bool:
        """Whether something is exchanged in front of this row."""
        return self.towers > 1 and (self.layer.crosses or self.layer.home)

    @property
    def holders(self) -> int:
        """How many towers share the row."""
        return 1 if self.layer.home else self.towers

    @property
    def reads(self) -> int:
        """Channels that one kernel reads."""
        return self.channels // self.groups

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Of the whole network: (out, in / groups, k, k), or (out, in / groups) with inputs flattened."""
        if self.layer.kernel:
            return (self.layer.out, self.reads, self.layer.kernel, self.layer.kernel)
        return (self.layer.out, self.reads * self.side**2)

    @property
    def parameters(self) -> int:
        return prod(self.weight_shape) + self.layer.out

    def parameters_on(self, tower: int) -> int:
        if self.layer.home and tower > 0:
            return 0
        return self.parameters // self.holders

    @property
    def multiply_adds(self) -> int:
        """For one image, over all towers."""
        _, product_side = self.outputs[0]
        return prod(self.weight_shape) * product_side**2

    @property
    def activations(self) -> int:
        """Numbers in everything the row makes for one image, over all towers, each op in its own buffer."""
        return sum(self.layer.out * side**2 for _, side in self.outputs)

    @property
    def floats_sent(self) -> int:
        """What one tower hands to one other in front of this row, for one image."""
        return self.channels // self.towers * self.side**2 if self.crosses else 0

    def transfers(self, batch: int, itemsize: int = 4) -> Iterator[Transfer]:
        """Both phases; forward towards the tower that reads, backward home again."""
        size = batch * itemsize * self.floats_sent
        readers = range(self.holders if size else 0)
        for reader in readers:
            for owner in range(self.towers):
                if owner != reader:
                    yield Transfer(self.name, "forward", owner, reader, size)
                    yield Transfer(self.name, "backward", reader, owner, size)


@dataclass(frozen=True, slots=True)
class Architecture:
    """A table, and how many towers share it."""

    name: str
    layers: tuple[Layer, ...]
    channels: int = 3
    size: int = 224
    """Side of the square image."""
    towers: int = 1
    counts: tuple[int, ...] | None = None
    """Numbers of towers that this network exists with; None: any that divide its rows."""
    why_counts: str = ""
    pool: Pool = Pool()
    norm: Norm = Norm(5, alpha=1e-4, beta=0.75, k=2.0)
    cnorm: Norm = Norm(5, alpha=1e-3, beta=0.75, k=1.0)
    dropout: float = 0.5
    """Chance that a unit is dropped while training."""
    dropout_scales: Literal["training", "testing"] = "training"
    """When the others are made up for it: living units times 1 / (1 - dropout) while training, as PyTorch does, or all
    units times 1 - dropout in tests, as in 2012 ("hs"), for whose initial weights it matters."""
    pixels: Literal["0..1", "0..255 minus mean"] = "0..1"
    """The scale of images on which the network was meant to learn."""

    def rows(self) -> tuple[Row, ...]:
        """Follow one image through the table. UsageError names the row that cannot be."""
        found: list[Row] = []
        channels, side = self.channels, self.size
        for layer in self.layers:
            row = self._row(layer, channels, side, first=not found)
            found.append(row)
            channels, side = layer.out, row.outputs[-1][1]
        return tuple(found)

    def _row(self, layer: Layer, channels: int, side: int, first: bool) -> Row:
        if not layer.home and layer.out % self.towers:
            fits = ", ".join(str(n) for n in range(1, 9) if self.divides(n))
            raise UsageError(
                f"--towers {self.towers}: {layer.name} has {layer.out} channels,"
                f" which {self.towers} towers do not divide ({self.name} takes {fits})"
            )
        whole = first or layer.crosses or layer.home
        groups = 1 if whole else self.towers
        return Row(layer, self.towers, groups, channels, side, tuple(self._outputs(layer, side)))

    def _outputs(self, layer: Layer, side: int) -> Iterator[tuple[str, int]]:
        side = (side + sum(layer.padding) - layer.kernel) // layer.stride + 1 if layer.kernel else 1
        for op in ("product", *layer.after):
            if op == "pool":
                side = self.pool.side(side)
            if side < 1:
                raise UsageError(
                    f"images of side {self.size} are too small for {self.name}: {layer.name} reads past them"
                )
            yield op, side

    def divides(self, towers: int) -> bool:
        """Whether that many towers can share every row."""
        fits = all(layer.home or layer.out % towers == 0 for layer in self.layers)
        return fits and (self.counts is None or towers in self.counts)

    @property
    def classes(self) -> int:
        return self.layers[-1].out

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows())

    def parameters_on(self, tower: int) -> int:
        return sum(row.parameters_on(tower) for row in self.rows())

    @property
    def multiply_adds(self) -> int:
        """For one image, forward."""
        return sum(row.multiply_adds for row in self.rows())

    @property
    def activation_bytes(self) -> int:
        """For one image in float32, forward, over all towers, each op in its own buffer."""
        return 4 * sum(row.activations for row in self.rows())

    def transfers(self, batch: int, itemsize: int = 4) -> tuple[Transfer, ...]:
        """All that one training step may exchange: the ledger that it must leave."""
        return tuple(t for row in self.rows() for t in row.transfers(batch, itemsize))

    def bytes_exchanged(self, batch: int, phase: Phase | None = None, itemsize: int = 4) -> int:
        """What crosses between towers in one training step, or in one phase of it."""
        transfers = self.transfers(batch, itemsize)
        return sum(t.bytes for t in transfers if phase in (None, t.phase))

    # Variants: each returns another table.

    def split(self, towers: int) -> Self:
        """The same table shared by that many towers."""
        if towers < 1:
            raise UsageError(f"--towers {towers}: at least 1")
        if self.counts is not None and towers not in self.counts:
            raise UsageError(f"--towers {towers}: {self.why_counts}")
        variant = replace(self, towers=towers)
        variant.rows()
        return variant

    def crossing(self, names: Iterable[str]) -> Self:
        """Exactly these rows read every tower, and the last, which always does."""
        names = list(names)
        may = [layer.name for layer in self.layers[1:]]
        for name in names:
            if name not in may:
                reason = "reads the images, which every tower has" if name == self.layers[0].name else "is no row of"
                raise UsageError(
                    f"--crosses {name}: {name} {reason}"
                    f"{'' if name == self.layers[0].name else ' ' + self.name} (rows that can cross: {', '.join(may)})"
                )
        layers = (replace(layer, crosses=layer.home or layer.name in names) for layer in self.layers)
        return replace(self, layers=tuple(layers))

    def without(self, *ops: Op) -> Self:
        """The table without these ops: "norm" stands for both response norms."""
        gone = {*ops, *(("cnorm",) if "norm" in ops else ())}
        layers = (replace(row, after=tuple(op for op in row.after if op not in gone)) for row in self.layers)
        return replace(self, layers=tuple(layers))

    def replacing(self, op: Op, other: Op) -> Self:
        """The table with another op wherever this one stands: `replacing("relu", "tanh")`."""
        layers = (replace(row, after=tuple(other if o == op else o for o in row.after)) for row in self.layers)
        return replace(self, layers=tuple(layers))

    def adapted(self, channels: int | None = None, classes: int | None = None) -> Self:
        """The table for images of other channels, or for other classes."""
        *rows, last = self.layers
        last = replace(last, out=last.out if classes is None else classes)
        return replace(self, channels=self.channels if channels is None else channels, layers=(*rows, last))

    def scaled(self, width: float | Fraction, size: int | None = None) -> Self:
        """Every row but the last `width` times as wide, on images of `size`; for tests and small machines.

        Widths are rounded to a multiple of the number of towers.
        """
        *rows, last = self.layers
        narrow = (replace(row, out=self._scaled_out(row.out, width)) for row in rows)
        return replace(self, layers=(*narrow, last), size=self.size if size is None else size)

    def _scaled_out(self, out: int, width: float | Fraction) -> int:
        return max(1, round(out * width / self.towers)) * self.towers

    def changed(self, name: str, **rows: dict[str, Any]) -> Self:
        """A table of another name in which these rows differ: `changed("x", conv2={"out": 320})`."""
        layers = (replace(layer, **rows.get(layer.name, {})) for layer in self.layers)
        return replace(self, name=name, layers=tuple(layers))

"""Claim: the two large fully connected layers bring nearly 1 GB of parameters.

    python experiments/fully_connected.py [--scale 1] [--threads 2]

Source: the textbook, 5.6, of its network for Fashion-MNIST, with 6,400 inputs and 4,096 units in either of them (fc6
and fc7 here). Measured on fake devices, after a training step: bytes of the parameters, the gradients and the
optimizer's state of the fully connected rows, fc8 included, in float32; what their tensors hold, together with the
other rows', must be what the devices say is allocated. "Nearly 1 GB" is taken for 0.9 to 1.0 * 10^9 bytes. Exact: one
seed is as good as many.
Expected: parameters alone are far from it (0.17 GB); with gradients and Adam's two states 0.69 GB; the network of 2012,
with 9,216 inputs and 1,000 classes, has 0.94 GB of all four. On two devices each holds about half.
"""

import gc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from conduct import Table, prepare, write
from results_file import RESULTS, ResultsFile
from setting import fraction

from splitnet.errors import UsageError
from splitnet.measure.meter import sizes
from splitnet.network.architecture import Architecture
from splitnet.network.presets import preset
from splitnet.options import check_bounds, guarded, option, parse
from splitnet.parallel import fake
from splitnet.parallel.placement import host, place
from splitnet.training.data import Batch
from splitnet.training.loop import training_step
from splitnet.training.optimizer import Update

NEARLY = (0.9, 1.0)
NETWORKS = {
    "textbook's (fashion, dense)": ("fashion", 1),
    "2012's, dense (alexnet, 1,000 classes)": ("alexnet", 1),
    "textbook's in two towers": ("fashion", 2),
    "2012's two towers": ("alexnet", 2),
}
OPTIMIZERS = ("adam", "sgd")


@dataclass(frozen=True, kw_only=True)
class Options:
    scale: str = option("1", "width of every row but the last")
    threads: int | None = option(None, "CPU threads")
    out: Path | None = option(None, "the folder that gets the results (experiments/results)")

    def __post_init__(self) -> None:
        check_bounds(self, {"threads": (1, 1024)})
        fraction(self.scale)


@dataclass(frozen=True, slots=True)
class Held:
    """Bytes that the fully connected rows hold on a device after a training step."""

    network: str
    optimizer: str
    device: str
    parameters: int
    gradients: int
    state: int
    """The optimizer's."""

    @property
    def sums(self) -> list[float]:
        """GB of the parameters, with the gradients, and with the optimizer's state."""
        return [total / 1e9 for total in accumulate((self.parameters, self.gradients, self.state))]


def measured(name: str, table: Architecture, optimizer: str) -> Iterator[Held]:
    """Device by device. RuntimeError if the device has something else allocated than the network and its optimizer."""
    gc.collect()  # a network measured before, if it is still there, must not go between the two looks at the devices
    placement = place(table, [f"fake:{i}" for i in range(table.towers)])
    before = {device: torch.get_device_module(device).memory_allocated(device) for device in placement.devices}
    net = host(table, placement, seed=0).train()
    update = Update(optimizer).start(net)
    images = torch.zeros(2, table.channels, table.size, table.size, dtype=torch.uint8)
    training_step(net, update, Batch(images, torch.zeros(2, dtype=torch.int64), torch.arange(2)))
    connected = [row.name for row in table.rows() if not row.layer.kernel]
    for tower, device in zip(net.hosted, placement.devices, strict=True):
        held, every = [0] * 3, 0
        for row, parameter in tower.named_parameters():
            kinds = ([parameter], [parameter.grad], update.state[parameter].values())
            for kind, tensors in enumerate(kinds):
                size = sizes(t for t in tensors if isinstance(t, torch.Tensor)).get(device, 0)
                every += size
                held[kind] += size * (row.partition(".")[0] in connected)
        allocated = torch.get_device_module(device).memory_allocated(device) - before[device]
        if allocated != every:
            raise RuntimeError(f"{device}: {allocated:,} bytes are allocated, {every:,} are the network's")
        yield Held(name, optimizer, str(device), *held)


def judged(held: Held, what: int, text: str) -> dict[str, Any]:
    """A claim's record: whether a sum is nearly 1 GB."""
    value, (least, most) = held.sums[what], NEARLY
    return {
        "claim": text,
        "source": "textbook, 5.6",
        "published": "nearly 1 GB",
        "what": f"{held.network}, fully connected rows",
        "figure": f"{value:.3f} GB (exact, n 1)",
        "mean": value,
        "low": None,
        "high": None,
        "n": 1,
        "values": [value],
        "unit": "GB",
        "ratio": False,
        "level": True,
        "bound": least,
        "verdict": "shown" if least <= value <= most else "the opposite",
        "comparable": "The same layers; the book does not say what it counted, and its network is the first one here.",
    }


def claims(found: Sequence[Held]) -> list[dict[str, Any]]:
    adam = {held.network: held for held in found if held.optimizer == "adam"}
    book, dense, *_ = (adam[name] for name in NETWORKS)
    return [
        judged(book, 0, "parameters of the textbook's fully connected layers are nearly 1 GB"),
        judged(book, 2, "with gradients and Adam's state the textbook's are nearly 1 GB"),
        judged(dense, 0, "parameters of 2012's fully connected layers are nearly 1 GB"),
        judged(dense, 2, "with gradients and Adam's state 2012's are nearly 1 GB"),
    ]


def table_of(found: Sequence[Held]) -> Table:
    headings = ("GB, fully connected rows", "optimizer", "device", *("parameters", "+ gradients", "+ its state"))
    rows = [(h.network, h.optimizer, h.device, *(f"{total:.3f}" for total in h.sums)) for h in found]
    return Table("Bytes of the fully connected rows, added up", headings, rows)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse(Options, "experiments/fully_connected.py", __doc__ or "", argv)
    prepare(options.threads)
    fake.install(2)
    path = (options.out or RESULTS) / "fully_connected.json"
    with ResultsFile.open(path, "fully_connected") as file:
        settings, before = {"scale": options.scale}, file.content.get("settings")
        if before not in (None, settings):
            raise UsageError(f"{path}: is of --scale {before['scale']}, not {options.scale}; --out keeps both")
        found: list[Held] = []
        for name, (which, towers) in NETWORKS.items():
            table = preset(which, towers).scaled(fraction(options.scale))
            for optimizer in OPTIMIZERS:
                found += measured(name, table, optimizer)
        records, table_ = claims(found), table_of(found)
        print("\n".join(table_.lines()))
        print("\n".join(f"{r['verdict']}: {r['claim']}: {r['what']}: {r['figure']}" for r in records))
        if "sessions" not in file.content or before is None or file.content.get("claims") != records:
            file.content["sessions"] = []
            file.begin(settings, {})
            file.note()
        write(file, __doc__ or "", records, [table_], f"Widths x {options.scale}, float32, a batch of 2")


if __name__ == "__main__":
    guarded(main)

"""Cost on paper: memory, bytes and time of a training step, on given GPUs and links, without having them.

From the table of the network and the machine's alone; `--machine here` measures this one's products first.
What is assumed is marked *.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from splitnet import calibration, costs, tables
from splitnet.allocator import keep_freed_memory
from splitnet.costs import Prediction, Step
from splitnet.errors import UsageError
from splitnet.fitting import read_size
from splitnet.machines import HERE, LEAST_MEMORY, MACHINES, PRECISIONS, Machine, as_json, machine
from splitnet.network.architecture import Architecture
from splitnet.network.presets import preset, presets
from splitnet.options import check_bounds, guarded, option, parse, refuse
from splitnet.peaks import STATE

NAMES = {
    "whole": "one device",
    "towers": "{} towers",
    "dense": "dense, one device",
    "half": "half, one device",
    "replicas": "{} replicas",
}
WIRES = ("float32", "float16", "bf16")


@dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """The command line."""

    preset: str = option("alexnet", "the network", presets())
    towers: int = option(2, "towers that share it, and replicas of it")
    crosses: str | None = option(None, "rows that read every tower: names joined by commas, all, or none")
    batch_size: int = option(128, "images in a step")
    machine: str = option("gtx580-pcie2", f"the GPUs and links: {', '.join(MACHINES)}, {HERE}, or a file")
    precision: str = option("float32", "of products and the activations between them", PRECISIONS)
    wire: str | None = option(None, "what activations are cast to while they cross", WIRES)
    optimizer: str = option("sgd", "the optimizer; SGD has momentum 0.9", tuple(STATE))
    memory: str | None = option(None, "of each device, such as 3GB, for the largest batch (the GPU's)", metavar="SIZE")
    threads: int | None = option(None, f"CPU threads with which {HERE} is measured (PyTorch's choice)")
    machines: bool = option(False, "list the machines instead")
    json: bool = option(False, "print it as data")
    write: Path | None = option(None, "write the machine's figures there, as a file that --machine takes")

    def __post_init__(self) -> None:
        check_bounds(self, {"batch_size": (1, costs.LARGEST_BATCH), "threads": (1, 1024)})


@dataclass(frozen=True, slots=True)
class Paper:
    """All that is predicted."""

    architecture: Architecture
    step: Step
    machine: Machine
    plain: Mapping[str, Prediction]
    overlapped: Mapping[str, Prediction]
    crossover: tuple[int | None, int | None]
    """Where replicas catch up with the towers, without and with overlap."""
    memory: int
    largest: Mapping[str, int]
    """The largest batch within `memory` on each device, by layout."""

    def as_dict(self) -> dict[str, object]:
        layouts = {name: found.as_dict() for name, found in self.plain.items()}
        for name in ("towers", "replicas"):
            if name in self.overlapped:
                layouts[f"{name}, overlap"] = self.overlapped[name].as_dict()
        named = {"preset": self.architecture.name, "towers": self.architecture.towers, "machine": self.machine.name}
        asked = {"batch_size": self.step.batch, "precision": self.step.precision, "wire": self.step.wire}
        found = {"memory": self.memory, "largest_batch": dict(self.largest)}
        crossover = dict(zip(("plain", "overlap"), self.crossover, strict=True))
        return {**named, **asked, "optimizer": self.step.optimizer, "layouts": layouts, "crossover": crossover, **found}


def paper(options: PredictOptions) -> Paper:
    """UsageError for what there is not."""
    table = preset(options.preset, options.towers, options.crosses)
    memory = None if options.memory is None else read_size(options.memory, "--memory")
    if memory is not None and memory < LEAST_MEMORY:
        raise UsageError(f"--memory {options.memory}: is {memory:,} bytes; give a unit, such as 3GB")
    step = Step(options.batch_size, options.precision, options.wire, options.optimizer)
    found = calibrated(table, options) if options.machine == HERE else machine(options.machine)
    plain, overlapped = (costs.predicted(table, step, found, overlap) for overlap in (False, True))
    both = "towers" in plain
    plain_meets, overlap_meets = (costs.crossover(table, step, found, o) if both else None for o in (False, True))
    room = int(found.memory) if memory is None else memory
    largest = costs.largest_batches(table, step, room)
    largest |= {
        f"{name}, overlap": batch
        for name, batch in costs.largest_batches(table, step, room, overlap=True).items()
        if plain[name].devices > 1
    }
    return Paper(table, step, found, plain, overlapped, (plain_meets, overlap_meets), room, largest)


def calibrated(table: Architecture, options: PredictOptions) -> Machine:
    """The machine at hand, measured now, with memory kept as `run` keeps it."""
    if options.precision != "float32":
        raise UsageError(f"--precision {options.precision}: {HERE} is measured in float32")
    keep_freed_memory()
    threads = options.threads or torch.get_num_threads()
    try:
        return calibration.here(table, options.batch_size, options.optimizer, threads)
    except RuntimeError as error:  # PyTorch's allocator
        if "allocate" not in str(error):
            raise
        raise UsageError(f"--batch-size {options.batch_size}: does not fit this machine's memory") from error


def named(layout: str, devices: int) -> str:
    return NAMES[layout].format(devices)


def steps(found: Paper) -> Table:
    """Every layout's step."""
    table = _table("A training step on paper *")
    table.add_column("layout", no_wrap=True)
    for heading in ("step\nms", "images/s", "exposed\nms", "sent\nMB", "peak\nMiB", "largest\nbatch"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, plain in found.plain.items():
        table.add_row(named(name, plain.devices), *_cells(plain, found, name))
        if plain.devices > 1:
            table.add_row("  with overlap", *_cells(found.overlapped[name], found, f"{name}, overlap"))
    return table


def _cells(step: Prediction, found: Paper, layout: str) -> list[str]:
    """A peak of more than a device's memory is marked."""
    several, largest = step.devices > 1, found.largest[layout]
    return [
        _figure(1000 * step.seconds),
        _figure(step.images_per_second),
        _figure(1000 * step.exposed) if several else "",
        f"{step.bytes / 1e6:,.1f}" if several else "",
        f"{step.peak / tables.MIB:,.0f}{' !' * (step.peak > found.memory)}",
        f"{largest:,}{'+' * (largest == costs.LARGEST_BATCH)}",
    ]


def _figure(value: float) -> str:
    """Three digits, more where there are more before the point."""
    if 0 < value < 0.01:
        return "< 0.01"
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}" if value else "0"


def memory(found: Paper) -> Table:
    """What each device holds, by kind."""
    columns = {}
    for name, step in found.plain.items():
        different = list(dict.fromkeys(step.memory))
        for place, footprint in enumerate(different):
            tower = f"tower {place}" + ("+" if place and step.devices > 2 else "")
            heading = {"towers": tower, "whole": "one\ndevice", "replicas": "each\nreplica"}.get(
                name, f"{name}\nnetwork"
            )
            columns[heading] = footprint
    table = _table("Memory of a device by kind, MiB (tensors alone *)")
    table.add_column("")
    for heading in columns:
        table.add_column(heading, justify="right")
    for kind in ("parameters", "gradients", "optimizer", "activations", "peak"):
        table.add_row(kind, *(f"{getattr(held, kind) / tables.MIB:,.0f}" for held in columns.values()))
    return table


def crossings(found: Paper) -> Table:
    """What towers hand each other."""
    step, rows = found.step, [row for row in found.architecture.rows() if row.crosses]
    table = _table(f"What {found.architecture.towers} towers hand each other, bytes")
    table.add_column("in front of")
    for heading in ("an image, forward", "a step, both phases"):
        table.add_column(heading, justify="right")
    for row in rows:
        sizes = [sum(t.bytes for t in row.transfers(images, step.crossing)) for images in (1, step.batch)]
        table.add_row(row.name, f"{sizes[0] // 2:,}", f"{sizes[1]:,}")
    forward = found.architecture.bytes_exchanged(1, "forward", step.crossing)
    table.add_row("all", f"{forward:,}", f"{found.architecture.bytes_exchanged(step.batch, None, step.crossing):,}")
    return table


UNITS = {"memory": "bytes", "latency": "s", "launch": "s"} | dict.fromkeys(PRECISIONS, "FLOP/s")


def figures(found: Machine) -> Table:
    """The machine's figures, each with its source."""
    table = _table(f"{found.name}: {found.gpu or 'as its file says'}")
    table.add_column("figure", no_wrap=True)
    table.add_column("", justify="right", no_wrap=True)
    table.add_column("source", overflow="fold")
    numbers = {name: value for name, value in vars(found).items() if isinstance(value, int | float)}
    if found.tf32 is None and found.bf16 is None:
        del numbers["tensor_share"]
    for name, value in numbers.items():
        unit = "" if name.endswith("_share") or name == "both_ways" else UNITS.get(name, "bytes/s")
        source = found.sources.get(name, "assumption")
        shown = str(value).lower() if isinstance(value, bool) else f"{value:.4g} {unit}"
        table.add_row(name.replace("_", " ") + " *" * source.startswith("assumption"), shown.strip(), source)
    return table


def listed(machines: Iterable[Machine]) -> Table:
    """Every machine, a line each."""
    table = _table("Machines for --machine")
    table.add_column("name", no_wrap=True)
    table.add_column("GPU")
    for heading in ("float32\nTFLOP/s", "bf16\nTFLOP/s", "memory\nGiB", "memory\nGB/s", "link\nGB/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for found in machines:
        flops = [_figure(peak / 1e12) if peak else "" for peak in (found.float32, found.bf16)]
        rest = [f"{found.memory / 2**30:.0f}", f"{found.memory_bandwidth / 1e9:,.0f}", f"{found.link / 1e9:.0f}"]
        table.add_row(found.name, found.gpu, *flops, *rest)
    return table


def _table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)


def verdicts(found: Paper) -> list[str]:
    """What follows, a line each."""
    lines = []
    if "towers" in found.plain:
        for how, meets in zip(("Without", "With"), found.crossover, strict=True):
            shared = f"of multiples of {found.architecture.towers}"  # each gets as many images
            when = f"from a batch of {meets:,} on, {shared}" if meets else f"at no batch up to {costs.LARGEST_BATCH:,}"
            lines.append(f"{how} overlap, replicas (data parallel) are as fast as towers or faster {when}.")
    lines.append(f"Largest batch: whose step fits {found.memory:,} bytes of each device.")
    if any(step.peak > found.memory for step in (*found.plain.values(), *found.overlapped.values())):
        lines.append("! More than a device has: the step is that of one that had it.")
    return lines


ASSUMED = (
    "* Assumed: an operation takes the longer of its arithmetic and its memory traffic; a crossing latency and bytes"
    " over bandwidth, both ways at once; tensors alone fill memory; Python, the loss and reading images cost nothing."
    " Shares of a peak are assumptions where the source says so. splitnet/costs.py and peaks.py say all of it."
)


def show(found: Paper, console: Console) -> None:
    table, step = found.architecture, found.step
    wire = f", {step.wire} on the wire" if step.wire else ""
    towers = f"{table.towers} tower{'s' * (table.towers > 1)}"
    what = f"{table.name}, {towers}, batch {step.batch}, {step.precision}{wire}, {step.optimizer}"
    console.print(f"{what}, on {found.machine.name}", highlight=False, markup=False)
    console.print(steps(found))
    console.print(memory(found))
    if "towers" in found.plain:
        console.print(crossings(found))
    console.print(figures(found.machine))
    for line in [*verdicts(found), ASSUMED]:
        console.print(line, highlight=False)


def _beside_the_list(options: PredictOptions) -> str:
    """Options that a list of machines has no use for."""
    usual = PredictOptions(machines=True)
    names = [entry.name for entry in fields(options) if getattr(options, entry.name) != getattr(usual, entry.name)]
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 2 for bad usage."""
    console = tables.console()
    try:
        options = parse(PredictOptions, "predict", __doc__ or "", argv)
        if options.machines and (others := _beside_the_list(options)):
            raise UsageError(f"--machines: lists them, so not with {others}")
        if options.wire is not None and options.towers == 1:
            raise UsageError(f"--wire {options.wire}: nothing crosses with --towers 1")
        if options.threads is not None and options.machine != HERE:
            raise UsageError(f"--threads {options.threads}: is for --machine {HERE}, not {options.machine}")
        if options.write is not None and os.path.lexists(options.write):
            raise UsageError(f"--write {options.write}: is there already")
        if options.machines:
            console.print(listed(MACHINES.values()))
            return 0
        found = paper(options)
        if options.write is not None:
            write(options.write, found.machine)
    except UsageError as error:
        return refuse(error)
    if options.json:
        console.print(json.dumps(found.as_dict(), indent=2), highlight=False, soft_wrap=True, markup=False)
    else:
        show(found, console)
        if options.write is not None:
            console.print(f"Written: {options.write}", highlight=False, soft_wrap=True)
    return 0


def write(path: Path, found: Machine) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(as_json(found))
    except OSError as error:
        raise UsageError(f"--write {path}: cannot be written ({error.strerror or error})") from error


if __name__ == "__main__":
    guarded(main)

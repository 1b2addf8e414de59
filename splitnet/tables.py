"""What a run prints: tables of 80 columns, made from the same data as its files."""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from io import TextIOWrapper
from types import MappingProxyType
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from splitnet.equality import Comparison
from splitnet.measure.manner import rounded
from splitnet.measure.metrics import KINDS, digits
from splitnet.measure.summary import heading as heading_of
from splitnet.measure.summary import named, on_layouts
from splitnet.network.architecture import Architecture, Row
from splitnet.parallel.placement import Placement

MIB = 2**20


def console() -> Console:
    """As wide as the terminal, but at least 80 columns; a character that stdout has no code for becomes "?"."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    found = Console(markup=False)  # brackets are a file's or a folder's, never ours
    if not sys.stdout.isatty() or found.width < 80:
        found = Console(width=80, markup=False)  # a figure that wraps can be read, one that is cut cannot
    return found


def layers(architecture: Architecture, placement: Placement, batch: int, itemsize: int = 4) -> Table:
    """Each row of the network: what a tower makes of it, what it holds, and what crosses in front of it."""
    towers = architecture.towers
    table = _table(f"{architecture.name}: {towers} tower{'s' * (towers > 1)}, a step of {batch} images")
    table.add_column("row")
    table.add_column("each tower makes", no_wrap=True)
    for heading in _holders(towers, placement):
        table.add_column(f"parameters\n{heading}", justify="right", no_wrap=True)
    table.add_column("crosses before it\nbytes a step", justify="right")
    told = range(min(towers, 2))  # from tower 1 on they are alike
    for row in architecture.rows():
        held = [f"{n:,}" if (n := row.parameters_on(tower)) else "-" for tower in told]
        crossing = 0 if placement.whole else sum(t.bytes for t in row.transfers(batch, itemsize))
        table.add_row(row.name, _shape(row), *held, f"{crossing:,}" if crossing else "")
    totals = [f"{architecture.parameters_on(tower):,}" for tower in told]
    table.add_section()
    crossing = 0 if placement.whole else architecture.bytes_exchanged(batch, itemsize=itemsize)
    table.add_row("all", f"{architecture.parameters:,} in all", *totals, f"{crossing:,}")
    return table


def _holders(towers: int, placement: Placement) -> list[str]:
    if towers <= 2:
        return [f"tower {tower}\n{placement.of_tower(tower)}" for tower in range(towers)]
    return [f"tower 0\n{placement.of_tower(0)}", f"towers 1-{towers - 1}\neach"]


def _shape(row: Row) -> str:
    out = row.layer.out // row.holders
    sides = [side for _, side in row.outputs]
    if row.layer.kernel is None:
        return str(out)
    return f"{out}×{sides[0]}×{sides[0]}" + (f" → {sides[-1]}×{sides[-1]}" if sides[-1] != sides[0] else "")


def devices(architecture: Architecture, placement: Placement, how: Iterable[str] = ()) -> str:
    """The first line of the output: what was chosen and why, and `how` it is computed."""
    towers = architecture.towers
    what = "one tower" if towers == 1 else f"{towers} towers"
    return ", ".join([f"{architecture.name}, {what} on {placement} ({placement.reason})", *how])


def tests(records: Iterable[dict[str, Any]], steps: Sequence[dict[str, Any]]) -> Table:
    """Loss and accuracy on the test set, each time it was taken, beside those of the training since the last time."""
    table = _table("Training since the test before, and test set")
    for heading in ("after\nsteps", "epochs\nbegun", "training\nloss", "training\naccuracy", "test\nloss"):
        table.add_column(heading, justify="right")
    records = list(records)
    wide = any(r.get("top5") is not None for r in records)
    for heading in ("test\naccuracy", *["test\ntop-5"] * wide, "test\nimages"):
        table.add_column(heading, justify="right")
    before = 0
    for r in records:
        loss, accuracy = (_mean(steps[before : r["step"]], kind) for kind in ("loss", "accuracy"))
        trained = ["" if loss is None else number(loss), "" if accuracy is None else f"{accuracy:.4f}"]
        five = [] if not wide else [""] if r.get("top5") is None else [f"{r['top5']:.4f}"]
        tested = [number(r["loss"]), f"{r['accuracy']:.4f}", *five, f"{r['images']:,}"]
        table.add_row(f"{r['step']:,}", f"{r['epoch']}", *trained, *tested)
        before = r["step"]
    return table


def _mean(steps: Sequence[dict[str, Any]], kind: str) -> float | None:
    """Over all images of these steps; the network changes under way, as in the textbook's figures."""
    images = sum(step["images"] for step in steps)
    return sum(step[kind] * step["images"] for step in steps) / images if images else None


def number(loss: float) -> str:
    """A loss to four places, or as a power where it has run away."""
    return f"{loss:.4f}" if loss < 1e6 else f"{loss:.3e}"


def results(comparison: dict[str, Any]) -> Table:
    """The layouts side by side: one column each, what was measured down the side."""
    layouts = comparison["layouts"]
    table = _table(f"Training steps, {comparison['rounds']} in alternation after {comparison['warm_up']} of warm-up")
    table.collapse_padding = True  # five columns in 80
    table.add_column("", no_wrap=True)
    for layout in layouts:
        table.add_column(_heading(layout, in_a_line=2 if len(layouts) < 5 else 1), justify="right")
    for name, cells in _result_rows(comparison, layouts):
        if any(cells):
            table.add_row(name, *(cells if len(layouts) < 5 else map(_narrow, cells)))
    return table


def _narrow(cell: str) -> str:
    """A range on two lines: a column that is too narrow would cut it."""
    return re.sub(r"\((\S+)-(\S+)\)$", r"(\1-\n\2)", cell) if len(cell.rpartition("\n")[2]) > 10 else cell


def _heading(layout: dict[str, Any], in_a_line: int) -> str:
    """The layout, and its devices as --devices takes them, so many in a line that all columns fit."""
    devices = named(layout["devices"])
    lines = (",".join(devices[i : i + in_a_line]) for i in range(0, len(devices), in_a_line))
    return f"{_name(layout)}\n" + ",\n".join(lines)


def _name(layout: dict[str, Any]) -> str:
    return heading_of(layout | {"devices": ()})


def _result_rows(comparison: dict[str, Any], layouts: Sequence[dict[str, Any]]) -> Iterable[tuple[str, list[str]]]:
    if not all(map(_fits, layouts)):
        yield "", ["" if _fits(layout) else "does not fit" for layout in layouts]
    yield "images/s", [_speed(layout.get("images_per_second")) for layout in layouts]
    yield "step ms", [_ms(layout.get("step_ms")) for layout in layouts]
    if _emulated(layouts):
        yield "  emulated", [_ms(layout.get("device_step_ms")) for layout in layouts]
        yield "  exposed", [_ms(layout.get("exposed_ms")) for layout in layouts]
    if any(layout.get("predicted") for layout in layouts):
        yield "  on paper", [_on_paper(layout.get("predicted")) for layout in layouts]
    yield "parameters", [f"{layout['parameters']:,}" for layout in layouts]
    if len(layouts) > 1:
        [base] = [layout for layout in layouts if layout["layout"] == comparison["base"]]
        yield f"speed /\n  {_name(base)}", [_spread(layout.get("ratio"), 3) for layout in layouts]
    for device in dict.fromkeys(d for layout in layouts for d in layout.get("memory", {})):
        for kind in ("peak", *KINDS):
            name = f"peak MiB {device}" if kind == "peak" else f"  {kind}"
            yield name, [_mib(layout.get("memory", {}).get(device), kind) for layout in layouts]
    yield from _exchange_and_loss_rows(layouts)


def _exchange_and_loss_rows(layouts: Sequence[dict[str, Any]]) -> Iterable[tuple[str, list[str]]]:
    for kind in ("measured", "derived") if any(layout.get("exchanged") for layout in layouts) else ():
        totals = [sum(e[kind] for e in layout["exchanged"]) if _fits(layout) else None for layout in layouts]
        yield f"bytes {kind}", ["" if total is None else f"{total:,.0f}" for total in totals]
    differences = [layout.get("loss_differences") for layout in layouts]
    yield "loss difference\n  first step", ["" if d is None else f"\n{d[0]:.1e}" for d in differences]
    yield "  last step", ["" if d is None else f"{d[-1]:.1e}" for d in differences]
    yield "loss, last step", [number(layout["losses"][-1]) if _fits(layout) else "" for layout in layouts]


def _fits(layout: dict[str, Any]) -> bool:
    return "does_not_fit" not in layout


def _emulated(layouts: Iterable[dict[str, Any]]) -> bool:
    return any(device.startswith("fake") for layout in layouts for device in layout["devices"])


def notes(comparison: dict[str, Any], options: Mapping[str, Any] = MappingProxyType({})) -> str:
    """What the figures of `results` stand for, where a run had such options."""
    layouts = comparison["layouts"]
    lines = ["Median and range."]
    if any(layout.get("memory") for layout in layouts):
        lines[0] += " Activations are the rest of the peak."
    if any(layout.get("ratio") for layout in layouts) and len(layouts) > 1:
        lines[0] += " Ratios are taken round by round."
    if any(layout.get("loss_differences") for layout in layouts):
        lines[0] += f" {_differing(options)}"
    if beside := on_layouts(comparison):
        lines.append(beside)
    if _emulated(layouts):
        lines.append(
            "Fake devices are emulated one after the other on this CPU: images/s and step ms are the CPU's, emulated"
            " ms those of the devices' clocks, had they worked side by side. Memory counts tensors only."
        )
    if any(layout.get("predicted") for layout in layouts):
        lines.append(
            "On paper: what python -m splitnet.predict has of that machine, its memory and launches included; clocks"
            " keep this CPU's proportions instead, which tells most at small batches."
        )
    if not all(layout["memory"] for layout in layouts if _fits(layout)):
        lines.append("The plain CPU has no memory counters; fake devices count (--devices fake:0, …).")
    left_out = (layout for layout in layouts if not _fits(layout))
    lines += [f"Does not fit ({_name(layout)}): {layout['does_not_fit']}." for layout in left_out]
    return "\n".join(lines)


def _differing(options: Mapping[str, Any]) -> str:
    """Why losses of the same function differ, and what shows that they should not differ more."""
    of = rounded(options)
    text = (
        f"Losses differ by {'the rounding of ' + ' and of '.join(of) if of else 'float32 rounding'}, which grows with"
        " each update, fastest under Adam: python -m splitnet.verify proves equality in float64"
    )
    if not of:
        return f"{text}."
    flags = [f"--{name} {options[name]}" for name in ("precision", "wire") if options.get(name)]
    return f"{text} without {'it' if len(of) == 1 else 'them'}, and agreement within tolerances with {' '.join(flags)}."


def exchanges(layout: dict[str, Any]) -> Table:
    """Each crossing's bytes: counted by the ledger, and derived from the table."""
    table = _table("Exchanged in a step, forward and backward")
    table.add_column("before")
    for heading in ("bytes measured", "bytes derived"):
        table.add_column(heading, justify="right")
    for entry in layout["exchanged"]:
        table.add_row(entry["row"], f"{entry['measured']:,.0f}", f"{entry['derived']:,}")
    return table


def _speed(spread: dict[str, float] | None) -> str:
    return _spread(spread, 1 if spread is None or spread["greatest"] < 1000 else 0)


def _ms(spread: dict[str, float] | None) -> str:
    """Three digits, and none behind the point from 100 ms on."""
    return "" if spread is None else _spread(spread, digits(spread["median"]) if spread["median"] else 1)


def _on_paper(predicted: dict[str, float] | None) -> str:
    return f"{(ms := predicted['step_ms']):,.{digits(ms)}f}" if predicted else ""


def _spread(spread: dict[str, float] | None, places: int) -> str:
    if spread is None:
        return ""
    least, greatest = f"{spread['least']:.{places}f}", f"{spread['greatest']:.{places}f}"
    median = f"{spread['median']:.{places}f}"
    return median if least == greatest else f"{median}\n({least}-{greatest})"


def _mib(memory: dict[str, int] | None, kind: str) -> str:
    return "" if memory is None else f"{memory[kind] / MIB:,.0f}"


def _table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)


def differences(rows: Iterable[Comparison], tolerances: Mapping[str, float], how: Sequence[str], steps: int) -> Table:
    """Every row's largest difference from the whole network, the worst first."""
    told = ", ".join(how)
    table = _table(f"Differences over {steps} steps of SGD with momentum, relative to the norm, {told}")
    table.add_column("row")
    for kind, tolerance in tolerances.items():
        table.add_column(f"{kind}\nup to {tolerance:g}", justify="right")
    table.add_column("times\ntolerance", justify="right")
    for row in rows:
        cells = [f"{row.differences[kind]:.1e}" if kind in row.differences else "" for kind in tolerances]
        table.add_row(row.row, *cells, f"{row.excess(tolerances):.2g}")
    return table

"""One step on its devices as a chart: a lane each, its rows, what it computes and copies, exchanges as arrows."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from splitnet.measure.charts import axis, layout
from splitnet.measure.elements import Chart, Key, Table, literal
from splitnet.measure.step_picture import about_ranks, kind, lane_names
from splitnet.measure.summary import Summary
from splitnet.measure.svg import ink
from splitnet.measure.timeline import Operation, Timeline

MOST = 4000
"""Operations drawn; a bar each, and plotly has room for some thousand."""

# Places of a lane's parts, and how high they are, where devices are 1 apart.
ROWS, COMPUTE, COPIES = (-0.34, 0.14), (-0.04, 0.42), (0.25, 0.12)


def step_chart(summary: Summary) -> Chart | None:
    """The step of median length; None if there is no trace, or nothing in it."""
    found = summary.timeline
    step = found.median_step() if found is not None and found.devices else ""
    if found is None or not step:
        return None
    every = found.operations(step)
    drawn = _drawn(every)
    begun, over = found.extent(step)
    length = max([(over - begun) / 1000] + [op.start + op.duration for op in every]) / 1000
    if length <= 0 or not drawn:
        return None
    crossed = found.crossings(step)
    kinds = dict.fromkeys(kind(op) for op in sorted(drawn, key=lambda op: (op.kind != "compute", op.start)))
    bars = [_bars(found, name, [op for op in drawn if kind(op) == name], crossed) for name in kinds]
    clock = "on the emulated devices’ clocks" if found.emulated else "on the devices"
    clock = f"on {len(found.ranks)} rank{'s' * (len(found.ranks) != 1)}" if found.ranks else clock
    number = step.partition("#")[2] or step
    median = f", the median of {len(found.steps):,}" if len(found.steps) > 1 else ""
    text = f"Step {number}{median}: {length:,.1f} ms {clock}, {len(every):,} operations"
    text += f" (the {MOST:,} longest drawn)" if len(drawn) < len(every) else ""
    text += f", {len(crossed):,} exchange{'s' * (len(crossed) != 1)} (arrows)."
    text += "".join(f" {sentence}" for sentence in about_ranks(found))
    return Chart(
        "timeline",
        "Timeline",
        text,
        [_rows(every), *bars, _arrows(found, crossed)],
        _lanes(found, length),
        76 + 128 * len(found.devices),
        [exchange_table(found, crossed), operation_table(found, drawn)],
        [Key(name, ink(name)) for name in kinds],
    )


def _drawn(operations: Sequence[Operation]) -> list[Operation]:
    """All that crosses, and the longest of the rest, in order."""
    if len(operations) <= MOST:
        return list(operations)
    order = sorted(operations, key=lambda op: (op.kind != "communication", -op.duration))
    return sorted(order[:MOST], key=lambda op: (op.start, op.device))


def told(found: Timeline, op: Operation) -> str:
    """An operation in a sentence: what the timeline shows where it is pointed at, and says."""
    what = " ".join(filter(None, (op.row, op.phase)))
    size = f", {op.bytes:,} bytes" if op.bytes is not None else ""
    if op.kind == "communication" and op.target is not None:
        before = f"before {op.row}, {op.phase}" if op.row else op.phase
        what = f"exchange {before}: {found.name(op.source)} to {found.name(op.target)}".replace(" :", ":")
    elif _is_collective(op):
        what = f"exchange before {op.row}, {op.phase}: {op.name} on {found.name(op.device)}"
    else:
        what = f"{what}: {op.name} on {found.name(op.device)}" if what else f"{op.name} on {found.name(op.device)}"
    return f"{what}{size}, at {op.start / 1000:,.3f} ms, takes {op.duration / 1000:,.3f} ms"


def _ms(time: float) -> float:
    return round(time / 1000, 4)


def _bars(found: Timeline, name: str, operations: Sequence[Operation], crossed: Sequence[Operation]) -> dict[str, Any]:
    """Operations of one kind. `customdata`: the device; and "x" for an exchange, once though both ends are drawn."""
    place, high = COMPUTE if operations[0].kind == "compute" else COPIES
    once = set(crossed)
    return {
        "type": "bar",
        "orientation": "h",
        "name": literal(name),
        "meta": "operations",
        "base": [_ms(op.start) for op in operations],
        "x": [_ms(op.duration) for op in operations],
        "y": [op.device + place for op in operations],
        "width": high,
        "marker": {"color": ink(name), "line": {"width": 0}, "opacity": list(_shades(operations))},
        "customdata": [f"{op.device}{'x' * (op in once or _is_collective(op))}" for op in operations],
        "hovertext": [literal(told(found, op)) for op in operations],
        "hovertemplate": "%{hovertext}<extra></extra>",
    }


def _is_collective(op: Operation) -> bool:
    """Each rank has its own record of one."""
    return op.kind == "communication" and op.target is None and bool(op.row)


def _shades(operations: Sequence[Operation]) -> Iterator[float]:
    """Every other operation of a device a little lighter, so that neighbours can be told apart."""
    seen: dict[int, int] = {}
    for op in operations:
        seen[op.device] = seen.get(op.device, 0) + 1
        yield 1 if seen[op.device] % 2 else 0.9


def _rows(operations: Sequence[Operation]) -> dict[str, Any]:
    """A strip above each lane that names what is computed there."""
    computed = sorted((op for op in operations if op.kind == "compute"), key=lambda op: (op.device, op.start))
    place, high = ROWS
    runs = [
        (which, row, list(run))
        for (which, row, _), run in groupby(computed, key=lambda op: (op.device, op.row, op.phase))
        if row
    ]
    spans = [(run[0].start, max(op.start + op.duration for op in run)) for *_, run in runs]
    return {
        "type": "bar",
        "orientation": "h",
        "name": "rows",
        "base": [_ms(start) for start, _ in spans],
        "x": [_ms(end - start) for start, end in spans],
        "y": [which + place for which, *_ in runs],
        "width": high,
        "marker": {"color": "rgba(128,136,148,.22)", "line": {"width": 0}},
        "text": [literal(row) for _, row, _ in runs],
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textangle": 0,
        "hoverinfo": "skip",
    }


def _arrows(found: Timeline, crossed: Sequence[Operation]) -> dict[str, Any]:
    """One line with gaps: from the sender's copies to the receiver's lane, each with a head."""
    x: list[float | None] = []
    y: list[float | None] = []
    text: list[str] = []
    for op in crossed:
        if op.source is None or op.target is None:
            continue
        below, above = COPIES[0] + COPIES[1] / 2, ROWS[0] - ROWS[1] / 2
        down = op.target > op.source
        x += [_ms(op.start), _ms(op.start + op.duration), None]
        y += [op.source + (below if down else above), op.target + (above if down else below), None]
        text += [literal(told(found, op))] * 2 + [""]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "arrows",
        "meta": "arrows",
        "x": x,
        "y": y,
        "hovertext": text,
        "hovertemplate": "%{hovertext}<extra></extra>",
        "line": {"color": ink("exchange"), "width": 1.25},
        "marker": {"symbol": "arrow", "size": 10, "angleref": "previous", "color": ink("exchange")},
    }


def _lanes(found: Timeline, length: float) -> dict[str, Any]:
    count = len(found.devices)
    return layout(
        barmode="overlay",
        dragmode="pan",
        uniformtext={"mode": "hide", "minsize": 10},
        margin={"l": 72, "r": 16, "t": 6, "b": 46},
        xaxis=axis("ms from the start of the step", range=[0, length], fixedrange=False),
        yaxis=axis(
            tickvals=list(range(count)),
            ticktext=["<br>".join(map(literal, names)) for names in lane_names(found)],
            range=[count - 0.5, -0.5],
            showgrid=False,
            ticklabelstandoff=6,
        ),
    )


def exchange_table(found: Timeline, crossed: Sequence[Operation]) -> Table:
    rows = [
        [
            op.row, op.phase, found.name(op.source), found.name(op.target),
            "" if op.bytes is None else f"{op.bytes:,}", f"{op.start / 1000:,.3f}", f"{op.duration / 1000:,.3f}",
        ]
        for op in crossed
    ]  # fmt: skip
    return Table(
        "Exchanges of this step", ["before", "phase", "from", "to", "bytes", "at ms", "takes ms"], rows, left=4
    )


def operation_table(found: Timeline, operations: Sequence[Operation]) -> Table:
    rows = [
        [
            op.name, op.row, kind(op), found.name(op.device), "" if op.bytes is None else f"{op.bytes:,}",
            f"{op.start / 1000:,.3f}", f"{op.duration / 1000:,.3f}",
        ]
        for op in operations
    ]  # fmt: skip
    heads = ["operation", "row", "kind", "device", "bytes", "at ms", "takes ms"]
    return Table("Operations of this step", heads, rows, left=4)

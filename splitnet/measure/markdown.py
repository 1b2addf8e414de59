"""A run, or the difference of two, as Markdown: the page's content for a terminal or a pull request."""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from splitnet.measure import learned_pictures, learned_text, metrics, paper
from splitnet.measure.difference import Difference, circumstances, differences, unlike, unpaired
from splitnet.measure.manner import emulated_machine, machine_told
from splitnet.measure.metrics import KINDS, MIB, SHARES, figure, rate_rows, test_rows
from splitnet.measure.pictures import pictures
from splitnet.measure.summary import Summary, fits, heading, on_layouts, other_load, timed

EMULATED = (
    "Fake devices are emulated one after the other on this CPU: images/s and step ms are the CPU's; the devices'"
    " clocks say how long a step would take, had they worked side by side. Memory counts tensors only."
)


SHARED = "Towers share a device: what they hand each other there crosses no link, and is no copy in a trace."


def markdown(summary: Summary, drawn: Iterable[str] | None = None) -> str:
    """The report. `drawn`: file names of the pictures beside it, in pictures/ (default: all that can be drawn)."""
    names = set(drawn if drawn is not None else pictures(summary) | learned_pictures.pictures(summary.learned))
    parts = [f"# {_text(summary.name)}", _text(summary.verdict)]
    if summary.emulated:
        parts.append(f"> {EMULATED}")
    for title, picture, content in _sections(summary, names):
        body = [part for part in content if part]
        if picture in names:
            body.insert(0, f"![{title}](pictures/{picture})")
        if body:
            parts += [f"## {title}", *body]
    return "\n\n".join(parts) + "\n"


def _sections(summary: Summary, names: Container[str]) -> Iterator[tuple[str, str, Iterable[str]]]:
    yield "Speed", "throughput.svg", _speed(summary)
    yield "Memory", "memory.svg", _memory(summary)
    yield "Exposed communication", "", _exposed(summary)
    yield "One step on its devices", "timeline.svg", _lanes(summary)
    yield "Exchanges", "", _exchanges(summary)
    yield "Layers", "", _layers(summary)
    yield "Loss", "loss.svg", _loss(summary)
    yield "What was learned", "", _learned(summary, names)
    yield "Environment", "", _environment(summary)
    yield "Not here", "", ["\n".join(f"- {_text(line)}" for line in summary.missing)]


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Columns as wide as their widest cell, so that it can be read as text; all but the first `left` to the right."""
    cells = [[_text(cell) for cell in row] for row in (headings, *rows)]
    if len(cells) == 1:
        return ""
    widths = [max(3, *map(len, column)) for column in zip(*cells, strict=True)]
    pads = [str.ljust if column < left else str.rjust for column in range(len(widths))]
    lines = [[pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True)] for row in cells]
    lines.insert(1, ["-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(text: str) -> str:
    """On one line, and with nothing that Markdown or HTML would take for its own."""
    for special, plain in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("`", "'"), ("*", "\\*")):
        text = text.replace(special, plain)
    return " ".join(text.split())


def _speed(summary: Summary) -> Iterator[str]:
    rows, unfit = [], []
    exposed = any(layout.get("exposed_ms") for layout in summary.layouts)
    for layout in summary.layouts:
        if not fits(layout):
            unfit.append(f"{heading(layout)} does not fit: {layout['does_not_fit']}")
            continue
        spreads = [layout["images_per_second"], layout["step_ms"], layout.get("device_step_ms")]
        spreads += [layout.get("exposed_ms")] * exposed
        ratio = _ratio(layout.get("ratio"))
        parameters = layout.get("parameters")
        shown = (1, *(0 if spread is None else metrics.digits(spread["median"]) for spread in spreads[1:]))
        told = [_spread(spread, digits) for spread, digits in zip(spreads, shown, strict=True)]
        rows.append([heading(layout), *told, ratio, "" if parameters is None else f"{parameters:,}"])
    base = summary.comparison["base"] if summary.comparison else ""
    known = any((layout.get("ratio") or {}).get("low") is not None for layout in summary.measured)
    clock = "step ms, emulated" if summary.emulated else "step ms, device"
    waits = ["exposed ms"] * exposed
    ratios = f"speed / {base}{', 99 %' * known}"
    yield table(["layout", "images/s", "step ms, wall", clock, *waits, ratios, "parameters"], rows)
    if rows and summary.comparison:
        yield f"{_notes(summary.comparison)} {on_layouts(summary.comparison)}".rstrip()
    yield "\n".join(f"- {_text(line)}" for line in unfit)
    trained = summary.metric("training_images_per_second")
    if trained is not None:
        waiting = summary.metric("waiting_share")
        share = "" if waiting is None else f"; waiting for images: {waiting.value:.1f} % of the steps' time"
        yield f"While training: {trained.value:,.1f} images/s ({timed(summary.steps)}){share}."


def _ratio(ratio: dict[str, Any] | None) -> str:
    if ratio is None:
        return ""
    low, high = metrics.interval(ratio)
    return f"{ratio['median']:.3f} ({low:.3f}-{high:.3f})"


def _notes(comparison: dict[str, Any]) -> str:
    """What the figures of the layouts stand for."""
    ratios = [layout["ratio"] for layout in comparison["layouts"] if layout.get("ratio")]
    text = f"Median and range of {comparison['rounds']} steps in alternation"
    if ratios:
        known = all(ratio.get("low") is not None for ratio in ratios)
        text += f"; of the speed ratio, round by round, the {'99 % interval' if known else 'range'}"
    return f"{text}. {other_load(comparison)}".rstrip()


def _spread(spread: dict[str, float] | None, digits: int) -> str:
    if spread is None:
        return ""
    median, least, greatest = (f"{spread[key]:,.{digits}f}" for key in ("median", "least", "greatest"))
    return median if least == greatest else f"{median} ({least}-{greatest})"


def _exposed(summary: Summary) -> Iterator[str]:
    rows = paper.rows(summary)
    yield table(paper.headings(summary), rows)
    yield paper.text(summary) if rows else ""


def _memory(summary: Summary) -> Iterator[str]:
    rows = [
        [heading(layout, device), *(f"{held[kind] / MIB:,.1f}" for kind in ("peak", *KINDS))]
        for layout in summary.layouts
        for device, held in layout.get("memory", {}).items()
    ]
    yield table(["MiB", "peak", *KINDS], rows)


def _lanes(summary: Summary) -> Iterator[str]:
    if summary.timeline is None:
        return
    rows = []
    for name in summary.timeline.devices:
        shares = [summary.metric(f"{part}_share.{name}") for part in SHARES]
        exposed = summary.metric(f"exposed_ms.{name}")
        if exposed is not None:
            rows.append([name, *(f"{s.value:.1f} %" if s else "" for s in shares), f"{exposed.value:,.3f}"])
    yield table(["device", *SHARES, "exposed ms"], rows)
    if rows:
        steps = len(summary.timeline.steps)
        yield (
            f"{medians(steps)}. Busy: computes; exposed: exchanges that no compute"
            " hides; input: copies from and to the host; idle: the rest of a step."
        )


def medians(steps: int) -> str:
    """What figures of a step stand for, and why they need not add up."""
    apart = ", each figure by itself, so that they need not add up to a step"
    return f"Medians of {steps:,} profiled step{'s' * (steps != 1)}{apart * (steps > 1)}"


def _exchanges(summary: Summary) -> Iterator[str]:
    entries, known = summary.crossings, summary.traced()
    rows = [[e["row"], *(f"{e[kind]:,.0f}" for kind in ("measured", "derived"))] for e in entries]
    if rows:
        totals = [sum(entry[kind] for entry in entries) for kind in ("measured", "derived")]
        rows.append(["all", *(f"{total:,.0f}" for total in totals)])
    if known is not None and rows:
        counted = [*(known.get(entry["row"], 0) for entry in entries), sum(known.values())]
        rows = [[*row, f"{count:,}"] for row, count in zip(rows, counted, strict=True)]
    yield table(["before", "bytes measured", "bytes derived", *["bytes in the trace"] * (known is not None)], rows)
    if rows:
        yield f"Of one step, forward and backward. {SHARED if summary.shared else ''}".rstrip()
    rows = [[name, *(f"{e[kind]:,.0f}" for kind in ("measured", "derived"))] for name, e in summary.gradients()]
    yield table(["gradients, between replicas of", "bytes measured", "bytes derived"], rows)


def _layers(summary: Summary) -> Iterator[str]:
    listed = summary.run.get("layers")
    known = {entry["row"]: entry.get("parameters", "") for entry in listed} if isinstance(listed, list) else {}
    times = {m.name: m.value for m in summary.metrics if m.name.startswith("row_ms.")}
    names = dict.fromkeys((*known, *(name.split(".")[1] for name in times)))
    phases = ("forward", "backward") if times else ()
    rows = []
    for name in names:
        count = known.get(name, "")
        spent = [times.get(f"row_ms.{name}.{phase}") for phase in phases]
        told = f"{count:,}" if isinstance(count, int) else str(count)
        rows.append([name, told, *("" if ms is None else f"{ms:,.2f}" for ms in spent)])
    yield table(["row", "parameters", *(f"{phase} ms" for phase in phases)], rows)
    if times:
        yield "Compute in a profiled step on the device that takes longer, median."


def _loss(summary: Summary) -> Iterator[str]:
    headings, rows = test_rows(summary.tests)
    after = [f"{record['step']:,}" for record in summary.tests]
    yield table(["test after steps", *headings], [[a, *row] for a, row in zip(after, rows, strict=True)], left=0)
    yield table(*rate_rows(summary.tests), left=0)
    if summary.steps:
        first, last = summary.steps[0], summary.steps[-1]
        count = f"{len(summary.steps):,} steps"
        yield f"Training loss {first['loss']:.4f} at the first of {count}, {last['loss']:.4f} at the last."
    layouts = [layout for layout in summary.layouts if layout.get("losses")]
    columns = [[f"{loss:.6f}" for loss in layout["losses"]] for layout in layouts]
    losses = [[f"{step}", *row] for step, row in enumerate(zip_longest(*columns, fillvalue=""), 1)]
    yield table(["compared step", *map(heading, layouts)], losses, left=0)


def _learned(summary: Summary, names: Container[str]) -> Iterator[str]:
    learned = summary.learned
    if learned is None:
        return
    filters, specialisation, predictions, nearest = (
        f"![{alt}](pictures/{name})" if name in names else "" for name, alt in learned_pictures.NAMES.items()
    )
    yield learned_text.after(learned, summary.run["options"].get("weights") is not None)
    yield filters
    yield f"Filters of {_text(learned['row'])}: {learned_text.FILTERS}" if filters else ""
    yield specialisation
    for group in learned_text.groups(learned, summary.tests):
        yield f"{_text(group.title)}. {_text(group.text)}"
        yield table(*group.table(learned_text.TALLEST), left=0)
    yield _text(learned_text.not_shown(learned))
    for picture, (headings, rows) in zip((predictions, nearest), learned_text.tables(learned), strict=True):
        yield picture
        yield table(headings, rows, left=4)


def _environment(summary: Summary) -> Iterator[str]:
    run, rows = summary.run, []
    for name, held in run.items():
        if name not in ("schema", "options", "command", "layers") and held not in (None, {}, []):
            rows.append([name.replace("_", " "), fact(run, held)])
    yield table(["", "value"], rows, left=2)
    given = {name: held for name, held in run["options"].items() if held is not None}
    yield table(["option", "value"], [[f"--{n.replace('_', '-')}", value(v)] for n, v in given.items()], left=2)
    if summary.command:
        yield "```\n" + summary.command.replace("```", "'''") + "\n```"


def fact(run: Mapping[str, Any], held: Any) -> str:
    """One of a run's record, as text; of a machine its name and main figures."""
    return machine_told(held) if held and held is emulated_machine(run) else value(held)


def value(held: Any) -> str:
    """What a run's record holds, as text."""
    if isinstance(held, dict):
        return ", ".join(f"{name} {value(inner)}" for name, inner in held.items() if inner is not None)
    if isinstance(held, list):
        return "; ".join(map(value, held))
    if isinstance(held, bool):
        return "yes" if held else "no"
    return f"{held:,}" if isinstance(held, int) else str(held)


# Two runs


def difference(before: Summary, after: Summary) -> str:
    """Two runs beside each other, as Markdown."""
    rows = differences(before, after)
    same = [row.metric for row in rows if row.same]
    others = [[name, value(first), value(second)] for name, first, second in circumstances(before, after)]
    parts = [
        f"# {_text(before.name)} and {_text(after.name)}",
        f"- before: {_text(before.verdict)}\n- after: {_text(after.verdict)}",
        unlike(before, after),
        table(["figure", "before", "after", "difference", ""], [cells(row) for row in rows if not row.same]),
        f"The same in both: {', '.join(same)}." if same else "",
        table(["what else differs", "before", "after"], others, left=3),
    ]
    for names, which in zip(unpaired(before, after), ("first", "second"), strict=True):
        parts.append(f"Only in the {which} run: {', '.join(names)}." if names else "")
    return "\n\n".join(part for part in parts if part) + "\n"


def cells(row: Difference) -> list[str]:
    """A difference as text: figure, before, after, relative difference, verdict."""
    relative = "" if row.relative is None else f"{100 * row.relative:+,.1f} %"
    return [row.metric, figure(row.before, row.unit), figure(row.after, row.unit), relative, row.verdict]

"""Tables of the page that stand without a chart, each with what is said about it."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from splitnet.measure.elements import Bar, Table
from splitnet.measure.markdown import SHARED, fact, medians, value
from splitnet.measure.metrics import rate_rows, test_rows
from splitnet.measure.summary import Summary
from splitnet.measure.timeline import Lane

Times = dict[tuple[str, str, int], float]
"""(row, phase, device) -> milliseconds."""

PHASES = ("forward", "backward")
SUMS = ("busy", "communication", "exposed", "input", "idle")


# Where a step goes


def sums(summary: Summary) -> tuple[Table, str]:
    """The parts of a step on each device: medians over the profiled steps."""
    found = summary.timeline
    lanes = [lane for lane in found.lanes() if lane.total > 0] if found else []
    names = found.devices if found else ()
    rows = [_parts(name, [lane for lane in lanes if lane.device == i]) for i, name in enumerate(names)]
    heads = ["device", "step ms", *(f"{part} ms" for part in SUMS)]
    steps = len(found.steps) if found else 0
    text = (
        f"{medians(steps)}; a bar is the part of the step. Busy: computes."
        " Communication: exchanges; exposed: the part of it that no compute hides. Input: copies from and to the host,"
        " hidden by neither. Idle: the rest of a step."
    )
    return Table("Where a step goes", heads, [row for row in rows if row]), text


def _parts(name: str, lanes: Sequence[Lane]) -> list[str | Bar]:
    if not lanes:
        return []
    whole = median(lane.total for lane in lanes)
    spent = [median(float(getattr(lane, part)) for lane in lanes) for part in SUMS]
    return [name, f"{whole / 1000:,.3f}", *(Bar(f"{time / 1000:,.3f}", time / whole) for time in spent)]


# Exchanges


def exchanges(summary: Summary) -> tuple[Table, str]:
    """Bytes of a step by the row in front of which they cross, counted up to three times."""
    counts = _counts(summary)
    kinds = [kind for kind, count in counts.items() if count is not None]
    rows, agree = [], True
    for row in dict.fromkeys(row for kind in kinds for row in counts[kind] or {}):
        counted = [(counts[kind] or {}).get(row, 0) for kind in kinds]
        same = len(set(counted)) == 1
        agree &= same
        rows.append([row or "no row", *(f"{count:,.0f}" for count in counted), *_agree(same, kinds)])
    several = len(rows) > 1
    if several:
        totals = [sum((counts[kind] or {}).values()) for kind in kinds]
        rows.append(["all", *(f"{total:,.0f}" for total in totals), *_agree(agree, kinds)])
    title = "Bytes of one step, forward and backward"
    text = f"{title}, in front of each row that reads other towers."
    if len(kinds) > 1:
        text += " All counts agree." if agree else " The counts differ."
    text += f" {SHARED}" if summary.shared else ""
    return Table(title, ["before", *kinds, *["agree"] * (len(kinds) > 1)], rows, total=several), text


def gradients(summary: Summary) -> Table:
    """Bytes of one step of the same function in data parallel; no rows where it was not measured."""
    found = summary.gradients()
    rows = [[name, *(f"{entry[kind]:,.0f}" for kind in ("measured", "derived"))] for name, entry in found]
    return Table("Gradients of one step, bytes", ["between replicas of", "measured (ledger)", "derived (table)"], rows)


def _agree(same: bool, kinds: Sequence[str]) -> list[str]:
    """A cell, where there is more than one count."""
    return ["yes" if same else "no"] if len(kinds) > 1 else []


def _counts(summary: Summary) -> dict[str, dict[str, float] | None]:
    """Who counted -> row -> bytes; None where nobody did."""
    entries = summary.crossings if summary.own is not None and "exchanged" in summary.own else None
    return {
        "measured (ledger)": None if entries is None else {entry["row"]: entry["measured"] for entry in entries},
        "derived (table)": None if entries is None else {entry["row"]: entry["derived"] for entry in entries},
        "counted (trace)": None if (traced := summary.traced()) is None else dict(traced),
    }


# Layers


def layers(summary: Summary) -> tuple[Table, str]:
    """Each row's parameters, and its compute on each device: medians over the profiled steps."""
    given, times = summary.run.get("layers"), _row_times(summary)
    known = {entry["row"]: entry.get("parameters") for entry in given} if isinstance(given, list) else {}
    devices = sorted({which for row, phase, which in times if row and phase in PHASES})
    widest = max((ms for (row, phase, _), ms in times.items() if row and phase in PHASES), default=0.0) or 1.0
    rows: list[list[str | Bar]] = []
    for name in dict.fromkeys((*known, *(row for row, *_ in times if row))):
        spent = [times.get((name, phase, which)) for which in devices for phase in PHASES]
        count = known.get(name)
        told = f"{count:,}" if isinstance(count, int) else ""
        rows.append([name, told, *("" if ms is None else Bar(f"{ms:,.2f}", ms / widest) for ms in spent)])
    names = summary.timeline.devices if summary.timeline is not None else ()
    groups = [("", 2), *((names[which], len(PHASES)) for which in devices)] if devices else []
    heads = ["row", "parameters", *(f"{phase} ms" for _ in devices for phase in PHASES)]
    text = "Compute in a step, medians; a bar is the part of the longest." if devices else ""
    return Table("Rows", heads, rows, groups=groups), " ".join(filter(None, (text, _outside(names, times))))


def _row_times(summary: Summary) -> Times:
    steps = [summary.timeline.rows(step) for step in summary.timeline.steps] if summary.timeline is not None else []
    places = dict.fromkeys(place for step in steps for place in step)
    return {place: median(step.get(place, 0.0) for step in steps) / 1000 for place in places}


def _outside(names: Sequence[str], times: Times) -> str:
    """What is computed in no row: data, the loss, the optimizer."""
    found: dict[str, list[str]] = {}
    for (row, phase, which), ms in sorted(times.items(), key=lambda item: item[0][2]):
        if not row:
            found.setdefault(phase or "no phase", []).append(f"{ms:,.2f} ms on {names[which]}")
    told = "; ".join(f"{phase} {', '.join(spent)}" for phase, spent in found.items())
    return f"Outside the rows: {told}." if told else ""


# Tests, environment


def tests(summary: Summary) -> Table:
    headings, rows = test_rows(summary.tests)
    after = [f"{record['step']:,}" for record in summary.tests]
    return Table("Tests", ["after steps", *headings], [[a, *row] for a, row in zip(after, rows, strict=True)], left=0)


def rates(summary: Summary) -> Table:
    """No rows where they did not change."""
    headings, rows = rate_rows(summary.tests)
    return Table("Learning rates", headings, rows, left=0)


def environment(summary: Summary) -> tuple[Table, Table]:
    """What the run says of itself, and its options."""
    apart = ("schema", "options", "command", "layers")
    told = (
        (name.replace("_", " "), _fact(summary.run, held)) for name, held in summary.run.items() if name not in apart
    )
    options = ((f"--{name.replace('_', '-')}", held) for name, held in summary.run["options"].items())
    return (
        Table("Environment", ["of the run", "value"], _told(told), left=2),
        Table("Options", ["option", "value"], _told(options), left=2),
    )


def _fact(run: Mapping[str, Any], held: Any) -> Any:
    return held if held in (None, {}, []) else fact(run, held)


def _told(facts: Iterable[tuple[str, Any]]) -> list[list[str]]:
    return [[name, value(held)] for name, held in facts if held not in (None, {}, [])]

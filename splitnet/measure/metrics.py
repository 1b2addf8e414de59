"""The figures of a run, each with a flat name that does not change: what `--fail-if` and a comparison go by."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from math import isfinite
from typing import Any

from splitnet.measure.timeline import Lane, Timeline

Figures = Mapping[str, Any]
"""A layout of compare.json."""

MIB = 2**20

KINDS = ("parameters", "gradients", "optimizer", "activations")
"""What memory is taken by; together they are the peak."""

SHARES = {
    "busy": ("computes", "higher"),
    "exposed": ("exchanges and computes nothing", "lower"),
    "input": ("copies from or to the host alone", "lower"),
    "idle": ("does nothing", "lower"),
}
"""Parts of a step on a device: they add up to the whole of it."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One figure of the run's own layout, beside the same of the base layout: the same function on one device.

    `better` is "higher", "lower", or "" where neither is. The range is that of the measured steps; None where
    there was but one figure.
    """

    name: str
    value: float
    unit: str
    better: str
    text: str
    least: float | None = None
    greatest: float | None = None
    base: float | None = None
    base_least: float | None = None
    base_greatest: float | None = None
    ratio: float | None = None
    """value / base; the median of the rounds where both were measured in alternation, else of the two figures."""

    def beside(self, base: "Metric", ratio: float | None) -> "Metric":
        ratio = self.value / base.value if ratio is None and base.value else ratio
        return replace(self, base=base.value, base_least=base.least, base_greatest=base.greatest, ratio=ratio)


def from_comparison(own: Figures, base: Figures | None) -> list[Metric]:
    """Speed, memory and bytes of a layout that was measured, beside those of another (None: there is no other)."""
    figures = list(_of_layout(own))
    if base is None:
        return figures
    others, ratio, clocks = {m.name: m for m in _of_layout(base)}, own.get("ratio"), device_ratio(own, base)
    speed = ratio["median"] if ratio else None
    paired = {"images_per_second": speed, "step_ms": 1 / speed if speed else None}
    if clocks is not None:
        paired["device_step_ms"] = 1 / clocks[0]
    figures = [m.beside(others[m.name], paired.get(m.name)) if m.name in others else m for m in figures]
    if ratio:
        text = "speed / that of the base layout"
        figures.append(Metric("speed_ratio", ratio["median"], "", "higher", text, *interval(ratio)))
    if clocks is not None:
        text = "speed / that of the base layout, on the devices' clocks"
        figures.append(Metric("device_speed_ratio", clocks[0], "", "higher", text, *clocks[1:]))
    return figures


def from_replicas(layout: Figures) -> Iterator[Metric]:
    """The same of the function in data parallel, each name with ".replicas" at its end."""
    for metric in _of_layout(layout):
        if "." not in metric.name:
            yield replace(metric, name=f"{metric.name}.replicas", text=f"{metric.text}, replicas")
    if ratio := layout.get("ratio"):
        text = "speed / that of the base layout, replicas"
        yield Metric("speed_ratio.replicas", ratio["median"], "", "higher", text, *interval(ratio))


def interval(ratio: Figures) -> tuple[float, float]:
    """Where the typical ratio lies: its 99 % interval, or the range where too few were taken for one."""
    if ratio.get("low") is None or ratio.get("high") is None:
        return ratio["least"], ratio["greatest"]
    return ratio["low"], ratio["high"]


def device_ratio(own: Figures, base: Figures) -> tuple[float, float, float] | None:
    """Speed over the base layout's on the devices' own clocks, round by round: median, least, greatest."""
    pairs = zip(own.get("samples") or (), base.get("samples") or (), strict=False)
    ratios = [b["device"] / a["device"] for a, b in pairs if a.get("device") and b.get("device")]
    return (statistics.median(ratios), min(ratios), max(ratios)) if ratios else None


def _of_layout(layout: Figures) -> Iterator[Metric]:
    yield _spread("images_per_second", layout["images_per_second"], "images/s", "higher", "images/s, wall time")
    yield _spread("step_ms", layout["step_ms"], "ms", "lower", "step, wall time")
    if layout.get("device_step_ms") is not None:
        yield _spread("device_step_ms", layout["device_step_ms"], "ms", "lower", "step, on the devices' clocks")
    if layout.get("exposed_ms") is not None:
        text = "exchanges in a step that nothing hides, on the devices' clocks"
        yield _spread("exposed_ms", layout["exposed_ms"], "ms", "lower", text)
    memory = layout["memory"]
    if memory:
        peak = max(m["peak"] for m in memory.values())
        yield Metric("peak_bytes", peak, "bytes", "lower", "peak memory, fuller device")
    for device, held in memory.items():
        yield Metric(f"peak_bytes.{device}", held["peak"], "bytes", "lower", f"peak memory, {device}")
        for kind in KINDS:
            yield Metric(f"{kind}_bytes.{device}", held[kind], "bytes", "lower", f"{kind} at the peak, {device}")
    exchanged = layout["exchanged"]
    total = sum(entry["measured"] for entry in exchanged)
    yield Metric("bytes_exchanged", total, "bytes", "lower", "exchanged in a step")
    for entry in exchanged:
        text = f"exchanged in a step before {entry['row']}"
        yield Metric(f"bytes_exchanged.{entry['row']}", entry["measured"], "bytes", "lower", text)
    differences = layout.get("loss_differences")
    if differences:
        text = "loss difference from the base layout, last step"
        yield Metric("loss_difference", differences[-1], "", "lower", text)


def _spread(name: str, spread: Figures, unit: str, better: str, text: str) -> Metric:
    return Metric(name, spread["median"], unit, better, text, spread["least"], spread["greatest"])


def _several(name: str, values: Iterable[float], unit: str, better: str, text: str) -> Metric:
    """The median of a figure that was taken in several steps."""
    known = list(values)
    return Metric(name, statistics.median(known), unit, better, text, min(known), max(known))


def settled(steps: Sequence[Figures]) -> Sequence[Figures]:
    """Those steps of a training that are timed: none that warms up, unless it is alone.

    A run resumed warms up again. Records of runs before `warms_up` was kept leave out the first step alone.
    """
    return [s for i, s in enumerate(steps) if not s.get("warms_up", i == 0)] or steps[1:] or steps


def from_records(steps: Sequence[Figures], tests: Sequence[Figures]) -> Iterator[Metric]:
    """Speed while training, of steps that are `settled`, and what was learnt."""
    timed = [step["images"] / step["seconds"] for step in settled(steps) if step["seconds"] > 0]
    if timed:
        yield _several("training_images_per_second", timed, "images/s", "higher", "images/s while training, wall time")
    if steps:
        yield Metric("training_loss", steps[-1]["loss"], "", "lower", "training loss, last step")
    if tests:
        yield Metric("loss", tests[-1]["loss"], "", "lower", "test loss")
        yield Metric("accuracy", 100 * tests[-1]["accuracy"], "%", "higher", "test accuracy")
        if tests[-1].get("top5") is not None:
            yield Metric("top5", 100 * tests[-1]["top5"], "%", "higher", "top-5 test accuracy")


def test_rows(tests: Sequence[Figures]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of a table of tests; top-5 where there are enough classes for it, views where they differ."""
    wide = any(test.get("top5") is not None for test in tests)
    views = [test.get("views") or 1 for test in tests]
    unlike = len(set(views)) > 1
    rows = []
    for test, seen in zip(tests, views, strict=True):
        five = [_percent(test.get("top5"))] if wide else []
        last = [f"{test['images']:,}", *[f"{seen:,}"] * unlike]
        rows.append([f"{test['loss']:.4f}", _percent(test["accuracy"]), *five, *last])
    return ["loss", "accuracy", *["top-5 accuracy"] * wide, "images", *["views"] * unlike], rows


WHOSE = {"first weight": "the first weights", "weights": "other weights"}
"""Kinds of parameters with rates of their own, in a heading."""


def rate_rows(tests: Sequence[Figures]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of a table of learning rates, a line for each change; no lines if they stayed as they were.

    Tests tell them: a line's rates are those up to the last test that has them.
    """
    known = [(test["rates"], test["step"]) for test in tests if test.get("rates")]
    parts = [(rates, [step for _, step in part][-1]) for rates, part in groupby(known, key=lambda one: one[0])]
    kinds = list(dict.fromkeys(kind for rates, _ in parts for kind in rates))
    rows = [[f"{step:,}", *(f"{rates[k]:g}" if k in rates else "" for k in kinds)] for rates, step in parts]
    headings = ["until step", *(f"rate of {WHOSE.get(kind, kind)}" if len(kinds) > 1 else "rate" for kind in kinds)]
    return headings, rows if len(rows) > 1 else []


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def from_timeline(timeline: Timeline) -> Iterator[Metric]:
    """Where the profiled steps went, device by device and row by row: the median over steps, and the range."""
    lanes = [lane for lane in timeline.lanes() if lane.total > 0]
    for device, name in enumerate(timeline.devices):
        own = [lane for lane in lanes if lane.device == device]
        if not own:
            continue
        for part, (does, better) in SHARES.items():
            shares = [share(lane, part) for lane in own]
            yield _several(f"{part}_share.{name}", shares, "%", better, f"part of a step in which {name} {does}")
        exposed = [lane.exposed / 1000 for lane in own]
        yield _several(f"exposed_ms.{name}", exposed, "ms", "lower", f"exchanges in a step that {name} waits for")
    for (row, phase), spent in row_times(timeline).items():
        text = f"{row}, {phase}: compute in a step, slower device"
        yield _several(f"row_ms.{row}.{phase}", spent, "ms", "lower", text)


def share(lane: Lane, part: str) -> float:
    """Percent of the step."""
    return 100 * float(getattr(lane, part)) / lane.total


def row_times(timeline: Timeline) -> dict[tuple[str, str], list[float]]:
    """(row, phase) -> milliseconds in each profiled step on the device that takes longest."""
    steps: list[dict[tuple[str, str], float]] = []
    for step in timeline.steps:
        slowest: dict[tuple[str, str], float] = {}
        for (row, phase, _), spent in timeline.rows(step).items():
            if row and phase:
                slowest[row, phase] = max(slowest.get((row, phase), 0.0), spent / 1000)
        steps.append(slowest)
    found = dict.fromkeys(key for slowest in steps for key in slowest)
    return {key: [slowest.get(key, 0.0) for slowest in steps] for key in found}


def digits(milliseconds: float) -> int:
    """Places that show three digits of it, and no more than four."""
    return 0 if milliseconds >= 100 else 1 if milliseconds >= 10 else 2 if milliseconds >= 1 else 3


def figure(value: float, unit: str) -> str:
    """A figure with its unit, short."""
    if unit == "bytes":
        return f"{value / 2**20:,.1f} MiB" if abs(value) >= 2**20 else f"{value:,.0f} bytes"
    number = f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{number}/s" if unit == "images/s" else f"{number} {unit}".rstrip()


def finite(metrics: Iterable[Metric]) -> list[Metric]:
    """Without what is no number: a figure that cannot be compared must not pass a gate."""
    return [metric for metric in metrics if isfinite(metric.value)]

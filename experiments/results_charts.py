"""The charts of an experiment's results: each claim beside its bound, and what the trials learnt."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from statistics import fmean
from textwrap import wrap
from typing import Any

from results_file import TUNING
from trials import BLOCK

from splitnet.measure.svg import INKS, Drawing, ink, ticks

WIDTH = 400
"""Of a chart: it fits a phone, and two fit beside each other on a desk."""

LEFT, RIGHT = 44, 14

COLOURS = ("#2f74b5", "#b8631a", "#2e8057", "#8460b8", "#d13f5c", "#8a6a3a", "#6b7480", "#3a9aa8", "#a8487f")
"""Of variants, in order; after the last, dashed from the first on."""

POINTS = 60
"""Of a curve, at most."""

LETTERS = 54
"""Of a line of words, at most."""

INK_OF = {"shown": "optimizer", "the opposite": "exchange", "not shown": "other"}

Content = Mapping[str, Any]


def forests(claims: Sequence[Content]) -> list[Drawing]:
    """Each claim's values; levels, differences and ratios have a chart of their own, and so has each unit.

    Claims without a value are left out.
    """
    kinds: dict[str, list[Content]] = {}
    for c in claims:
        if c["values"]:
            kind = "Ratios" if c["ratio"] else "Values" if c.get("level") else "Differences"
            kinds.setdefault(f"{kind}{', ' * bool(c['unit'])}{c['unit']}", []).append(c)
    return [forest(kind, found) for kind, found in kinds.items()]


def forest(title: str, claims: Sequence[Content]) -> Drawing:
    """Every seed a dot, the interval a line; the dashed line is the bound, with its number."""
    intervals = any(c["low"] is not None for c in claims)
    title += ", and their 99 % intervals" * intervals
    labels = [wrap(f"{c['verdict']}: {c['claim']}", LETTERS) for c in claims]
    tops = list(accumulate((44 + 16 * len(lines) for lines in labels), initial=36))
    height = tops[-1] + 50
    drawing = Drawing(title, "; ".join(f"{c['claim']}: {c['figure']}" for c in claims), WIDTH, height)
    drawing.word(12, 22, title)
    values = [v for c in claims for v in (*c["values"], c["low"], c["high"], c["bound"]) if v is not None]
    least, most = min(values), max(values)
    span = (most - least) or 1.0

    def at(value: float) -> float:
        return 20 + (WIDTH - 40) * (value - least) / span

    for c, lines, top in zip(claims, labels, tops, strict=False):
        colour = ink(INK_OF[c["verdict"]])
        for i, line in enumerate(lines):
            drawing.word(12, top + 16 * (i + 1), line, look="soft")
        y = top + 16 * len(lines) + 8
        drawing.rule(20, y + 10, WIDTH - 20, y + 10)
        bound = f"{c['bound']:g}"
        drawing.line([(at(c["bound"]), y), (at(c["bound"]), y + 20)], INKS["other"], f"bound {bound}", dashed=True)
        drawing.word(at(c["bound"]), y + 33, bound, "middle", "soft")
        if c["low"] is not None:
            end = WIDTH - 20 if c["high"] is None else at(c["high"])  # of what is only known to be at least so great
            drawing.rect(at(c["low"]), y + 8, end - at(c["low"]), 4, colour, c["figure"])
        for value in c["values"]:
            drawing.dot(at(value), y + 10, colour, f"{value:.4g}")
    drawing.word(20, height - 32, f"{least:.3g}", look="soft")
    drawing.word(WIDTH - 20, height - 32, f"{most:.3g}", "end", "soft")
    _forest_legend(drawing, "a seed" if any(c["n"] > 1 for c in claims) else "found", intervals)
    return drawing


def _forest_legend(drawing: Drawing, dot: str, intervals: bool) -> None:
    y, x = drawing.height - 10, 82.0
    drawing.dot(16, y - 4, INKS["other"], dot)
    drawing.word(26, y, dot, look="soft")
    if intervals:
        drawing.rect(x, y - 6, 20, 4, INKS["other"])
        drawing.word(x + 26, y, "99 % interval", look="soft")
        x += 128
    drawing.line([(x, y - 14), (x, y + 6)], INKS["other"], "bound", dashed=True)
    drawing.word(x + 8, y, "claimed: above this line", look="soft")


def by_step(content: Content) -> Drawing | None:
    """Training accuracy as it was learnt: the mean over seeds of each variant. None of too few steps."""
    lines = _by_variant(content, lambda outcome: outcome["curve"])
    longest = max(map(len, lines.values()), default=0)
    if longest < 2:
        return None
    at_once = -(-longest // POINTS)
    few = {name: [fmean(line[i : i + at_once]) for i in range(0, len(line), at_once)] for name, line in lines.items()}
    title = "Training accuracy while learning, %, by step"
    return _curves(title, few, str(BLOCK * at_once), f"{BLOCK * longest:,} steps")


def by_epoch(content: Content) -> Drawing | None:
    """Test accuracy: the mean over seeds of each variant. None of a single epoch."""
    lines = _by_variant(content, lambda outcome: [epoch["test_accuracy"] for epoch in outcome["epochs"]])
    longest = max(map(len, lines.values()), default=0)
    return None if longest < 2 else _curves("Test accuracy, %, by epoch", lines, "1", f"{longest} epochs")


def _by_variant(content: Content, of: Callable[[Content], Iterable[float]]) -> dict[str, list[float]]:
    """Of each variant the mean over seeds that are judged, in percent; of those that got to a first value."""
    series: dict[str, list[list[float]]] = {}
    for trial in content["trials"]:
        line = [100 * share for share in of(trial["outcome"])]
        if line and trial["seed"] != TUNING:
            series.setdefault(trial["variant"], []).append(line)
    return {name: _means(found) for name, found in series.items()}


def _marks(least: float, most: float) -> list[float]:
    """Round figures around percentages, about five, none above 100."""
    step = ticks(max(most - 10.0 * (least // 10), 1.0))[1]
    first, last = math.floor(least / step), math.ceil(most / step)
    if first == last:
        first, last = (first - 1, last) if last * step >= 100 else (first, last + 1)
    return [step * i for i in range(first, last + 1)]


def _curves(title: str, lines: Mapping[str, Sequence[float]], first: str, last: str) -> Drawing:
    """A line for each variant, and its last value; `first` and `last` are said below the axis."""
    top, bottom, height = 40, 230, 262 + 18 * len(lines)
    drawing = Drawing(title, f"{title}: the mean over seeds of {', '.join(lines)}.", WIDTH, height)
    drawing.word(12, 22, title)
    every = [value for line in lines.values() for value in line]
    marks = _marks(min(every), max(every))

    def at(value: float) -> float:
        return bottom - (bottom - top) * (value - marks[0]) / (marks[-1] - marks[0])

    for mark in marks:
        drawing.rule(LEFT, at(mark), WIDTH - RIGHT, at(mark))
        drawing.word(LEFT - 6, at(mark) + 4, f"{mark:g}", "end", "soft")
    room = (WIDTH - LEFT - RIGHT - 16) / max(*(len(line) - 1 for line in lines.values()), 1)
    for i, (name, line) in enumerate(lines.items()):
        colour, dashed = COLOURS[i % len(COLOURS)], i >= len(COLOURS)
        drawing.line([(LEFT + 8 + room * x, at(value)) for x, value in enumerate(line)], colour, name, dashed)
        y = height - 12 - 18 * (len(lines) - 1 - i)
        drawing.rect(12, y - 10, 11, 11, colour)
        drawing.word(28, y, _short(f"{name}: {line[-1]:.4g}", LETTERS), look="soft")
    drawing.word(LEFT + 8, bottom + 18, first, "middle", "soft")
    drawing.word(WIDTH - RIGHT, bottom + 18, last, "end", "soft")
    return drawing


def _means(lines: Sequence[Sequence[float]]) -> list[float]:
    """Epoch by epoch, of those that got so far."""
    longest = max(map(len, lines))
    return [fmean(line[i] for line in lines if len(line) > i) for i in range(longest)]


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"

"""Still pictures of a run for Markdown, as SVG: speed, memory, one step on its devices, loss."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from splitnet.measure.metrics import KINDS, MIB
from splitnet.measure.step_picture import step_picture
from splitnet.measure.summary import Summary, heading
from splitnet.measure.svg import RIGHT, WIDTH, Drawing, ink, ticks

LEFT = 178


def pictures(summary: Summary) -> dict[str, str]:
    """File name -> SVG text, of what the run has figures for."""
    makers: dict[str, Callable[[Summary], Drawing | None]] = {
        "throughput.svg": throughput,
        "memory.svg": memory,
        "timeline.svg": step_picture,
        "loss.svg": loss,
    }
    drawn = {name: make(summary) for name, make in makers.items()}
    return {name: str(drawing) for name, drawing in drawn.items() if drawing is not None}


NAMES = ("throughput.svg", "memory.svg", "timeline.svg", "loss.svg")


def throughput(summary: Summary) -> Drawing | None:
    """A bar for each layout: median images/s, with a whisker from the slowest to the fastest step."""
    layouts = summary.measured
    if not layouts:
        return None
    title = "Training speed, images/s" + " (devices emulated, wall time of this CPU)" * summary.emulated
    said = [f"{heading(x)}: {x['images_per_second']['median']:,.1f}" for x in layouts]
    drawing = Drawing(title, "; ".join(said) + ".", WIDTH, 78 + 34 * len(layouts))
    axis = _Axis(drawing, max(x["images_per_second"]["greatest"] for x in layouts), 44, 34 * len(layouts))
    axis.draw()
    for place, layout in enumerate(layouts):
        speed, y = layout["images_per_second"], 50 + 34 * place
        told = f"{heading(layout)}: {speed['median']:,.1f} ({speed['least']:,.1f}-{speed['greatest']:,.1f}) images/s"
        axis.label(y + 15, layout)
        drawing.rect(LEFT, y, axis.at(speed["median"]) - LEFT, 22, ink("forward" if place == 0 else "other"), told)
        least, greatest = axis.at(speed["least"]), axis.at(speed["greatest"])
        drawing.rule(least, y + 11, greatest, y + 11, "ink")
        for x in (least, greatest):
            drawing.rule(x, y + 7, x, y + 15, "ink")
        drawing.word(LEFT + 6, y + 15, f"{speed['median']:,.1f}", look="on")
    return drawing


def memory(summary: Summary) -> Drawing | None:
    """A bar for each device of each layout: its peak, by what takes it."""
    bars = [(layout, device, held) for layout in summary.measured for device, held in layout["memory"].items()]
    if not bars:
        return None
    said = [f"{heading(layout, device)}: {held['peak'] / MIB:,.0f}" for layout, device, held in bars]
    drawing = Drawing("Peak memory of a device, MiB", "; ".join(said) + ".", WIDTH, 104 + 28 * len(bars))
    axis = _Axis(drawing, max(held["peak"] for *_, held in bars) / MIB, 44, 28 * len(bars))
    axis.draw()
    for place, (layout, device, held) in enumerate(bars):
        x, y = float(LEFT), 48 + 28 * place
        axis.label(y + 14, layout, device)
        for kind in KINDS:
            wide = axis.at(max(held[kind], 0) / MIB) - LEFT
            told = f"{heading(layout, device)}: {kind} {held[kind] / MIB:,.0f} MiB"
            drawing.rect(x, y, wide, 20, ink(kind), told)
            x += wide
        end = "end" if x > WIDTH - 80 else "start"
        drawing.word(x + (-6 if end == "end" else 6), y + 14, f"{held['peak'] / MIB:,.0f}", end, "on" * (end == "end"))
    drawing.legend(drawing.height - 14, {kind: ink(kind) for kind in KINDS}, LEFT)
    return drawing


class _Axis:
    """Figures along x from 0, with a line for each round one."""

    def __init__(self, drawing: Drawing, greatest: float, top: float, height: float) -> None:
        self.drawing, self.top, self.height = drawing, top, height
        self.marks = ticks(greatest)

    def at(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self.marks[-1]

    def draw(self) -> None:
        self.drawing.word(12, 24, self.drawing.title)
        for mark in self.marks:
            x = self.at(mark)
            self.drawing.rule(x, self.top, x, self.top + self.height)
            self.drawing.word(x, self.top + self.height + 16, f"{mark:,g}", "middle", "soft")

    def label(self, y: float, layout: dict[str, Any], device: str = "") -> None:
        self.drawing.word(LEFT - 8, y, _shortened(f"{heading(layout, device)}"), "end")


def _shortened(text: str, most: int = 27) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


# Loss


def loss(summary: Summary) -> Drawing | None:
    """Training loss step by step, and the test loss where it was taken."""
    steps = [(r["step"] + 1, r["loss"]) for r in summary.steps]
    tests = [(r["step"], r["loss"]) for r in summary.tests]
    if len(steps) < 2:
        return None
    text = f"Training loss from {steps[0][1]:.4g} to {steps[-1][1]:.4g} in {len(steps):,} steps"
    text += "".join(f"; test loss {value:.4g} after step {step:,}" for step, value in tests[-1:])
    drawing = Drawing("Loss", text + ".", WIDTH, 300)
    left, top, bottom = 64, 44, 240
    high, marks = max(v for _, v in steps + tests), ticks(max(x for x, _ in steps + tests))
    rows = ticks(high)
    at = lambda p: (left + (WIDTH - left - RIGHT) * p[0] / marks[-1], bottom - (bottom - top) * p[1] / rows[-1])  # noqa: E731
    drawing.word(12, 24, drawing.title)
    for value in rows:
        y = at((0, value))[1]
        drawing.rule(left, y, WIDTH - RIGHT, y)
        drawing.word(left - 8, y + 4, f"{value:,g}", "end", "soft")
    for step in filter(float.is_integer, marks):
        drawing.word(at((step, 0))[0], bottom + 18, f"{step:,g}", "middle", "soft")
    drawing.line([at(p) for p in thinned(steps, 800)], ink("forward"), text)
    for step, value in tests:
        drawing.dot(*at((step, value)), ink("backward"), f"test loss {value:.4f} after step {step:,}")
    drawing.legend(drawing.height - 14, {"training": ink("forward"), "test": ink("backward")}, left)
    drawing.word(WIDTH - RIGHT, drawing.height - 14, "steps", "end", "soft")
    return drawing


def thinned(points: list[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """At most so many points, each the mean of those it stands for."""
    if len(points) <= most:
        return points
    cuts = [len(points) * i // most for i in range(most + 1)]
    parts = [points[a:b] for a, b in pairwise(cuts)]
    return [(part[len(part) // 2][0], sum(v for _, v in part) / len(part)) for part in parts]

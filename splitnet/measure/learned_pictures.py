"""Still pictures of what was learned: filters, predictions, nearest images, and how far the towers specialise.

Each is laid out once and drawn on any canvas: as SVG for Markdown, in pixels for TensorBoard.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol
from xml.sax.saxutils import escape, quoteattr

from splitnet.measure import learned_text as words
from splitnet.measure.learned_text import Group, Learned
from splitnet.measure.svg import WIDTH, Drawing, ink, number

NAMES = {
    "filters.svg": "Filters of the first row",
    "specialisation.svg": "How far the towers specialise, over training",
    "predictions.svg": "Predictions of test images",
    "nearest.svg": "Test images and the nearest training images",
}
"""File name -> what it is, in a few words."""
MARGIN = 12
LINE = 14
"""From a line of a class's name to the next."""
TRUE, OTHER = "exchange", "forward"
"""Inks of the true class's bar, and of the others'."""
LINES = ("forward", "backward", "optimizer", "data", "exchange", "input", "other")
"""Inks of a chart's lines, in order."""


class Canvas(Protocol):
    """What a picture is drawn on; see `Drawing`."""

    def rect(self, x: float, y: float, width: float, height: float, colour: str, title: str = "") -> None: ...
    def word(self, x: float, y: float, text: str, anchor: str = "start", look: str = "") -> None: ...
    def picture(self, x: float, y: float, width: float, height: float, uri: str, title: str) -> None: ...


Maker = Callable[[str, str, float, float], Canvas]
"""A canvas of this title, longer description, width and height."""


class Picture(Drawing):
    """A drawing that may hold pictures."""

    def picture(self, x: float, y: float, width: float, height: float, uri: str, title: str) -> None:
        """A data URI in this box, as large as it fits with its own proportions."""
        place = f'x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
        self._add("image", f"{place} href={quoteattr(uri)}", f"<title>{escape(title)}</title>")


def pictures(learned: Learned | None) -> dict[str, str]:
    """File name -> SVG text, of what there is."""
    if learned is None:
        return {}
    drawn = (filters(learned), specialisation(learned), predictions(learned), nearest(learned))
    found = dict(zip(NAMES, drawn, strict=True))
    return {name: str(canvas) for name, canvas in found.items() if canvas is not None}


def filters(learned: Learned, make: Maker = Picture) -> Canvas | None:
    """The first row's filters, the towers above each other."""
    shown = words.end(learned).get("filters")
    if not shown:
        return None
    scale = min(1.0, (WIDTH - 2 * MARGIN) / max(one["width"] for one in shown))
    tall = 44 + sum(scale * one["height"] + 32 for one in shown)
    canvas = make(f"Filters of {learned['row']}", words.FILTERS, WIDTH, tall)
    canvas.word(MARGIN, 24, f"Filters of {learned['row']}, one scale for all")
    y = 44.0
    for tower, one in enumerate(shown):
        canvas.word(MARGIN, y + 10, f"tower {tower}", look="soft")
        size = (scale * one["width"], scale * one["height"])
        canvas.picture(MARGIN, y + 18, *size, one["image"], f"filters of tower {tower}")
        y += size[1] + 32
    return canvas


def predictions(learned: Learned, make: Maker = Picture) -> Canvas | None:
    """Test images, two beside each other, each beside bars of its likeliest classes."""
    shown = words.end(learned).get("predictions")
    if not shown:
        return None
    lines = [shown[first : first + 2] for first in range(0, len(shown), 2)]
    said = "; ".join(f"{words.short(one['name'], 48)}: {words.predicted(learned, one)}" for one in shown)
    tall = 44 + sum(max(map(_tall, line)) for line in lines)
    canvas = make("Predictions", f"{words.PREDICTIONS} {said}.", WIDTH, tall)
    canvas.word(MARGIN, 24, "Predictions of test images")
    canvas.rect(WIDTH - 208, 14, 11, 11, ink(TRUE))
    canvas.word(WIDTH - 192, 24, "true class", look="soft")
    canvas.rect(WIDTH - 118, 14, 11, 11, ink(OTHER))
    canvas.word(WIDTH - 102, 24, "other classes", look="soft")
    y = 44.0
    for line in lines:
        for place, one in enumerate(line):
            _prediction(canvas, MARGIN + (WIDTH - 2 * MARGIN) / 2 * place, y, learned, one)
        y += max(map(_tall, line))
    return canvas


def _head(one: dict[str, Any]) -> list[str]:
    """An image's class, over its bars."""
    return words.lines(one["name"], 36, 2)


def _guess(guess: dict[str, Any]) -> list[str]:
    """A likely class, beside its bar."""
    return words.lines(guess["name"], 22, 2)


def _tall(one: dict[str, Any]) -> float:
    """What a prediction takes of the height, with the gap below."""
    bars = sum(4 + LINE * len(_guess(guess)) for guess in one["top"])
    return 20 + max(96, 26 + LINE * len(_head(one)) + bars)


def _prediction(canvas: Canvas, x: float, y: float, learned: Learned, one: dict[str, Any]) -> None:
    canvas.picture(x, y, 96, 96, one["image"], f"test image {one['place']:,}: {one['name']}")
    head = _head(one)
    _words(canvas, x + 108, y + 11, head)
    top = y + 11 + LINE * len(head)
    canvas.word(x + 108, top, words.predicted(learned, one), look="soft")
    top += 15
    for guess in one["top"]:
        chance, true = min(max(guess["probability"], 0.0), 1.0), guess["label"] == one["label"]
        name = _guess(guess)
        _words(canvas, x + 284, top + 10, name, "end", "" if true else "soft")
        told = f"{guess['name']}: {100 * chance:.1f} %{', the true class' * true}"
        canvas.rect(x + 290, top, 72 * chance, 12, ink(TRUE if true else OTHER), told)
        canvas.word(x + 295 + 72 * chance, top + 10, f"{chance:.2f}", look="soft")
        top += 4 + LINE * len(name)


def _words(canvas: Canvas, x: float, y: float, lines: Sequence[str], anchor: str = "start", look: str = "") -> None:
    """Lines below each other."""
    for place, line in enumerate(lines):
        canvas.word(x, y + LINE * place, line, anchor, look)


def nearest(learned: Learned, make: Maker = Picture) -> Canvas | None:
    """A line for each query: it, and the nearest training images, with class and distance."""
    found = words.end(learned).get("nearest")
    if not found or not found["queries"]:
        return None
    first = 150
    most = max(1, *(len(query["images"]) for query in found["queries"]))
    wide = (WIDTH - first - MARGIN) / most
    fits = lambda image: words.lines(image["name"], int(wide / 8.5), 3)  # noqa: E731
    tall = [112 + LINE * (max(len(fits(one)) for one in (query, *query["images"])) - 1) for query in found["queries"]]
    canvas = make("Nearest images", words.NEAREST.format(**found), WIDTH, 70 + sum(tall))
    canvas.word(MARGIN, 24, "test image")
    told = f"nearest of {found['among']:,} training images, by {found['row']}: class, squared distance"
    canvas.word(first, 24, told)
    y = 44
    for query, high in zip(found["queries"], tall, strict=True):
        canvas.picture(MARGIN, y, 64, 64, query["image"], f"test image {query['place']:,}: {query['name']}")
        _words(canvas, MARGIN, y + 80, words.lines(query["name"], 15, 3))
        for place, image in enumerate(query["images"]):
            x, name = first + wide * place, fits(image)
            canvas.picture(x, y, 64, 64, image["image"], f"training image {image['place']:,}: {image['name']}")
            _words(canvas, x, y + 80, name, look="" if image["label"] == query["label"] else "soft")
            canvas.word(x, y + 82 + LINE * len(name), words.distance(image), look="soft")
        y += high
    return canvas


# How far the towers specialise: a small chart for each group of figures, beside each other.


def specialisation(learned: Learned) -> Drawing | None:
    """Each group of figures over training, from 0 to 1."""
    found = [group for group in words.groups(learned) if len(group.steps) > 1]
    if not found:
        return None
    tallest = max(len(group.lines) for group in found)
    said = "; ".join(f"{name} {points[-1][1]:.2f}" for group in found for name, points in group.lines.items())
    drawing = Drawing("How far the towers specialise", f"At the end: {said}.", WIDTH, 216 + 18 * tallest)
    wide = (WIDTH - 2 * MARGIN) / 3
    for place, group in enumerate(found):
        _small_chart(drawing, MARGIN + wide * place, wide - 20, group)
    return drawing


def _small_chart(drawing: Drawing, x: float, wide: float, group: Group) -> None:
    left, top, bottom = x + 28, 44, 170
    last = max(max(step for step, _ in points) for points in group.lines.values()) or 1
    at = lambda step, value: (left + (x + wide - left) * step / last, bottom - (bottom - top) * min(max(value, 0), 1))  # noqa: E731
    drawing.word(x, 24, group.title)
    for value in (0, 0.5, 1):
        drawing.rule(left, at(0, value)[1], x + wide, at(0, value)[1])
        drawing.word(left - 6, at(0, value)[1] + 4, f"{value:g}", "end", "soft")
    drawing.word(x + wide, bottom + 18, f"{last:,} steps", "end", "soft")
    for place, (name, points) in enumerate(group.lines.items()):
        colour, told = ink(LINES[place % len(LINES)]), f"{name}: {points[-1][1]:.3f} after {points[-1][0]:,} steps"
        _line(drawing, [at(*point) for point in points], colour, told, place)
        drawing.rect(left, bottom + 34 + 18 * place, 11, 11, colour)
        drawing.word(left + 16, bottom + 44 + 18 * place, f"{words.short(name, 24)} {points[-1][1]:.2f}", look="soft")


def _line(drawing: Drawing, points: Sequence[tuple[float, float]], colour: str, told: str, place: int) -> None:
    """Whole, dashed and dotted in turn, so that one is seen below another of the same values."""
    if len(points) > 1:
        drawing.line(list(points), colour, told, dashed=place % 3 == 1, dotted=place % 3 == 2)
    drawing.dot(*points[-1], colour, told)

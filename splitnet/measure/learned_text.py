"""What was learned in words and figures, from a run's learned.json: for pages, pictures and TensorBoard alike."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

Learned = dict[str, Any]
"""What `read_learned` returns."""
Record = dict[str, Any]

TALLEST = 12
"""Lines of a table that nobody can fold."""


@dataclass(frozen=True)
class Group:
    """Figures that are drawn together, over training: name -> (updates, value)."""

    name: str
    title: str
    text: str
    lines: dict[str, list[tuple[int, float]]]

    @property
    def steps(self) -> list[int]:
        """Updates after which there is a figure."""
        return sorted({step for points in self.lines.values() for step, _ in points})

    def table(self, most: int | None = None) -> tuple[list[str], list[list[str]]]:
        """Headings, and a line for each record; the first, the last and some between where there are more than most."""
        steps = self.steps
        if most is not None and len(steps) > most:
            steps = [steps[i * (len(steps) - 1) // (most - 1)] for i in range(most)]
        held = [dict(points) for points in self.lines.values()]
        rows = [[f"{step:,}", *(f"{at[step]:.3f}" if step in at else "" for at in held)] for step in steps]
        return ["after steps", *self.lines], rows


def groups(learned: Learned | None, tests: Sequence[Record] = ()) -> list[Group]:
    """How far the towers specialise, as far as there are figures for it. `tests`: the run's."""
    if not learned or not learned["records"]:
        return []
    found = (_similarity(learned), _silenced(learned, tests), _energies(learned))
    return [group for group in found if any(group.lines.values())]


def _similarity(learned: Learned) -> Group:
    records = learned["records"]
    rows = dict.fromkeys(row for record in records for row in record["similarity"])
    lines = {row: [(r["step"], r["similarity"][row]) for r in records if row in r["similarity"]] for row in rows}
    pairs = ", the mean over pairs of them" * (learned["towers"] > 2)
    text = f"Linear CKA of what towers make in front of each crossing{pairs}: 1 is alike, 0 is unrelated."
    return Group("similarity", "Similarity of the towers", text, lines)


def _silenced(learned: Learned, tests: Sequence[Record]) -> Group:
    records, towers = learned["records"], learned["towers"]
    lines = {"all towers": [(r["step"], r["accuracy"]) for r in records]} if towers > 1 else {}
    for tower in range(towers if towers > 1 else 0):
        lines[f"without tower {tower}"] = [(r["step"], r["silenced"][tower]) for r in records]
    images = max(1, records[-1]["images"])
    text = (
        f"Share of {images:,} test images that is classified right, also with one tower silenced: all that it makes"
        f" is 0. So few images leave a standard error of up to {0.5 / images**0.5:.2f};"
        f" guessing has {1 / learned['classes']:.2g}."
    )
    return Group("silenced", "Accuracy without a tower", " ".join(filter(None, (text, _beside(images, tests)))), lines)


def _beside(images: int, tests: Sequence[Record]) -> str:
    """Why the accuracy on so many images is not the last test's; "" if it is."""
    tested, views = (tests[-1]["images"], tests[-1].get("views") or 1) if tests else (0, 1)
    more = tested > images
    if not more and views == 1:
        return ""
    whole = f"takes all {tested:,} images" if more else ""
    mean = f"averages {views:,} views of each image, here one is seen" if views > 1 else ""
    return f"Not the accuracy of a test, which {' and '.join(filter(None, (whole, mean)))}."


def _energies(learned: Learned) -> Group:
    records = learned["records"]
    lines: dict[str, list[tuple[int, float]]] = {}
    for kind in ("orientation", "colour"):
        for tower in range(learned["towers"]):
            known = [(r["step"], r[kind][tower]) for r in records if r.get(kind) is not None]
            lines |= {f"{kind}, tower {tower}": known} if known else {}
    text = "Shares of the energy of each tower's filters: stripes of one direction"
    coloured = any("colour" in name for name in lines)
    text += ", and colour, of which independent weights have 0.67" * coloured
    return Group("energies", f"Energy of {learned['row']}'s filters", f"{text}.", lines)


def not_shown(learned: Learned) -> str:
    """What the data or the network cannot show, and why; "" for nothing."""
    told = "; ".join(f"{what} ({why})" for what, why in (learned.get("not_shown") or {}).items())
    return f"Not shown: {told}." if told else ""


def end(learned: Learned | None) -> dict[str, Any]:
    """What was looked at when training ended; nothing if it did not."""
    return (learned or {}).get("end") or {}


def predicted(learned: Learned, one: dict[str, Any]) -> str:
    """How a prediction came out."""
    return "right" if one["rank"] == 1 else f"rank {one['rank']:,} of {learned['classes']:,}"


def after(learned: Learned, loaded: bool = False) -> str:
    """When filters, predictions and nearest images were looked at; "" if not. `loaded`: the weights, of a file."""
    shown = end(learned)
    if not shown:
        return ""
    untrained = f"of the {'loaded' if loaded else 'initial'} weights"
    when = f"after {shown['step']:,} steps" if shown["step"] else untrained
    return f"Filters, predictions and nearest images are those {when}."


def distance(image: dict[str, Any]) -> str:
    """To a query, to about three digits."""
    value: float = image["distance"]
    return f"{value:,.0f}" if 100 <= value < 1e7 else f"{value:.3g}" if value >= 1e7 or value < 0.01 else f"{value:.2f}"


def plain(name: str) -> str:
    """A class's whole name on one line."""
    return " ".join(name.split())


def short(name: str, most: int) -> str:
    """A class's name in so many characters: its first synonyms, or the first one's beginning and end; "…" if cut."""
    name = plain(name)
    if len(name) <= most:
        return name
    synonyms = name.split(", ")
    for count in range(len(synonyms) - 1, 0, -1):
        kept = f"{', '.join(synonyms[:count])}…"
        if len(kept) <= most:
            return kept
    return _ends(synonyms[0], most)


def _ends(name: str, most: int) -> str:
    """Its beginning and end in so many characters: "thing number 1" and "… 10" differ in the last alone."""
    after = most * 2 // 5
    return f"{name[: most - 1 - after].rstrip()}…{name[len(name) - after :].lstrip()}"


def lines(name: str, width: int, most: int) -> list[str]:
    """A class's name in at most so many lines of so many characters, as much of it as they hold."""
    for count in range(width * most, 0, -1):
        found = wrap(short(name, count), width)
        if len(found) <= most:
            break
    return found or [""]


FILTERS = "16 a row, one scale for all towers: the same shade is the same weight."
PREDICTIONS = "Test images, each with its class, the five likeliest and their probability; the true class in red."
NEAREST = (
    "Test images, and beside each the nearest of {among:,} training images: by the squared distance of what {row}"
    " makes of them."
)


def tables(learned: Learned) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Predictions and nearest images: headings, lines."""
    shown = end(learned)
    rows = []
    for one in shown.get("predictions") or ():
        top = [f"{short(guess['name'], 28)} {guess['probability']:.2f}" for guess in one["top"]]
        rows.append([f"{one['place']:,}", short(one["name"], 40), predicted(learned, one), "; ".join(top)])
    yield ["test image", "class", "prediction", "likeliest classes"], rows
    rows = []
    for query in (shown.get("nearest") or {"queries": ()})["queries"]:
        near = [f"{short(image['name'], 28)} {distance(image)}" for image in query["images"]]
        rows.append([f"{query['place']:,}", short(query["name"], 40), "; ".join(near)])
    yield ["test image", "class", "nearest training images, squared distance"], rows

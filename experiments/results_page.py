"""The page of an experiment's results: one file without scripts or network, made from the results' file alone."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from statistics import fmean
from typing import Any

from trials import BLOCK

from splitnet.measure.elements import listed, paragraph, section, tag
from splitnet.measure.svg import INKS, Drawing, ink, ticks

WIDTH = 400
"""Of a chart: it fits a phone, and two fit beside each other on a desk."""

LEFT, RIGHT = 44, 14

COLOURS = ("#2f74b5", "#b8631a", "#2e8057", "#8460b8", "#d13f5c", "#8a6a3a", "#6b7480", "#3a9aa8", "#a8487f")
"""Of variants, in order; after the last, dashed from the first on."""

POINTS = 60
"""Of a curve, at most."""

INK_OF = {"shown": "optimizer", "the opposite": "exchange", "not shown": "other"}

STYLE = """
svg { max-width: 100%; height: auto }
svg .ground { fill: none }
td.text { white-space: normal; min-width: 9rem; text-align: left }
.claim { max-width: 46rem; margin-bottom: 1rem; padding-left: .75rem; border-left: 3px solid var(--rule) }
.claim p { margin: 0 }
"""
"""Beside what a run's page has."""

Content = Mapping[str, Any]


def page(content: Content) -> str:
    """Of a results' file."""
    name = content["experiment"]
    claim, *rest = paragraphs(content["text"])
    parts = [
        section("claims", "What is claimed, and what was found", _claims(content), _forest(content)),
        section("trials", "Trials", *_figures(content)),
        section("source", "Source and method", *map(_prose, rest)),
        section("machine", "Where it ran", _sessions(content)),
    ]
    header = tag("h1", escape(f"experiments/{name}.py")) + paragraph(claim, "verdict") + _size(content)
    return _whole(name, header, parts)


def index(contents: Sequence[Content]) -> str:
    """The page that leads to each experiment's, from all results' files."""
    items = []
    for content in contents:
        name = f"{content['experiment']}{'-full' * content.get('full', False)}"
        verdicts = [c["verdict"] for c in content["claims"]]
        counts = ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts))
        claim = paragraphs(content["text"])[0]
        items.append(tag("li", tag("a", escape(name), href=f"{name}.html") + escape(f": {claim} {counts}.")))
    header = tag("h1", "experiments") + paragraph(
        "What was claimed, what was found, and what was not shown.", "verdict"
    )
    return _whole("experiments", header, [tag("section", tag("ul", "".join(items)))])


def _whole(name: str, header: str, parts: Sequence[str]) -> str:
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
    css = (resources.files("splitnet.measure") / "page_assets" / "page.css").read_text("utf-8")
    head = (
        f'<head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"{tag('title', escape(f'{name} - splitnet'))}{tag('style', css + STYLE)}</head>"
    )
    body = tag("header", header) + tag("main", "".join(parts))
    return f'<!doctype html>\n<html lang="en">{head}<body>{body}</body></html>\n'


def paragraphs(text: str) -> list[str]:
    """Of a docstring, its lines joined; the command's lines, which are indented, are kept apart from the rest."""
    found = [" ".join(part.split()) for part in re.split(r"\n\s*\n", text.strip())]
    return [part if part.startswith("python ") else _sentence(part.removeprefix("Claim: ")) for part in found]


def _prose(text: str) -> str:
    """A paragraph, in which what stands in backticks is code; a command is code as a whole."""
    if text.startswith("python "):
        return tag("div", tag("pre", tag("code", escape(text))), class_="code")
    return tag("p", re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text)))


def _size(content: Content) -> str:
    return paragraph(f"{_sentence(content['size'])}. {content['says']}", "note")


def _claims(content: Content) -> str:
    found = []
    for c in content["claims"]:
        verdict = tag("strong", escape(_sentence(c["verdict"])))
        published = f" Published: {c['published']} ({c['source']})." if c["published"] else f" Source: {c['source']}."
        lines = (
            tag("p", f"{verdict}: {escape(c['claim'])}."),
            paragraph(f"{_sentence(c['what'])}: {c['figure']}.{published}"),
            paragraph(c["comparable"], "note"),
        )
        found.append(tag("div", "".join(lines), class_="claim"))
    return "".join(found)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1) -> str:
    """The first `text` columns are words, the others figures. "" without rows."""
    if not rows:
        return ""
    head = tag(
        "tr", "".join(tag("th", escape(h), scope="col", class_="word" * (i < text)) for i, h in enumerate(headings))
    )
    body = "".join(
        tag("tr", "".join(tag("td", escape(cell), class_="text" * (i < text)) for i, cell in enumerate(row)))
        for row in rows
    )
    whole = tag("table", tag("thead", head) + tag("tbody", body), aria_label=title)
    return tag("div", tag("div", whole, class_="scroll", role="group", aria_label=title, tabindex="0"), class_="table")


def _figures(content: Content) -> list[str]:
    parts = [table(t["title"], t["headings"], t["rows"]) for t in content.get("tables", [])]
    if content.get("trials"):
        drawn = [drawing for drawing in (by_step(content), by_epoch(content)) if drawing is not None]
        parts.append(tag("div", "".join(tag("figure", str(d)) for d in drawn), class_="pair"))
    return parts


def _sessions(content: Content) -> str:
    rows = []
    for s in content.get("sessions", []):
        machine, versions = s["machine"], s["packages"]
        where = f"{machine['cores']} cores of {machine['processor']}, load {s['load']}"
        rows.append((s["started"], " ".join(s["command"]), f"{where}; torch {versions['torch']}; commit {s['commit']}"))
    settings = [f"{name}: {value}" for name, value in content.get("settings", {}).items()]
    return table("Sessions", ("started", "command", "on"), rows, text=3) + listed(settings)


# Charts


def _forest(content: Content) -> str:
    """Each claim's interval, beside what it must exceed; differences and ratios have a chart of their own."""
    drawn = []
    for ratio, title in ((False, "Differences"), (True, "Ratios")):
        for unit in dict.fromkeys(c.get("unit", "") for c in content["claims"] if c.get("ratio") is ratio):
            claims = [c for c in content["claims"] if c.get("ratio") is ratio and c["unit"] == unit]
            drawn.append(forest(f"{title}{', ' + unit if unit else ''}, and their 99 % intervals", claims))
    return tag("div", "".join(tag("figure", str(d)) for d in drawn), class_="pair") if drawn else ""


def forest(title: str, claims: Sequence[Content]) -> Drawing:
    """Every seed a dot, the interval a line; the dashed line is the bound."""
    height = 52 + 46 * len(claims) + 24
    drawing = Drawing(title, "; ".join(f"{c['claim']}: {c['figure']}" for c in claims), WIDTH, height)
    drawing.word(12, 22, title)
    values = [v for c in claims for v in (*c["values"], c["low"], c["high"], c["bound"]) if v is not None]
    least, most = min(values), max(values)
    span = (most - least) or 1.0

    def at(value: float) -> float:
        return 20 + (WIDTH - 40) * (value - least) / span

    for i, c in enumerate(claims):
        y = 60 + 46 * i
        colour = ink(INK_OF[c["verdict"]])
        drawing.word(12, y - 8, _short(f"{c['verdict']}: {c['claim']}", 54), look="soft")
        drawing.rule(20, y + 10, WIDTH - 20, y + 10)
        drawing.line(
            [(at(c["bound"]), y), (at(c["bound"]), y + 20)], INKS["other"], f"bound {c['bound']:g}", dashed=True
        )
        if c["low"] is not None:
            drawing.rect(at(c["low"]), y + 8, at(c["high"]) - at(c["low"]), 4, colour, c["figure"])
        for value in c["values"]:
            drawing.dot(at(value), y + 10, colour, f"{value:.4g}")
    drawing.word(20, height - 8, f"{least:.3g}", look="soft")
    drawing.word(WIDTH - 20, height - 8, f"{most:.3g}", "end", "soft")
    return drawing


def by_step(content: Content) -> Drawing | None:
    """Training accuracy as it was learnt: the mean over seeds of each variant. None of too few steps."""
    series: dict[str, list[list[float]]] = {}
    for trial in content["trials"]:
        series.setdefault(trial["variant"], []).append([100 * share for share in trial["outcome"]["curve"]])
    lines = {name: _means(found) for name, found in series.items()}
    longest = max(map(len, lines.values()))
    if longest < 2:
        return None
    at_once = -(-longest // POINTS)
    few = {name: [fmean(line[i : i + at_once]) for i in range(0, len(line), at_once)] for name, line in lines.items()}
    return _curves("Training accuracy, %, by step", few, str(BLOCK * at_once), f"{BLOCK * longest:,} steps")


def by_epoch(content: Content) -> Drawing | None:
    """Test accuracy: the mean over seeds of each variant. None of a single epoch."""
    series: dict[str, list[list[float]]] = {}
    for trial in content["trials"]:
        found = [100 * epoch["test_accuracy"] for epoch in trial["outcome"]["epochs"]]
        series.setdefault(trial["variant"], []).append(found)
    lines = {name: _means(found) for name, found in series.items()}
    longest = max(map(len, lines.values()))
    return None if longest < 2 else _curves("Test accuracy, %, by epoch", lines, "1", f"{longest} epochs")


def _curves(title: str, lines: Mapping[str, Sequence[float]], first: str, last: str) -> Drawing:
    """A line for each variant, and its last value; `first` and `last` are said below the axis."""
    top, bottom, height = 40, 230, 262 + 18 * len(lines)
    drawing = Drawing(title, f"{title}: the mean over seeds of {', '.join(lines)}.", WIDTH, height)
    drawing.word(12, 22, title)
    every = [value for line in lines.values() for value in line]
    least = 10.0 * (min(every) // 10)
    marks = [least + mark for mark in ticks(max(every) - least, 4)]

    def at(value: float) -> float:
        return bottom - (bottom - top) * (value - least) / (marks[-1] - least)

    for mark in marks:
        drawing.rule(LEFT, at(mark), WIDTH - RIGHT, at(mark))
        drawing.word(LEFT - 6, at(mark) + 4, f"{mark:g}", "end", "soft")
    room = (WIDTH - LEFT - RIGHT - 16) / max(*(len(line) - 1 for line in lines.values()), 1)
    for i, (name, line) in enumerate(lines.items()):
        colour, dashed = COLOURS[i % len(COLOURS)], i >= len(COLOURS)
        drawing.line([(LEFT + 8 + room * x, at(value)) for x, value in enumerate(line)], colour, name, dashed)
        y = height - 12 - 18 * (len(lines) - 1 - i)
        drawing.rect(12, y - 10, 11, 11, colour)
        drawing.word(28, y, _short(f"{name}: {line[-1]:.4g}", 54), look="soft")
    drawing.word(LEFT + 8, bottom + 18, first, "middle", "soft")
    drawing.word(WIDTH - RIGHT, bottom + 18, last, "end", "soft")
    return drawing


def _means(lines: Sequence[Sequence[float]]) -> list[float]:
    """Epoch by epoch, of those that got so far."""
    longest = max(map(len, lines))
    return [fmean(line[i] for line in lines if len(line) > i) for i in range(longest)]


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"

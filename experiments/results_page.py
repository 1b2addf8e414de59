"""The page of an experiment's results: one file without scripts or network, made from the results' file alone."""

import re
import shlex
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

from results_charts import by_epoch, by_step, forests

from splitnet.measure.elements import listed, paragraph, section, tag
from splitnet.measure.svg import Drawing

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
        section("claims", "What is claimed, and what was found", _claims(content), _pair(forests(content["claims"]))),
        section("trials", "Trials", *_figures(content)),
        section("source", "Source and method", *map(_prose, rest)),
        section("machine", "Where it ran", _sessions(content)),
    ]
    header = tag("h1", escape(f"experiments/{name}.py")) + paragraph(claim, "verdict") + _size(content)
    return _whole(name, header, parts)


def index(contents: Sequence[Content]) -> str:
    """The page that leads to each experiment's, with its claims, from all results' files."""
    parts = []
    for content in contents:
        name = f"{content['experiment']}{'-full' * content.get('full', False)}"
        rows = [(c["claim"], c["published"] or "-", figured(c), c["verdict"]) for c in content["claims"]]
        heading = tag("h2", tag("a", escape(name), href=f"{name}.html"))
        claims = table(f"Claims of {name}", ("claim", "published", "here", "verdict"), rows, text=4)
        parts.append(tag("section", heading + paragraph(paragraphs(content["text"])[0]) + claims))
    header = tag("h1", "experiments") + paragraph(
        "What was claimed, what was found, and what was not shown.", "verdict"
    )
    return _whole("experiments", header, parts)


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
            paragraph(f"{_sentence(figured(c))}.{published}"),
            paragraph(c["comparable"], "note"),
        )
        found.append(tag("div", "".join(lines), class_="claim"))
    return "".join(found)


def figured(claim: Content) -> str:
    """What was measured of a claim, of what, and within the brackets the bound that it is held against.

    `test accuracy, this - that: +1.18 points (99 % -0.11 to +2.48, n 4; bound -1)`; of a difference above 0, or a ratio
    above 1, no bound is said.
    """
    figure = claim["figure"]
    if claim["bound"] != float(claim["ratio"]):
        figure = re.sub(r"(, n \d+)\)", rf"\1; bound {claim['bound']:g})", figure, count=1)
    return f"{claim['what']}: {figure}"


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
        parts.append(_pair(drawn))
    return parts


def _pair(drawn: Sequence[Drawing]) -> str:
    """Beside each other where there is room. "" for none."""
    return tag("div", "".join(tag("figure", str(d)) for d in drawn), class_="pair") if drawn else ""


def _sessions(content: Content) -> str:
    rows = []
    for s in content.get("sessions", []):
        machine, versions = s["machine"], s["packages"]
        where = f"{machine['cores']} cores of {machine['processor']}, load {s['load']}"
        rows.append(
            (s["started"], shlex.join(s["command"]), f"{where}; torch {versions['torch']}; commit {s['commit']}")
        )
    settings = [_setting(name, value) for name, value in content.get("settings", {}).items()]
    return table("Sessions", ("started", "command", "on"), rows, text=3) + listed(settings)


def _setting(name: str, value: Any) -> str:
    """As a reader has it: 0 images are all, and a side that is not said is the preset's."""
    if name in ("images", "test_images") and not value:
        value = "all"
    elif name == "side" and value is None:
        value = "the preset's"
    return f"{name.replace('_', ' ')}: {value}"

"""Parts of a page as HTML. Text is escaped here, once; what a function returns is HTML."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple


def tag(kind: str, content: str, **attributes: str | None) -> str:
    """An element around HTML. `class_` and `data_what` are class and data-what; one that is None or "" is left out."""
    given = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items() if value}
    written = "".join(f' {name}="{escape(value)}"' for name, value in given.items())
    return f"<{kind}{written}>{content}</{kind}>"


def paragraph(text: str, look: str = "") -> str:
    """`look`: a class of page.css. "" for no text."""
    return tag("p", escape(text), class_=look) if text else ""


def listed(lines: Iterable[str]) -> str:
    items = "".join(tag("li", escape(line)) for line in lines)
    return tag("ul", items) if items else ""


def pair(*parts: str) -> str:
    """Beside each other where there is room."""
    return tag("div", "".join(parts), class_="pair")


def section(name: str, title: str, *parts: str) -> str:
    heading = tag("h2", escape(title), id=f"{name}-title")
    return tag("section", heading + "".join(parts), id=name, aria_labelledby=f"{name}-title")


def button(word: str, label: str = "", **attributes: str) -> str:
    return tag("button", escape(word), type="button", aria_label=label, **attributes)


def copyable(text: str, what: str) -> str:
    """A block of code with a button."""
    code = tag("pre", tag("code", escape(text)), tabindex="0", role="group", aria_label=what)
    return tag("div", code + button("Copy", f"Copy {what}", class_="copy", data_what="code"), class_="code")


def data(name: str, content: Any) -> str:
    """JSON that the page's script reads; nothing in it can end its element."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return tag("script", text.replace("<", "\\u003c"), type="application/json", id=name)


# Tables


class Bar(NamedTuple):
    """A cell with a bar behind its figure: `part` of the widest in its table, 0 to 1."""

    text: str
    part: float


@dataclass(frozen=True)
class Table:
    """Text for people and for a spreadsheet: all but the first `left` columns are figures."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str | Bar]]
    left: int = 1
    groups: Sequence[tuple[str, int]] = ()
    """A line above the headings: its words, and how many columns each spans."""
    total: bool = False
    """Whether the last row adds up the others."""


def table(content: Table, caption: bool = False) -> str:
    """A box that scrolls by itself, and a button that copies. "" for a table without rows.

    The title is seen as a caption, or only heard.
    """
    if not content.rows:
        return ""
    head = _row(content.headings, content, "col")
    if content.groups:
        spans = (tag("th", escape(w), colspan=str(n), scope="colgroup" if w else None) for w, n in content.groups)
        head = tag("tr", "".join(spans), class_="groups") + head
    body = [_row(row, content) for row in content.rows]
    if content.total:
        body[-1] = body[-1].replace("<tr", '<tr class="total"', 1)
    seen = tag("caption", escape(content.title)) if caption else ""
    parts = seen + tag("thead", head) + tag("tbody", "".join(body))
    whole = tag("table", parts, aria_label=None if caption else content.title)
    box = tag("div", whole, class_="scroll", role="group", aria_label=content.title)
    copy = button("Copy", f"Copy table: {content.title}", class_="copy", data_what="table")
    return tag("div", box + copy, class_="table")


def _row(row: Sequence[str | Bar], content: Table, scope: str = "") -> str:
    cells = []
    for column, cell in enumerate(row):
        bar = isinstance(cell, Bar)
        look = " ".join(["word"] * (column < content.left) + ["bar"] * bar)
        style = f"--part:{100 * cell.part:.1f}%" if isinstance(cell, Bar) else ""
        heads = scope or ("row" if column == 0 else "")
        text = escape(cell.text if isinstance(cell, Bar) else cell)
        cells.append(tag("th" if heads else "td", text, scope=heads, class_=look, style=style))
    return tag("tr", "".join(cells))


# Charts


class Key(NamedTuple):
    """An entry of a legend. `dash`: of a line ("solid", "dashed", "dotted"); "" for an area."""

    name: str
    colour: str
    dash: str = ""


@dataclass(frozen=True)
class Chart:
    """A figure of plotly as data, what it shows in words, and the same figures as tables."""

    name: str
    title: str
    text: str
    data: Sequence[dict[str, Any]]
    layout: dict[str, Any]
    height: int
    tables: Sequence[Table]
    legend: Sequence[Key] = ()


def figure(chart: Chart, before: str = "", after: str = "", **attributes: str) -> str:
    """The place of a chart, its legend and its tables. `before` and `after`: HTML around the plot.

    A plot is a picture to a screen reader unless its attributes say otherwise.
    """
    name, described = chart.name, f"{chart.name}-text"
    caption = tag("strong", escape(chart.title)) + " " + tag("span", escape(chart.text), id=described)
    legend = tag("ul", "".join(map(_key, chart.legend)), class_="legend", aria_label="Legend") if chart.legend else ""
    given = {"role": "img", "aria_describedby": described} | attributes
    place = tag("div", "", id=name, class_="plot", aria_label=chart.title, style=f"height:{chart.height}px", **given)
    folded = [tag("details", tag("summary", escape(t.title)) + table(t)) for t in chart.tables if t.rows]
    return tag("figure", "".join([tag("figcaption", caption), legend, before, place, after, *folded]))


def _key(key: Key) -> str:
    look = f"border-top:3px {key.dash} {key.colour}" if key.dash else f"background:{key.colour}"
    return tag("li", tag("span", "", class_="stroke" if key.dash else "swatch", style=look) + escape(key.name))


def literal(text: str) -> str:
    """For plotly, which takes some tags in text for its own."""
    return escape(text, quote=False)

"""The report of a run as one HTML file: charts, tables and what they are made with; nothing is fetched."""

import base64
import hashlib
from collections.abc import Iterator
from html import escape
from importlib import resources
from pathlib import PurePath

from splitnet.measure import charts, learned_page, loss_charts, page_tables, paper
from splitnet.measure.elements import (
    Chart,
    Table,
    button,
    copyable,
    data,
    figure,
    listed,
    pair,
    paragraph,
    section,
    table,
    tag,
)
from splitnet.measure.markdown import EMULATED
from splitnet.measure.step_chart import step_chart
from splitnet.measure.summary import Summary, fits, heading, on_layouts, other_load

ABSENT = {
    "compare.json": "No comparison was made.",
    "trace.json.gz": "No step was profiled.",
    "steps.jsonl": "No step was recorded.",
}

CONTROLS = (
    ("previous", "←", "Previous operation"),
    ("next", "→", "Next operation"),
    ("exchange", "Next exchange", ""),
    ("in", "+", "Zoom in"),
    ("out", "−", "Zoom out"),
    ("all", "Whole step", ""),
)
KEYS = {
    "← →": "operations of a device",
    "↑ ↓": "devices",
    "n p": "exchanges",
    "+ −": "zoom",
    "0": "whole step",
}


def page(summary: Summary) -> str:
    """The whole file. It needs no other, and its policy forbids it to ask for one."""
    from plotly.offline import get_plotlyjs  # 5 MB, wanted here alone

    drawn = _charts(summary)
    sections = list(_sections(summary, drawn))
    scripts = [get_plotlyjs(), _asset("page.js")]
    contents = "".join(tag("li", tag("a", escape(title), href=f"#{name}")) for name, title, _ in sections)
    body = [
        tag("a", "Skip to the report", href="#report", class_="skip"),
        _header(summary),
        tag("nav", tag("ul", contents), aria_label="Contents"),
        tag("main", "".join(section(*parts) for parts in sections), id="report", tabindex="-1"),
        tag("p", "", id="said", class_="unseen", role="status", aria_live="polite"),
        data("figures", {name: {"data": chart.data, "layout": chart.layout} for name, chart in drawn.items()}),
        *(tag("script", script) for script in scripts),
    ]
    return f'<!doctype html>\n<html lang="en">{_head(summary, scripts)}<body>{"".join(body)}</body></html>\n'


def _asset(name: str) -> str:
    return (resources.files("splitnet.measure") / "page_assets" / name).read_text("utf-8")


def _head(summary: Summary, scripts: list[str]) -> str:
    """Scripts are allowed by their hash: no other can run, whatever stands in a run's files."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{value}'" for value in hashes)
    policy = f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
    return (
        f'<head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"{tag('title', escape(f'{summary.name} - splitnet'))}{tag('style', _asset('page.css'))}</head>"
    )


def _charts(summary: Summary) -> dict[str, Chart]:
    """By name, what there are figures for."""
    makers = (
        charts.speed,
        charts.peaks,
        charts.memory,
        step_chart,
        loss_charts.losses,
        loss_charts.training,
        loss_charts.accuracy,
    )
    found = [make(summary) for make in makers]
    found += learned_page.charts(summary.learned, summary.tests)
    return {chart.name: chart for chart in found if chart is not None}


def _header(summary: Summary) -> str:
    name = tag("h1", escape(summary.name))
    if summary.emulated:
        name += tag("span", "emulated devices", class_="badge")
    note = paragraph(EMULATED, "note") if summary.emulated else ""
    plain = tag("noscript", paragraph("The charts need JavaScript; the tables show the same figures.", "note"))
    return tag("header", tag("div", name, class_="name") + paragraph(summary.verdict, "verdict") + note + plain)


def _sections(summary: Summary, drawn: dict[str, Chart]) -> Iterator[tuple[str, str, str]]:
    """Name, title and content, in the order of the page. What is missing is said in its place."""
    plain = {name: figure(chart) for name, chart in drawn.items() if name != "timeline"}
    yield "speed", "Speed and memory", _speed(summary, plain)
    uncounted = paragraph("The plain CPU has no memory counters; fake devices have.", "absent")
    kinds = _absent(summary, "compare.json") if summary.comparison is None else uncounted
    yield "kinds", "Memory by kind", plain.get("memory") or kinds
    yield "step", "One step", _step(summary, drawn.get("timeline"))
    yield "exchanges", "Exchanges", _exchanges(summary)
    if rows := paper.rows(summary):
        shown = table(Table("Exposed communication of a step", list(paper.headings(summary)), rows))
        yield "exposed", "Exposed communication", shown + paragraph(paper.text(summary), "note")
    yield "layers", "Layers", _layers(summary)
    yield "loss", "Loss", _loss(summary, plain)
    if learned := _learned(summary, plain):
        yield "learned", "What was learned", learned
    yield "environment", "Environment", _environment(summary)
    if summary.missing:
        yield "missing", "Not here", listed(map(_file, summary.missing))


def _absent(summary: Summary, name: str) -> str:
    """What is said where a file's content would stand."""
    lines = [_file(line) for line in summary.missing if name in line.partition(": ")[0]]
    return paragraph(" ".join(lines) or ABSENT[name], "absent")


def _file(line: str) -> str:
    """A line about a file, by its name alone: where it lay on somebody's machine says nothing here."""
    path, colon, rest = line.partition(": ")
    return f"{PurePath(path).name}{colon}{rest}"


def _speed(summary: Summary, plain: dict[str, str]) -> str:
    if summary.comparison is None:
        return _absent(summary, "compare.json")
    text = (
        f"{summary.comparison['rounds']} steps of each layout in alternation, every device synchronised at both ends."
    )
    text = f"{text} {other_load(summary.comparison)}".rstrip()
    beside = on_layouts(summary.comparison)
    replicas = paragraph(beside, "note") if beside else ""
    unfit = [entry for entry in summary.layouts if not fits(entry)]
    told = listed(f"{heading(entry)} does not fit: {entry['does_not_fit']}" for entry in unfit)
    bars = [plain[name] for name in ("throughput", "peaks") if name in plain]
    return (paragraph(text) + pair(*bars) + replicas if bars else "") + told


def _step(summary: Summary, chart: Chart | None) -> str:
    if chart is None:
        empty = summary.timeline is not None
        return paragraph("The trace holds no step.", "absent") if empty else _absent(summary, "trace.json.gz")
    buttons = "".join(button(word, label, data_do=does) for does, word, label in CONTROLS)
    controls = tag("div", buttons, class_="controls", role="group", aria_label="Move in the timeline")
    keys = " · ".join(f"{tag('kbd', escape(key))} {escape(does)}" for key, does in KEYS.items())
    after = tag("p", "", id="picked", class_="picked", aria_hidden="true")
    after += tag("p", f"With the timeline in focus: {keys}; the wheel zooms.", class_="keys", id="keys")
    look = {"role": "application", "aria_roledescription": "timeline", "tabindex": "0"}
    drawn = figure(chart, controls, after, aria_describedby=f"{chart.name}-text keys", **look)
    parts, text = page_tables.sums(summary)
    return drawn + table(parts, caption=True) + paragraph(text, "note")


def _exchanges(summary: Summary) -> str:
    content, text = page_tables.exchanges(summary)
    if content.rows:
        return paragraph(text) + table(content) + table(page_tables.gradients(summary), caption=True)
    if summary.comparison is None and summary.timeline is None:
        return _absent(summary, "compare.json")
    return paragraph("No bytes cross from device to device.", "absent")


def _layers(summary: Summary) -> str:
    content, text = page_tables.layers(summary)
    if not content.rows:
        return paragraph("Neither the run's record nor a trace names its rows.", "absent")
    untimed = _absent(summary, "trace.json.gz") if summary.timeline is None else ""
    return table(content) + paragraph(text, "note") + untimed


def _loss(summary: Summary, plain: dict[str, str]) -> str:
    own = [plain[name] for name in ("training", "accuracy") if name in plain]
    told = pair(*own) if own else _absent(summary, "steps.jsonl")
    compared = plain.get("losses") or _absent(summary, "compare.json")
    tables = (page_tables.tests(summary), page_tables.rates(summary))
    return compared + told + "".join(table(content, caption=True) for content in tables)


def _learned(summary: Summary, plain: dict[str, str]) -> str:
    """Empty where nothing was looked at."""
    if summary.learned is None:
        return _absent(summary, "learned.json") if any("learned.json" in line for line in summary.missing) else ""
    loaded = summary.run["options"].get("weights") is not None
    return learned_page.content(summary.learned, plain, loaded, summary.tests)


def _environment(summary: Summary) -> str:
    facts, options = page_tables.environment(summary)
    return (copyable(summary.command, "the command") if summary.command else "") + pair(table(facts), table(options))

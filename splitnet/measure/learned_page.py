"""What was learned, for the page: charts of how far the towers specialise, and HTML that shows the rest."""

from collections.abc import Sequence
from html import escape
from typing import Any

from splitnet.measure import learned_text as words
from splitnet.measure.charts import axis, count_axis, layout
from splitnet.measure.elements import Chart, Key, Table, literal, pair, paragraph, table, tag
from splitnet.measure.learned_pictures import LINES
from splitnet.measure.learned_text import Group, Learned
from splitnet.measure.svg import ink

LOOKS = (("solid", "solid", 5, 10), ("dashed", "dash", 2, 7), ("dotted", "dot", 2, 4))
"""Of lines in turn: dash on the page and in plotly, width, size of markers. Those drawn later leave the others seen."""
OVER, BESIDE, UNDER = 48, 48, 36
"""Characters of a class's name over a bar (two lines), beside a picture, and under a small one."""


def charts(learned: Learned | None, tests: Sequence[words.Record] = ()) -> list[Chart]:
    """A chart for each group of figures over training. `tests`: the run's."""
    return [_chart(group) for group in words.groups(learned, tests) if len(group.steps) > 1]


def _chart(group: Group) -> Chart:
    data, keys = [], []
    for place, (name, points) in enumerate(group.lines.items()):
        colour, (look, dash, width, size) = ink(LINES[place % len(LINES)]), LOOKS[place % len(LOOKS)]
        keys.append(Key(name, colour, look))
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": literal(name),
            "x": [step for step, _ in points], "y": [value for _, value in points],
            "line": {"color": colour, "width": width, "dash": dash},
            "marker": {"color": colour, "size": size},
            "cliponaxis": False,  # the markers at step 0 stay whole
            "hovertemplate": f"{literal(name).replace('%', '&#37;')}<br>step %{{x:,d}}: %{{y:.3f}}<extra></extra>",
        })  # fmt: skip
    headings, rows = group.table()
    counts = count_axis("steps", group.steps, 6, rangemode="tozero")
    figures = Table(f"{group.title}, record by record", headings, rows, left=0)
    axes = layout(xaxis=counts, yaxis=axis(rangemode="tozero"))
    return Chart(group.name, group.title, group.text, data, axes, 240, [figures], keys)


def content(learned: Learned, drawn: dict[str, str], loaded: bool = False, tests: Sequence[words.Record] = ()) -> str:
    """HTML of the section. `drawn`: charts of the page, by name; `loaded`: whether the weights were read from a file.

    Figures of one moment alone have a table.
    """
    groups = words.groups(learned, tests)
    plots = [drawn[group.name] for group in groups if group.name in drawn]
    shown = words.end(learned)
    parts = [paragraph(words.after(learned, loaded))]
    parts += [_filters(learned, shown["filters"])] if shown.get("filters") else []
    parts += [pair(*plots)] if plots else []
    for group in groups:
        if len(group.steps) == 1:
            figures = table(Table(group.title, *group.table(), left=0), caption=True)
            parts += [figures, paragraph(group.text, "note")]
    parts.append(paragraph(words.not_shown(learned), "note"))
    if shown.get("predictions"):
        parts.append(_figure("Predictions", words.PREDICTIONS, _predictions(learned, shown["predictions"])))
    if (near := shown.get("nearest")) and near["queries"]:
        parts.append(_figure("Nearest images", words.NEAREST.format(**near), "".join(map(_nearest, near["queries"]))))
    return "".join(parts)


def _figure(title: str, text: str, content: str) -> str:
    caption = tag("strong", escape(title)) + " " + tag("span", escape(text))
    return tag("figure", tag("figcaption", caption) + content)


def _image(uri: str, alt: str, **attributes: str) -> str:
    given = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items())
    return f'<img src="{escape(uri)}" alt="{escape(alt)}"{given}>'


def _filters(learned: Learned, filters: list[dict[str, Any]]) -> str:
    row = learned["row"]
    pictures = ""
    for tower, one in enumerate(filters):
        size = {"width": str(one["width"]), "height": str(one["height"])}
        picture = _image(one["image"], f"Filters of {row}, tower {tower}", **size)
        pictures += tag("div", tag("span", f"tower {tower}") + picture, class_="filters")
    return _figure(f"Filters of {row}", words.FILTERS, pictures)


def _predictions(learned: Learned, shown: list[dict[str, Any]]) -> str:
    cells = []
    for one in shown:
        head = _name(one, "strong", BESIDE) + tag("span", escape(words.predicted(learned, one)))
        head = _image(one["image"], f"Test image {one['place']:,}") + tag("div", head)
        bars = "".join(_bar(guess, guess["label"] == one["label"]) for guess in one["top"])
        cells.append(tag("li", tag("div", head, class_="one") + tag("ol", bars)))
    return tag("ul", "".join(cells), class_="predictions")


def _bar(guess: dict[str, Any], true: bool) -> str:
    part = 100 * min(max(guess["probability"], 0.0), 1.0)
    unseen = tag("span", " (true class)", class_="unseen") if true else ""
    chance = tag("span", f"{guess['probability']:.2f}")
    bar = tag("i", "", style=f"--part:{part:.1f}%")
    return tag("li", _name(guess, "span", OVER) + unseen + chance + bar, class_="true" if true else None)


def _nearest(query: dict[str, Any]) -> str:
    """The test image, and beside it a list of those nearest to it."""
    first = tag("div", _beside(query, f"Test image {query['place']:,}", "test image"))
    others = [
        _beside(image, f"Training image {image['place']:,}", words.distance(image), image["label"] == query["label"])
        for image in query["images"]
    ]
    return tag("div", first + tag("ol", "".join(tag("li", other) for other in others)), class_="nearest")


def _beside(image: dict[str, Any], alt: str, told: str, same: bool = True) -> str:
    name = _name(image, "strong" if same else "span", UNDER)
    return _image(image["image"], alt) + name + tag("span", escape(told))


def _name(one: dict[str, Any], kind: str, most: int) -> str:
    """A class's name, and where it is cut the whole of it for the mouse."""
    told, whole = words.short(one["name"], most), words.plain(one["name"])
    return tag(kind, escape(told), title=whole if told != whole else None)

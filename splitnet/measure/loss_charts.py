"""Charts of what a run learnt: the losses of all layouts, and its own losses and accuracy."""

from itertools import zip_longest
from math import isfinite
from typing import Any

from splitnet.measure.charts import axis, count_axis, layout
from splitnet.measure.elements import Chart, Key, Table, literal
from splitnet.measure.pictures import thinned
from splitnet.measure.summary import Summary, fits, heading
from splitnet.measure.svg import ink

LINES = (("forward", "solid"), ("backward", "dashed"), ("other", "dotted"), ("data", "dashed"), ("optimizer", "solid"))
"""Ink and dash of each layout's line, by its place in the comparison."""
DASHES = {"solid": "solid", "dashed": "dash", "dotted": "dot"}
MOST = 400
"""Points of a line."""

Points = list[tuple[int, float]]


def losses(summary: Summary) -> Chart | None:
    """Training losses of all layouts over the compared steps: those of one function lie on each other."""
    entries = [(i, e) for i, e in enumerate(summary.layouts) if fits(e) and e["losses"]]
    if not entries:
        return None
    data, keys = [], []
    for i, entry in entries:
        colour, dash = LINES[i % len(LINES)]
        keys.append(Key(heading(entry), ink(colour), dash))
        points = [(step, loss) for step, loss in enumerate(entry["losses"], 1) if isfinite(loss)]
        data.append(_line(points, heading(entry), colour, dash, 2.5 if i == 0 else 4))
    data.reverse()  # the run's own layout on top
    columns = [[f"{loss:.6f}" for loss in entry["losses"]] for _, entry in entries]
    heads = [heading(entry) for _, entry in entries]
    own = summary.layouts[0]
    if own.get("loss_differences"):
        columns.append([f"{difference:.1e}" for difference in own["loss_differences"]])
        heads.append("difference of the first two")
    rows = [[str(step), *row] for step, row in enumerate(zip_longest(*columns, fillvalue=""), 1)]
    return Chart(
        "losses",
        "Training loss of every layout",
        "The same batches from the same weights, step by step.",
        data,
        layout(xaxis=count_axis("compared step", (at for line in data for at in line["x"]), 8), yaxis=axis("loss")),
        280,
        [Table("Losses of the compared steps", ["step", *heads], rows, left=0)],
        keys,
    )


def training(summary: Summary) -> Chart | None:
    """The run's own loss, step by step, and that of its tests."""
    steps = [(record["step"] + 1, record["loss"]) for record in summary.steps]
    tests = [(record["step"], record["loss"]) for record in summary.tests]
    text = f"{len(steps):,} training steps" + (", each point the mean of several." if len(steps) > MOST else ".")
    return _learning(("training", "Loss of this run", text), "loss", steps, tests, "{:.4f}")


def accuracy(summary: Summary) -> Chart | None:
    """The part that was classified right, step by step, and in its tests."""
    steps = [(record["step"] + 1, 100 * record["accuracy"]) for record in summary.steps]
    tests = [(record["step"], 100 * record["accuracy"]) for record in summary.tests]
    text = f"{len(tests):,} test{'s' * (len(tests) != 1)} beside the training batches."
    return _learning(("accuracy", "Accuracy of this run", text), "% right", steps, tests, "{:.2f}")


def _learning(words: tuple[str, str, str], unit: str, steps: Points, tests: Points, form: str) -> Chart | None:
    name, title, text = words
    steps, tests = (thinned([p for p in points if isfinite(p[1])], MOST) for points in (steps, tests))
    if not steps and not tests:
        return None
    data, keys = [], []
    if steps:
        data.append(_line(steps, "training", "forward", "solid", 2))
        keys.append(Key("training", ink("forward"), "solid"))
    if tests:
        data.append(
            _line(tests, "test", "backward", "dashed", 2)
            | {"mode": "lines+markers", "marker": {"size": 9, "color": ink("backward")}}
        )
        keys.append(Key("test", ink("backward"), "dashed"))
    rows = [["training", f"{at:,}", form.format(value)] for at, value in steps]
    rows += [["test", f"{at:,}", form.format(value)] for at, value in tests]
    table = Table(f"{title}, step by step", ["", "after steps", unit], rows)
    counts = count_axis("steps", (at for at, _ in (*steps, *tests)), 8, rangemode="nonnegative")
    axes = {"xaxis": counts, "yaxis": axis(unit)}
    return Chart(name, title, text, data, layout(**axes), 280, [table], keys)


def _line(points: Points, name: str, colour: str, dash: str, width: float) -> dict[str, Any]:
    told = literal(name)
    return {
        "type": "scatter",
        "mode": "lines" if len(points) > 1 else "markers",
        "name": told,
        "x": [at for at, _ in points],
        "y": [value for _, value in points],
        "line": {"color": ink(colour), "width": width, "dash": DASHES[dash]},
        "marker": {"color": ink(colour), "size": 8},
        "cliponaxis": False,  # a marker at the edge stays whole
        "hovertemplate": f"{told.replace('%', '&#37;')}<br>step %{{x:,d}}: %{{y:,.6g}}<extra></extra>",
    }

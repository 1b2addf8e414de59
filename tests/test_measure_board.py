"""The stand-in for Google Charts, and what torch-tb-profiler asks of it."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from browser import Browser

ROOT = Path(__file__).parent.parent
CHARTS = ROOT / "splitnet" / "measure" / "static" / "charts.js"
PAGE = f"""<!doctype html><meta charset="utf-8"><body style="margin: 0">
<div id="a" style="width: 600px"></div><script src="{CHARTS.as_uri()}"></script>
<script>
const node = document.getElementById("a");
function draw(kind, columns, rows, options = {{}}) {{
  node.replaceChildren();
  const table = new google.visualization.DataTable();
  columns.forEach(column => table.addColumn(column));
  table.addRows(rows);
  window.chart = new google.visualization[kind](node);
  window.heard = [];
  google.visualization.events.addListener(chart, "select", () => heard.push(chart.getSelection()[0]));
  google.visualization.events.addListener(chart, "ready", () => heard.push("ready"));
  chart.draw(table, options);
}}
const number = (e, name) => Number(e.getAttribute(name));
const shapes = selector => [...node.querySelectorAll(selector)];
const named = title => shapes("title").find(e => e.textContent.includes(title))?.parentNode;
</script>"""
NAMES = [{"type": "string", "label": "Worker"}, {"type": "number", "label": "A"}, {"type": "number", "label": "B"}]
TIP = {"type": "string", "role": "tooltip", "p": {"html": "true"}}

pytestmark = pytest.mark.slow  # a browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("charts") / "page.html"
    path.write_text(PAGE)
    with Browser() as browser:
        page = browser.open(path.as_uri(), width=800, height=600, offline=True)
        yield page
        assert page.errors == []
        assert page.outside == []


def draw(page, kind, columns, rows, /, **options):
    page.evaluate(f"draw({json.dumps(kind)}, {json.dumps(columns)}, {json.dumps(rows)}, {json.dumps(options)})")


def box(page, title):
    """x, y, width and height of the mark with this tooltip."""
    return page.evaluate(f"['x', 'y', 'width', 'height'].map(n => number(named({json.dumps(title)}), n))")


def plugin_page():
    spec = find_spec("torch_tb_profiler")
    if spec is None or spec.origin is None:
        pytest.skip("needs torch-tb-profiler")
    return (Path(spec.origin).parent / "static" / "index.html").read_text("utf-8")


def test_every_chart_the_plugin_asks_for_is_there(page):
    asked = set(re.findall(r"google\.((?:visualization|charts)\.[A-Za-z.]+)", plugin_page()))
    assert len(asked) > 10
    missing = f"{json.dumps(sorted(asked))}.filter(n => !n.split('.').reduce((at, key) => at?.[key], google))"
    assert page.evaluate(missing) == []


def test_the_plugins_page_loads_nothing_from_outside():
    board = pytest.importorskip("splitnet.measure.board", reason="needs tensorboard and torch-tb-profiler")
    loads = re.compile(r'(?:src|href)="(?:https?:)?//[^"]*"')
    assert loads.search(plugin_page())
    text, kind = board.OfflinePlugin._index(None)
    assert (loads.findall(text), kind) == ([], "text/html")
    assert '<script src="charts.js">' in text


def test_columns_stack_to_scale(page):
    draw(page, "ColumnChart", NAMES, [["x", 100, 300], ["y", 200, 0]], isStacked=True, height=500)
    below, above, other = box(page, "x\nA: 100"), box(page, "x\nB: 300"), box(page, "y\nA: 200")
    assert above[3] == pytest.approx(3 * below[3])
    assert other[3] == pytest.approx(2 * below[3])
    assert above[1] + above[3] == pytest.approx(below[1])  # on top of it
    assert above[0] == below[0] < other[0]
    assert page.evaluate("heard") == ["ready"]


def test_bars_stand_side_by_side_and_are_chosen_by_a_click(page):
    draw(page, "ComboChart", NAMES, [["x", 100, 300], ["y", 200, 0]], height=400)
    first, second = box(page, "x\nA: 100"), box(page, "x\nB: 300")
    assert first[0] + first[2] == pytest.approx(second[0])
    page.evaluate("named('y\\nA: 200').dispatchEvent(new MouseEvent('click'))")
    assert page.evaluate("heard[1]") == {"row": 1, "column": 1}


def test_a_line_over_bars_has_the_scale_at_the_right(page):
    series = {0: {"type": "bars", "targetAxisIndex": 0}, 1: {"type": "line", "targetAxisIndex": 1}}
    draw(page, "ComboChart", NAMES, [["x", 100, 1], ["y", 100, 0.5]], series=series, height=400)
    assert page.evaluate("shapes('polyline').length") == 1
    left, right = (page.evaluate(f"number(named('{t}'), '{n}')") for t, n in (("x\\nA", "y"), ("x\\nB", "cy")))
    assert left == pytest.approx(right)  # the greatest of each scale


def test_steps_fill_the_width(page):
    columns = [NAMES[0], NAMES[1], TIP]
    draw(page, "SteppedAreaChart", columns, [["0", 10, "a<br/>ten"], ["1", 5, "five"]], isStacked=True, height=300)
    first, second = box(page, "a\nten"), box(page, "five")
    assert first[0] + first[2] == pytest.approx(second[0])
    assert first[3] == pytest.approx(2 * second[3])
    draw(page, "SteppedAreaChart", NAMES, [["0", 10, 20]], height=300)  # one step, not stacked: both begin at 0
    first, second = box(page, "0\nA: 10"), box(page, "0\nB: 20")
    assert second[3] == pytest.approx(2 * first[3])
    assert first[1] + first[3] == pytest.approx(second[1] + second[3])


@pytest.mark.parametrize("kind", ["ColumnChart", "SteppedAreaChart"])
@pytest.mark.parametrize("stacked", [False, True])
def test_what_is_below_zero_hangs_from_it(page, kind, stacked):
    draw(page, kind, NAMES, [["x", 10, -30], ["y", -20, -20]], isStacked=stacked, height=400)
    up, down, first, second = (box(page, title) for title in ("x\nA: 10", "x\nB: -30", "y\nA: -20", "y\nB: -20"))
    zero = up[1] + up[3]
    assert down[1] == pytest.approx(zero)
    assert down[3] == pytest.approx(3 * up[3])
    assert first[1] == pytest.approx(zero)
    assert second[1] == pytest.approx(zero + first[3] if stacked else zero)


LINE = ([{"type": "number", "label": "Time"}, {"type": "number", "label": "MB"}], [[0, 1], [50, 2], [100, 4]])


def test_a_line_is_zoomed_by_dragging_and_marks_a_choice(page):
    draw(page, "LineChart", *LINE, explorer={"actions": ["dragToZoom"]}, height=300)
    ends = (
        "(l => { const b = l.getChartAreaBoundingBox(); return [b.left, b.left + b.width].map(l.getHAxisValue) })"
        "(chart.getChartLayoutInterface())"
    )
    assert page.evaluate(ends) == pytest.approx([0, 100])
    page.evaluate("chart.setSelection([{row: 1, column: 1}])")
    assert page.evaluate("shapes('.chosen').length") == 1
    page.evaluate("chart.setSelection()")
    assert page.evaluate("shapes('.chosen').length") == 0
    left, width = page.evaluate("(b => [b.left, b.width])(chart.getChartLayoutInterface().getChartAreaBoundingBox())")
    mouse = {"button": "left", "buttons": 1, "clickCount": 1, "y": 100}
    page.call("Input.dispatchMouseEvent", type="mousePressed", x=left + width / 4, **mouse)
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=left + width / 2, **mouse)
    page.call("Input.dispatchMouseEvent", type="mouseReleased", x=left + width / 2, **mouse)
    assert page.evaluate(ends) == pytest.approx([25, 50], abs=1)
    right = {"button": "right", "buttons": 2, "clickCount": 1, "x": left + 50, "y": 100}
    page.call("Input.dispatchMouseEvent", type="mousePressed", **right)
    page.call("Input.dispatchMouseEvent", type="mouseReleased", **right)
    assert page.evaluate(ends) == pytest.approx([0, 100])


def test_a_pie_shows_shares_and_cells_as_written(page):
    draw(page, "PieChart", NAMES[:2], [["x", 30], ["y", {"v": 10, "f": "ten"}], ["z", 0]], pieHole=0.4)
    assert page.evaluate("shapes('path').length") == 3
    assert page.evaluate("shapes('text').map(e => e.textContent)") == ["x 75.0%", "y 25.0%", "z 0.0%"]
    draw(page, "PieChart", NAMES[:2], [["all", 5]], legend="none")
    assert page.evaluate("shapes('path')[0].getBBox().width") > 100  # a whole circle is not an empty one
    assert page.evaluate("shapes('text').length") == 0


def test_a_timeline_has_a_lane_for_each_level(page):
    columns = [{"id": "Layer"}, {"id": "Name"}, {"role": "tooltip"}, {"id": "Start"}, {"id": "End"}]
    draw(page, "Timeline", columns, [["0", "net", "net!", 0, 10], ["1", "conv", "conv!", 0, 5]], height=100)
    whole, part = box(page, "net!"), box(page, "conv!")
    assert whole[2] == pytest.approx(2 * part[2])
    assert whole[1] < part[1]


CELLS = "shapes('tbody tr').map(row => row.firstChild.textContent)"


def test_a_table_sorts_turns_pages_and_shows_text_as_text(page):
    rows = [["<b>x</b>", 2, 0], ["y", 10, 0], ["z", 9, 0]]
    draw(page, "Table", NAMES, rows, sortColumn=1, sortAscending=False, page="enable", pageSize=2)
    assert page.evaluate(CELLS) == ["y", "z"]
    page.evaluate("shapes('button').at(-1).click()")
    assert page.evaluate(CELLS) == ["<b>x</b>"]
    assert page.evaluate("shapes('button').at(-1).disabled")
    page.evaluate("shapes('th button')[1].click()")
    assert page.evaluate(CELLS) == ["<b>x</b>", "z"]
    assert page.evaluate("shapes('th')[1].getAttribute('aria-sort')") == "ascending"
    draw(page, "Table", NAMES, rows, allowHtml=True)
    assert page.evaluate(CELLS) == ["x", "y", "z"]


def test_a_cell_takes_a_style(page):
    page.evaluate(
        "(() => { const t = google.visualization.arrayToDataTable([['n'], ['x']]);"
        " t.setProperty(0, 0, 'style', 'color: red'); t.setProperty(0, 0, 'className', 'a b');"
        " new google.visualization.Table(node).draw(t) })()"
    )
    assert page.evaluate("[shapes('td')[0].style.color, shapes('td')[0].className]") == ["red", "a b"]


@pytest.mark.parametrize("kind", ["ColumnChart", "ComboChart", "SteppedAreaChart", "LineChart", "PieChart", "Timeline"])
def test_nothing_to_draw_is_no_error(page, kind):
    draw(page, kind, NAMES, [])
    assert page.evaluate("shapes('svg').length") == 1
    page.evaluate("chart.clearChart()")
    assert page.evaluate("node.childNodes.length") == 0

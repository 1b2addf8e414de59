"""The report page: one file that asks for nothing, for every reader, whatever a run's files hold or lack."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import runs
from browser import Browser

from splitnet.measure import charts, elements, loss_charts, page_tables, step_chart
from splitnet.measure.markdown import markdown
from splitnet.measure.page import page
from splitnet.measure.pictures import loss, thinned
from splitnet.measure.summary import summarise
from splitnet.measure.timeline import Timeline

MIB = 2**20
CHARTS = ("throughput", "peaks", "memory", "timeline", "losses", "training", "accuracy")
VOID = {"meta", "link", "br", "img", "input"}
HOSTILE = """</script><script>alert(1)</script><img src=x onerror="alert('&amp;')"><b>&lt;</b>"""


class Parsed(HTMLParser):
    """The elements of a page, each with those around it, and its words outside scripts and styles."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.words, self.scripts, self.wrong = [], [], "", {}, []
        self.feed(text)
        self.close()
        self.wrong += self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self.open)))
        if tag not in VOID:
            self.open.append((tag, dict(attributes).get("id"), len(self.elements)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop()[0] != tag:
            self.wrong.append(tag)

    def handle_data(self, text):
        inside = self.open[-1] if self.open else ("",)
        if inside[0] == "script":
            self.scripts[inside[1]] = text
        elif inside[0] != "style":
            self.words += text

    def all(self, *tags):
        return [(tag, attributes) for tag, attributes, _ in self.elements if tag in tags]

    @property
    def ids(self):
        return [attributes["id"] for _, attributes, _ in self.elements if "id" in attributes]


@pytest.fixture
def summary(tmp_path):
    return summarise(runs.write(tmp_path / "a-run"))


@pytest.fixture
def parsed(summary):
    return Parsed(page(summary))


# The file


def test_it_is_one_small_file_that_names_no_other(summary):
    text = page(summary)
    assert len(text.encode()) < 6_000_000
    ours = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"(?i)https?:|//\w|@import|url\(", ours)
    for _, attributes, _ in Parsed(text).elements:
        for name in ("src", "href", "action", "poster", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:,"))


def test_plotly_is_inlined_once_and_scripts_are_known_by_hash(summary):
    text = page(summary)
    assert text.count("* plotly.js v") == 1
    policy = next(a["content"] for _, a in Parsed(text).all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.partition("style-src")[0]
    assert policy.count("sha256-") == 2


def test_it_is_well_formed(parsed):
    assert parsed.wrong == []
    assert len(parsed.ids) == len(set(parsed.ids))


def test_headings_and_landmarks(parsed):
    assert [tag for tag, _ in parsed.all("h1", "header", "nav", "main")] == ["header", "h1", "nav", "main"]
    assert all("aria-label" in attributes for _, attributes in parsed.all("nav"))
    links = [attributes["href"][1:] for _, attributes in parsed.all("a")]
    sections = [attributes["id"] for _, attributes in parsed.all("section")]
    assert links == ["report", *sections]
    assert sections == ["speed", "kinds", "step", "exchanges", "layers", "loss", "environment"]


def test_every_chart_is_named_described_and_has_a_table(parsed):
    plots = [(a, around) for _, a, around in parsed.elements if a.get("class") == "plot"]
    assert tuple(attributes["id"] for attributes, _ in plots) == CHARTS
    tables = [{part[2] for part in around} for tag, _, around in parsed.elements if tag == "table"]
    for attributes, around in plots:
        assert attributes["aria-label"]
        assert set(attributes["aria-describedby"].split()) <= set(parsed.ids)
        figure = next(part[2] for part in around if part[0] == "figure")
        assert any(figure in inside for inside in tables), attributes["id"]


def test_every_control_and_table_has_a_name(parsed):
    for _, attributes in parsed.all("table"):
        assert attributes.get("aria-label") or parsed.all("caption")
    assert all(a["type"] == "button" for _, a in parsed.all("button"))
    assert {a["scope"] for _, a in parsed.all("th") if "scope" in a} == {"row", "col", "colgroup"}
    assert [a for _, a in parsed.all("p") if a.get("role") == "status"] == [
        {"id": "said", "class": "unseen", "role": "status", "aria-live": "polite"}
    ]


def test_the_verdict_comes_first_and_says_emulated(parsed, summary):
    before, _, _ = parsed.words.partition("Speed and memory")
    assert summary.verdict in before
    assert "emulated devices" in before


def test_only_fake_devices_are_called_emulated(summary):
    for entry in summary.run["devices"]:
        entry["device"] = entry["device"].replace("fake", "cuda")
    assert "emulated devices" not in Parsed(page(summary)).words.partition("Speed and memory")[0]


def test_only_one_step_is_in_it(tmp_path):
    one, many = (summarise(runs.write(tmp_path / name)) for name in ("one", "many"))
    trace = runs.traced()
    events = [event for event in trace["traceEvents"] if event["ts"] < 1000]
    one.timeline = Timeline(trace | {"traceEvents": events, "splitnet": trace["splitnet"]})
    lengths = [len(page(summary)) for summary in (one, many)]
    assert lengths[1] - lengths[0] < 500


# What is in the charts


def test_bars_of_speed_have_whiskers_over_all_steps(summary):
    wall, clocks = charts.speed(summary).data
    assert wall["x"] == [32, 16, 8]
    assert wall["error_x"]["array"] == [2, 1, 0.5]
    assert wall["error_x"]["arrayminus"] == [2, 1, 0.5]
    assert clocks["x"] == pytest.approx([64, 32, 16])  # 16 images in half the time


@pytest.mark.parametrize("size", [0, -1, 10**400, "16", None])
def test_clocks_are_left_out_where_images_are_not_known(summary, size):
    summary.run["options"]["batch_size"] = size
    assert len(charts.speed(summary).data) == 1


def test_on_gpus_there_is_one_bar_a_layout(summary):
    for entry in summary.run["devices"]:
        entry["device"] = "cuda:0"
    assert len(charts.speed(summary).data) == 1


def test_memory_is_stacked_by_kind_for_each_device(summary):
    chart = charts.memory(summary)
    assert [trace["name"] for trace in chart.data] == ["parameters", "gradients", "optimizer", "activations"]
    assert [sum(values) for values in zip(*(trace["x"] for trace in chart.data), strict=True)] == [40, 40, 80, 90]
    assert charts.peaks(summary).data[0]["x"] == [40, 80, 90]
    assert chart.layout["yaxis"]["ticktext"][:3] == [
        "2 towers<br>fake:0",
        "2 towers<br>fake:1",
        "same, whole<br>fake:0",
    ]


def test_the_timeline_has_a_bar_for_each_operation(summary):
    chart = step_chart.step_chart(summary)
    bars = {trace["name"]: trace for trace in chart.data if trace.get("meta") == "operations"}
    assert list(bars) == ["forward", "backward", "optimizer", "exchange"]
    assert bars["forward"]["base"] == [0, 0, 0.35]
    assert bars["forward"]["x"] == [0.3, 0.3, 0.15]
    assert [int(device[0]) for device in bars["forward"]["customdata"]] == [0, 1, 0]
    assert [len(trace["x"]) for trace in bars.values()] == [3, 2, 2, 4]
    assert chart.layout["xaxis"]["range"] == [0, 1]
    assert "the median of 3: 1.0 ms" in chart.text


def test_an_exchange_is_one_arrow_from_lane_to_lane(summary):
    arrows = step_chart.step_chart(summary).data[-1]
    assert arrows["x"] == [0.3, 0.35, None, 0.5, 0.55, None]
    up, down = arrows["y"][:2], arrows["y"][3:5]
    assert up[0] > up[1]  # from device 1 to device 0, which is drawn above
    assert down[0] < down[1]
    assert 0 < up[1] < 0.5 < up[0] < 1
    assert arrows["hovertext"][0] == (
        "exchange before fc8, forward: fake:1 to fake:0, 4,096 bytes, at 0.300 ms, takes 0.050 ms"
    )


def test_rows_are_named_above_their_operations(summary):
    rows = step_chart.step_chart(summary).data[0]
    assert rows["text"] == ["conv1", "fc8", "conv1", "conv1", "conv1"]
    assert rows["base"] == [0, 0.35, 0.55, 0, 0.55]


def test_too_many_operations_are_not_all_drawn(summary, monkeypatch):
    monkeypatch.setattr(step_chart, "MOST", 6)
    chart = step_chart.step_chart(summary)
    assert sum(len(t["x"]) for t in chart.data if t.get("meta") == "operations") == 6
    assert "11 operations (the 6 longest drawn)" in chart.text
    assert len([x for x in chart.data[-1]["x"] if x is None]) == 2  # what crosses is there all the same


def test_losses_of_all_layouts_are_drawn_the_runs_own_on_top(summary):
    chart = loss_charts.losses(summary)
    assert [trace["name"] for trace in chart.data][-1] == "2 towers, fake:0, fake:1"
    assert all(trace["y"] == [2.5, 2.25, 2.0] for trace in chart.data)
    assert len({(key.colour, key.dash) for key in chart.legend}) == 3
    assert chart.tables[0].rows[2] == ["3", "2.000000", "2.000000", "2.000000", "1.0e-06"]


def test_the_runs_own_loss_and_tests_are_drawn(summary):
    steps, tests = loss_charts.training(summary).data
    assert (steps["x"], steps["y"]) == ([1, 2, 3], [2.5, 2.25, 2.0])
    assert (tests["x"], tests["y"]) == ([3], [1.9])
    assert loss_charts.accuracy(summary).data[1]["y"] == [37.5]


def test_few_steps_have_whole_ticks_and_whole_markers(summary):
    for chart in (loss_charts.losses(summary), loss_charts.training(summary), loss_charts.accuracy(summary)):
        assert chart.layout["xaxis"]["dtick"] == 1
        assert all(line["cliponaxis"] is False for line in chart.data)
    assert loss_charts.training(summary).layout["xaxis"]["rangemode"] == "nonnegative"  # of a test at step 0 alone
    summary.tests[0]["step"] = 9
    assert "dtick" not in loss_charts.training(summary).layout["xaxis"]


def test_steps_of_the_picture_have_whole_ticks(summary):
    summary.steps, summary.tests = summary.steps[:2], []
    said = re.findall(r'<text[^>]*text-anchor="middle"[^>]*>([^<]*)</text>', str(loss(summary)))
    assert said == ["0", "1", "2"]


def record_of(step, **more):
    return {"kind": "test", "step": step, "epoch": 1, "loss": 1.5, "accuracy": 0.5, "images": 9, "seconds": 1.0} | more


def test_views_of_tests_are_told_where_they_differ(summary):
    summary.tests = [record_of(3), record_of(6, views=1)]
    assert page_tables.tests(summary).headings[-1] == "images"
    summary.tests = [record_of(3, views=10), record_of(6)]
    table = page_tables.tests(summary)
    assert (table.headings[-2:], [row[-2:] for row in table.rows]) == (["images", "views"], [["9", "10"], ["9", "1"]])
    assert re.search(r"images \| views \|\n", markdown(summary))


def test_rates_that_change_have_a_table(summary):
    rates = [{"first weight": first, "weights": 0.01, "biases": 0.02} for first in (0.01, 0.01, 0.001)]
    summary.tests = [record_of(3 * n, rates=found) for n, found in enumerate(rates, 1)]
    table = page_tables.rates(summary)
    assert table.headings == ["until step", "rate of the first weights", "rate of other weights", "rate of biases"]
    assert table.rows == [["6", "0.01", "0.01", "0.02"], ["9", "0.001", "0.01", "0.02"]]
    assert "rate of other weights" in Parsed(page(summary)).words
    assert "rate of other weights" in markdown(summary)
    summary.tests = summary.tests[:2]
    assert page_tables.rates(summary).rows == []
    assert "rate of" not in markdown(summary)
    summary.tests = [record_of(3, rates={"weights": 0.1}), record_of(6, rates={"weights": 0.01})]
    assert page_tables.rates(summary).headings == ["until step", "rate"]


def test_long_runs_are_thinned_to_means():
    points = [(i, float(i)) for i in range(10 * loss_charts.MOST)]
    thin = thinned(points, loss_charts.MOST)
    assert len(thin) == loss_charts.MOST
    assert thin[0] == (5, 4.5)
    assert thinned(points[:7], loss_charts.MOST) == points[:7]


def test_what_is_no_number_is_not_drawn(summary):
    summary.steps[1]["loss"] = float("nan")
    assert loss_charts.training(summary).data[0]["x"] == [1, 3]
    assert "NaN" not in Parsed(page(summary)).scripts["figures"]


# Tables


def test_bytes_are_counted_three_times(summary):
    content, text = page_tables.exchanges(summary)
    assert content.headings == ["before", "measured (ledger)", "derived (table)", "counted (trace)", "agree"]
    assert content.rows == [["fc8", "8,192", "8,192", "8,192", "yes"]]
    assert text.endswith("All counts agree.")


def test_a_count_that_differs_is_said(summary):
    summary.own["exchanged"] += [{"row": "fc7", "measured": 4.0, "derived": 4}]
    content, text = page_tables.exchanges(summary)
    assert content.rows[1:] == [["fc7", "4", "4", "0", "no"], ["all", "8,196", "8,196", "8,192", "no"]]
    assert text.endswith("The counts differ.")


@pytest.mark.parametrize("trace", [True, False])
def test_what_one_alone_counted_is_not_said_to_agree(summary, trace):
    summary = replace(summary, **({"comparison": None} if trace else {"timeline": None}))
    content, text = page_tables.exchanges(summary)
    kinds = ["counted (trace)"] if trace else ["measured (ledger)", "derived (table)"]
    assert content.headings == ["before", *kinds, *["agree"] * (not trace)]
    assert content.rows == [["fc8", "8,192"] if trace else ["fc8", "8,192", "8,192", "yes"]]
    assert ("agree" in text) == (not trace)


def test_replicas_are_on_the_page(tmp_path, parsed):
    assert "eplica" not in parsed.words
    summary = summarise(runs.write(tmp_path / "b", compare=runs.with_replicas()))
    found = Parsed(page(summary))
    assert found.wrong == []
    assert found.words.count("Replicas are data parallelism") == 1
    table = page_tables.gradients(summary)
    assert table.rows == [["2 replicas, fake:0, fake:1", "8,000,000", "8,000,000"]]
    assert table.title in found.words
    assert charts.speed(summary).data[0]["x"] == [32, 16, 24, 8]
    assert [row[1] for row in charts.memory(summary).tables[0].rows if "replicas" in row[0]] == ["fake:0", "fake:1"]
    assert len(loss_charts.losses(summary).data) == 4


def test_gradients_of_replicated_towers_are_no_crossing(tmp_path):
    compare = runs.with_replicas()
    compare["layouts"][0]["exchanged"].append({"row": "gradients", "measured": 4e6, "derived": 4_000_000})
    summary = summarise(runs.write(tmp_path / "b", compare=compare))
    table, text = page_tables.exchanges(summary)
    assert [row[0] for row in table.rows] == ["fc8"]
    assert "All counts agree" in text
    names = [row[0] for row in page_tables.gradients(summary).rows]
    assert names == ["2 towers, fake:0, fake:1", "2 replicas, fake:0, fake:1"]


def test_a_step_is_added_up_for_each_device(summary):
    content, text = page_tables.sums(summary)
    told = [[getattr(cell, "text", cell) for cell in row] for row in content.rows]
    assert told[0] == ["fake:0", "1.000", "0.800", "0.100", "0.100", "0.000", "0.100"]
    assert told[1] == ["fake:1", "1.000", "0.550", "0.100", "0.100", "0.000", "0.350"]
    assert content.rows[0][2].part == pytest.approx(0.8)
    assert text.startswith("Medians of 3 profiled steps, each figure by itself, so that they need not add up to a step")


@pytest.mark.parametrize(
    ("steps", "told"),
    [
        (1, "Medians of 1 profiled step. "),
        (3, "Medians of 3 profiled steps, each figure by itself, so that they need not add up to a step. "),
    ],
)
def test_medians_that_do_not_add_up_are_said_to_be_medians(summary, steps, told):
    summary.timeline.steps = summary.timeline.steps[:steps]
    assert told in markdown(summary)


def test_the_zeros_of_two_axes_are_kept_apart(summary):
    drawn = [charts.speed(summary), charts.memory(summary), loss_charts.training(summary)]
    apart = [chart.layout[name]["ticklabelstandoff"] for chart in drawn for name in ("xaxis", "yaxis")]
    assert min(apart) >= 4


def test_a_table_that_is_cut_has_a_shade_at_its_edge(summary):
    style = re.search(r"\n\.scroll \{([^}]*)\}", page(summary))[1]
    moved, still = ([line for line in style.split("\n") if f"no-repeat {how}" in line] for how in ("local", "scroll"))
    assert [len(lines) for lines in (moved, still)] == [2, 2]
    assert all("var(--paper)" in line for line in moved)
    assert all("var(--shade)" in line for line in still)
    assert page(summary).count("--shade: rgb(") == 2  # light and dark


def test_layers_have_parameters_and_times_on_each_device(summary):
    content, text = page_tables.layers(summary)
    told = [[getattr(cell, "text", cell) for cell in row] for row in content.rows]
    assert told == [["conv1", "600", "0.30", "0.25", "0.30", "0.20"], ["fc8", "400", "0.15", "", "", ""]]
    assert content.groups == [("", 2), ("fake:0", 2), ("fake:1", 2)]
    assert "Outside the rows: optimizer 0.10 ms on fake:0, 0.05 ms on fake:1." in text


def test_the_command_can_be_given_to_a_shell(summary):
    summary.run["command"] = ["python3", "-m", "splitnet.run", "--out", "a b"]
    assert summary.command == "python3 -m splitnet.run --out 'a b'"
    assert "python3 -m splitnet.run --out 'a b'" in Parsed(page(summary)).words


# What is not there


@pytest.mark.parametrize(
    ("given", "said", "gone"),
    [
        ({"compare": {}}, "compare.json: ", {"throughput", "peaks", "memory", "losses"}),
        ({"trace": False}, "trace.json.gz: ", {"timeline"}),
        ({"compare": {}, "trace": False, "steps": 0}, "trace.json.gz: ", {*CHARTS} - {"training", "accuracy"}),
    ],
)
def test_what_is_missing_is_said_in_its_place(tmp_path, given, said, gone):
    summary = summarise(runs.write(tmp_path / "somewhere" / "a-run", **given))
    parsed = Parsed(page(summary))
    assert parsed.wrong == []
    assert [name for name in CHARTS if name not in parsed.ids] == [name for name in CHARTS if name in gone]
    assert said in parsed.words.rpartition("Not here")[0]
    assert "somewhere" not in parsed.words
    assert set(json.loads(parsed.scripts["figures"])) == set(CHARTS) - gone


def test_a_run_without_anything_has_a_page(summary):
    bare = replace(
        summary, steps=[], tests=[], comparison=None, timeline=None, missing=[], metrics=[],
        run={"status": "running", "options": {"towers": 2}, "devices": []},
    )  # fmt: skip
    parsed = Parsed(page(bare))
    assert parsed.wrong == []
    for words in ("No comparison was made.", "No step was profiled.", "No step was recorded."):
        assert words in parsed.words
    assert json.loads(parsed.scripts["figures"]) == {}


def test_an_empty_trace_has_no_timeline(summary):
    summary.timeline = Timeline({"traceEvents": []})
    assert step_chart.step_chart(summary) is None
    assert page(summary)


def test_a_layout_that_does_not_fit_has_words_for_bars(summary):
    whole = {"layout": "whole", "towers": 2, "devices": ["fake:0"], "does_not_fit": "fake:0: 5 MiB more <needed>"}
    summary.comparison["layouts"][1] = whole
    chart = charts.speed(summary)
    assert [trace["y"] for trace in chart.data] == [[0, 2], [0, 2]]
    assert [(note["y"], note["text"]) for note in chart.layout["annotations"]] == [(1, "does not fit")]
    parsed = Parsed(page(summary))
    assert "same, whole, fake:0 does not fit: fake:0: 5 MiB more <needed>" in parsed.words
    summary.comparison["layouts"] = [whole, whole]
    assert "does not fit" in Parsed(page(summary)).words


# Text that wants to be more


def hostile(value):
    """The same with hostile words for every word."""
    if isinstance(value, dict):
        return {key: hostile(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [hostile(inner) for inner in value]
    return value + HOSTILE if isinstance(value, str) else value


def attacked(folder):
    summary = summarise(runs.write(folder))
    trace = runs.traced()
    for event in trace["traceEvents"]:
        if event.get("cat") in ("kernel", "gpu_memcpy"):
            event["name"] += HOSTILE
            event["args"]["row"] += HOSTILE
    trace["splitnet"]["devices"] = [name + HOSTILE for name in runs.DEVICES]
    summary.timeline = Timeline(trace)
    return replace(
        summary,
        name=HOSTILE,
        verdict=HOSTILE,
        missing=[f"/x/steps.jsonl: {HOSTILE}"],
        run=hostile(summary.run) | {HOSTILE: HOSTILE},
        comparison=hostile(summary.comparison) | {"base": "whole"},
    )


def test_words_stay_words(tmp_path, parsed):
    text = page(attacked(tmp_path / "hostile"))
    found = Parsed(text)
    assert found.wrong == []
    assert found.all("img", "b") == []
    assert len(found.all("script")) == len(parsed.all("script")) == 3
    assert not any(name.startswith("on") for _, attributes, _ in found.elements for name in attributes)
    assert HOSTILE in found.words
    assert set(json.loads(found.scripts["figures"])) == set(CHARTS)


def test_data_cannot_end_its_element():
    text = elements.data("x", {HOSTILE: [HOSTILE]})
    assert text.count("</script>") == 1
    assert json.loads(Parsed(text).scripts["x"]) == {HOSTILE: [HOSTILE]}


# In a browser

READY = "document.documentElement.dataset.ready"
SAID = "document.getElementById('said').textContent"
MARKS = """[...document.querySelectorAll('.plot')].map(
    plot => plot.querySelectorAll('.main-svg .trace, .main-svg .point, .main-svg .js-line').length)"""
COLOURS = """[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor,
    ...[...document.querySelectorAll('.xtick text')].map(text => getComputedStyle(text).fill).slice(0, 1),
    ...[...document.querySelectorAll('.gridlayer path')].map(line => getComputedStyle(line).stroke).slice(0, 1)]"""


@pytest.fixture(scope="module")
def browser():
    with Browser() as started:
        yield started


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    (folder / "report.html").write_text(page(summarise(runs.write(folder / "a-run"))), "utf-8")
    return (folder / "report.html").as_uri()


@pytest.fixture(scope="module")
def drawn(browser, file):
    tab = browser.open(file, offline=True)
    tab.wait(READY)
    return tab


@pytest.fixture
def opened(drawn):
    drawn.call("Page.bringToFront")  # in the background, a click takes seconds
    return drawn


@pytest.mark.slow
def test_all_charts_are_drawn_from_the_file_alone(opened, file):
    assert opened.requests == [file]
    assert opened.errors == []
    assert opened.evaluate("document.querySelectorAll('.plot > .plot-container').length") == len(CHARTS)
    assert min(opened.evaluate(MARKS)) > 0
    bars = "document.querySelectorAll('#timeline .trace.bars .point').length"
    assert opened.evaluate(bars) == 11 + 5  # operations, and rows above them


@pytest.mark.slow
def test_keys_walk_the_operations_and_each_is_said(opened):
    opened.evaluate("document.getElementById('timeline').focus()")
    for key, said in [
        ("ArrowRight", "conv1 forward: convolution on fake:0"),
        ("ArrowRight", "exchange before fc8, forward: fake:1 to fake:0"),
        ("ArrowDown", "exchange before fc8, forward: fake:1 to fake:0"),
        ("ArrowLeft", "conv1 forward: convolution on fake:1"),
        ("ArrowUp", "conv1 forward: convolution on fake:0"),
        ("n", "exchange before fc8, forward"),
        ("n", "exchange before fc8, backward"),
        ("n", "No later one"),
        ("p", "exchange before fc8, forward"),
    ]:
        opened.press(key)
        opened.wait(f"{SAID}.startsWith({json.dumps(said)})")
    assert opened.evaluate("document.querySelectorAll('#timeline .hoverlayer .hovertext').length") == 1


@pytest.mark.slow
def test_keys_and_buttons_zoom(opened):
    width = "(([a, b]) => b - a)(document.getElementById('timeline').layout.xaxis.range)"
    opened.evaluate("document.getElementById('timeline').focus()")
    opened.press("+")
    opened.wait(f"Math.abs({width} - 0.6) < 1e-6")
    opened.press("-")
    opened.wait(f"Math.abs({width} - 1) < 1e-6")
    opened.click("[data-do=in]")
    opened.wait(f"Math.abs({width} - 0.6) < 1e-6")
    opened.press("ArrowRight")  # on a button: not the timeline's
    opened.evaluate("document.getElementById('timeline').focus()")
    opened.press("0")
    opened.wait(f"{width} === 1")


@pytest.mark.slow
def test_what_is_out_of_sight_is_brought_into_it(opened):
    opened.evaluate("document.getElementById('timeline').focus()")
    opened.evaluate("Plotly.relayout('timeline', {'xaxis.range': [0, 0.1]}).then(() => 1)")
    opened.click("[data-do=exchange]")
    around = "(([a, b]) => a > 0.1 && b < 0.6)(document.getElementById('timeline').layout.xaxis.range)"
    assert opened.wait(around)
    opened.click("[data-do=all]")


@pytest.mark.slow
def test_the_wheel_scrolls_the_page_unless_the_timeline_is_in_focus(opened):
    wheel = """(area => { const event = new WheelEvent('wheel', {deltaY: -100, bubbles: true, cancelable: true});
        area.dispatchEvent(event); return event.defaultPrevented })(document.querySelector('#timeline .drag'))"""
    opened.evaluate("document.activeElement.blur()")
    assert opened.evaluate(wheel) is False
    opened.evaluate("document.getElementById('timeline').focus()")
    assert opened.evaluate(wheel) is True
    opened.press("0")


@pytest.mark.slow
def test_the_first_stop_skips_to_the_report(browser, file):
    tab = browser.open(file, offline=True)
    tab.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the report"
    assert tab.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    tab.press("Enter")
    assert tab.wait("document.activeElement.id === 'report'")


@pytest.mark.slow
def test_tables_and_the_command_are_copied(opened):
    opened.evaluate("navigator.clipboard.writeText = text => { window.copied = text; return Promise.resolve() }")
    opened.click("#exchanges .copy")
    opened.wait("window.copied")
    assert opened.evaluate("copied").splitlines()[1] == "fc8\t8,192\t8,192\t8,192\tyes"
    assert opened.evaluate(SAID) == "Copied"
    opened.click("#layers .copy")
    opened.wait("copied.includes('conv1')")
    assert {line.count("\t") for line in opened.evaluate("copied").splitlines()} == {5}
    opened.click("#environment .code .copy")
    opened.wait("copied === 'python -m splitnet.run'")


@pytest.mark.slow
def test_dark_follows_the_system_at_once(opened):
    light = opened.evaluate(COLOURS)
    opened.dark()
    dark = opened.evaluate(COLOURS)
    opened.dark(False)
    assert len(light) == 4
    assert not set(light) & set(dark)
    assert opened.evaluate(COLOURS) == light


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.slow
def test_nothing_is_wider_than_the_window(browser, file, width):
    tab = browser.open(file, width=width)
    tab.wait(READY)
    tab.evaluate("document.querySelectorAll('details').forEach(part => { part.open = true })")
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    outside = """[...document.querySelectorAll('main *')].filter(part => !part.closest('.scroll, pre, .plot')
        && part.getBoundingClientRect().right > innerWidth + 1).map(part => part.outerHTML.slice(0, 80))"""
    assert tab.evaluate(outside) == []
    boxes = "[...document.querySelectorAll('.scroll')].filter(box => box.scrollWidth > box.clientWidth)"
    tab.wait(f"{boxes}.every(box => box.tabIndex === 0)")
    assert width > 360 or tab.evaluate(f"{boxes}.length")
    assert tab.errors == []


@pytest.mark.slow
def test_hostile_words_do_nothing_in_a_browser(browser, tmp_path):
    (tmp_path / "report.html").write_text(page(attacked(tmp_path / "a-run")), "utf-8")
    tab = browser.open((tmp_path / "report.html").as_uri(), offline=True)
    tab.evaluate("window.alert = () => { window.harmed = true }")
    tab.wait(READY)
    tab.evaluate("document.getElementById('timeline').focus()")
    tab.press("ArrowRight")
    tab.wait(f"{SAID}.includes('</script>')")
    told = "document.querySelector('#timeline .hoverlayer .hovertext')?.textContent ?? ''"
    assert tab.wait(f"({told}).includes('<b>&lt;</b>') && ({told})")  # as it stands, not as plotly's own tags
    assert tab.evaluate("document.querySelectorAll('img').length") == 0
    assert tab.evaluate("window.harmed") is None
    assert tab.requests == [(tmp_path / "report.html").as_uri()]
    assert tab.errors == []


@pytest.mark.slow
def test_a_page_without_anything_works(browser, summary, tmp_path):
    bare = replace(summary, steps=[], tests=[], comparison=None, timeline=None, missing=[], metrics=[])
    (tmp_path / "report.html").write_text(page(bare), "utf-8")
    tab = browser.open((tmp_path / "report.html").as_uri(), offline=True)
    tab.wait(READY)
    assert tab.errors == []

"""The report as Markdown, and its pictures as SVG."""

import re
from xml.etree import ElementTree

import pytest
import runs

from splitnet.measure.markdown import markdown, table
from splitnet.measure.pictures import NAMES, pictures
from splitnet.measure.summary import summarise
from splitnet.measure.svg import Drawing, ticks

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def summary(tmp_path):
    return summarise(runs.write(tmp_path / "a-run"))


def drawn(summary, name):
    return ElementTree.fromstring(pictures(summary)[name])


def titled(picture, kind="rect"):
    """Title -> element, of what has one."""
    return {e.find(f"{SVG}title").text: e for e in picture.iter(SVG + kind) if e.find(f"{SVG}title") is not None}


def rows_of(text, heading):
    """The cells of the first table below a heading, without its first two lines."""
    below = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in below.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


# Pictures


def test_every_picture_says_what_it_is(summary):
    assert tuple(pictures(summary)) == NAMES
    for name in NAMES:
        picture = drawn(summary, name)
        assert picture.get("role") == "img"
        assert picture.find(f"{SVG}title").text == picture.get("aria-label")
        assert picture.find(f"{SVG}desc").text
        assert "prefers-color-scheme:dark" in picture.find(f"{SVG}style").text


def test_pictures_ask_for_nothing_outside(summary):
    for text in pictures(summary).values():
        assert re.findall(r"https?://[^\"'<> ]+", text) == ["http://www.w3.org/2000/svg"]
        assert "<script" not in text
        assert len(text) < 40_000


def test_bars_are_as_long_as_their_speed(summary):
    bars = titled(drawn(summary, "throughput.svg"))
    lengths = [float(bar.get("width")) for bar in bars.values()]
    assert lengths == pytest.approx([lengths[0], lengths[0] / 2, lengths[0] / 4], abs=0.02)
    assert next(iter(bars)) == "2 towers, fake:0, fake:1: 32.0 (30.0-34.0) images/s"


def test_memory_is_stacked_by_kind(summary):
    bars = titled(drawn(summary, "memory.svg"))
    whole = [bar for title, bar in bars.items() if title.startswith("same, whole")]
    starts, widths = ([float(bar.get(key)) for bar in whole] for key in ("x", "width"))
    assert widths[2] == pytest.approx(2 * widths[0], abs=0.02)  # the optimizer's, twice the weights
    assert [x + w for x, w in zip(starts, widths, strict=True)][:-1] == pytest.approx(starts[1:], abs=0.02)
    assert "2 towers, fake:1: parameters 5 MiB" in bars


def test_a_step_is_drawn_to_scale(summary):
    bars = titled(drawn(summary, "timeline.svg"))
    forward, backward = bars["fc8 forward: convolution, 0.150 ms"], bars["optimizer: convolution, 0.100 ms"]
    assert float(forward.get("width")) == pytest.approx(1.5 * float(backward.get("width")), abs=0.02)


def test_each_exchange_is_one_arrow_from_device_to_device(summary):
    picture = drawn(summary, "timeline.svg")
    arrows = titled(picture, "line")
    assert len(arrows) == 2
    gather, scatter = arrows.values()  # fc8 gathers to device 0, its backward scatters
    assert float(gather.get("y1")) > float(gather.get("y2"))
    assert float(scatter.get("y1")) < float(scatter.get("y2"))
    assert "Memcpy PtoP (Device -> Device) before fc8 forward, 4,096 bytes, 0.050 ms" in arrows


def test_operations_too_close_to_be_seen_apart_are_one(tmp_path, monkeypatch):
    many = [(0, "conv1", "forward", i / 10, (i + 1) / 10) for i in range(3000)]
    monkeypatch.setattr(runs, "KERNELS", many)
    picture = drawn(summarise(runs.write(tmp_path / "a")), "timeline.svg")
    assert "conv1 forward: 3,000 operations, 0.300 ms" in titled(picture)


def test_a_loss_is_a_line_and_tests_are_dots(summary):
    picture = drawn(summary, "loss.svg")
    points = [tuple(map(float, p.split(","))) for p in picture.find(f"{SVG}polyline").get("points").split()]
    assert len(points) == 3
    assert points[0][1] < points[1][1] < points[2][1]  # it falls, and y grows downwards
    assert list(titled(picture, "circle")) == ["test loss 1.9000 after step 3"]


def test_what_has_no_figures_has_no_picture(tmp_path):
    assert pictures(summarise(runs.write(tmp_path / "a", compare={}, trace=False, steps=1))) == {}
    assert set(pictures(summarise(runs.write(tmp_path / "b", compare={}, steps=3)))) == {"timeline.svg", "loss.svg"}


def test_a_layout_that_did_not_fit_has_no_bar(tmp_path):
    compare = runs.comparison()
    compare["layouts"][1] = {"layout": "whole", "does_not_fit": "too large"}
    summary = summarise(runs.write(tmp_path / "a", compare=compare))
    assert len(titled(drawn(summary, "throughput.svg"))) == 2


def test_words_are_escaped():
    drawing = Drawing('"<a>" & b', "<", 10, 10)
    drawing.word(0, 0, "<b>")
    drawing.rect(0, 0, 1, 1, "#000", "a < b")
    picture = ElementTree.fromstring(str(drawing))
    assert picture.get("aria-label") == '"<a>" & b'
    assert picture.find(f"{SVG}text").text == "<b>"


@pytest.mark.parametrize("greatest", [1e-9, 0.003, 1, 7.3, 10, 12, 99.9, 4321, 1e12])
def test_ticks_are_round_and_cover(greatest):
    marks = ticks(greatest)
    assert marks[0] == 0
    assert greatest <= marks[-1] * (1 + 1e-9) < 3 * greatest
    assert 2 <= len(marks) <= 7
    assert f"{marks[1]:e}".partition(".")[0] in "125"


def test_ticks_of_nothing():
    assert ticks(0.0) == [0.0, 1.0]


# Markdown


def test_the_report_carries_everything(summary):
    text = markdown(summary)
    assert text.startswith(f"# a-run\n\n{summary.verdict}\n")
    headings = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert headings == ["Speed", "Memory", "One step on its devices", "Exchanges", "Layers", "Loss", "Environment"]
    assert re.findall(r"\]\(pictures/(.*?)\)", text) == list(NAMES)
    assert "python -m splitnet.run" in text
    assert "Fake devices are emulated" in text


def test_layouts_beside_each_other(summary):
    rows = rows_of(markdown(summary), "Speed")
    assert rows[0] == [
        "2 towers, fake:0, fake:1",
        "32.0 (30.0-34.0)",
        "500 (450-550)",
        "250",
        "2.000 (1.700-2.300)",
        "1,000",
    ]
    assert [row[0] for row in rows[1:]] == ["same, whole, fake:0", "dense, fake:0"]


def test_replicas_have_their_rows_and_bars(tmp_path):
    summary = summarise(runs.write(tmp_path / "a", compare=runs.with_replicas()))
    text, name = markdown(summary), "2 replicas, fake:0, fake:1"
    assert [row[0] for row in rows_of(text, "Speed")][2:] == [name, "dense, fake:0"]
    assert rows_of(text, "Memory")[4][:2] == ["2 replicas, fake:1", "80.0"]
    assert rows_of(text, "Exchanges")[:2] == [["fc8", "8,192", "8,192", "8,192"], ["all", "8,192", "8,192", "8,192"]]
    assert re.search(rf"^\| gradients, between.*\n.*\n\| {name} +\| +8,000,000 \| +8,000,000 \|$", text, re.MULTILINE)
    assert text.count("Replicas are data parallelism") == 1
    assert f"{name}: 24.0 (22.5-25.5) images/s" in titled(drawn(summary, "throughput.svg"))
    assert "2 replicas, fake:1: parameters 10 MiB" in titled(drawn(summary, "memory.svg"))


def test_a_run_without_replicas_says_nothing_of_them(summary):
    assert "eplica" not in markdown(summary)


def test_memory_lanes_exchanges_and_layers(summary):
    text = markdown(summary)
    assert rows_of(text, "Memory")[1] == ["2 towers, fake:1", "40.0", "5.0", "5.0", "10.0", "20.0"]
    lanes = rows_of(text, "One step on its devices")
    assert lanes[0] == ["fake:0", "80.0 %", "10.0 %", "0.0 %", "10.0 %", "0.100"]
    assert rows_of(text, "Exchanges")[0] == ["fc8", "8,192", "8,192", "8,192"]
    assert rows_of(text, "Layers") == [["conv1", "600", "0.30", "0.25"], ["fc8", "400", "0.15", ""]]
    assert rows_of(text, "Loss")[:1] == [["3", "1.9000", "37.50 %", "1,000"]]


def test_what_is_missing_is_said(tmp_path):
    folder = runs.write(tmp_path / "a", compare={}, trace=False)
    text = markdown(summarise(folder))
    assert "## Not here" in text
    assert f"- {folder}/compare.json" in text
    assert f"- {folder}/trace.json.gz" in text
    for heading in ("Speed", "Memory", "One step", "Exchanges"):
        assert f"](pictures/{heading}" not in text
    assert "While training: 12.0 images/s" in text


def test_a_layout_that_did_not_fit_is_told(tmp_path):
    compare = runs.comparison()
    compare["layouts"][1] = {"layout": "whole", "towers": 2, "devices": ["fake:0"], "does_not_fit": "fc6 is too large"}
    text = markdown(summarise(runs.write(tmp_path / "a", compare=compare)))
    assert "- same, whole, fake:0 does not fit: fc6 is too large" in text


def test_without_a_base_there_are_no_ratios(tmp_path):
    compare = runs.comparison(ratio=None) | {"base": "towers", "other_load": 0.5}
    compare["layouts"][1:] = [{"layout": "whole", "does_not_fit": "too large"}]
    text = markdown(summarise(runs.write(tmp_path / "a", compare=compare)))
    assert rows_of(text, "Speed")[0][4] == ""
    assert "Median and range of 5 steps in alternation. Other processes kept 0.5 cores busy meanwhile." in text


def test_a_table_can_be_read_as_text():
    assert table(["a", "b"], [["x|y", "1"], ["z", "1,000"]]).splitlines() == [
        "| a    |     b |",
        "| ---- | ----: |",
        "| x\\|y |     1 |",
        "| z    | 1,000 |",
    ]
    assert table(["a"], []) == ""

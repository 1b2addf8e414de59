"""What was learned, on the page, in Markdown, as pictures and in TensorBoard: all from learned.json, whole or not."""

import copy
import itertools
import json
import math
import re
from xml.etree import ElementTree

import pytest
import runs
import torch
from browser import Browser
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_measure_page import HOSTILE, READY, Parsed, hostile

from splitnet import pages
from splitnet.errors import UsageError
from splitnet.measure import learned_page, learned_pictures, learned_text, scalars, thumbnails
from splitnet.measure.markdown import markdown
from splitnet.measure.page import page
from splitnet.measure.raster import SCALE, Raster
from splitnet.measure.records import NewerSchemaError, RunFolder, read_learned
from splitnet.measure.summary import summarise
from splitnet.measure.svg import ink

SVG = "{http://www.w3.org/2000/svg}"
CLASSES = ("Trouser", "Dress", "Coat", "Bag", "Shirt", "Sneaker")
RED, BLUE = (torch.zeros(3, 40, 40, dtype=torch.uint8) for _ in range(2))
RED[0], BLUE[2] = 255, 255


def image(place, label, side=96, pixels=RED):
    return {"place": place, "label": label, "name": CLASSES[label], "image": thumbnails.thumbnail(pixels, side)}


def record(step, **fields):
    return {
        "step": step,
        "epoch": step // 10,
        "images": 256,
        "accuracy": 0.1 + step / 100,
        "silenced": [0.1, 0.1 + step / 200],
        "orientation": [0.125, 0.125 + step / 400],
        "colour": None,
        "similarity": {"conv2": 0.9, "fc7": 0.5 - step / 100},
    } | fields


def prediction(place, label, chances):
    """`chances`: of the classes in order."""
    likely = sorted(range(len(chances)), key=lambda i: -chances[i])
    top = [{"label": i, "name": CLASSES[i], "probability": chances[i]} for i in likely[:5]]
    return image(place, label) | {"probability": chances[label], "rank": 1 + likely.index(label), "top": top}


def content(**fields):
    torch.manual_seed(0)
    near = [image(7, 0, 64, BLUE) | {"distance": 0.5}, image(1234, 1, 64, BLUE) | {"distance": 1250.25}]
    return {
        "schema": 1,
        "towers": 2,
        "row": "conv1",
        "classes": 6,
        "not_shown": {"colour energy": "grey images"},
        "records": [record(0), record(10), record(20)],
        "end": {
            "step": 20,
            "epoch": 2,
            "filters": thumbnails.filters(torch.randn(48, 1, 11, 11).chunk(2)),
            "predictions": [
                prediction(3, 0, [0.75, 0.125, 0.0625, 0.03125, 0.03125, 0.0]),
                prediction(14, 1, [0.5, 0.25, 0.125, 0.0625, 0.0625, 0.0]),
                prediction(15, 5, [0.5, 0.25, 0.125, 0.0625, 0.0625, 0.0]),
            ],
            "nearest": {"row": "fc7", "among": 1000, "queries": [image(3, 0, 64) | {"images": near}]},
        },
    } | fields


def put(folder, learned):
    (folder / "learned.json").write_text(learned if isinstance(learned, str) else json.dumps(learned))
    return folder


@pytest.fixture
def folder(tmp_path):
    return put(runs.write(tmp_path / "a-run", compare={}, trace=False), content())


@pytest.fixture
def learned(folder):
    return read_learned(folder)


# Reading


def test_what_was_written_is_read(folder):
    assert read_learned(folder) == content()
    assert summarise(folder).learned == content()


@pytest.mark.parametrize("missing", ["end", "not_shown"])
def test_a_run_that_did_not_end_is_read(folder, missing):
    part = content()
    del part[missing]
    assert read_learned(put(folder, part)) == part


def damaged(path, value):
    """The content with something else at a path of keys."""
    found = copy.deepcopy(content())
    at = found
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return found


DAMAGE = [
    ("towers", 0),
    ("towers", 3),
    ("classes", "ten"),
    ("records", None),
    ("records", 0, "accuracy", None),
    ("records", 1, "silenced", [0.1]),
    ("records", 1, "orientation", [0.1, "0.2"]),
    ("records", 2, "colour", [0.5]),
    ("records", 2, "similarity", {"conv2": math.nan}),
    ("end", "filters", 0, "image", "https://example.org/x.png"),
    ("end", "filters", 0, "width", 0),
    ("end", "predictions", 0, "image", "data:image/svg+xml;base64,AAAA"),
    ("end", "predictions", 0, "image", 'data:image/png;base64,AA" onload="x'),
    ("end", "predictions", 1, "top", 0, "probability", True),
    ("end", "nearest", "queries", 0, "images", 0, "image", "javascript:alert(1)"),
    ("end", "nearest", "queries", 0, "images", 0, "distance", math.inf),
]


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
def test_damage_is_one_line_that_names_the_file(folder, damage):
    put(folder, damaged(damage[:-1], damage[-1]))
    with pytest.raises(UsageError, match=r"learned\.json: ") as caught:
        read_learned(folder)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', json.dumps(damaged(("classes",), 0))])
def test_a_damaged_file_costs_its_section_alone(folder, text):
    put(folder, text)
    summary = summarise(folder)
    assert summary.learned is None
    assert [line for line in summary.missing if "learned.json" in line]
    parsed = Parsed(page(summary))
    assert parsed.wrong == []
    section = parsed.words.partition("What was learned")[2].partition("What was learned")[2]
    assert section.startswith("learned.json: ")
    assert "learned.json" in markdown(summary)
    assert "## What was learned" not in markdown(summary)


def test_a_newer_one_is_refused(folder):
    with pytest.raises(NewerSchemaError, match=r"learned\.json: schema 2"):
        summarise(put(folder, content(schema=2)))


def test_a_run_that_was_not_looked_at_says_nothing_of_it(tmp_path):
    summary = summarise(runs.write(tmp_path / "b", compare={}, trace=False))
    assert summary.learned is None
    assert not [line for line in summary.missing if "learned" in line]
    assert "What was learned" not in Parsed(page(summary)).words
    assert "What was learned" not in markdown(summary)


# Words


@pytest.mark.parametrize(
    ("name", "most", "cut"),
    [
        ("Ankle boot", 12, "Ankle boot"),
        ("tench, Tinca tinca", 12, "tench…"),
        ("tench, Tinca tinca", 20, "tench, Tinca tinca"),
        ("tench, Tinca tinca, fish", 20, "tench, Tinca tinca…"),
        ("hammerhead shark, hammerhead", 11, "hammer…hark"),
        ("great white shark, man-eater", 12, "great w…hark"),
        ("a thing with number 1", 12, "a thing…er 1"),
        ("a thing with number 10", 12, "a thing…r 10"),
        ("maillot", 12, "maillot"),
        ("maillot, tank suit", 12, "maillot…"),
        ("  two\n words ", 12, "two words"),
        ("", 12, ""),
    ],
)
def test_long_names_are_cut_at_a_synonym_or_marked(name, most, cut):
    assert learned_text.short(name, most) == cut
    assert len(cut) <= most


SHARK = "great white shark, white shark, man-eater, man-eating shark, Carcharodon carcharias"


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("", [""]),
        ("tench", ["tench"]),
        ("soft-coated wheaten terrier", ["soft-coated", "wheaten terrier"]),
        (SHARK, ["great white shark,", "white shark…"]),
        ("x" * 40, ["x" * 18, "xxx…" + "x" * 14]),
    ],
)
def test_lines_hold_as_much_of_a_name_as_there_is_room_for(name, lines):
    found = learned_text.lines(name, 18, 2)
    assert (found, max(map(len, found)) <= 18) == (lines, True)


def named_long(learned, *names):
    """The content with these names for the first classes."""
    text = json.dumps(learned)
    for name, long in zip(CLASSES, names, strict=False):
        text = text.replace(f'"name": "{name}"', f'"name": {json.dumps(long)}')
    return json.loads(text)


def test_names_on_the_page_stay_apart_and_are_whole_for_the_mouse(learned):
    first = "the first of many very long names of things: number 1"
    text = learned_page.content(named_long(learned, first, f"{first}0", SHARK), {})
    assert "the first of many very long…of things: number 1<" in text
    assert "the first of many very long…f things: number 10<" in text
    assert f'<span title="{first}">' in text
    assert f'<span title="{SHARK}">great white shark, white shark, man-eater…</span>' in text
    assert "title" not in learned_page.content(learned, {})


def test_names_in_pictures_use_two_lines(learned):
    long = named_long(learned, "a thing that has number 1", "a thing that has number 10", SHARK)
    words = [word.text for word in drawn(long, "predictions.svg").iter(f"{SVG}text")]
    assert {"a thing that has", "number 1", "number 10", "great white shark,", "white shark…"} <= {*words}
    assert "a thing that has number 10" in words  # the head
    near = [word.text for word in drawn(long, "nearest.svg").iter(f"{SVG}text")]
    assert "a thing that has number 10" in near


def test_long_names_in_pictures_do_not_overlap(learned):
    long = named_long(learned, *(f"{name} " + "and so on " * 12 for name in CLASSES))
    for name in ("predictions.svg", "nearest.svg"):
        tree = drawn(long, name)
        places = [(float(word.get("x")), float(word.get("y"))) for word in tree.iter(f"{SVG}text")]
        columns = {x: sorted(y for at, y in places if at == x) for x, _ in places}
        assert all(b - a >= 14 for ys in columns.values() for a, b in itertools.pairwise(ys))
        assert max(y for _, y in places) < float(tree.get("height"))


@pytest.mark.parametrize(
    ("images", "views", "told"),
    [
        (256, 1, ""),
        (None, 1, ""),
        (10000, 1, " Not the accuracy of a test, which takes all 10,000 images."),
        (256, 10, " Not the accuracy of a test, which averages 10 views of each image, here one is seen."),
        (999, 10, " Not the accuracy of a test, which takes all 999 images and averages 10 views of each image, here"),
    ],
)
def test_the_accuracy_that_is_not_a_tests_is_explained(folder, images, views, told):
    summary = summarise(folder)
    last = {"step": 20, "loss": 2.0, "accuracy": 0.6, "images": images, "views": views}
    summary.tests = [] if images is None else [last]
    for text in (markdown(summary), Parsed(page(summary)).words):
        assert f"guessing has 0.17.{told}" in text
        assert ("Not the accuracy" in text) == bool(told)


@pytest.mark.parametrize(
    ("distance", "told"),
    [(0.0, "0"), (1e-5, "1e-05"), (0.5, "0.50"), (99.994, "99.99"), (1250.25, "1,250"), (2.5e9, "2.5e+09")],
)
def test_distances_have_about_three_digits(distance, told):
    assert learned_text.distance({"distance": distance}) == told


def test_figures_over_training_are_in_three_groups(learned):
    groups = {group.name: group for group in learned_text.groups(learned)}
    assert list(groups) == ["similarity", "silenced", "energies"]
    assert groups["similarity"].lines["fc7"] == [(0, 0.5), (10, 0.4), (20, 0.3)]
    assert groups["silenced"].lines["without tower 1"] == [(0, 0.1), (10, 0.1 + 10 / 200), (20, 0.2)]
    assert "256 test images" in groups["silenced"].text
    assert "up to 0.03; guessing has 0.17" in groups["silenced"].text
    assert list(groups["energies"].lines) == ["orientation, tower 0", "orientation, tower 1"]
    assert "colour" not in groups["energies"].text


def test_colour_is_there_where_images_have_it(learned):
    learned["records"] = [record(0, colour=[0.25, 0.75])]
    energies = learned_text.groups(learned)[2]
    assert energies.lines["colour, tower 1"] == [(0, 0.75)]
    assert "independent weights have 0.67" in energies.text


def test_one_tower_has_energies_alone(learned):
    learned |= {"towers": 1, "records": [record(0, silenced=[], orientation=[0.5], similarity={})]}
    assert [group.name for group in learned_text.groups(learned)] == ["energies"]


def test_a_row_that_one_record_lacks_has_a_gap(learned):
    del learned["records"][1]["similarity"]["fc7"]
    headings, rows = learned_text.groups(learned)[0].table()
    assert headings == ["after steps", "conv2", "fc7"]
    assert rows == [["0", "0.900", "0.500"], ["10", "0.900", ""], ["20", "0.900", "0.300"]]


def test_long_tables_keep_the_first_and_the_last(learned):
    learned["records"] = [record(step) for step in range(0, 900, 10)]
    group = learned_text.groups(learned)[1]
    _, rows = group.table(12)
    assert len(rows) == 12
    assert (rows[0][0], rows[-1][0]) == ("0", "890")
    assert len(group.table()[1]) == 90


# Markdown


def test_markdown_has_tables_and_pictures(folder):
    summary = summarise(folder)
    text = markdown(summary).partition("## What was learned")[2].partition("\n## ")[0]
    assert [name for _, name in re.findall(r"!\[([^]]+)\]\(pictures/([^)]+)\)", text)] == [*learned_pictures.NAMES]
    assert "Not shown: colour energy (grey images)." in text
    assert "| 20 |" in re.sub(" +", " ", text)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    assert ["20", "0.300", "0.100", "0.200"] in cells
    assert ["14", "Dress", "rank 2 of 6", "Trouser 0.50; Dress 0.25; Coat 0.12; Bag 0.06; Shirt 0.06"] in cells
    assert ["3", "Trouser", "Trouser 0.50; Dress 1,250"] in cells


def test_markdown_names_no_picture_that_is_not_there(folder):
    text = markdown(summarise(folder), ["filters.svg"])
    assert re.findall(r"pictures/(\S+)\)", text) == ["filters.svg"]


def test_a_run_that_was_broken_off_has_what_there_is(folder):
    summary = summarise(put(folder, content(end=None)))
    text = markdown(summary).partition("## What was learned")[2].partition("\n## ")[0]
    assert re.findall(r"pictures/(\S+)\)", text) == ["specialisation.svg"]
    parsed = Parsed(page(summary))
    assert parsed.wrong == []
    assert parsed.all("img") == []
    assert {"similarity", "silenced", "energies"} <= set(parsed.ids)


# The page


def test_the_page_has_a_section(folder):
    parsed = Parsed(page(summarise(folder)))
    assert parsed.wrong == []
    assert [a["id"] for _, a in parsed.all("section")][-3:] == ["learned", "environment", "missing"]
    plots = [(a["id"], a["aria-label"]) for _, a in parsed.all("div") if a.get("class") == "plot"]
    assert plots[-3:] == [
        ("similarity", "Similarity of the towers"),
        ("silenced", "Accuracy without a tower"),
        ("energies", "Energy of conv1's filters"),
    ]
    assert "Not shown: colour energy (grey images)." in parsed.words


def test_every_picture_on_the_page_is_in_it_and_named(folder):
    parsed = Parsed(page(summarise(folder)))
    pictures = [attributes for _, attributes in parsed.all("img")]
    assert [one["alt"] for one in pictures] == [
        *("Filters of conv1, tower 0", "Filters of conv1, tower 1", "Test image 3", "Test image 14", "Test image 15"),
        *("Test image 3", "Training image 7", "Training image 1,234"),
    ]
    assert all(one["src"].startswith("data:image/") for one in pictures)


def test_bars_are_as_long_as_probabilities_and_the_true_class_is_marked(folder):
    text = page(summarise(folder))
    unseen, chance = '(?:<span class="unseen">([^<]*)</span>)?', "<span>[.0-9]+</span>"
    bars = re.findall(rf'<li( class="true")?><span>(\w+)</span>{unseen}{chance}<i ([^>]*)>', text)
    told = [(bool(true), name, unseen, style) for true, name, unseen, style in bars]
    assert told[:2] == [
        (True, "Trouser", " (true class)", 'style="--part:75.0%"'),
        (False, "Dress", "", 'style="--part:12.5%"'),
    ]
    assert [one[:2] for one in told[5:7]] == [(False, "Trouser"), (True, "Dress")]
    assert not any(true for true, *_ in told[10:])  # not among the five likeliest
    words = Parsed(text).words
    assert "right" in words
    assert "rank 6 of 6" in words


def test_the_nearest_are_a_list_of_their_own_beside_the_test_image(learned):
    line = learned_page.content(learned, {}).partition('<div class="nearest">')[2]
    query, _, images = line.partition("<ol>")
    assert 'alt="Test image 3"' in query
    assert re.findall(r'<li><img [^>]*alt="([^"]*)"', images) == ["Training image 7", "Training image 1,234"]


def test_charts_are_drawn_over_steps(learned):
    similarity, silenced, _ = learned_page.charts(learned)
    assert [(line["name"], line["x"], line["y"]) for line in similarity.data][1] == (
        "fc7",
        [0, 10, 20],
        [0.5, 0.4, 0.3],
    )
    assert [key.name for key in silenced.legend] == ["all towers", "without tower 0", "without tower 1"]
    assert [key.dash for key in silenced.legend] == ["solid", "dashed", "dotted"]
    assert silenced.tables[0].rows[-1] == ["20", "0.300", "0.100", "0.200"]


def test_lines_of_the_same_values_can_all_be_seen(learned):
    """The thick one is below, thin ones with gaps lie on it."""
    learned["records"] = [record(step, silenced=[0.1 + step / 100] * 2) for step in (0, 10)]
    lines = learned_page.charts(learned)[1].data
    assert lines[0]["y"] == lines[1]["y"] == lines[2]["y"]
    assert lines[0]["line"]["width"] > lines[1]["line"]["width"] == lines[2]["line"]["width"]
    assert [line["line"]["dash"] for line in lines] == ["solid", "dash", "dot"]
    assert lines[0]["marker"]["size"] > lines[1]["marker"]["size"] > lines[2]["marker"]["size"]
    text = learned_pictures.pictures(learned)["specialisation.svg"]
    dashes = re.findall(r'<polyline[^>]*?(?: stroke-dasharray="([^"]*)")?><title>(?:all|without)', text)
    assert len(set(dashes)) == 3


def test_few_steps_have_whole_ticks_and_whole_markers(learned):
    learned["records"] = [record(0), record(3)]
    for chart in learned_page.charts(learned):
        assert chart.layout["xaxis"]["dtick"] == 1
        assert all(line["cliponaxis"] is False for line in chart.data)
    learned["records"] = [record(0), record(300)]
    assert all("dtick" not in chart.layout["xaxis"] for chart in learned_page.charts(learned))


def test_weights_that_are_not_trained_have_tables_in_place_of_charts(folder):
    put(folder, content(records=[record(0)], end=content()["end"] | {"step": 0}))
    for weights, said in (("w.safetensors", "of the loaded weights"), (None, "of the initial weights")):
        summary = summarise(folder)
        summary.run["options"]["weights"] = weights
        parsed = Parsed(page(summary))
        assert not {"similarity", "silenced", "energies"} & set(parsed.ids)
        assert "without tower 1" in parsed.words
        for text in (parsed.words, markdown(summary)):
            assert f"Filters, predictions and nearest images are those {said}." in text
        assert "specialisation.svg" not in markdown(summary)


def attacked(folder):
    """Hostile words for every word but the pictures."""
    found = hostile(content())
    pictures = json.dumps(found)
    for escaped in {json.dumps(HOSTILE)[1:-1]}:
        pictures = re.sub(r'("data:image/[^"]*?)' + re.escape(escaped), r"\1", pictures)
    summary = summarise(folder)
    summary.learned = json.loads(pictures)
    return summary


def test_words_stay_words(folder):
    summary = attacked(folder)
    parsed = Parsed(page(summary))
    assert parsed.wrong == []
    assert parsed.all("b") == []
    assert len(parsed.all("script")) == 3
    assert all(attributes["src"].startswith("data:image/") for _, attributes in parsed.all("img"))
    assert not any(name.startswith("on") for _, attributes, _ in parsed.elements for name in attributes)
    assert "<script" not in markdown(summary)
    for text in learned_pictures.pictures(summary.learned).values():
        tree = ElementTree.fromstring(text)
        assert {element.tag.removeprefix(SVG) for element in tree.iter()} <= {
            *("svg", "title", "desc", "style", "defs", "marker", "path", "rect", "text", "image", "line", "polyline"),
            "circle",
        }


# Still pictures


def drawn(learned, name):
    return ElementTree.fromstring(learned_pictures.pictures(learned)[name])


def test_pictures_say_what_they_are_and_ask_for_nothing(learned):
    found = learned_pictures.pictures(learned)
    assert list(found) == [*learned_pictures.NAMES]
    for name, text in found.items():
        tree = drawn(learned, name)
        assert tree.get("role") == "img"
        assert tree.find(f"{SVG}title").text == tree.get("aria-label")
        assert tree.find(f"{SVG}desc").text
        assert set(re.findall(r"https?://[^\"'<> ]+", text)) == {"http://www.w3.org/2000/svg"}
        assert all(one.get("href").startswith("data:image/") for one in tree.iter(f"{SVG}image"))


def test_towers_are_above_each_other_on_one_scale(learned):
    first, second = drawn(learned, "filters.svg").iter(f"{SVG}image")
    assert first.get("x") == second.get("x")
    assert float(second.get("y")) > float(first.get("y")) + float(first.get("height"))
    assert float(first.get("width")) == learned["end"]["filters"][0]["width"]


def test_a_wide_picture_of_filters_is_drawn_narrower(learned):
    for one in learned["end"]["filters"]:
        one["width"], one["height"] = 1672, 100
    found = next(drawn(learned, "filters.svg").iter(f"{SVG}image"))
    assert (found.get("width"), found.get("height")) == ("836", "50")


def test_bars_of_predictions_are_to_scale_and_the_true_one_is_red(learned):
    bars = {
        (b.find(f"{SVG}title").text): b
        for b in drawn(learned, "predictions.svg").iter(f"{SVG}rect")
        if b.find(f"{SVG}title") is not None
    }
    red, blue = bars["Trouser: 75.0 %, the true class"], bars["Trouser: 50.0 %"]
    assert (red.get("fill"), blue.get("fill")) == (ink("exchange"), ink("forward"))
    assert float(red.get("width")) / float(blue.get("width")) == pytest.approx(1.5)


def test_what_is_no_share_does_not_leave_its_chart(learned):
    learned["records"][1]["similarity"]["conv2"] = 1e250
    learned["records"][2]["similarity"]["conv2"] = -1e250
    learned["end"]["predictions"][0]["top"][0]["probability"] = 1e250
    line = next(drawn(learned, "specialisation.svg").iter(f"{SVG}polyline"))
    heights = [float(point.split(",")[1]) for point in line.get("points").split()]
    assert heights == [56.6, 44.0, 170.0]
    for bar in drawn(learned, "predictions.svg").iter(f"{SVG}rect"):
        assert float(bar.get("width")) <= 860
    assert "--part:100.0%" in learned_page.content(learned, {})


def test_pictures_of_an_earlier_state_go(folder, monkeypatch):
    monkeypatch.setattr(pages, "has_page", lambda: False)
    names = {path.name for path in pages.write_pages(folder)}
    assert names >= {*learned_pictures.NAMES}
    put(folder, content(end=None))
    pages.write_pages(folder)
    assert {path.name for path in (folder / "pictures").iterdir()} & {*learned_pictures.NAMES} == {"specialisation.svg"}


# Thumbnails


def pixels_of(uri):
    canvas = Raster("", "", 100, 100)
    canvas.picture(0, 0, 100, 100, uri, "")
    return canvas.pixels()


def test_gaps_between_filters_let_the_ground_through():
    weights = torch.zeros(18, 1, 3, 3)
    weights[0], weights[17] = 1.0, -1.0
    [one] = thumbnails.filters([weights])
    assert (one["width"], one["height"]) == (65 * 8, 9 * 8)  # 16 a row, 8 times as large
    canvas = Raster("", "", one["width"], one["height"])
    canvas.rect(0, 0, one["width"], one["height"], "#00ff00")
    canvas.picture(0, 0, one["width"], one["height"], one["image"], "")
    at = lambda row, column, x=1, y=1: canvas.pixels()[  # noqa: E731
        SCALE * 8 * (row * 4 + y) + SCALE * 4, SCALE * 8 * (column * 4 + x) + SCALE * 4
    ].tolist()
    green = [0, 255, 0]
    assert at(0, 0) == [255, 255, 255]
    assert at(1, 1) == [0, 0, 0]
    assert at(0, 1) == [128, 128, 128]
    assert at(0, 0, x=0) == at(0, 0, y=0) == at(1, 3) == green  # left, above, and where there is no filter


@pytest.mark.parametrize(
    ("channels", "side", "kind"), [(1, 28, "png"), (3, 28, "png"), (3, 256, "jpeg"), (2, 20, "png")]
)
def test_thumbnails_are_as_small_as_can_be(channels, side, kind):
    torch.manual_seed(0)
    image = torch.randint(0, 256, (channels, side, side), dtype=torch.uint8)
    if kind == "png":
        image[:, 4:] = 9
    uri = thumbnails.thumbnail(image, 96)
    assert uri.startswith(f"data:image/{kind};base64,")
    assert len(uri) < 20_000


def test_a_small_image_is_enlarged_by_whole_pixels():
    image = torch.zeros(1, 2, 2, dtype=torch.uint8)
    image[0, 0, 1] = 255
    found = pixels_of(thumbnails.thumbnail(image, 96))
    assert found[50, 150].tolist() == [255, 255, 255]
    assert found[50, 50].tolist() == found[150, 150].tolist() == [0, 0, 0]


def test_proportions_are_kept():
    found = pixels_of(thumbnails.thumbnail(torch.zeros(3, 200, 100, dtype=torch.uint8), 64))
    dark = (found < 128).all(2)
    assert dark.sum(0).max() == 100 * SCALE
    assert dark.sum(1).max() == 50 * SCALE


@pytest.mark.parametrize("uri", ["data:image/png;base64,", "data:image/png;base64,AAAA", "data:image/jpeg;base64,A"])
def test_what_is_no_picture_leaves_a_gap(uri):
    assert (pixels_of(uri) == 255).all()


# TensorBoard


def test_tensorboard_has_the_same_figures_and_pictures(tmp_path, learned):
    scalars.write(tmp_path, [], {}, {}, learned)
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    values = {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}
    told = {
        f"learned: {group.title.lower()}/{name}": points
        for group in learned_text.groups(learned)
        for name, points in group.lines.items()
    }
    assert len(told) == 7
    assert {tag: [step for step, _ in points] for tag, points in values.items()} == {
        tag: [step for step, _ in points] for tag, points in told.items()
    }
    assert values["learned: similarity of the towers/fc7"][2] == (20, pytest.approx(0.3))
    assert found.Tags()["images"] == ["learned/predictions", "learned/nearest"]
    [picture] = found.Images("learned/predictions")
    assert (picture.width, picture.height, picture.step) == (860 * SCALE, 344 * SCALE, 20)


def test_a_raster_is_drawn_as_the_svg_is(learned):
    found = learned_pictures.predictions(learned, Raster).pixels()
    bars = [b for b in drawn(learned, "predictions.svg").iter(f"{SVG}rect") if (b.find(f"{SVG}title") is not None)]
    for bar in bars[:2]:
        x, y, width = (float(bar.get(name)) for name in ("x", "y", "width"))
        colour = [int(bar.get("fill")[i : i + 2], 16) for i in (1, 3, 5)]
        line = found[round((y + 6) * SCALE)]
        assert line[round((x + width - 2) * SCALE)].tolist() == colour
        assert line[round((x + width + 2) * SCALE)].tolist() == [255, 255, 255]
    x, y = (float(next(drawn(learned, "predictions.svg").iter(f"{SVG}image")).get(name)) for name in "xy")
    assert found[round((y + 48) * SCALE), round((x + 48) * SCALE)].tolist() == [255, 0, 0]


# In a browser


@pytest.fixture(scope="module")
def browser():
    with Browser() as started:
        yield started


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 900, 1280])
def test_pictures_are_seen_and_nothing_is_wider_than_the_window(browser, folder, width):
    names = [name.partition(",")[0] * 3 for name in CLASSES]
    long = json.loads(json.dumps(content()).replace(f'"name": "{CLASSES[0]}"', f'"name": "{names[0]}"'))
    pages.write_pages(put(folder, long))
    tab = browser.open((folder / "report.html").as_uri(), width=width, offline=True)
    tab.wait(READY)
    assert tab.evaluate("[...document.images].map(one => one.complete && one.naturalWidth > 0)") == [True] * 8
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    outside = """[...document.querySelectorAll('#learned *')].filter(part => !part.closest('.scroll, .plot')
        && part.getBoundingClientRect().right > innerWidth + 1).map(part => part.outerHTML.slice(0, 80))"""
    assert tab.evaluate(outside) == []
    drawn = "document.querySelectorAll('#similarity .js-line, #silenced .js-line, #energies .js-line').length"
    assert tab.evaluate(drawn) == 7
    widths = (
        "[...document.querySelectorAll('.predictions li.true > i')].map(bar => getComputedStyle(bar).backgroundSize)"
    )
    assert tab.evaluate(widths) == ["75% 100%", "25% 100%"]
    assert tab.errors == []


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 500, 1280])
def test_no_nearest_image_is_under_the_test_image(browser, folder, width):
    many = content()
    many["end"]["nearest"]["queries"][0]["images"] *= 3
    pages.write_pages(put(folder, many))
    tab = browser.open((folder / "report.html").as_uri(), width=width, offline=True)
    tab.wait(READY)
    edges = """['.nearest > div', '.nearest li'].map(name => [...document.querySelectorAll(name)].map(
        one => one.getBoundingClientRect()).map(box => name.endsWith('li') ? box.left : box.right))"""
    [first], images = tab.evaluate(edges)
    assert len(images) == 6
    assert min(images) >= first


@pytest.mark.slow
def test_the_true_class_stands_out_in_dark_too(browser, folder):
    pages.write_pages(folder)
    tab = browser.open((folder / "report.html").as_uri(), offline=True)
    tab.wait(READY)
    colours = """['.predictions li.true > i', '.predictions li:not(.true) > i'].map(
        name => getComputedStyle(document.querySelector(name)).backgroundImage)"""
    light = tab.evaluate(colours)
    tab.dark()
    dark = tab.evaluate(colours)
    assert len({*light, *dark}) == 4


@pytest.mark.slow
def test_still_pictures_are_whole_in_a_browser(browser, folder):
    pages.write_pages(folder)
    for name in learned_pictures.NAMES:
        tab = browser.open((folder / "pictures" / name).as_uri(), width=900)
        seen = """[...document.querySelectorAll('text')].map(word => word.getBBox()).filter(
            box => box.x < 0 || box.x + box.width > 860).length"""
        assert tab.evaluate(seen) == 0
        assert tab.errors == []


def test_a_folder_of_a_run_is_written_as_it_is_read(tmp_path, learned):
    made = RunFolder(tmp_path)
    made.write("learned", learned)
    assert read_learned(tmp_path) == learned

"""Exposed communication, and cost on paper beside what was measured: the same rows for page and Markdown."""

import runs

from splitnet import tables
from splitnet.measure import paper
from splitnet.measure.markdown import markdown
from splitnet.measure.summary import Summary

PREDICTED = {"step_ms": 300.0, "exposed_ms": 2.5, "peak": [30 * runs.MIB, 20 * runs.MIB]}


def summary(*layouts):
    run = {"options": {"towers": 2, "batch_size": 16}, "devices": [{"device": d} for d in runs.DEVICES]}
    return Summary("run", run, comparison=runs.comparison() | {"layouts": list(layouts)})


def towers(name="towers", **fields):
    return runs.layout(name, 2, runs.DEVICES, 2.0, 40, **fields)


def test_without_clocks_that_tell_there_is_nothing_to_say():
    assert paper.rows(summary(towers())) == []
    assert "Exposed" not in markdown(summary(towers()))


def test_layouts_with_and_without_overlap_stand_below_each_other():
    found = summary(towers(exposed_ms=runs.spread(0.25)), towers("waiting", exposed_ms=runs.spread(1.5)))
    assert paper.headings(found) == ("layout", "step ms", "exposed ms", "peak MiB")
    assert paper.rows(found) == [
        ["2 towers, fake:0, fake:1", "250.00", "0.25", "40"],
        ["no overlap, fake:0, fake:1", "250.00", "1.50", "40"],
    ]
    assert paper.WHAT not in markdown(found)


def test_what_is_on_paper_stands_beside_what_was_measured():
    exposed = runs.spread(1.0)
    found = summary(towers(exposed_ms=exposed, predicted=PREDICTED), towers("dense", exposed_ms=exposed))
    assert paper.rows(found) == [
        ["2 towers, fake:0, fake:1", "250.00", "1.00", "40", "300.00", "1.20", "2.50", "30"],
        ["dense, fake:0, fake:1", "250.00", "1.00", "40", "", "", "", ""],
    ]
    text = markdown(found)
    assert "## Exposed communication" in text
    assert paper.WHAT in text


def test_layouts_that_do_not_fit_are_left_out():
    unfit = {"layout": "whole", "devices": ["fake:0"], "does_not_fit": "too large", "predicted": PREDICTED}
    assert paper.rows(summary(towers(predicted=PREDICTED), unfit))[0][0] == "2 towers, fake:0, fake:1"
    assert len(paper.rows(summary(towers(predicted=PREDICTED), unfit))) == 1


def test_a_layout_without_a_clock_of_its_own_is_held_by_the_wall():
    found = summary(towers(device_step_ms=None, predicted=PREDICTED, memory={}))
    assert paper.rows(found) == [
        ["2 towers, fake:0, fake:1", "500.00", "", "", "300.00", "0.60", "2.50", "30"],
    ]


def test_ranges_of_five_columns_are_on_two_lines():
    assert tables._narrow("1234\n(1200-1300)") == "1234\n(1200-\n1300)"
    assert tables._narrow("1.2\n(1.1-1.3)") == "1.2\n(1.1-1.3)"
    assert tables._narrow("2.3051") == "2.3051"

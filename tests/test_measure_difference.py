"""Two runs beside each other, and the gate."""

from dataclasses import replace

import pytest
import runs

from splitnet.errors import UsageError
from splitnet.measure import markdown
from splitnet.measure.difference import Difference, circumstances, differences, gate, unlike, unpaired
from splitnet.measure.metrics import Metric
from splitnet.measure.summary import Summary, summarise


def summary(*metrics, name="a"):
    return Summary(name, runs.RUN, metrics=list(metrics))


def metric(name="speed", value=1.0, unit="", better="higher", **fields):
    return Metric(name, value, unit, better, name, **fields)


def test_the_largest_difference_comes_first():
    before = summary(metric("a", 10.0), metric("b", 10.0), metric("c", 10.0), metric("zero", 0.0))
    after = summary(metric("a", 11.0), metric("b", 5.0), metric("c", 10.0), metric("zero", 1.0))
    rows = differences(before, after)
    assert [row.metric for row in rows] == ["zero", "b", "a", "c"]
    assert [row.relative for row in rows] == [None, -0.5, pytest.approx(0.1), 0.0]
    assert [row.verdict for row in rows] == ["changed", "changed", "changed", "same"]


@pytest.mark.parametrize(
    ("first", "second", "noise"),
    [((1.0, 3.0), (3.0, 5.0), True), ((1.0, 3.0), (3.1, 5.0), False), ((4.0, 9.0), (1.0, 3.9), False)],
)
def test_ranges_that_overlap_are_noise(first, second, noise):
    before = summary(metric(value=2.0, least=first[0], greatest=first[1]))
    after = summary(metric(value=3.0, least=second[0], greatest=second[1]))
    row = differences(before, after)[0]
    assert row.noise is noise
    assert row.verdict == ("within noise" if noise else "better")


def test_a_figure_that_was_taken_once_has_no_noise():
    row = differences(summary(metric(value=2.0)), summary(metric(value=3.0, least=2.0, greatest=4.0)))[0]
    assert row.noise is None
    assert Difference("a", 1.0, 2.0, "", "", 1.0, None).verdict == "changed"
    assert Difference("a", 1.0, 2.0, "bytes", "lower", 1.0, None).verdict == "worse"  # counted, not timed
    assert Difference("a", 1.0, 2.0, "", "lower", 1.0, None).verdict == "changed"  # nothing says how sure


def test_figures_of_one_run_alone():
    before, after = summary(metric("a"), metric("b")), summary(metric("b"), metric("c"))
    assert unpaired(before, after) == (["a"], ["c"])
    assert [row.metric for row in differences(before, after)] == ["b"]


def test_what_else_differs():
    options = runs.RUN["options"]
    other = runs.RUN | {"options": options | {"batch_size": 64, "out": "/b"}, "commit": "89", "started": "later"}
    before, after = Summary("a", runs.RUN | {"options": options | {"out": "/a"}}), Summary("b", other)
    assert circumstances(before, after) == [("--batch-size", 16, 64), ("commit", "1234567", "89")]


def test_runs_that_did_not_do_the_same_are_warned_of():
    options = runs.RUN["options"]
    other = runs.RUN | {"options": options | {"batch_size": 64, "out": "/b"}}
    assert unlike(Summary("a", runs.RUN), Summary("b", other)) == "Not like with like: --batch-size differs."
    assert unlike(Summary("a", runs.RUN), Summary("b", runs.RUN | {"commit": "89"})) == ""


def emulated(**figures):
    machine = {"speed": 800.0, "name": "h100-pcie4", "gpu": "H100", "link": 3.15e10, "both_ways": True, "measured": {}}
    return Summary("b", runs.RUN | {"emulated": machine | {"sources": {"link": "a slot"}} | figures})


def test_another_machine_is_named_and_warned_of():
    plain, other, slower = Summary("a", runs.RUN), emulated(), emulated(name="mine", link=1e10)
    assert circumstances(plain, other) == [("emulated machine", None, "h100-pcie4")]
    assert circumstances(other, slower) == [
        ("emulated machine", "h100-pcie4", "mine"),
        ("emulated link", 3.15e10, 1e10),
    ]
    assert unlike(plain, other) == (
        "Devices' clocks are those of this CPU before and of h100-pcie4 after: their ms do not compare."
    )
    assert unlike(other, other) == ""


def test_times_of_other_clocks_are_neither_better_nor_worse():
    figures = [metric(name, value=2.0, unit="ms", better="lower") for name in ("row_ms.fc6", "step_ms")]
    figures.append(metric("exposed_share.fake:1", value=2.0, unit="%", better="lower"))
    slower = [replace(one, value=3.0, least=3.0, greatest=3.0) for one in figures]
    before, after = Summary("a", runs.RUN, metrics=figures), replace(emulated(), metrics=slower)
    assert {row.metric: row.verdict for row in differences(before, after)} == {
        "row_ms.fc6": "other clocks",
        "exposed_share.fake:1": "other clocks",
        "step_ms": "changed",
    }
    assert {row.verdict for row in differences(before, replace(before, metrics=slower))} == {"changed"}
    with pytest.raises(UsageError, match=r"row_ms.fc6 is on the clocks of this CPU before and of h100-pcie4 after"):
        gate("row_ms.fc6 > 1.05").failure(before, after)
    assert "1.5 times" in gate("step_ms > 1.05").failure(before, after)


def test_a_machine_in_a_report_is_a_line(tmp_path):
    found = summarise(runs.write(tmp_path / "a", run=emulated().run))
    [line] = [line for line in markdown.markdown(found).splitlines() if line.startswith("| emulated ")]
    assert "h100-pcie4 (H100), 31.5 GB/s between two, clocks 800 times as fast as this CPU" in line
    assert "a slot" not in line


def test_as_markdown(tmp_path):
    compare = runs.comparison(images_per_second=runs.spread(8.0))
    before, after = (summarise(runs.write(tmp_path / name, compare=c)) for name, c in (("one", None), ("two", compare)))
    text = markdown.difference(before, after)
    assert text.startswith("# one and two\n")
    assert [cell.strip() for cell in text.splitlines()[7].split("|")[1:-1]] == [
        "images_per_second",
        "32/s",
        "8/s",
        "-75.0 %",
        "worse",
    ]
    assert "The same in both: step_ms" in text


# The gate


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("images_per_second < 0.95", ("images_per_second", "<", 0.95, "")),
        (" peak_bytes.fake:0>=500MiB ", ("peak_bytes.fake:0", ">=", 500.0, "MiB")),
        ("row_ms.conv1.forward <= 1.5e3 us", ("row_ms.conv1.forward", "<=", 1500.0, "us")),
        ("accuracy < 12%", ("accuracy", "<", 12.0, "%")),
        ("images_per_second < 30/s", ("images_per_second", "<", 30.0, "/s")),
        ("a > -.5", ("a", ">", -0.5, "")),
    ],
)
def test_an_expression_is_read(text, parts):
    found = gate(text)
    assert (found.metric, found.operator, found.number, found.unit) == parts


@pytest.mark.parametrize("text", ["", "a", "a <", "a < b", "< 1", "a == 1", "a < 1 2", "a << 1", "a < 1;", "a\n< nan"])
def test_what_is_no_expression(text):
    with pytest.raises(UsageError, match="NAME OP NUMBER"):
        gate(text)


def test_a_number_that_is_none_and_a_unit_that_is_none():
    with pytest.raises(UsageError, match="1e999 is too large"):
        gate("a < 1e999")
    with pytest.raises(UsageError, match="no unit furlongs; there are /s,"):
        gate("a < 1furlongs")


@pytest.mark.parametrize(
    ("sign", "number", "holds"),
    [("<", 2, False), ("<=", 2, True), (">", 2, False), (">=", 2, True), ("<", 2.1, True), (">", 1.9, True)],
)
def test_operators(sign, number, holds):
    failure = gate(f"speed {sign} {number}").failure(None, summary(metric(value=2.0)))
    assert (failure is not None) == holds


def test_of_two_runs_a_plain_number_is_their_ratio():
    before, after = summary(metric(value=40.0, unit="images/s")), summary(metric(value=30.0, unit="images/s"))
    said = gate("speed < 0.95").failure(before, after)
    assert said == "speed < 0.95: speed is 0.75 times that of a (30/s and 40/s)"
    assert gate("speed < 0.75").failure(before, after) is None


def test_of_two_runs_a_unit_means_the_last():
    before, after = summary(metric(value=1.0, unit="ms")), summary(metric(value=1500.0, unit="ms"))
    assert gate("speed > 1.4s").failure(before, after) == "speed > 1.4s: speed is 1,500 ms"
    assert gate("speed > 1.6s").failure(before, after) is None
    assert gate("speed < 1400000us").failure(before, after) is None


def test_of_one_run_a_plain_number_is_the_ratio_to_the_base_layout():
    paired = summary(metric(value=30.0, unit="images/s", base=40.0, ratio=0.8))
    assert gate("speed < 0.79").failure(None, paired) is None
    said = gate("speed < 0.81").failure(None, paired)
    assert said == "speed < 0.81: speed is 0.8 times that of the base layout, round by round (30/s and 40/s)"


def test_bytes_in_powers_of_two_and_ten():
    one = summary(metric("memory", 2.0**20, "bytes"))
    assert gate("memory >= 1MiB").failure(None, one)
    assert gate("memory > 1MiB").failure(None, one) is None
    assert gate("memory > 1MB").failure(None, one)


@pytest.mark.parametrize(
    ("text", "found", "says"),
    [
        ("nope < 1", [], "a has no nope; it has no figures at all"),
        ("nope < 1", [metric("yes")], "a has no nope; it has yes"),
        ("speed < 1", [metric(unit="ms")], r"there is no speed of another layout; .* a unit \(us, ms, s\)"),
        ("speed < 1", [metric(unit="ms", base=0.0)], "speed of the base layout is 0, which gives no ratio"),
        ("speed < 1ms", [metric(unit="bytes")], "speed is given in B, bytes, kB"),
        ("speed < 1ms", [metric()], "speed is given without a unit"),
    ],
)
def test_what_cannot_be_compared(text, found, says):
    with pytest.raises(UsageError, match=rf'--fail-if "{text}": .*{says}') as caught:
        gate(text).failure(None, summary(*found))
    assert "\n" not in str(caught.value)


def test_replicas_have_figures_to_compare_and_to_gate(tmp_path):
    old = summarise(runs.write(tmp_path / "a", compare=runs.with_replicas()))
    new = summarise(runs.write(tmp_path / "b", compare=runs.with_replicas(ratio=runs.spread(1.2))))
    assert gate("speed_ratio.replicas < 1.3").failure(None, old) is None
    assert gate("speed_ratio.replicas < 1.3").failure(None, new) == "speed_ratio.replicas < 1.3: " + (
        "speed_ratio.replicas is 1.2"
    )
    assert gate("bytes_exchanged.replicas > 1.01").failure(old, new) is None
    assert gate("bytes_exchanged.replicas > 7MB").failure(old, new)
    [row] = [row for row in differences(old, new) if row.metric == "speed_ratio.replicas"]
    assert (row.before, row.after) == (1.5, 1.2)
    bare = summarise(runs.write(tmp_path / "c"))
    assert "speed_ratio.replicas" in unpaired(bare, new)[1]
    with pytest.raises(UsageError, match=r"c has no speed_ratio\.replicas; it has"):
        gate("speed_ratio.replicas < 1").failure(None, bare)


def test_a_figure_that_the_first_run_lacks():
    with pytest.raises(UsageError, match="first has no speed"):
        gate("speed < 1").failure(summary(name="first"), summary(metric()))
    with pytest.raises(UsageError, match="speed of first is 0"):
        gate("speed < 1").failure(summary(metric(value=0.0), name="first"), summary(metric()))


def test_of_many_names_the_nearest_are_offered():
    many = [metric(f"row_ms.conv{n}") for n in range(20)] + [metric("loss"), metric("peak_bytes.fake:0")]
    with pytest.raises(UsageError, match=r"it has peak_bytes\.fake:0, loss, row_ms.*, and 10 more|and 10 more$"):
        gate("peak_bytes < 1").failure(None, summary(*many))

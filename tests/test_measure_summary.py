"""A run in short: figures by name, what is missing, one sentence."""

import gzip
import json
from dataclasses import replace

import pytest
import runs

from splitnet.errors import UsageError
from splitnet.measure.metrics import Metric, figure, from_records
from splitnet.measure.summary import heading, summarise, timed, waiting
from splitnet.measure.summary import verdict as verdict_of

MIB = 2**20


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def summary(tmp_path):
    return summarise(runs.write(tmp_path / "a-run"))


def test_reading_leaves_the_folder_as_it_is(tmp_path):
    folder = runs.write(tmp_path / "a")
    before = contents(folder)
    assert summarise(folder).missing == []
    assert contents(folder) == before


def test_records_by_kind(summary):
    assert summary.name == "a-run"
    assert [step["step"] for step in summary.steps] == [0, 1, 2]
    assert [test["accuracy"] for test in summary.tests] == [0.375]
    assert summary.emulated


def test_figures_of_the_comparison(summary):
    speed = summary.metric("images_per_second")
    assert (speed.value, speed.least, speed.greatest, speed.unit, speed.better) == (32, 30, 34, "images/s", "higher")
    assert (speed.base, speed.base_least, speed.base_greatest) == (16, 15, 17)
    assert summary.metric("step_ms").value == 500
    assert summary.metric("step_ms").base == 1000
    assert summary.metric("device_step_ms").base == 500
    assert summary.metric("bytes_exchanged").value == summary.metric("bytes_exchanged.fc8").value == 8192
    assert summary.metric("loss_difference").value == 1e-6


def test_ratios_are_those_of_the_rounds(tmp_path):
    """32 images/s is twice 16, but round by round it was 1.5 times; on the clocks 0.25 s against 1 s."""
    compare = runs.comparison(ratio=runs.spread(1.5))
    summary = summarise(runs.write(tmp_path / "a", compare=compare))
    assert summary.metric("images_per_second").ratio == 1.5
    assert summary.metric("step_ms").ratio == pytest.approx(1 / 1.5)
    assert summary.metric("speed_ratio").value == 1.5
    assert summary.metric("device_speed_ratio").value == 4
    assert summary.metric("device_step_ms").ratio == 0.25
    assert summary.metric("peak_bytes").ratio == 0.5


def test_memory_by_device_and_kind(summary):
    assert summary.metric("peak_bytes").value == 40 * MIB
    assert summary.metric("peak_bytes").base == 80 * MIB
    assert summary.metric("peak_bytes.fake:0").base == 80 * MIB
    assert summary.metric("peak_bytes.fake:1").base is None  # the whole network is on fake:0 alone
    assert summary.metric("optimizer_bytes.fake:1").value == 10 * MIB
    assert summary.metric("activations_bytes.fake:0").value == 20 * MIB


def test_figures_of_the_records(summary):
    speed = summary.metric("training_images_per_second")  # 16 and 8 images/s; the first step is warm-up
    assert (speed.value, speed.least, speed.greatest) == (12, 8, 16)
    assert summary.metric("training_loss").value == 2.0
    assert summary.metric("loss").value == 1.9
    assert summary.metric("accuracy").value == 37.5
    assert summary.metric("accuracy").unit == "%"


def test_figures_of_the_timeline(summary):
    shares = {m.name: m.value for m in summary.metrics if "_share." in m.name}
    assert shares == pytest.approx(
        {
            "busy_share.fake:0": 80,
            "exposed_share.fake:0": 10,
            "input_share.fake:0": 0,
            "idle_share.fake:0": 10,
            "busy_share.fake:1": 55,
            "exposed_share.fake:1": 10,
            "input_share.fake:1": 0,
            "idle_share.fake:1": 35,
        }
    )
    exposed = summary.metric("exposed_ms.fake:1")
    assert (exposed.value, exposed.least, exposed.greatest) == pytest.approx((0.1, 0.1, 0.2))


def test_a_row_takes_as_long_as_its_slower_device(summary):
    assert summary.metric("row_ms.conv1.backward").value == pytest.approx(0.25)
    assert summary.metric("row_ms.conv1.backward").greatest == pytest.approx(0.5)
    assert summary.metric("row_ms.fc8.forward").value == pytest.approx(0.15)


def test_names_are_given_once(summary):
    names = [metric.name for metric in summary.metrics]
    assert len(names) == len(set(names))
    assert summary.metric("nothing") is None


# The verdict


def test_the_verdict_names_the_device_that_waits_most(summary):
    shares = [m for m in summary.metrics if m.name.startswith("exposed_share.")]
    for metric, value in zip(shares, (3.0, 7.0), strict=True):
        summary.metrics[summary.metrics.index(metric)] = replace(metric, value=value)
    assert verdict_of(summary).endswith("exchanges take 7.0 % of a step.")


def test_a_verdict_with_everything(summary):
    assert summary.verdict == (
        "Two towers on fake:0 and fake:1 (emulated) train 2.00 times as fast as the same network on one device (in"
        " this CPU's time, 99 % interval 1.70-2.30, n 5; on the devices' clocks 4.00 times) and need 50 % of its"
        " memory on the fuller device; exchanges take 10.0 % of a step."
    )


def test_the_verdict_says_how_it_was_computed(tmp_path):
    options = {"precision": "bf16", "compile": True, "wire": "float16", "overlap": True}
    told = verdict(tmp_path, runs.RUN | {"options": runs.RUN["options"] | options})
    assert told.startswith("Two towers on fake:0 and fake:1 (emulated, float16 on the wire, overlap) train 2.00 times")
    assert "(both in bf16, compiled; in this CPU's time, 99 % interval" in told
    alone = verdict(tmp_path, runs.RUN | {"options": runs.RUN["options"] | options}, compare={})
    assert alone.startswith("Two towers on fake:0 and fake:1 (emulated, bf16, compiled, float16 on the wire, overlap) ")


def test_the_clocks_of_an_emulated_machine_lead(tmp_path):
    run = runs.RUN | {"emulated": {"name": "h100-pcie4", "speed": 800.0}}
    assert verdict(tmp_path, run).startswith(
        "Two towers on fake:0 and fake:1 (emulated as h100-pcie4) train 4.00 times as fast as the same network on one"
        " device (on the clocks of h100-pcie4, range 4.00-4.00; in this CPU's time 2.00 times, 99 % interval 1.70-2.30,"
        " n 5) and need 50 % "
    )
    here = runs.RUN | {"emulated": {"name": "here", "speed": None}}
    assert "(emulated) train 2.00 times" in verdict(tmp_path, here)


def on_gpus(run=runs.RUN):
    return run | {"devices": [{"device": "cuda:0"}, {"device": "cuda:1"}]}


def verdict(tmp_path, run=runs.RUN, **settings):
    number = len(list(tmp_path.iterdir()))
    return summarise(runs.write(tmp_path / f"v{number}", run=run, **settings)).verdict


def test_replicas_are_told_beside(tmp_path):
    found = summarise(runs.write(tmp_path / "a", compare=runs.with_replicas()))
    before = summarise(runs.write(tmp_path / "b"))
    clause = "; they exchange 8,192 bytes a step, two replicas of the whole network 8.0 MB."
    assert found.verdict == before.verdict.removesuffix(".") + clause
    assert found.replicas["layout"] == "replicas"
    assert before.replicas is None
    others = {m.name: m for m in found.metrics if m not in before.metrics}
    assert {name: m.value for name, m in others.items()} == {
        "images_per_second.replicas": 24,
        "step_ms.replicas": pytest.approx(1000 / 1.5),
        "device_step_ms.replicas": pytest.approx(500 / 1.5),
        "peak_bytes.replicas": 80 * MIB,
        "bytes_exchanged.replicas": 8_000_000,
        "loss_difference.replicas": 2e-7,
        "speed_ratio.replicas": 1.5,
    }
    assert (others["speed_ratio.replicas"].least, others["speed_ratio.replicas"].greatest) == (1.4, 1.6)


def test_replicas_are_not_beside_themselves(tmp_path):
    compare = runs.with_replicas()
    del compare["layouts"][0]
    compare["layouts"].reverse()
    assert summarise(runs.write(tmp_path / "a", compare=compare)).replicas["layout"] == "replicas"
    compare["layouts"].sort(key=lambda layout: layout["layout"] != "replicas")
    assert summarise(runs.write(tmp_path / "b", compare=compare)).replicas is None


def test_replicas_that_do_not_fit_exchange_nothing(tmp_path):
    compare = runs.with_replicas()
    compare["layouts"][2] = {"layout": "replicas", "replicas": 2, "towers": 2, "devices": ["a"], "does_not_fit": "full"}
    found = summarise(runs.write(tmp_path / "a", compare=compare))
    assert found.replicas is None
    assert found.verdict == summarise(runs.write(tmp_path / "b")).verdict
    assert [m.name for m in found.metrics if m.name.endswith(".replicas")] == []


def test_an_interval_with_1_in_it_is_no_difference(tmp_path):
    compare = runs.comparison(ratio=runs.spread(1.03) | {"low": 0.99, "high": 1.07})
    said = verdict(tmp_path, on_gpus(), compare=compare, trace=False)
    assert "train no measurably faster or slower than the same network on one device (1.03 times, 99 % int" in said
    assert "99 % interval 0.99-1.07, n 5) and" in said
    assert "emulated" not in said
    assert "exchanges take" not in said


def test_without_an_interval_the_range_is_told(tmp_path):
    compare = runs.comparison(ratio=runs.spread(0.5, 0.4, 0.6) | {"low": None, "high": None})
    said = verdict(tmp_path, on_gpus(), compare=compare)
    assert "train 0.50 times as fast as the same network on one device (range 0.40-0.60, n 5)" in said


def test_a_base_that_does_not_fit_is_the_point(tmp_path):
    compare = runs.comparison(ratio=None, loss_differences=None) | {"base": "towers"}
    compare["layouts"][1] = {"layout": "whole", "does_not_fit": "fc6 needs 30 MiB more on fake:0"}
    said = verdict(tmp_path, compare=compare, trace=False)
    assert said == (
        "Two towers on fake:0 and fake:1 (emulated) train 32.0 images/s where the same network on one device does not"
        " fit (fc6 needs 30 MiB more on fake:0) and need 40 MiB on the fuller device."
    )


def test_a_run_that_does_not_fit(tmp_path):
    compare = runs.comparison()
    compare["layouts"][0] = {"layout": "towers", "does_not_fit": "conv1 needs 3 MiB more on fake:1."}
    summary = summarise(runs.write(tmp_path / "v", compare=compare, trace=False, steps=0))
    assert summary.verdict == (
        "Two towers on fake:0 and fake:1 (emulated) do not fit: conv1 needs 3 MiB more on fake:1."
    )
    assert summary.metric("images_per_second") is None


def test_one_tower_alone(tmp_path):
    one = runs.RUN | {"options": runs.RUN["options"] | {"towers": 1}, "devices": [{"device": "cpu"}]}
    dense = runs.layout("dense", 1, ["cpu"], 1.0, 10, memory={}, device_step_ms=None)
    said = verdict(tmp_path, one, compare={"base": "dense", "rounds": 5, "layouts": [dense]}, trace=False)
    assert said == "One tower on cpu trains 16.0 images/s."


def test_without_a_comparison(tmp_path):
    run = runs.RUN | {"options": runs.RUN["options"] | {"compare": False}}
    said = verdict(tmp_path, run, compare={}, trace=False)
    assert (
        said == "Two towers on fake:0 and fake:1 (emulated) train 12.0 images/s, median of 2 steps, the first left out."
    )


def test_steps_that_warm_up_are_not_timed():
    """They may compile; where a run was resumed there are more of them."""
    step = {"step": 0, "images": 8, "seconds": 1.0, "waited": 0.5, "loss": 1.0, "warms_up": False}
    slow = step | {"seconds": 9.0, "warms_up": True}
    steps = [slow, step, step, slow | {"images": 4}, step]
    assert timed(steps) == "median of 3 steps, 2 that warm up left out"
    assert [metric.value for metric in waiting(steps)] == [50]
    speed, *_ = from_records(steps, [])
    assert (speed.least, speed.greatest) == (8, 8)


def test_where_all_steps_warm_up_the_first_is_left_out():
    slow = {"step": 0, "images": 8, "seconds": 8.0, "waited": 0.5, "loss": 1.0, "warms_up": True}
    steps = [slow, slow | {"images": 4, "seconds": 1.0}]
    speed, *_ = from_records(steps, [])
    assert (speed.least, speed.greatest) == (4, 4)
    assert timed(steps) == "median of 1 step, the first left out"
    speed, *_ = from_records(steps[:1], [])
    assert speed.value == 1
    assert timed(steps[:1]) == "of one step"


def test_a_run_that_only_tests(tmp_path):
    run = runs.RUN | {"options": runs.RUN["options"] | {"steps": 0}}
    summary = summarise(runs.write(tmp_path / "v", run=run, compare={}, trace=False, steps=0))
    assert summary.verdict == "Two towers on fake:0 and fake:1 (emulated) classify 37.5 % of 1,000 test images right."
    assert [line.rpartition("/")[2] for line in summary.missing] == [
        "compare.json: not made (--steps 0 only tests)",
        "trace.json.gz: not made (--steps 0 only tests)",
    ]


@pytest.mark.parametrize(
    ("status", "end"),
    [
        ("running", "; the run did not end, or still goes on."),
        ("interrupted", "; the run was interrupted."),
        ("failed: out of memory\nmore", "; the run failed: out of memory."),
    ],
)
def test_how_it_ended(tmp_path, status, end):
    assert verdict(tmp_path, runs.RUN | {"status": status}).endswith(end)


# What is not whole


def test_no_run_folder(tmp_path):
    with pytest.raises(UsageError, match=r"no such folder"):
        summarise(tmp_path / "gone")


@pytest.mark.parametrize(
    ("name", "content"),
    [("compare.json", b'{"schema": 1, "lay'), ("trace.json.gz", b"\x1f\x8b\x08\x00"), ("compare.json", b"[]")],
)
def test_a_broken_file_is_named_and_the_rest_told(tmp_path, name, content):
    folder = runs.write(tmp_path / "a")
    (folder / name).write_bytes(content)
    before = contents(folder)
    summary = summarise(folder)
    assert len(summary.missing) == 1
    assert str(folder / name) in summary.missing[0]
    assert "\n" not in summary.missing[0]
    assert (summary.comparison is None) == (name == "compare.json")
    assert (summary.timeline is None) == (name == "trace.json.gz")
    assert summary.metric("training_images_per_second").value == 12
    assert contents(folder) == before


def test_files_that_are_not_there_are_named(tmp_path):
    folder = runs.write(tmp_path / "a")
    for name in ("compare.json", "trace.json.gz", "steps.jsonl"):
        (folder / name).unlink()
    summary = summarise(folder)
    assert [name for name in ("steps.jsonl", "compare.json", "trace.json.gz") if name in " ".join(summary.missing)] == [
        "steps.jsonl",
        "compare.json",
        "trace.json.gz",
    ]
    assert summary.verdict == "Two towers on fake:0 and fake:1 (emulated) made not one whole step."


def test_half_a_record_is_left_out_and_said(tmp_path):
    folder = runs.write(tmp_path / "a")
    path = folder / "steps.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    summary = summarise(folder)
    assert len(summary.steps) == 3
    assert summary.tests == []
    assert summary.missing == [f"{path}: the last line is no whole record; 3 of 4 are, and are kept"]


def test_a_newer_schema_is_refused(tmp_path):
    folder = runs.write(tmp_path / "a")
    found = json.loads((folder / "compare.json").read_text())
    (folder / "compare.json").write_text(json.dumps(found | {"schema": 2}))
    with pytest.raises(UsageError, match=r"compare\.json: schema 2"):
        summarise(folder)


def test_a_trace_of_a_newer_schema_is_refused(tmp_path):
    folder = runs.write(tmp_path / "a")
    with gzip.open(folder / "trace.json.gz", "wt") as file:
        json.dump({"splitnet": {"schema": 2}, "traceEvents": []}, file)
    with pytest.raises(UsageError, match=r"trace\.json\.gz: schema 2"):
        summarise(folder)


def test_a_loss_that_ran_away_is_no_figure(tmp_path):
    folder = runs.write(tmp_path / "a")
    with (folder / "steps.jsonl").open("a") as file:
        file.write('{"schema": 1, "kind": "test", "step": 3, "loss": NaN, "accuracy": 0, "images": 1, "seconds": 1}\n')
    assert summarise(folder).metric("loss").value == 1.9


def test_headings():
    assert heading({"layout": "replicas", "replicas": 2, "devices": ["a", "b"]}) == "2 replicas, a, b"
    assert heading({"layout": "towers", "towers": 2, "devices": ["a", "b"]}) == "2 towers, a, b"
    assert heading({"layout": "towers", "towers": 2, "devices": ["a", "b"]}, "b") == "2 towers, b"
    assert heading({"layout": "whole", "towers": 2, "devices": ["a"]}) == "same, whole, a"
    assert heading({"layout": "half"}) == "half"


def test_figures_in_words():
    assert figure(33.354, "images/s") == "33.35/s"
    assert figure(3 * MIB, "bytes") == "3.0 MiB"
    assert figure(8192, "bytes") == "8,192 bytes"
    assert figure(12345.6, "ms") == "12,346 ms"
    assert figure(1.5, "") == "1.5"
    assert Metric("a", 1.0, "", "", "a").beside(Metric("a", 0.0, "", "", "a"), None).ratio is None

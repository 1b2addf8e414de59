"""Traces as intervals: hand-written ones have the known answers, exactly."""

import copy
import gzip
import json

import cuda_traces
import pytest
import two_lanes

from splitnet.errors import UsageError
from splitnet.measure.timeline import Lane, Operation, Timeline, read

TWO_GPUS = Timeline(cuda_traces.two_gpus())


def without(trace, *cats):
    return trace | {"traceEvents": [e for e in trace["traceEvents"] if e.get("cat") not in cats]}


# Two GPUs, one process


def test_lanes_of_two_gpus():
    """Copies that compute hides, copies through the host, a kernel that sends, images in, the loss out."""
    assert TWO_GPUS.lanes() == [
        Lane(0, "ProfilerStep#2", total=1000, busy=520, communication=230, exposed=180, input=40, idle=260),
        Lane(1, "ProfilerStep#2", total=1000, busy=250, communication=180, exposed=180, input=40, idle=530),
        Lane(0, "ProfilerStep#3", total=2000, busy=520, communication=230, exposed=180, input=40, idle=1260),
        Lane(1, "ProfilerStep#3", total=2000, busy=250, communication=180, exposed=180, input=40, idle=1530),
    ]
    assert (TWO_GPUS.devices, TWO_GPUS.steps) == (("cuda:0", "cuda:1"), ("ProfilerStep#2", "ProfilerStep#3"))
    assert not TWO_GPUS.emulated


@pytest.mark.parametrize("step", TWO_GPUS.steps)
def test_bytes_exchanged_by_two_gpus(step):
    assert TWO_GPUS.exchanged(step) == {
        ("conv3", "forward", 0, 1): 8192,
        ("conv3", "forward", 1, 0): 512,
        ("conv3", "backward", 0, 1): 1024,
        ("conv3", "backward", 1, 0): 8192,
    }


@pytest.mark.parametrize("step", TWO_GPUS.steps)
def test_rows_of_two_gpus(step):
    assert TWO_GPUS.rows(step) == {
        ("conv2", "forward", 0): 200,
        ("conv2", "forward", 1): 100,
        ("conv3", "forward", 0): 100,
        ("conv3", "forward", 1): 50,
        ("conv3", "backward", 0): 100,
        ("conv2", "backward", 1): 100,
        ("", "backward", 0): 10,
        ("", "optimizer", 0): 110,
    }


def test_operations_of_two_gpus():
    found = [op for op in TWO_GPUS.operations("ProfilerStep#3") if op.kind != "compute"]
    peer, into, out = cuda_traces.PEER, cuda_traces.INTO, cuda_traces.OUT
    sent = "elementwise_kernel<direct_copy_kernel_cuda>"
    assert found == [
        Operation(0, "input", into, "data", "", 20, 40, 4000, None, 0),
        Operation(1, "input", into, "data", "", 20, 40, 4000, None, 1),
        Operation(0, "communication", peer, "forward", "conv3", 200, 100, 8192, 0, 1),
        Operation(1, "communication", peer, "forward", "conv3", 200, 100, 8192, 0, 1),
        Operation(1, "communication", out, "forward", "conv3", 300, 40, 512, 1, 0),
        Operation(0, "communication", into, "forward", "conv3", 340, 50, 512, 1, 0),
        Operation(0, "communication", sent, "backward", "conv3", 610, 30, 1024, 0, 1),
        Operation(1, "communication", sent, "backward", "conv3", 610, 30, 1024, 0, 1),
        Operation(1, "communication", out, "backward", "conv3", 620, 30, 8192, 1, 0),
        Operation(0, "communication", into, "backward", "conv3", 650, 50, 8192, 1, 0),
        Operation(0, "input", out, "", "", 870, 10, 8, 0, None),
    ]


def test_a_copy_with_a_record_on_both_ends_counts_once():
    trace = cuda_traces.two_gpus()
    ends = [e | {"pid": 1, "args": e["args"] | {"device": 1}} for e in trace["traceEvents"] if "PtoP" in e["name"]]
    assert len(ends) == 2
    trace["traceEvents"] += ends
    found = Timeline(trace)
    assert found.lanes() == TWO_GPUS.lanes()
    for step in found.steps:
        assert found.exchanged(step) == TWO_GPUS.exchanged(step)
        assert found.operations(step) == TWO_GPUS.operations(step)


def test_order_of_events_does_not_matter():
    trace = cuda_traces.two_gpus()
    trace["traceEvents"].reverse()
    found = Timeline(trace)
    assert found.lanes() == TWO_GPUS.lanes()
    assert found.operations("ProfilerStep#2") == TWO_GPUS.operations("ProfilerStep#2")


def test_a_peer_copy_that_names_no_ends_goes_to_the_other_of_two():
    trace = cuda_traces.two_gpus()
    for event in trace["traceEvents"]:
        event["args"].pop("fromDevice", None)
        event["args"].pop("toDevice", None)
    assert Timeline(trace).exchanged("ProfilerStep#2") == TWO_GPUS.exchanged("ProfilerStep#2")


@pytest.mark.parametrize("change", ["converts", "copies too", "elsewhere"])
def test_not_every_copying_kernel_is_a_crossing(change):
    """A kernel that converts, that prepares a memcpy, or that copies outside every exchange computes."""
    trace = cuda_traces.two_gpus()
    [operation, kernel] = [
        next(e for e in trace["traceEvents"] if test(e))
        for test in (lambda e: "Input type" in e["args"], lambda e: "direct_copy" in e["name"])
    ]
    if change == "converts":
        operation["args"]["Input type"] = ["c10::Half", "float"]
    elif change == "copies too":
        launch = next(e for e in trace["traceEvents"] if e["cat"] == "cuda_runtime" and e["ts"] == operation["ts"] + 3)
        ids = {"correlation": 7777}
        trace["traceEvents"] += [
            launch | {"args": launch["args"] | ids},
            {**kernel, "cat": "gpu_memcpy", "name": cuda_traces.PEER, "args": kernel["args"] | ids | {"bytes": 1024}},
        ]
    else:
        for event in trace["traceEvents"]:
            if event["name"] == "_SendBackward":
                event["args"]["Sequence number"] = 10
    kinds = [op.kind for op in Timeline(trace).operations("ProfilerStep#2") if op.name == kernel["name"]]
    assert kinds == ["compute"]


def test_without_launches_a_devices_own_spans_tell():
    """As on a device whose launches were not recorded: exchanges are known by their ends alone."""
    trace = without(cuda_traces.two_gpus(), "cuda_runtime")
    for name, start, end in [("splitnet.forward", 0, 500), ("splitnet.row.conv3", 400, 500)]:
        times = {"ts": cuda_traces.BEGUN + start, "dur": end - start}
        event = {"ph": "X", "cat": "gpu_user_annotation", "name": name, "pid": 0, "tid": 7, **times, "args": {}}
        trace["traceEvents"].append(event)
    found = Timeline(trace).rows("ProfilerStep#2")
    assert found["conv3", "forward", 0] == 100
    assert found["", "forward", 0] == 200


def test_what_a_record_says_of_itself_counts_first():
    trace = cuda_traces.two_gpus()
    for event in trace["traceEvents"]:
        if event["name"] == "dgrad":
            event["args"] |= {"phase": "another", "row": "conv9"}
    found = Timeline(trace).rows("ProfilerStep#2")
    assert {place: time for place, time in found.items() if place[0] == "conv9"} == {
        ("conv9", "another", 0): 100,
        ("conv9", "another", 1): 100,
    }


# Steps


def test_what_cuda_calls_its_step_is_no_window():
    """It runs from the first kernel to the last, on each stream: the device's waiting would be left out."""
    trace = cuda_traces.two_gpus()
    for stream, start, end in [(7, 50, 850), (20, 20, 400), (21, 60, 70)]:
        times = {"ts": cuda_traces.BEGUN + start, "dur": end - start}
        where = {"pid": 0, "tid": stream, **times, "args": {}}
        trace["traceEvents"].append({"ph": "X", "cat": "gpu_user_annotation", "name": "ProfilerStep#2", **where})
    assert Timeline(trace).lanes() == TWO_GPUS.lanes()


def test_a_fake_devices_own_step_is_its_window():
    trace = copy.deepcopy(two_lanes.trace())
    host = [e for e in trace["traceEvents"] if e.get("cat") == "user_annotation" and "ProfilerStep" in e["name"]]
    before = Timeline(trace).lanes()
    for event in host:
        event["dur"] += 5000  # the CPU still emulates
    assert Timeline(trace).lanes() == before


def test_what_crosses_the_border_of_a_step_counts_in_both():
    events = cuda_traces.Writer()
    for number in (0, 1):
        events.at = 1000 * number
        events.span(f"ProfilerStep#{number}", 0, 1000)
    events.at = 0
    events.cpu("aten::mm", 10, 20)
    events.launch(12, "kernel", "gemm", 0, 900, 1300)
    found = Timeline(events.trace())
    assert [(lane.busy, lane.idle) for lane in found.lanes()] == [(100, 900), (300, 700)]
    assert found.operations("ProfilerStep#0") == []
    [operation] = found.operations("ProfilerStep#1")
    assert (operation.start, operation.duration) == (-100, 400)


def test_streams_of_a_device_are_not_added_up():
    events = cuda_traces.Writer()
    events.span("ProfilerStep#0", 0, 1000)
    events.cpu("aten::mm", 10, 20)
    for start, end in [(0.1, 400.2), (100, 300), (300, 500.7)]:
        events.launch(12, "kernel", "gemm", 0, start, end)
    [lane] = Timeline(events.trace()).lanes()
    assert (lane.busy, lane.idle) == (500.6, 499.4)


def test_a_trace_without_steps_is_one():
    trace = cuda_traces.two_gpus()
    trace["traceEvents"] = [e for e in trace["traceEvents"] if not e["name"].startswith("ProfilerStep")]
    found = Timeline(trace)
    assert (found.steps, found.median_step()) == (("trace",), "trace")
    assert [(lane.total, lane.busy) for lane in found.lanes()] == [(1860, 1040), (1860, 500)]


@pytest.mark.parametrize(
    ("lengths", "median"), [((30, 10, 20), 2), ((30, 10), 1), ((10, 10, 10), 0), ((5,), 0), ((4, 1, 3, 2), 3)]
)
def test_the_median_step(lengths, median):
    events = cuda_traces.Writer()
    for number, length in enumerate(lengths):
        events.span(f"ProfilerStep#{number}", 0, length)
        events.at += length
    assert Timeline(events.trace()).median_step() == f"ProfilerStep#{median}"


def test_nothing_happened():
    found = Timeline({"traceEvents": []})
    assert (found.devices, found.steps, found.lanes(), found.median_step()) == ((), (), [], "")


# A process for each device


@pytest.mark.parametrize("rank", [0, 1])
def test_nccl(rank):
    found = Timeline(cuda_traces.nccl(rank))
    arrives = 500 * rank
    assert found.devices == ("cuda:0", "cuda:1")[: rank + 1]
    assert len(found.lanes()) == 3
    for lane in found.lanes():
        assert (lane.device, lane.total, lane.busy) == (rank, 9990, 3000)
        assert (lane.communication, lane.exposed, lane.input, lane.idle) == (2000 - arrives, 1000, 0, 5990)
    for step in found.steps:
        assert found.exchanged(step) == {("conv3", "forward", rank, None): 4 * cuda_traces.BYTES}
        assert found.rows(step) == {("", "forward", rank): 3000}


@pytest.mark.parametrize("rank", [0, 1])
def test_gloo_on_the_cpu(rank):
    found = Timeline(cuda_traces.gloo(rank))
    assert found.devices[rank] == f"cpu:{rank}"
    assert found.lanes() == [
        Lane(rank, "ProfilerStep#0", total=1000, busy=340, communication=200, exposed=150, input=0, idle=510)
    ]
    assert found.exchanged("ProfilerStep#0") == {("fc8", "forward", rank, None): 128}
    assert [(op.name, op.phase, op.row) for op in found.operations("ProfilerStep#0")] == [
        ("aten::linear", "forward", ""),
        ("gloo:all_gather", "forward", "fc8"),
        ("aten::mm", "backward", ""),
        ("aten::mm", "backward", ""),
    ]


# Emulated


def test_lanes_of_fake_devices():
    found = Timeline(two_lanes.trace())
    assert found.emulated
    assert found.devices == ("fake:0", "fake:1")
    assert [(lane.busy, lane.exposed, lane.idle, lane.total) for lane in found.lanes()] == [
        (600, 150, 250, 1000),
        (400, 150, 450, 1000),
    ] * 2
    assert found.exchanged("ProfilerStep#1") == {
        ("conv3", "forward", 1, 0): 4096,
        ("conv3", "backward", 0, 1): 1024,
    }
    assert len(found.operations("ProfilerStep#1")) == 6  # each copy is on both lanes


def test_a_fake_device_that_did_nothing_has_a_lane():
    trace = two_lanes.trace()
    trace["traceEvents"] = [
        e for e in trace["traceEvents"] if "PtoP" not in e["name"] and (e["pid"], e.get("cat")) != (1, "kernel")
    ]
    assert [(lane.device, lane.busy, lane.idle) for lane in Timeline(trace).lanes()][:2] == [
        (0, 600, 400),
        (1, 0, 1000),
    ]


# Reading


def saved(path, content, packed=True):
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    return path


@pytest.mark.parametrize("packed", [True, False])
def test_read_back(tmp_path, packed):
    trace = cuda_traces.two_gpus()
    assert read(saved(tmp_path / "trace", trace, packed)) == trace


def cut(path):
    whole = saved(path, cuda_traces.two_gpus()).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def flipped(path):
    whole = bytearray(saved(path, cuda_traces.two_gpus()).read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    path.write_bytes(whole)


def newer(path):
    saved(path, two_lanes.trace() | {"splitnet": {"schema": 2}})


def timeless(path):
    trace = copy.deepcopy(cuda_traces.two_gpus())
    trace["traceEvents"][3]["dur"] = None
    saved(path, trace)


BROKEN = {
    "no such file": lambda path: None,
    "cannot read it": lambda path: path.mkdir(),
    "truncated or damaged: not a whole gzip file": cut,
    "truncated or damaged": flipped,
    "truncated or damaged: not JSON": lambda path: saved(path, b'{"traceEvents": [{"ph": "X"', packed=False),
    "truncated or damaged: not JSON ": lambda path: saved(path, b"\xff\xfe"),
    "truncated or damaged: not JSON  ": lambda path: saved(path, b"", packed=False),
    "truncated or damaged: not JSON   ": lambda path: saved(path, b"[" * 100_000),
    "not a trace: it has no list of traceEvents": lambda path: saved(path, [1, 2]),
    "not a trace: it has no list of traceEvents ": lambda path: saved(path, {"traceEvents": 3}),
    "not a trace: event 0 ": lambda path: saved(path, {"traceEvents": [3]}),
    "not a trace: event 3 ": timeless,
    "not a trace: event 0": lambda path: saved(
        path, b'{"traceEvents": [{"ph": "X", "name": "a", "pid": 1, "tid": 1, "ts": NaN, "dur": 1}]}'
    ),
    "not a trace of splitnet": lambda path: saved(path, {"traceEvents": [], "splitnet": {"schema": "one"}}),
    "schema 2, but this version of splitnet reads up to 1": newer,
}


@pytest.mark.parametrize("says", BROKEN)
def test_a_broken_file_is_named_in_one_line(tmp_path, says):
    path = tmp_path / "trace.json.gz"
    BROKEN[says](path)
    with pytest.raises(UsageError) as refusal:
        read(path)
    message = str(refusal.value)
    assert message.startswith(f"{path}: {says.strip()}")
    assert "\n" not in message

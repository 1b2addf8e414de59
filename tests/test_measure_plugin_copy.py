"""Copies for torch-tb-profiler 0.4.3: its own parser finds the figures that are known."""

import copy
import gzip
import json
import logging
import warnings
from types import SimpleNamespace

import cuda_traces
import pytest
import two_lanes

from splitnet.measure.plugin_copy import corrected, split
from splitnet.measure.timeline import Timeline

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it is abandoned, and imports what is deprecated
    from torch_tb_profiler.consts import NODE_PROCESS_PATTERN, WORKER_PATTERN
    from torch_tb_profiler.profiler.data import DistributedRunProfileData, RunProfileData
    from torch_tb_profiler.profiler.event_parser import ProfileRole
    from torch_tb_profiler.profiler.loader import RunLoader
    from torch_tb_profiler.profiler.run_generator import RunGenerator

COSTS = [role.name for role in ProfileRole]


@pytest.fixture(autouse=True)
def no_complaints(caplog):
    """The plugin says in its log what it cannot make sense of, and goes on with wrong figures."""
    with caplog.at_level(logging.WARNING):
        yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def parsed(trace, folder, worker="splitnet"):
    """What the plugin reads in a file, and its pages' data."""
    path = folder / f"{worker}.pt.trace.json.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        json.dump(trace, file)
    assert WORKER_PATTERN.match(path.name)[1] == worker
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = RunProfileData.parse(worker, 1, str(path), str(folder))
        return data, RunGenerator(worker, 1, data).generate_run_profile()


def distributed(parts, folder):
    """The Distributed view of several workers' traces: (overlap, wait, operations), by step or worker."""
    found = [DistributedRunProfileData(parsed(trace, folder, worker)[0]) for worker, trace in parts.items()]
    assert all(NODE_PROCESS_PATTERN.match(worker) for worker in parts)
    profile = RunLoader._process_distributed_profiles(SimpleNamespace(run_name="run"), found, 1)
    assert profile is not None
    operations = {
        worker: {row[0]: row[1:] for row in table["rows"]} for worker, table in profile.comm_ops["data"].items()
    }
    return profile.steps_to_overlap["data"], profile.steps_to_wait["data"], operations


def costs(data, step):
    return dict(zip(COSTS, data.steps_costs[step].costs, strict=True))


# One process, two GPUs


@pytest.fixture
def two(tmp_path):
    return parsed(corrected(cuda_traces.two_gpus()), tmp_path)


def test_utilization_is_the_share_of_computing(two):
    """The kernel that sends is none, so 510 us in each step on device 0, and 250 on device 1."""
    data, _ = two
    assert data.steps_names == ["2", "3"]
    assert data.gpu_metrics_parser.gpu_utilization[:2] == [1020 / 3000, 500 / 3000]
    assert data.used_devices == [0, 1]


def test_a_step_is_told_apart(two):
    """Kernels of both devices together, then copies outside them, fills, launches, reading of images, the rest."""
    data, _ = two
    for step, length in enumerate(cuda_traces.LENGTHS):
        found = costs(data, step)
        # kernels cover 50-250, 400-500, 510-610, 650-750 and 750-850
        assert (found["Kernel"], found["Memset"], found["Total"]) == (600, 10, length)
        # 20-50, 250-390, 610-650 and 870-880
        assert found["Memcpy"] == 30 + 140 + 40 + 10
        assert found["Communication"] == 0
        # 0-50, of which launches take 5-7 and 10-12, copies 20-50
        assert found["DataLoader"] == 16
        assert sum(found[name] for name in COSTS[:-1]) == length


def test_operators_have_the_time_of_their_devices(two):
    data, _ = two
    times = {op.name: op.device_duration for op in data.op_list_groupby_name}
    assert times["aten::conv2d"] == 2 * (200 + 100 + 100 + 50)
    assert times["ConvolutionBackward0"] == 2 * (100 + 100)
    assert times["splitnet.row.conv3"] == 2 * (100 + 40 + 50 + 100 + 50)
    assert times["splitnet.optimizer"] == 2 * 110
    assert {"splitnet.forward", "splitnet.backward", "splitnet.exchange.conv3"} <= set(times)


def test_kernels_alone_are_in_the_kernel_view(two):
    data, profile = two
    assert set(data.kernel_stat.index) == {"implicit_gemm", "dgrad", "multi_tensor_apply_kernel", "add"}
    assert {view.display_name for view in profile.views} >= {"Overview", "Operator", "Kernel", "Trace"}


def test_the_trace_itself_stays_as_it_is():
    trace = cuda_traces.two_gpus()
    before = copy.deepcopy(trace)
    split(corrected(trace))
    assert trace == before


def test_a_copy_tells_the_same_story():
    """Our own reader finds the same lanes and bytes in it."""
    found, known = Timeline(corrected(cuda_traces.two_gpus())), Timeline(cuda_traces.two_gpus())
    assert found.lanes() == known.lanes()
    assert [found.exchanged(step) for step in found.steps] == [known.exchanged(step) for step in known.steps]


def test_what_the_copy_leaves_out_and_renames():
    trace = cuda_traces.two_gpus()
    where = {"pid": 0, "tid": 7, "ts": cuda_traces.BEGUN, "args": {}}
    trace["traceEvents"] += [
        {"ph": "X", "cat": "gpu_user_annotation", "name": "ProfilerStep#2", "dur": 900, **where},
        {"ph": "C", "name": "allocated MiB", **where},
        {"ph": "s", "cat": "fwdbwd", "name": "fwdbwd", "id": 1, **where},
        {"ph": "M", "name": "process_name", **where},
    ]
    found = corrected(trace | {"splitnet": {"schema": 1}})
    assert list(found)[-1] == "traceEvents"
    cats = {event.get("cat") for event in found["traceEvents"]}
    assert cats == {
        *("cpu_op", "user_annotation", "runtime", "forward_backward"),
        *("kernel", "gpu_memcpy", "gpu_memset", None),
    }
    assert {e["name"] for e in found["traceEvents"] if e.get("cat") is None} == {"process_name"}
    assert {e["name"] for e in found["traceEvents"] if e.get("cat") == "user_annotation"} == {
        "ProfilerStep#2",
        "ProfilerStep#3",
    }


# One file for each device


def test_split_two_gpus(tmp_path):
    parts = split(corrected(cuda_traces.two_gpus()))
    assert list(parts) == ["cuda_0", "cuda_1"]
    overlap, wait, operations = distributed(parts, tmp_path)
    for step, length in zip("23", cuda_traces.LENGTHS, strict=True):
        # computing alone, both, communication alone, neither; device 0 sends 200-390 and 610-700, device 1 200-340
        # and 610-650
        assert overlap[step] == {
            "cuda_0": [460, 50, 230, length - 740],
            "cuda_1": [250, 0, 180, length - 430],
        }
        # carried, waited: a collective takes as long as the shortest part in it
        assert wait[step] == {"cuda_0": [180, 100], "cuda_1": [180, 0]}
    for worker in parts:
        calls, size = zip(*(operations[worker][f"gloo:{name}"][:2] for name in ("all_gather", "reduce_scatter")))  # noqa: B905
        assert (calls, size) == ((2, 2), (2 * (8192 + 512), 2 * (8192 + 1024)))


def test_a_part_has_its_own_devices_work_alone(tmp_path):
    for device, (worker, trace) in enumerate(split(corrected(cuda_traces.two_gpus())).items()):
        assert list(trace)[-1] == "traceEvents"
        info = trace["distributedInfo"]
        assert (info["backend"], info["rank"], info["world_size"]) == ("gloo", device, 2)
        data, _ = parsed(trace, tmp_path, worker)
        assert data.used_devices == [device]
        # kernels, copies and fills in each step
        assert sum(e.get("cat") == "runtime" for e in trace["traceEvents"]) == 2 * [12, 6][device]
        assert data.gpu_metrics_parser.gpu_utilization[device] == [1020 / 3000, 500 / 3000][device]
        times = {op.name: op.device_duration for op in data.op_list_groupby_name}
        assert times["aten::conv2d"] == [2 * (200 + 100), 2 * (100 + 50)][device]


def test_split_fake_devices(tmp_path):
    """A device that has nothing else to do waits: device 1, for the 200 us that device 0 still computes."""
    trace = two_lanes.trace(plugin=True)
    for event in trace["traceEvents"]:
        if event["pid"] == 1 and event["args"].get("phase") == "forward" and "PtoP" in event["name"]:
            event["args"]["waited_us"] = 200.0
    overlap, wait, operations = distributed(split(trace), tmp_path)
    for step in "01":
        assert {worker: parts[:3] for worker, parts in overlap[step].items()} == {
            "fake_0": [600, 0, 150],
            "fake_1": [400, 0, 350],
        }
        assert wait[step] == {"fake_0": [150, 0], "fake_1": [150, 200]}
    assert {worker: rows["gloo:all_gather"][1] for worker, rows in operations.items()} == dict.fromkeys(
        ["fake_0", "fake_1"], 2 * 4096
    )


def test_no_exchange_begins_before_its_step():
    """By a nanosecond of rounding it might, and the plugin would find it in no step."""
    trace = two_lanes.trace(plugin=True)
    for event in trace["traceEvents"]:
        if "PtoP" in event["name"] and event["args"]["phase"] == "forward":
            event["args"]["waited_us"] = event["ts"] % 1000 + 0.001
    for part in split(trace).values():
        begun = [e["ts"] for e in part["traceEvents"] if e["name"] == "gloo:all_gather"]
        assert sorted(begun) == [0, 1000]


def test_no_exchange_begins_before_the_last_is_over():
    """Nor by a nanosecond: the plugin would find ranges that intersect."""
    trace = two_lanes.trace(plugin=True)
    for event in trace["traceEvents"]:
        if "PtoP" in event["name"] and event["args"]["phase"] == "backward":
            event["args"]["waited_us"] = event["ts"] % 1000
    for part in split(trace).values():
        ranges = sorted((e["ts"], e["ts"] + e["dur"]) for e in part["traceEvents"] if e["name"].startswith("gloo:"))
        assert len(ranges) == 4
        assert all(before[1] == after[0] for before, after in (ranges[:2], ranges[2:]))


def test_memory_and_names_go_with_their_device():
    """A process may have a device's number: the CPU's events stay with all."""
    trace = two_lanes.trace(plugin=True)
    where = {"pid": two_lanes.HOST, "tid": two_lanes.HOST, "ts": 5}
    for kind, device in [(0, -1), (1, 0), (1, 1)]:
        args = {"Device Type": kind, "Device Id": device, "Bytes": 1, "Addr": 1}
        trace["traceEvents"].append({"ph": "i", "cat": "cpu_instant_event", "name": "[memory]", **where, "args": args})
    for event in trace["traceEvents"]:
        event["pid"] = 1 if event["pid"] == two_lanes.HOST else event["pid"]
    one, two = split(trace).values()
    for part, device in [(one, 0), (two, 1)]:
        ids = [e["args"]["Device Id"] for e in part["traceEvents"] if e["name"] == "[memory]"]
        assert ids == [-1, device]
        assert sum(e.get("cat") == "cpu_op" for e in part["traceEvents"]) == 8
    names = [e["args"]["name"] for e in one["traceEvents"] if e["name"] == "process_name"]
    assert "fake:0 (emulated)" in names


def test_nothing_to_split_without_devices():
    assert split(cuda_traces.gloo(0)) == {}


# NCCL


def ranks(change=corrected):
    return {f"rank_{rank}": change(cuda_traces.nccl(rank)) for rank in (0, 1)}


@pytest.mark.parametrize("halved", [False, True], ids=["whole", "split"])
def test_nccl_ranks(tmp_path, halved):
    parts = ranks()
    if halved:  # a rank with one device: nothing changes
        parts = {worker: part for worker, trace in parts.items() for part in split(trace).values()}
        assert [part["distributedInfo"] for part in parts.values()] == [
            {"backend": "nccl", "rank": rank, "world_size": 2} for rank in (0, 1)
        ]
    overlap, wait, operations = distributed(parts, tmp_path)
    for step in "234":
        assert overlap[step] == {"rank_0": [2000, 1000, 1000, 5990], "rank_1": [2500, 500, 1000, 5990]}
        assert wait[step] == {"rank_0": [1500, 500], "rank_1": [1500, 0]}
    for rows in operations.values():
        assert list(rows) == ["nccl:all_gather"]
        assert rows["nccl:all_gather"][:2] == [3, 3 * 4 * cuda_traces.BYTES]


def test_the_original_is_read_wrong():
    """What the copy is for; should the plugin read it rightly one day, the copy can go."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = RunProfileData.from_json("rank_0", 1, cuda_traces.nccl(0))
    found = [costs(data, step) for step in range(3)]
    assert {(cost["Communication"], cost["Runtime"], cost["DataLoader"]) for cost in found} == {(0, 0, 0)}


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        ("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL(x)", "reduce_scatter"),
        ("ncclKernel_AllReduce_RING_LL_Sum_float(x)", "all_reduce"),
        ("ncclDevKernel_Reduce_Sum_f32_RING_LL(x)", "reduce"),
        ("ncclDevKernel_Broadcast_RING_LL(x)", "broadcast"),
        ("ncclDevKernel_SendRecv(x)", None),
    ],
)
def test_names_of_nccls_kernels(kernel, name):
    trace = cuda_traces.nccl(0)
    for event in trace["traceEvents"]:
        event["name"] = kernel if "AllGather" in event["name"] else event["name"]
    found = {e["name"] for e in corrected(trace)["traceEvents"] if e["name"].startswith("nccl:")}
    assert found == ({f"nccl:{name}"} if name else set())


def test_several_kernels_of_one_collective_are_one(tmp_path):
    """The second finds the annotation by its External id."""
    trace = cuda_traces.nccl(0)
    again = [e | {"ts": e["ts"] + 2500, "dur": 500} for e in trace["traceEvents"] if "AllGather" in e["name"]]
    trace["traceEvents"] += again
    found = corrected(trace)
    assert sum(e["name"] == "nccl:all_gather" for e in found["traceEvents"]) == 3
    data, _ = parsed(found, tmp_path, "rank_0")
    assert len(data.comm_node_list) == 3
    assert [step.communication for step in data.comm_overlap_costs] == [2500, 2500, 2500]

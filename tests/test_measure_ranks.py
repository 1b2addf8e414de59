"""Traces of several ranks: on one time axis, with the lanes that are known, in the page, Perfetto and TensorBoard."""

import gzip
import json
import pickle
import random
from dataclasses import asdict, replace
from types import SimpleNamespace

import cuda_traces
import profiled_ranks
import pytest
import rank_traces
import torch
from test_measure_plugin_copy import distributed, no_complaints
from test_measure_traces import problems

from splitnet.errors import UsageError
from splitnet.measure import perfetto, ranks, traces
from splitnet.measure.crossing import crossed, kind_of
from splitnet.measure.profiler import Profile
from splitnet.measure.rank_writer import merged
from splitnet.measure.reading import Rank
from splitnet.measure.step_chart import step_chart
from splitnet.measure.step_picture import step_picture
from splitnet.measure.timeline import Lane, Operation, Timeline, read
from splitnet.measure.work import COMMUNICATION, Work
from splitnet.view import logs

STEP = "ProfilerStep#2"


@pytest.fixture(scope="module")
def cpus():
    return Timeline(merged(rank_traces.cpus()))


# Lanes


def test_lanes_on_cpus(cpus):
    """180 + 200 of convolution, 10 + 15 in the exchange, 200 + 10 + 100 + 40 backward, 40 of the optimizer.

    Collectives of 250 (or 200), 260 and 110, the last beside 40 of backward.
    """
    assert cpus.lanes() == [
        Lane(0, STEP, total=2000, busy=795, communication=620, exposed=580, input=100, idle=525),
        Lane(1, STEP, total=2000, busy=795, communication=570, exposed=530, input=100, idle=575),
    ]
    assert (cpus.devices, cpus.steps, cpus.median_step()) == (("rank 0", "rank 1"), (STEP,), STEP)


def test_one_time_axis(cpus):
    """Rank 0's clock, from where the first rank begins the step."""
    found = {(op.device, op.name): op.start for op in cpus.operations(STEP) if op.kind != "compute"}
    assert found[0, "splitnet.data"] == 0
    assert found[1, "splitnet.data"] == rank_traces.LATER
    assert found[1, "c10d::allgather_"] == 400 + rank_traces.LATER
    begun, over = cpus.extent(STEP)
    assert (begun, over - begun) == (0, 1000 * (rank_traces.LENGTH + rank_traces.LATER))


def test_what_crossed_on_cpus(cpus):
    share = rank_traces.SHARE
    both = {(source, 1 - source): share for source in (0, 1)}
    gradients = {("", "backward", rank, None): rank_traces.GRADIENTS for rank in (0, 1)}
    there, back = ({("conv2", phase, *ends): n for ends, n in both.items()} for phase in ("forward", "backward"))
    assert cpus.exchanged(STEP) == there | back | gradients


def test_arrows_run_from_when_both_are_there(cpus):
    share = rank_traces.SHARE
    there, back = ("communication", "c10d::allgather_"), ("communication", "c10d::reduce_scatter_")
    assert cpus.crossings(STEP) == [
        Operation(1, *there, "forward", "conv2", 500, 200, share, 0, 1),
        Operation(0, *there, "forward", "conv2", 500, 100, share, 1, 0),
        Operation(1, *back, "backward", "conv2", 1340, 260, share, 0, 1),
        Operation(0, *back, "backward", "conv2", 1340, 160, share, 1, 0),
    ]


def test_rows_on_cpus(cpus):
    """What joins channels in an exchange counts to the row, as it does on a device."""
    for rank in (0, 1):
        assert {place[:2]: time for place, time in cpus.rows(STEP).items() if place[2] == rank} == {
            ("conv1", "forward"): 180,
            ("conv2", "forward"): 225,
            ("", "backward"): 340,
            ("conv2", "backward"): 10,
            ("", "optimizer"): 40,
        }


@pytest.mark.parametrize("device", [None, 0], ids=["one host", "a host for each"])
def test_lanes_on_gpus(device):
    found = Timeline(merged(rank_traces.gpus(device)))
    assert len(found.lanes()) == 2 * 3
    for lane in found.lanes():
        assert (lane.total, lane.busy, lane.exposed, lane.input, lane.idle) == (9990, 3000, 1000, 0, 5990)
        assert lane.communication == 2000 - 500 * lane.device
    size = 4 * cuda_traces.BYTES
    for step in found.steps:
        assert found.exchanged(step) == {("conv3", "forward", 0, 1): size, ("conv3", "forward", 1, 0): size}
        assert {(op.source, op.target, op.start, op.duration) for op in found.crossings(step)} == {
            (0, 1, 2900, 1500),
            (1, 0, 2900, 1500),
        }


def test_gloo_beside_devices_is_on_the_lane():
    """As where what crosses goes through the host: the copies' ends and the collective, whose bytes count once."""
    found = rank_traces.gpus()
    for one in found:
        events = one.trace["traceEvents"]
        begun = next(e["ts"] for e in events if e["name"] == STEP)
        write = cuda_traces.Writer()
        write.id, write.at = 1000, begun + 5000
        write.span("splitnet.exchange.fc8", 0, 400)
        write.cpu("aten::to", 10, 40)
        write.launch(12, "gpu_memcpy", cuda_traces.OUT, one.rank, 20, 60, bytes=64)
        write.events[-1]["args"]["correlation"] = write.events[-2]["args"]["correlation"] = 77_000
        write.cpu("c10d::allgather_", 100, 110, Input_Dims=[[], [[4, 4]]])
        dims = {"Input_Dims": [[4, 4]], "Input_type": ["float"]}
        write.cpu("gloo:all_gather", 110, 290, cuda_traces.HOST + 9, "user_annotation", **dims)
        write.cpu("aten::to", 300, 350)
        events += write.events
    timeline = Timeline(merged(found))
    assert [lane.exposed for lane in timeline.lanes()[:2]] == [1000 + 40 + 200] * 2
    crossed = {place: size for place, size in timeline.exchanged(STEP).items() if place[0] == "fc8"}
    assert crossed == {("fc8", "", 0, 1): 64, ("fc8", "", 1, 0): 64}


def test_gradients_of_replicas_belong_to_no_row():
    """Though they are sent while a row's backward pass runs."""
    found = rank_traces.gpus()
    for one in found:
        for event in one.trace["traceEvents"]:
            event["name"] = event["name"].replace("splitnet.exchange.", "splitnet.row.")
    timeline = Timeline(merged(found))
    assert {place[0] for place in timeline.exchanged(STEP)} == {""}
    assert timeline.crossings(STEP) == []


def test_gradients_on_their_way_are_no_part_of_an_exchange(cpus):
    """gloo carries both at once; the call says which tensors are its own."""
    found = rank_traces.cpus()
    for one in found:
        write = cuda_traces.Writer()
        write.id, write.at = 1000, rank_traces.BEGUN[one.rank]
        write.cpu("c10d::allreduce_", 1212, 1214, Input_Dims=[[[500]], [], []])
        dims = {"Input_Dims": [[500]], "Input_type": ["float"]}
        write.cpu("gloo:all_reduce", 1260, 1400, cuda_traces.HOST + 3, "user_annotation", **dims)
        one.trace["traceEvents"] += write.events
    timeline = Timeline(merged(found))
    assert timeline.lanes() == cpus.lanes()  # it hides behind the exchange
    more = {("", "backward", rank, None): 4 * (1000 + 500) for rank in (0, 1)}
    assert timeline.exchanged(STEP) == cpus.exchanged(STEP) | more


def test_a_copy_kernel_in_a_ranks_exchange_computes():
    """Making a tensor contiguous sends nothing: the rank has one device."""
    found = rank_traces.gpus()
    write = cuda_traces.Writer()
    write.id, write.at = 1000, found[0].trace["traceEvents"][0]["ts"]
    write.span("splitnet.exchange.fc8", 5000, 5400)
    write.cpu("aten::copy_", 5010, 5040, Input_type=["float", "float"])
    write.launch(5012, "kernel", "elementwise_kernel<direct_copy_kernel_cuda>", 0, 5020, 5060)
    write.events[-1]["args"]["correlation"] = write.events[-2]["args"]["correlation"] = 77_000
    found[0].trace["traceEvents"] += write.events
    assert Timeline(merged(found)).lanes()[0].busy == 3040


# Collectives


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("c10d::allgather_", "all_gather"),
        ("c10d::_allgather_base_", "all_gather"),
        ("c10d::_reduce_scatter_base_", "reduce_scatter"),
        ("c10d::scatter_", "scatter"),
        ("c10d::gather_", "gather"),
        ("gloo:all_reduce", "all_reduce"),
        ("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL(x)", "reduce_scatter"),
        ("c10d::barrier", None),
    ],
)
def test_kinds(said, kind):
    assert kind_of({"name": said, "args": {}}) == kind


def test_nccl_says_what_its_sending_kernels_are_for():
    args = {"Collective name": "gather"}
    assert kind_of({"name": "ncclDevKernel_SendRecv(x)", "args": args}) == "gather"


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("c10d::gather_", {(1, 0): 30, (2, 0): 60}),
        ("c10d::scatter_", {(0, 1): 30, (0, 2): 30}),
        ("c10d::reduce_scatter_", {(0, 1): 30, (0, 2): 30, (1, 0): 10, (1, 2): 10, (2, 0): 20, (2, 1): 20}),
        ("c10d::allreduce_", {}),
    ],
)
def test_who_sends_whom_among_three(name, ends):
    """Tower 0 is not the first rank here. Another replica's collectives are its own."""
    towers = [2, 0, 1]
    known = [Rank(lane, tower, 0, "h", "cpu", ()) for lane, tower in enumerate(towers)]
    known += [Rank(3, 0, 1, "h", "cpu", ())]
    puts = {0: 90, 1: 30, 2: 60}  # by tower
    event = {"name": name, "args": {}}
    done = [
        Work(event, lane, COMMUNICATION, "forward", "fc8", 0, 10, puts[rank.tower], source=lane)
        for lane, rank in enumerate(known)
    ]
    found = {(towers[c.sender.device], towers[c.reader.device]): c.bytes for c in crossed(done, known)}
    assert found == ends


def test_ranks_that_have_not_equally_many_are_not_put_together(cpus):
    found = rank_traces.cpus()
    events = found[1].trace["traceEvents"]
    found[1].trace["traceEvents"] = [e for e in events if "gather" not in e["name"].lower()]
    timeline = Timeline(merged(found))
    assert {op.name for op in timeline.crossings(STEP)} == {"c10d::reduce_scatter_"}
    assert timeline.exchanged(STEP)["conv2", "forward", 0, None] == rank_traces.SHARE


# The trace of all


def test_each_rank_has_its_own_processes_and_arrows():
    trace = merged(rank_traces.cpus())
    names = {e["pid"]: e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"}
    assert names == {1000: "rank 0 · tower 0 · host-0", 2000: "rank 1 · tower 1 · host-1"}
    flows = [e["id"] for e in trace["traceEvents"] if e.get("cat") == "fwdbwd"]
    assert len(set(flows)) == 2
    assert {e["pid"] for e in trace["traceEvents"]} == {1000, 2000}
    assert list(trace)[-1] == "traceEvents"
    arrows = [e for e in trace["traceEvents"] if e.get("cat") == "exchange"]
    assert len(arrows) == 2 * 4
    for number in {e["id"] for e in arrows}:
        leaves, arrives = (next(e for e in arrows if (e["id"], e["ph"]) == (number, ph)) for ph in "sf")
        assert leaves["pid"] != arrives["pid"]
        assert leaves["ts"] <= arrives["ts"]
        assert all(slice_at(trace, e)["args"]["row"] == "conv2" for e in (leaves, arrives))


def slice_at(trace, event):
    """The slice of its track that an arrow's end is in."""
    [found] = [
        e
        for e in trace["traceEvents"]
        if e.get("cat") == "collective"
        and (e["pid"], e["tid"]) == (event["pid"], event["tid"])
        and e["ts"] <= event["ts"] < e["ts"] + e["dur"]
    ]
    return found


def test_collectives_that_overlap_have_tracks_of_their_own():
    found = rank_traces.cpus()
    events = found[0].trace["traceEvents"]
    events += [e | {"ts": e["ts"] + 50, "tid": 902} for e in events if e.get("args", {}).get("Input Dims") == [[1000]]]
    trace = merged(found)
    tracks = [e["tid"] for e in trace["traceEvents"] if e.get("cat") == "collective" and e["pid"] == 1000]
    assert sorted(tracks) == [900, 900, 900, 901]


def test_a_process_with_a_devices_number():
    """As in a container."""
    found = rank_traces.gpus()
    for event in found[1].trace["traceEvents"]:
        event["pid"] = 1 if event["pid"] == cuda_traces.HOST else event["pid"]
    trace = merged(found)
    assert Timeline(trace).lanes() == Timeline(merged(rank_traces.gpus())).lanes()
    assert sorted({e["pid"] for e in trace["traceEvents"]}) == [1000, 1001, 2000, 2001]


def test_replicas_are_named():
    found = [replace(one, tower=0, replica=one.rank) for one in rank_traces.cpus()]
    trace = merged(found)
    names = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"]
    assert names == ["rank 0 · replica 0 · tower 0 · host-0", "rank 1 · replica 1 · tower 0 · host-1"]
    assert Timeline(trace).crossings(STEP) == []


def test_a_trace_of_ranks_is_read_back(tmp_path):
    assert ranks.write_ranks(list(reversed(rank_traces.cpus())), tmp_path)
    trace = read(tmp_path / traces.PERFETTO)
    assert Timeline(trace).lanes() == Timeline(merged(rank_traces.cpus())).lanes()
    assert "rank 0 · tower 0".encode() in gzip.decompress((tmp_path / traces.PERFETTO).read_bytes())  # no escapes
    trace["splitnet"]["ranks"][0].pop("tower")
    traces.save(trace, tmp_path / traces.PERFETTO)
    with pytest.raises(UsageError, match="its ranks are not told"):
        read(tmp_path / traces.PERFETTO)


def test_what_a_rank_hands_over_is_plain():
    one = rank_traces.cpus()[0]
    assert pickle.loads(pickle.dumps(one)) == one
    assert ranks.RankTrace(**json.loads(json.dumps(asdict(one)))) == one


def test_nothing_of_a_rank_that_recorded_no_step(tmp_path):
    with Profile([torch.device("cpu")]) as profile:
        pass
    assert ranks.rank_trace(profile, ranks.Clock(), rank=0, tower=0, replica=0) is None
    assert not ranks.write_ranks([None, None], tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert ranks.write_ranks([None, rank_traces.cpus()[1]], tmp_path)
    assert Timeline(read(tmp_path / traces.PERFETTO)).devices == ("rank 1",)


def test_workers_sort_by_rank():
    one = rank_traces.cpus()[0]
    many = [replace(one, rank=rank, host="node.example") for rank in (0, 2, 10)]
    names = [ranks.worker(each, many) for each in many]
    assert names == ["node-example_00", "node-example_02", "node-example_10"]


# Clocks


class Meeting:
    """Two hosts, one's clock ahead, that meet with delays: what `clock_offset` sees on either."""

    def __init__(self, ahead, seed):
        chance = random.Random(seed)
        time, self.rounds = 0, ([], [])
        for _ in range(5):
            comes = [time + chance.randrange(50_000) for _ in range(2)]
            met = max(comes)
            leaves = [met + chance.randrange(200_000) for _ in range(2)]
            for rank in (0, 1):
                self.rounds[rank].append(tuple(t + ahead * rank for t in (comes[rank], leaves[rank])))
            time = max(leaves)

    def found(self, rank):
        times = iter([t for pair in self.rounds[rank] for t in pair])
        return ranks.clock_offset(lambda: None, lambda mine: self.rounds, rank, rounds=5, now=lambda: next(times))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ahead", [0, 30_000, 5_000_000, -7_000_000_000])
def test_the_clocks_offset_is_within_its_error(ahead, seed):
    """Nanoseconds in, microseconds out."""
    found = Meeting(ahead, seed).found(1)
    assert abs(found.offset - ahead / 1000) <= found.error
    assert found.error <= 250
    assert (found.offset == 0) >= (ahead == 0)
    assert (found.offset != 0) >= (abs(ahead) > 200_000)
    assert Meeting(ahead, seed).found(0) == ranks.Clock(0, 0)


@pytest.mark.parametrize("seed", range(8))
def test_the_tightest_bounds_count(seed):
    """All meetings together know more than any of them alone."""
    meeting = Meeting(5_000_000, seed)
    every, rounds = meeting.found(1), meeting.rounds
    for number in range(5):
        meeting.rounds = tuple([mine[number]] * 5 for mine in rounds)
        assert every.error <= meeting.found(1).error


# TensorBoard


@pytest.fixture
def quiet(caplog):
    yield from no_complaints.__wrapped__(caplog)


def plugin_traces(found):
    return {ranks.worker(one, found): ranks.plugin_trace(one, found) for one in found}


def test_the_distributed_view_of_cpus(quiet, tmp_path):
    overlap, wait, operations = distributed(plugin_traces(rank_traces.cpus()), tmp_path)
    share = rank_traces.SHARE
    for worker, late in [("host-0_0", 0), ("host-1_1", 50)]:
        rows = {name: row[:2] for name, row in operations[worker].items()}
        assert rows == {
            "gloo:all_gather": [1, share],
            "gloo:reduce_scatter": [1, 2 * share],
            "gloo:all_reduce": [1, rank_traces.GRADIENTS],
        }
        # computing alone, both, communication alone, neither
        assert overlap["2"][worker] == [755, 40, 580 - late, 625 + late]
        assert wait["2"][worker] == [570, 50 - late]


def test_the_distributed_view_of_gpus(quiet, tmp_path):
    overlap, wait, _ = distributed(plugin_traces(rank_traces.gpus()), tmp_path)
    for step in "234":
        assert overlap[step] == {"host_0": [2000, 1000, 1000, 5990], "host_1": [2500, 500, 1000, 5990]}
        assert wait[step] == {"host_0": [1500, 500], "host_1": [1500, 0]}


def test_gloo_beside_nccl_is_left_out(quiet, tmp_path):
    """The plugin takes one library: the loop's own numbers go by gloo even on GPUs."""
    found = rank_traces.gpus()
    for one in found:
        write = cuda_traces.Writer()
        write.id, write.at = 5000, one.trace["traceEvents"][0]["ts"]
        write.cpu("gloo:all_reduce", 9000, 9100, cuda_traces.HOST + 9, "user_annotation")
        one.trace["traceEvents"] += write.events
    _, _, operations = distributed(plugin_traces(found), tmp_path)
    assert {name for rows in operations.values() for name in rows} == {"nccl:all_gather"}


@pytest.mark.parametrize("split", [False, True])
def test_view_hands_tensorboard_a_file_of_each_rank(tmp_path, split):
    """Nothing is left to split: each has one device."""
    run = tmp_path / "run"
    run.mkdir()
    ranks.write_ranks(rank_traces.cpus(), run)
    logs(run, tmp_path / "logs", split)
    names = sorted(path.name for path in (tmp_path / "logs" / "run").iterdir())
    assert names == [f"host-{rank}_{rank}.pt.trace.json.gz" for rank in (0, 1)]


# Pictures


def test_the_page_has_a_lane_for_each_rank(cpus):
    chart = step_chart(SimpleNamespace(timeline=cpus))
    assert chart.layout["yaxis"]["ticktext"] == ["rank 0<br>tower 0", "rank 1<br>tower 1"]
    assert chart.layout["xaxis"]["range"] == [0, 2.1]
    assert "2.1 ms on 2 ranks" in chart.text
    assert "4 exchanges (arrows)" in chart.text
    assert "waiting for the others is part of it" in chart.text
    assert "wall time, on cores that they may share" in chart.text
    assert "0.020 ms apart" in chart.text
    arrows = chart.data[-1]
    assert arrows["x"][:2] == [0.5, 0.7]
    assert arrows["y"][0] < 1 / 2 < arrows["y"][1]
    exchanges = next(bars for bars in chart.data if bars["name"] == "exchange")
    assert exchanges["customdata"].count("0x") == exchanges["customdata"].count("1x") == 2


def test_the_picture_has_a_lane_for_each_rank(cpus):
    text = str(step_picture(SimpleNamespace(timeline=cpus)))
    for words in ("rank 0", "tower 0", "rank 1", "tower 1", "2.1 ms on 2 ranks", "waits for exchanges 29.0 %"):
        assert words in text


def test_perfetto_opens_the_ranks_and_lists_their_collectives():
    expand, table = perfetto.startup(merged(rank_traces.gpus()))
    assert "rank 1 · tower 1 · host" in expand["args"][0]
    assert "rank 1 · cuda:1" in expand["args"][0]
    assert "category = 'collective'" in table["args"][0]


# Real ones


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder for each number of towers; one start of two processes for both."""
    folders = {towers: tmp_path_factory.mktemp("run") for towers in (2, 1)}
    profiled_ranks.train(folders)
    return folders


@pytest.fixture(params=[2, 1], ids=["towers", "replicas"])
def trained(request, runs):
    return runs[request.param], request.param


@pytest.mark.ranks
def test_lanes_of_two_processes(trained):
    folder, towers = trained
    found = Timeline(read(folder / traces.PERFETTO))
    assert found.devices == ("rank 0", "rank 1")
    assert len(found.steps) == profiled_ranks.STEPS
    assert [rank.clock_offset for rank in found.ranks] == [0, 0]  # they are on one host
    for lane in found.lanes():
        assert lane.busy + lane.exposed + lane.input + lane.idle == pytest.approx(lane.total, abs=0.01)
        assert min(lane.busy, lane.exposed, lane.input, lane.idle) > 0
        assert lane.exposed <= lane.communication
    size, last = profiled_ranks.GATHERED, profiled_ranks.LAST
    every = {("conv2", phase, *ends): size for phase in ("forward", "backward") for ends in [(0, 1), (1, 0)]}
    every |= {("fc8", "forward", 1, 0): last, ("fc8", "backward", 0, 1): last}
    gradients = {("", "backward", rank, None): 4 * profiled_ranks.WEIGHTS for rank in (0, 1)}
    for step in found.steps:
        assert found.exchanged(step) == (every if towers == 2 else gradients)
        for op in found.crossings(step):
            assert op.duration > 0


@pytest.mark.ranks
def test_the_distributed_view_of_two_processes(trained, quiet, tmp_path):
    folder, towers = trained
    found = {path.name.removesuffix(".pt.trace.json.gz"): read(path) for path in (folder / "tensorboard").iterdir()}
    _, _, operations = distributed(found, tmp_path)
    assert sorted(operations) == ["here_0", "here_1"]
    calls = {name: row[0] for name, row in operations["here_1"].items()}
    steps = profiled_ranks.STEPS
    both = {"gloo:all_gather": 2 * steps, "gloo:reduce_scatter": 2 * steps}
    assert calls == (both if towers == 2 else {"gloo:all_reduce": steps})


@pytest.mark.ranks
@pytest.mark.slow
def test_perfetto_reads_the_ranks_without_an_error(trained):
    folder, _ = trained
    assert problems(folder / traces.PERFETTO) == "problems 0: none"

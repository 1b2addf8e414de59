"""Profiled steps of fake devices as traces: bytes are the table's, sums are the clocks' own."""

import copy
import json
from itertools import pairwise

import pytest
import torch
from layouts import small
from quick import quick

from splitnet.measure import kineto, traces
from splitnet.measure.lanes import HOST, Recording, UntiedError
from splitnet.measure.profiler import Profile
from splitnet.network.execution import Execution
from splitnet.parallel import fake
from splitnet.parallel.placement import host, place
from splitnet.training.data import load
from splitnet.training.loop import train
from splitnet.training.optimizer import make_optimizer

BATCH, STEPS = 4, 6
DEVICES = ["fake:0", "fake:1"]


def profiled(devices, steps=STEPS, link=None, profile=True, overlap=False):
    """(architecture, network, profile, losses) of a short training."""
    architecture = small("fashion")
    where = place(architecture, devices)
    fake.reset()
    if link is not None:
        fake.set_link(**link)
    data = load("fashion-mnist-small", size=architecture.size)
    net = host(architecture, where, seed=0, execution=Execution(overlap=overlap))
    optimizer = make_optimizer(net.parameters(), "adam", None)
    losses, records = [], train(net, data.train, optimizer, batch_size=BATCH, seed=0, steps=steps)
    if not profile:
        return architecture, net, None, [record.loss for record in records]
    with Profile(where.devices, steps) as found:
        for record in records:
            losses.append(record.loss)
            found.step()
    return architecture, net, found, losses


CASES = {
    "link": {},
    "slow link": {"link": {"bytes_per_second": 2e6}},
    "overlap": {"link": {"bytes_per_second": 2e7}, "overlap": True},
}


@pytest.fixture(scope="module")
def kept():
    """What the tests of this file share: each case, and its traces."""
    return {}


@pytest.fixture(params=quick(CASES, "link", "overlap"))
def case(request, kept):
    """Architecture, network, and the recording; with a slow link the devices are slower than the CPU."""
    if request.param not in kept:
        try:
            architecture, net, found, losses = profiled(DEVICES, **CASES[request.param])
        finally:
            fake.reset()
        kept[request.param] = architecture, net, Recording(found.trace, found.log), losses
    return kept[request.param]


@pytest.fixture(params=[kineto.aligned, kineto.emulated], ids=["aligned", "emulated"])
def written(request, case, kept):
    name = id(case), request.param
    if name not in kept:
        kept[name] = json.loads(json.dumps(request.param(case[2], DEVICES)))  # nothing that JSON cannot say
    return kept[name]


def on_lanes(trace, *cats):
    return [e for e in trace["traceEvents"] if e["ph"] == "X" and e["cat"] in cats and e["pid"] in (0, 1)]


def ns(event):
    """Start and end in whole nanoseconds."""
    start = round(event["ts"] * 1000)
    return start, start + round(event["dur"] * 1000)


def covered(spans):
    total, end = 0, None
    for start, stop in sorted(spans):
        total += max(0, stop - (start if end is None else max(start, end)))
        end = stop if end is None else max(end, stop)
    return total


def test_the_last_whole_steps_are_recorded(case):
    names = [step.name for step in case[2].steps]
    assert names == ["ProfilerStep#2", "ProfilerStep#3", "ProfilerStep#4"]
    for before, after in pairwise(case[2].steps):
        assert before.end == after.start
        assert before.ended <= after.begun


def test_profiling_changes_no_loss(case):
    try:
        losses = profiled(DEVICES, profile=False)[3]
    finally:
        fake.reset()
    assert case[3] == pytest.approx(losses, abs=1e-4)  # overlap adds up in another order


def test_bytes_in_the_trace_are_the_tables(case, written):
    """And the ledger's: for each row, phase and pair of towers, in every step."""
    architecture, net, _, _ = case
    expected = {(t.row, t.phase, t.source, t.target): t.bytes for t in architecture.transfers(BATCH)}
    assert {(t.row, t.phase, t.source, t.target): t.bytes // STEPS for t in net.ledger.transfers()} == expected
    for step in written["splitnet"]["steps"]:
        at, end = step["at"], step["at"] + step["length"]
        found = {}
        for e in on_lanes(written, "gpu_memcpy"):
            args = e["args"]
            if "PtoP" in e["name"] and e["pid"] == args["toDevice"] and at <= e["ts"] < end:
                place_ = (args["row"], args["phase"], args["fromDevice"], args["toDevice"])
                found[place_] = found.get(place_, 0) + args["bytes"]
        assert found == expected


def test_no_records_of_a_lane_overlap(written):
    """On each thread slices follow or contain each other: Perfetto drops what overlaps partly."""
    threads = {}
    for e in written["traceEvents"]:
        if e["ph"] == "X":
            threads.setdefault((e["pid"], e["tid"]), []).append(e)
    assert {107, 124, 125} <= {thread for pid, thread in threads if pid == 0}
    for events in threads.values():
        stack = []
        for start, end in sorted(map(ns, events), key=lambda span: (span[0], -span[1])):
            while stack and stack[-1] <= start:
                stack.pop()
            assert not stack or end <= stack[-1]
            stack.append(end)


def test_kernels_of_a_device_never_overlap(written):
    for device in (0, 1):
        kernels = sorted(ns(e) for e in on_lanes(written, "kernel") if e["pid"] == device)
        assert kernels
        assert all(a[1] <= b[0] for a, b in pairwise(kernels))


def test_lanes_add_up_to_the_clocks_own_sums(written):
    """Busy, exposed, input and idle of each device and step, to the nanosecond a record that rounding allows."""
    steps = {s["name"]: s for s in written["splitnet"]["steps"]}
    for sums in written["splitnet"]["clock"]:
        step, mine = steps[sums["step"]], []
        window = (round(step["at"] * 1000), round((step["at"] + step["length"]) * 1000))
        for e in on_lanes(written, "kernel", "gpu_memcpy"):
            start, end = ns(e)
            if e["pid"] == sums["device"] and window[0] < (start + end) / 2 < window[1]:
                mine.append((e, (start, end)))
        busy = covered(span for e, span in mine if e["cat"] == "kernel")
        both = covered(span for e, span in mine if e["cat"] == "kernel" or "PtoP" in e["name"])
        every = covered(span for _, span in mine)
        found = [busy, both - busy, every - both, window[1] - window[0] - every]
        expected = [1000 * sums[kind] for kind in ("busy", "exposed", "input", "idle")]
        assert found == pytest.approx(expected, abs=2 + len(mine))
        assert sum(expected) == pytest.approx(1000 * sums["total"], abs=4)


def test_backward_finds_its_row(case):
    rows = [row.name for row in case[0].rows()]
    for phase in ("forward", "backward"):
        assert {w.row for w in case[2].works if w.phase == phase} - {""} == set(rows)
    convolutions = [w.row for w in case[2].works if w.name == "convolution_backward" and w.step == 0]
    assert sorted(set(convolutions)) == [f"conv{i}" for i in range(1, 6)]
    assert len(convolutions) == (12 if case[1].execution.overlap else 10)  # conv3 of each tower in two parts
    assert {w.row for w in case[2].works if w.phase in ("optimizer", "data")} == {""}


def test_copies_in_front_of_a_row_are_its_own(case):
    between = [w for w in case[2].works if w.copy and HOST not in (w.source, w.target) and w.step == 1]
    assert {w.row for w in between} == {row.name for row in case[0].rows() if row.crosses}
    assert {w.phase for w in between} == {"forward", "backward"}


def test_an_arrow_for_each_exchange(case):
    events = kineto.aligned(case[2], DEVICES)["traceEvents"]
    out, into = ({e["id"]: e for e in events if e["ph"] == ph and e["cat"] == "exchange"} for ph in "sf")
    copies = [w for w in case[2].works if len(w.devices) == 2]
    assert len(out) == len(into) == len(copies) > 0
    slices = [e for e in events if e["ph"] == "X" and e["cat"] == "gpu_memcpy"]
    for ends in (out, into):
        for e in ends.values():
            assert any(
                (s["pid"], s["tid"]) == (e["pid"], e["tid"]) and ns(s)[0] <= round(1000 * e["ts"]) <= ns(s)[1]
                for s in slices
            )
    assert all(out[i]["ts"] <= into[i]["ts"] for i in out)


def test_the_trace_says_that_it_is_emulated(written):
    assert written["splitnet"]["emulated"] is True
    names = {e["args"]["name"] for e in written["traceEvents"] if e["name"] == "process_name" and e["pid"] in (0, 1)}
    assert names == {"fake:0 (emulated)", "fake:1 (emulated)"}
    assert list(written)[-1] == "traceEvents"


def test_memory_of_each_device_ends_as_it_began(case):
    """A step gives back what it takes: totals at the ends of the last steps are equal."""
    for device in (0, 1):
        totals = [[h.total for h in case[2].memory if (h.device, h.step) == (device, step)][-1] for step in (1, 2)]
        assert totals[0] == totals[1] > 0


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "recorded"), [(1, 1), (2, 1), (3, 2), (4, 3), (9, 3)])
def test_few_steps_are_made_the_most_of(steps, recorded):
    try:
        found = profiled(DEVICES, steps)[2]
    finally:
        fake.reset()
    assert found.recorded == recorded
    assert len(Recording(found.trace, found.log).steps) == recorded


class StoppedError(Exception):
    pass


def test_an_interrupt_keeps_the_whole_steps():
    x = torch.ones(8, 8, device="fake:0")
    profile = Profile([torch.device("fake:0")])

    def work():
        with profile:
            for step in range(5):
                x @ x
                if step == 3:
                    raise StoppedError
                profile.step()

    with pytest.raises(StoppedError):
        work()
    recording = Recording(profile.trace, profile.log)
    assert [step.name for step in recording.steps] == ["ProfilerStep#2"]
    assert [w.name for w in recording.works] == ["mm"]


def test_an_interrupt_in_the_first_recorded_step_leaves_nothing():
    profile = Profile([torch.device("fake:0")])

    def work():
        with profile:
            profile.step()
            profile.step()
            raise StoppedError

    with pytest.raises(StoppedError):
        work()
    assert (profile.recorded, profile.trace, profile.log) == (0, None, None)
    assert fake.log.entries is None


def test_nothing_is_noted_when_nobody_looks():
    assert fake.log.entries is None
    torch.ones(8, device="fake:0")
    assert fake.log.entries is None


def test_the_plain_cpu_has_a_trace_without_a_log():
    found = profiled(["cpu", "cpu"])[2]
    assert found.log is None
    assert any(e["name"] == "ProfilerStep#2" for e in found.trace["traceEvents"])


def test_both_ends_of_a_copy_say_how_long_they_waited(case):
    """The later device waits for nothing, the earlier for it."""
    events = [e for e in kineto.aligned(case[2], DEVICES)["traceEvents"] if "PtoP" in e["name"]]
    copies = [w for w in case[2].works if len(w.devices) == 2]
    assert len(events) == 2 * len(copies)
    for work in copies:
        mine = {e["pid"]: e["args"]["waited_us"] for e in events if e["args"]["External id"] == ident(work)}
        assert mine == {
            work.source: pytest.approx(1e6 * work.waited[0], abs=2e-3),
            work.target: pytest.approx(1e6 * work.waited[1], abs=2e-3),
        }
    assert any(abs(w.waited[0] - w.waited[1]) > 1e-6 for w in copies)


def ident(work):
    return work.operation["args"]["External id"]


def test_a_step_that_was_broken_off_is_left_out_on_the_plain_cpu():
    profile = Profile([torch.device("cpu")])

    def work():
        with profile:
            for step in range(5):
                torch.ones(8, 8) @ torch.ones(8, 8)
                if step == 4:
                    raise StoppedError
                profile.step()

    with pytest.raises(StoppedError):
        work()
    assert profile.recorded == 2
    names = {e["name"] for e in profile.trace["traceEvents"] if e["name"].startswith("ProfilerStep")}
    assert names == {"ProfilerStep#2", "ProfilerStep#3"}


def test_what_is_recorded_can_be_ended_before_its_time():
    with Profile([torch.device("fake:0")]) as profile:
        for step in range(4):
            torch.ones(8, 8, device="fake:0") @ torch.ones(8, 8, device="fake:0")
            profile.step()
            if step == 2:
                profile.finish()
    assert [step.name for step in Recording(profile.trace, profile.log).steps] == ["ProfilerStep#2"]


@pytest.mark.slow
def test_clocks_that_disagree_are_said():
    found = profiled(DEVICES)[2]
    fake.reset()
    late = [entry | {"begun": entry["begun"] + 10**9} for entry in found.log]
    with pytest.raises(UntiedError, match="clock disagree"):
        Recording(found.trace, late)


def test_devices_are_counted_from_0_and_keep_their_names():
    """Of two fake devices the second alone: it has the only lane."""
    found = profiled(["fake:1"])[2]
    fake.reset()
    perfetto, plugin = traces.both(found.trace, found.log, found.devices)
    for trace in (perfetto, plugin):
        assert trace["splitnet"]["devices"] == ["fake:1"]
        assert {sums["device"] for sums in trace["splitnet"]["clock"]} == {0}
        kernels = [e for e in trace["traceEvents"] if e.get("cat") == "kernel"]
        assert {e["pid"] for e in kernels} == {e["args"]["device"] for e in kernels} == {0}


def test_a_process_with_a_devices_number_stays_apart(case):
    """Number 1, as in a container."""
    trace = case[2].trace
    host = case[2].process
    renamed = [e | {"pid": 1} if e["pid"] == host else e for e in trace["traceEvents"]]
    alike = copy.copy(case[2])
    alike.trace, alike.process = dict(trace) | {"traceEvents": renamed}, 1
    events = kineto.aligned(alike, DEVICES)["traceEvents"]
    names = [(e["pid"], e["args"]["name"]) for e in events if e["name"] == "process_name"]
    assert sorted(names) == [(0, "fake:0 (emulated)"), (1, "fake:1 (emulated)"), (1_000_001, "host CPU, wall time")]
    assert {e["pid"] for e in events if e.get("cat") in ("cpu_op", "cuda_runtime")} == {1_000_001}

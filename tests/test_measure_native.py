"""A trace of torch.profiler's own, completed: hand-written, with known answers."""

from splitnet.measure.native import completed

STEP = {"ph": "X", "cat": "user_annotation", "pid": 4000, "tid": 4001, "dur": 100.0}


def memory(device, kind, total, ts):
    args = {"Device Type": kind, "Device Id": device, "Total Allocated": total, "Bytes": 1, "Addr": 1}
    return {"ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "pid": 4000, "tid": 4001, "ts": ts, "args": args}


TRACE = {
    "schemaVersion": 1,
    "traceEvents": [
        STEP | {"name": "ProfilerStep#3", "ts": 200.0},
        STEP | {"name": "ProfilerStep#2", "ts": 100.0},
        memory(1, 1, 3 * 2**20, 120.0),
        memory(-1, 0, 7 * 2**20, 130.0),  # the CPU's
    ],
    "traceName": "/tmp/somewhere.json",
}


def test_readers_find_steps_and_devices():
    found = completed(TRACE, ["cuda:0", "cuda:1"])
    assert found["splitnet"] == {
        "schema": 1,
        "emulated": False,
        "devices": ["cuda:0", "cuda:1"],
        "host": 4000,
        "steps": [
            {"name": "ProfilerStep#2", "at": 100.0, "length": 100.0},
            {"name": "ProfilerStep#3", "at": 200.0, "length": 100.0},
        ],
    }
    assert list(found)[-1] == "traceEvents"
    assert "traceName" not in found  # where it lay on this machine


def test_memory_becomes_a_counter_of_its_device():
    events = completed(TRACE, ["cuda:0", "cuda:1"])["traceEvents"]
    counters = [e for e in events if e["ph"] == "C"]
    assert counters == [
        {"ph": "C", "name": "allocated MiB", "pid": 1, "tid": 0, "ts": 120.0, "args": {"MiB": 3.0}},
    ]
    assert events[:4] == TRACE["traceEvents"]


def test_a_trace_without_steps_is_still_one():
    found = completed({"traceEvents": []}, [])
    assert found["splitnet"]["steps"] == []
    assert found["splitnet"]["host"] is None

"""A run's folder with two emulated devices and known figures, for tests of what shows a run.

Two steps of 1,000 us. In each, device 0 computes for 600 us and device 1 for 400 us, then device 1 hands 4,096 bytes
to device 0 (in front of conv3, forward, 100 us), and after it device 0 hands 1,024 bytes back (backward, 50 us).
"""

import gzip
import json
from pathlib import Path
from typing import Any

HOST = 900
DEVICES = ["fake:0", "fake:1"]
COMPUTE = {0: 600, 1: 400}
COPIES = [(1, 0, 4096, "forward", 700, 100), (0, 1, 1024, "backward", 800, 50)]
"""From, to, bytes, phase, start and duration in a step."""


def trace(plugin: bool = False) -> dict[str, Any]:
    """For Perfetto, or the copy for TensorBoard's plugin."""
    events: list[dict[str, Any]] = []
    for device, name in enumerate(DEVICES):
        events += [_meta(device, "process_name", f"{name} (emulated)"), _meta(device, "thread_name", "compute", 107)]
    events.append(_meta(HOST, "process_name", "host CPU"))
    for step in (0, 1):
        events += _step(step, plugin)
    steps = [{"name": f"ProfilerStep#{n}", "at": 1000.0 * n, "length": 1000.0} for n in (0, 1)]
    return {
        "schemaVersion": 1,
        "deviceProperties": [{"id": n, "name": f"{name} (emulated)"} for n, name in enumerate(DEVICES)],
        "displayTimeUnit": "ms",
        "baseTimeNanoseconds": 0,
        "splitnet": {"schema": 1, "emulated": True, "devices": DEVICES, "host": HOST, "steps": steps, "clock": []},
        "traceEvents": sorted(events, key=lambda event: (event["ts"], -event.get("dur", 0))),
    }


def run_folder(path: Path) -> Path:
    """Writes both traces into a new folder."""
    (path / "tensorboard").mkdir(parents=True)
    save(trace(), path / "trace.json.gz")
    save(trace(plugin=True), path / "tensorboard" / "splitnet.pt.trace.json.gz")
    return path


def save(what: dict[str, Any], path: Path) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        json.dump(what, file)


def _meta(pid: int, kind: str, name: str, tid: int = 0) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "ts": 0, "args": {"name": name}}


def _event(cat: str, name: str, pid: int, tid: int, ts: float, dur: float, **args: Any) -> dict[str, Any]:
    return {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": tid, "ts": ts, "dur": dur, "args": args}


def _step(step: int, plugin: bool) -> list[dict[str, Any]]:
    at = 1000.0 * step
    events = [_event("user_annotation", f"ProfilerStep#{step}", HOST, HOST, at, 999)]
    for device, busy in COMPUTE.items():
        ids = {"External id": 10 * step + device + 1, "correlation": 10 * step + device + 1}
        begun = at + 10 + 40 * device
        work = {"device": device, "stream": 107, "phase": "forward", "row": "conv2"}
        events += [
            _event("cpu_op", "aten::convolution", HOST, HOST, begun, 30, **{"External id": ids["External id"]}),
            _event("runtime" if plugin else "cuda_runtime", "fakeLaunchKernel", HOST, HOST, begun + 5, 10, **ids),
            _event("kernel", f"convolution [fake:{device}]", device, 107, at + 100, busy, **work, **ids),
        ]
        if not plugin:
            events.append(_event("gpu_user_annotation", f"ProfilerStep#{step}", device, 106, at, 1000, device=device))
            counter = {"ph": "C", "name": "allocated MiB", "pid": device, "tid": 0, "ts": at, "args": {"MiB": 100}}
            events.append(counter)
    for number, (source, target, size, phase, start, dur) in enumerate(COPIES):
        events += _copy(source, target, size, phase, at + start, dur, 10 * step + 5 + number, plugin)
    return events


def _copy(source: int, target: int, size: int, phase: str, ts: float, dur: float, n: int, plugin: bool) -> list[Any]:
    name = "Memcpy PtoP (Device -> Device)"
    both = {"External id": n, "bytes": size, "fromDevice": source, "toDevice": target, "phase": phase, "row": "conv3"}
    begun = 1000 * (ts // 1000) + 100 + 40 * (n % 10 - 5)
    launch = "runtime" if plugin else "cuda_runtime"
    return [
        _event("cpu_op", "aten::_to_copy", HOST, HOST, begun, 30, **{"External id": n}),
        _event(launch, "fakeMemcpyAsync", HOST, HOST, begun + 5, 10, **{"External id": n, "correlation": n}),
        _event("gpu_memcpy", name, source, 122, ts, dur, device=source, correlation=n, waited_us=0.0, **both),
        _event("gpu_memcpy", name, target, 123, ts, dur, device=target, waited_us=0.0, **both),
    ]

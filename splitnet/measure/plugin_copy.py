"""Traces of devices that torch.profiler records itself: completed for Perfetto, corrected for TensorBoard's plugin."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from splitnet import spans
from splitnet.measure.kineto import LOADING, SCHEMA

Event = dict[str, Any]

RUNTIMES = {"cuda_runtime", "cuda_driver"}
ON_GPU = 1
"""The device type of CUDA in a memory record."""

NCCL_THREAD = 10_000_000
"""Added to a stream's number: the thread that the plugin's copy shows NCCL's kernels on as calls."""

DTYPES = {"Float": "float", "Half": "c10::Half", "BFloat16": "c10::BFloat16", "Double": "double", "Long": "long int"}
"""NCCL's words for types, and those of a call's arguments."""


def completed(trace: Mapping[str, Any], devices: Sequence[str]) -> dict[str, Any]:
    """The trace with what splitnet's readers look for, and memory as a counter for each device."""
    events = list(trace["traceEvents"])
    steps = [e for e in events if e.get("cat") == "user_annotation" and e["name"].startswith("ProfilerStep#")]
    events += _counters(events)
    head = {key: value for key, value in trace.items() if key not in ("traceEvents", "traceName")}
    about = {
        "schema": SCHEMA,
        "emulated": False,
        "devices": list(devices),
        "host": steps[0]["pid"] if steps else None,
        "steps": [{"name": s["name"], "at": s["ts"], "length": s["dur"]} for s in sorted(steps, key=lambda s: s["ts"])],
    }
    return head | {"splitnet": about, "traceEvents": events}


def _counters(events: Sequence[Event]) -> Iterator[Event]:
    for event in events:
        args = event.get("args", {})
        if event["name"] == "[memory]" and args.get("Device Type") == ON_GPU:
            value = {"MiB": round(args["Total Allocated"] / 2**20, 3)}
            where = {"pid": args["Device Id"], "tid": 0, "ts": event["ts"]}
            yield {"ph": "C", "name": "allocated MiB", **where, "args": value}


def corrected(trace: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that torch-tb-profiler 0.4.3 reads rightly: it knows the categories of 2023 alone.

    | in the trace                    | in the copy          | else                                       |
    |---------------------------------|----------------------|--------------------------------------------|
    | cuda_runtime                    | runtime              | no device time, steps too short            |
    | fwdbwd                          | forward_backward     | backward without modules                   |
    | user_annotation                 | cpu_op               | spans and the reading of images are dropped|
    | nccl:* annotation               | at its kernel's time | the time of asking for it counts           |
    | gpu_user_annotation, counters   | -                    | a step is taken for two                    |
    """
    events = trace["traceEvents"]
    kernels = {e["args"].get("External id"): e for e in events if _is_nccl(e)}
    calls = [e for e in events if e["name"] == "record_param_comms" and e["args"].get("External id") in kernels]
    copy = [_corrected(event, kernels, calls) for event in events]
    head = {key: value for key, value in trace.items() if key != "traceEvents"}
    return head | {"traceEvents": [event for event in copy if event is not None]}


def _is_nccl(event: Event) -> bool:
    return event.get("cat") == "kernel" and "nccl" in event["name"].lower()


def _corrected(event: Event, kernels: Mapping[Any, Event], calls: Sequence[Event]) -> Event | None:
    category, name = event.get("cat"), event["name"]
    if category == "gpu_user_annotation" or (event["ph"] == "C" and name == "allocated MiB"):
        return None
    if category in RUNTIMES:
        return {**event, "cat": "runtime"}
    if category == "fwdbwd":
        return {**event, "cat": "forward_backward"}
    if category != "user_annotation" or name.startswith(("ProfilerStep#", "gloo:")):
        return event
    if name.startswith("nccl:"):
        return _at_its_kernel(event, kernels, calls)
    return {**event, "cat": "cpu_op", "name": LOADING if name == spans.DATA else name}


def _at_its_kernel(event: Event, kernels: Mapping[Any, Event], calls: Sequence[Event]) -> Event:
    """An annotation of NCCL's with the time and number of the kernel that it asked for; as it is if there is none."""
    call = next((c for c in calls if c["tid"] == event["tid"] and _meet(c, event)), None)
    if call is None:
        return event
    number = call["args"]["External id"]
    kernel = kernels[number]
    sizes = kernel["args"]
    args = {**event.get("args", {}), "External id": number}
    if "In msg nelems" in sizes:
        args.setdefault("Input Dims", [[sizes["In msg nelems"]]])
        args.setdefault("Input type", [DTYPES.get(sizes.get("dtype"), "float")])
    thread = NCCL_THREAD + int(kernel["tid"])
    return {**event, "ts": kernel["ts"], "dur": kernel["dur"], "tid": thread, "args": args}


def _meet(a: Event, b: Event) -> bool:
    return bool(a["ts"] < b["ts"] + b["dur"] and b["ts"] < a["ts"] + a["dur"])


def per_device(trace: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A one-process copy as one for each device, as if each were a rank: what the Distributed view compares.

    Exchanges become collectives of the plugin's: an all_gather forward, a reduce_scatter backward (a gather and a
    scatter have no name there). Each lasts from when the device has nothing else to do until its last copy is done.
    """
    about, events = trace["splitnet"], trace["traceEvents"]
    steps = sorted(s["at"] for s in about["steps"])
    found = {}
    for device, name in enumerate(about["devices"]):
        mine = list(_of_device(events, device, len(about["devices"])))
        mine += _collectives(mine, steps, about["host"], about["devices"])
        head = {key: value for key, value in trace.items() if key != "traceEvents"}
        world = {"backend": "gloo", "rank": device, "world_size": len(about["devices"]), "pg_count": 1, "pg_config": []}
        mine.sort(key=lambda e: (e["ts"], -e.get("dur", 0)))
        found[name.replace(":", "_")] = head | {"distributedInfo": world, "traceEvents": mine}
    return found


def _of_device(events: Sequence[Event], device: int, devices: int) -> Iterator[Event]:
    others = set(range(devices)) - {device}
    theirs = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy") and e["pid"] in others]
    launched = {e["args"]["correlation"] for e in theirs if "correlation" in e["args"]}
    for event in events:
        args = event.get("args", {})
        foreign = event["pid"] in others or args.get("Device Id", device) != device
        if not foreign and not (event.get("cat") == "runtime" and args["correlation"] in launched):
            yield event


COLLECTIVES_THREAD = 99


def _collectives(
    events: Sequence[Event], steps: Sequence[float], process: int, devices: Sequence[str]
) -> Iterator[Event]:
    groups: dict[tuple[int, str, str], list[Event]] = {}
    for event in events:
        args = event.get("args", {})
        if event.get("cat") == "gpu_memcpy" and args.get("fromDevice") is not None and args.get("toDevice") is not None:
            place = (bisect_right(steps, event["ts"] + 1e-3), args.get("phase", ""), args.get("row", ""))
            groups.setdefault(place, []).append(event)
    for number, ((_, phase, row), copies) in enumerate(groups.items()):
        begun = min(c["ts"] - c["args"].get("waited_us", 0) for c in copies)
        ended = max(c["ts"] + c["dur"] for c in copies)
        name = "gloo:all_gather" if phase == "forward" else "gloo:reduce_scatter"
        sent = [[sum(c["args"]["bytes"] for c in copies) // 4]]
        args = {"External id": 10**9 + number, "Input Dims": sent, "Input type": ["float"], "row": row}
        where = {"pid": process, "tid": COLLECTIVES_THREAD, "ts": round(begun, 3)}
        span = {"dur": round(round(ended, 3) - round(begun, 3), 3)}
        yield {"ph": "X", "cat": "user_annotation", "name": name, **where, **span, "args": args}

"""Traces of devices that torch.profiler records itself: completed with what splitnet's readers look for."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from splitnet.measure.kineto import SCHEMA

Event = dict[str, Any]

ON_GPU = 1
"""The device type of CUDA in a memory record."""


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

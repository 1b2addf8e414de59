"""Copies of a trace that torch-tb-profiler 0.4.3, which knows the traces of 2023, reads correctly.

    of a trace of today                       it reads       so the copy has
    cuda_runtime, cuda_driver                 runtime        that: else no operator has device time
    fwdbwd                                    forward_…      that: else no module finds its backward
    record_function's spans                   cpu_op         that: else they are dropped
    splitnet.data                             DataLoader     the name that it takes for the time of reading
    gpu_user_annotation                       a step         none: a step would be counted twice
    memory as a counter                       -              none: it draws its own
    nccl:* where the CPU asked for them       communication  one where each kernel ran, with the kernel's bytes
    gloo:* for a collective in an exchange    communication  one for each, from the call to where its thread goes on
    gloo:* beside NCCL                        communication  none: it wants one library
    on a CPU with gloo, what does not compute computing      an annotation, which it leaves out: spans, c10d::*, and
                                                             operations that a collective is in or that are in one
    a kernel that writes to another device    computing      a copy

Its Distributed view wants a file for each device, in which gloo's or NCCL's collectives alone are communication:
`split` makes them from one process with several devices, and borrows gloo's names for the exchanges. It knows neither
gather nor scatter: they stand there as all_gather and reduce_scatter.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from splitnet import spans
from splitnet.measure.cpu_work import Collective, collectives, not_computing
from splitnet.measure.crossing import kind_of
from splitnet.measure.kineto import LOADING
from splitnet.measure.reading import works
from splitnet.measure.timeline import Timeline
from splitnet.measure.work import COMMUNICATION, DEVICE_CATEGORIES, Work, nccl_bytes, ns, slices

Event = Mapping[str, Any]

_CATEGORIES = {"fwdbwd": "forward_backward", "cuda_runtime": "runtime", "cuda_driver": "runtime"}
_COLLECTIVES = {
    "allgather": "all_gather",
    "reducescatter": "reduce_scatter",
    "allreduce": "all_reduce",
    "broadcast": "broadcast",
    "reduce": "reduce",
}
"""By part of an NCCL kernel's name, the more special first; the plugin knows no others."""

_BORROWED = {"gather": "all_gather", "scatter": "reduce_scatter"}

_COLLECTIVE_THREADS = 10_000_000
"""Collectives are on threads of their own: what is on one thread may not overlap partly."""


def corrected(trace: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of what torch.profiler of torch 2 wrote. The trace itself stays as it is."""
    done = works(trace)
    on_cpu = not any(w.event.get("cat") in DEVICE_CATEGORIES for w in done)
    exchanged = collectives(slices(trace)) if on_cpu else []
    hidden = {id(record) for one in exchanged for record in one.records}
    if any(_collective(w.event) for w in done):
        hidden |= {id(e) for e in slices(trace) if e["name"].startswith("gloo:")}
    sending = {id(w.event): w for w in done if w.event["cat"] == "kernel" and w.target is not None}
    waiting = {id(e) for e in not_computing(slices(trace), exchanged)} if on_cpu else set()
    lasts = {id(w.event): (w.end - w.start) / 1000 for w in done if w.event["name"].startswith("gloo:")}
    copies = [
        _corrected({**e, "dur": lasts[id(e)]}, None)
        if id(e) in lasts
        else _corrected(e, sending.get(id(e)))
        if id(e) not in waiting
        else {**e, "cat": "user_annotation"}
        for e in trace["traceEvents"]
        if id(e) not in hidden
    ]
    copies += [*_nccl_annotations(done, _process(trace)), *_gloo_annotations(exchanged, trace)]
    return _with_events(trace, [copy for copy in copies if copy])


def split(trace: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """A trace for each device that left records in a corrected or emulated one, by worker: `cuda_0`, `fake_1`.

    Each is to become `<worker>.pt.trace.json.gz` in one folder. An exchange becomes a range from the device's arrival
    to the end of its last copy, with the bytes that the device sent and received; all_gather forward, reduce_scatter
    backward, since a gather and a scatter have no name there.
    """
    timeline = Timeline(trace)
    devices = sorted({_device(e) for e in trace["traceEvents"] if e.get("cat") in DEVICE_CATEGORIES})
    exchanges = _exchanges(timeline)
    found = {}
    for position, device in enumerate(devices):
        events = [*_events_of(trace, device, devices), *_annotations(exchanges.get(device, []), trace)]
        info = {"backend": "gloo", "rank": position, "world_size": len(devices), "pg_count": 1, "pg_config": []}
        worker = timeline.devices[device].replace(":", "_")
        found[worker] = _with_events({"distributedInfo": info} | dict(trace), events)  # a rank's own is the right one
    return found


def _with_events(trace: Mapping[str, Any], events: list[Event]) -> dict[str, Any]:
    """The events in order, and as the last key: the plugin appends to the file's last bracket."""
    head = {key: value for key, value in trace.items() if key != "traceEvents"}
    return head | {"traceEvents": sorted(events, key=lambda e: (e.get("ts", 0), -e.get("dur", 0)))}


def _corrected(event: Event, sends: Work | None) -> Event | None:
    cat, name = event.get("cat"), event.get("name", "")
    if sends is not None:
        crossing = {"bytes": sends.bytes or 0, "fromDevice": sends.source, "toDevice": sends.target}
        return {**event, "cat": "gpu_memcpy", "args": event["args"] | crossing}
    if cat == "gpu_user_annotation" or (cat is None and event.get("ph") in ("X", "C")):
        return None
    if cat == "user_annotation":
        if name.startswith("nccl:"):
            return None
        if name.startswith(("ProfilerStep#", "gloo:")):
            return event
        return {**event, "cat": "cpu_op", "name": LOADING if name == spans.DATA else name}
    return {**event, "cat": _CATEGORIES[cat]} if cat in _CATEGORIES else event


# NCCL


def _nccl_annotations(done: Iterable[Work], process: Any) -> Iterator[Event]:
    """One for each collective, on its first kernel: the plugin finds the others by their External id."""
    seen = set()
    for work in done:
        event = work.event
        name = _collective(event) if work.kind == COMMUNICATION else None
        identity = event["args"].get("External id")
        if name is None or identity is None or identity in seen:
            continue
        seen.add(identity)
        thread = _COLLECTIVE_THREADS + 10_000 * work.device + int(event["args"].get("stream", 0))
        size = nccl_bytes(event["args"])
        yield _annotation(f"nccl:{name}", (process, thread), (event["ts"], event["dur"]), identity, size)


def _collective(event: Event) -> str | None:
    """`all_gather` for ncclDevKernel_AllGather_RING_LL(…); None for what is no kernel of a collective."""
    called = event["name"].lower().replace("_", "")
    if event.get("cat") != "kernel" or "nccl" not in called:
        return None
    if "sendrecv" in called:  # what gather and scatter are made of
        return _BORROWED.get(event["args"].get("Collective name", ""))
    return next((name for part, name in _COLLECTIVES.items() if part in called), None)


# gloo


def _gloo_annotations(exchanged: Iterable[Collective], trace: Mapping[str, Any]) -> Iterator[Event]:
    """One for each collective in an exchange: gloo makes several of one, and begins after the others have come."""
    for identity, one in enumerate(exchanged, start=_free(trace)):
        kind = kind_of(one.call) or ""
        times = (one.start / 1000, (one.end - one.start) / 1000)
        name = f"gloo:{_BORROWED.get(kind, kind)}"
        yield _annotation(name, (_process(trace), _COLLECTIVE_THREADS), times, identity, one.bytes)


def _free(trace: Mapping[str, Any]) -> int:
    """An External id that nothing has, and none above it."""
    return 1 + max((e["args"].get("External id", 0) for e in trace["traceEvents"] if "args" in e), default=0)


def _annotation(
    name: str, place: tuple[Any, Any], span: tuple[float, float], identity: int, size: int | None, **more: str
) -> Event:
    """A collective as the plugin reads it; bytes are the shape of what went in."""
    dims = {} if size is None else {"Input Dims": [[size]], "Input type": ["unsigned char"]}
    event = {"ph": "X", "cat": "user_annotation", "name": name, "pid": place[0], "tid": place[1]}
    return event | {"ts": span[0], "dur": span[1], "args": {"External id": identity, **dims, **more}}


# One file for each device


class _Exchange(NamedTuple):
    """All that a device sent and received in front of a row in one step and phase; microseconds."""

    phase: str
    row: str
    start: float
    end: float
    bytes: int


def _events_of(trace: Mapping[str, Any], device: int, devices: Iterable[int]) -> Iterator[Event]:
    """The CPU's events and those of one device; of launches all but another device's."""
    records = [e for e in trace["traceEvents"] if e.get("cat") in DEVICE_CATEGORIES]
    launched = {e["args"].get("correlation"): _device(e) for e in records if "correlation" in e["args"]}
    others, host = set(devices) - {device}, _process(trace)
    for event in trace["traceEvents"]:
        args = event.get("args", {})
        if event.get("cat") in DEVICE_CATEGORIES:
            mine = _device(event) == device
        elif event.get("cat") == "runtime":
            mine = launched.get(args.get("correlation"), device) == device
        elif event.get("name") == "[memory]":
            mine = args.get("Device Type") == 0 or args.get("Device Id") not in others
        else:  # a process may have a device's number
            mine = event.get("pid") not in others or event.get("pid") == host
        if mine:
            yield event


def _device(event: Event) -> int:
    return int(event["args"].get("device", event["pid"]))


def _process(trace: Mapping[str, Any]) -> Any:
    """The process that was profiled; 0 if nothing tells."""
    events = [e for e in trace["traceEvents"] if e.get("cat") in ("user_annotation", "cpu_op")]
    steps = (e["pid"] for e in events if e["name"].startswith("ProfilerStep#"))
    return next(steps, events[0]["pid"] if events else 0)


def _exchanges(timeline: Timeline) -> dict[int, list[_Exchange]]:
    """Those of each device. Not of NCCL's, which have annotations already."""
    groups: defaultdict[tuple[int, str, str, str], list[Work]] = defaultdict(list)
    for step in timeline.steps:
        for work in timeline.works(step):
            if work.kind == COMMUNICATION and work.target is not None:
                groups[work.device, step, work.phase, work.row].append(work)
    found: defaultdict[int, list[_Exchange]] = defaultdict(list)
    free: dict[int, int] = {}  # when the device's last exchange was over
    for (device, step, phase, row), parts in groups.items():
        arrived = min(part.start - ns(part.event["args"].get("waited_us", 0)) for part in parts)
        # rounding may put it a nanosecond before the step or into the exchange before, and the plugin complains
        start = max(arrived, timeline.window(step, device)[0], free.get(device, 0))
        free[device] = max(part.end for part in parts)
        size = sum(part.bytes or 0 for part in parts)
        found[device].append(_Exchange(phase, row, start / 1000, free[device] / 1000, size))
    return found


def _annotations(exchanges: Iterable[_Exchange], trace: Mapping[str, Any]) -> Iterator[Event]:
    place = (_process(trace), _COLLECTIVE_THREADS)
    for identity, (phase, row, start, end, size) in enumerate(exchanges, start=_free(trace)):
        name = "gloo:reduce_scatter" if phase == "backward" else "gloo:all_gather"
        yield _annotation(name, place, (start, round(end - start, 3)), identity, size, row=row)

"""What devices did, as a trace tells it: which of it was computing, which a crossing, which input.

    communication   NCCL's kernels; copies between two devices, which belong to both; a copy through the host, or a
                    kernel that writes to another device, that was asked for in an exchange or in its backward
    input           any other copy from or to the host
    compute         any other kernel, fill or copy within a device

What a CPU did that computes itself is in `cpu_work`.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from splitnet.measure.causes import Cause, Event, Place, Thread, causes

COMPUTE, COMMUNICATION, INPUT = "compute", "communication", "input"

DEVICE_CATEGORIES = frozenset(["kernel", "gpu_memcpy", "gpu_memset"])
ON_CPU = frozenset(["cpu_op", "user_annotation"])
_LAUNCH = frozenset(["cuda_runtime", "cuda_driver", "runtime"])
# as operators write types, and as NCCL does
_TYPES = {
    8: ("double", "long int", "Double", "Long"),
    4: ("float", "int", "Float", "Int"),
    2: ("c10::Half", "c10::BFloat16", "short int", "Half", "BFloat16", "Short"),
    1: ("unsigned char", "signed char", "bool", "Byte", "Char", "Bool"),
}
_SIZES = {name: size for size, names in _TYPES.items() for name in names}


@dataclass(frozen=True, slots=True)
class Work:
    """Something that a device did. Times in whole nanoseconds of the trace; `bytes` of crossings and copies alone."""

    event: Event
    device: int
    kind: str
    phase: str
    row: str
    start: int
    end: int
    bytes: int | None = None
    source: int | None = None
    """The device read; None for the host, and where nobody tells."""
    target: int | None = None
    counted: bool = True
    """False for the second record of the same bytes: the other end of a crossing."""


def ns(microseconds: float) -> int:
    """Traces give microseconds to three decimals; whole nanoseconds add up exactly."""
    return round(1000 * microseconds)


def span(event: Event) -> tuple[int, int]:
    """Start and end in nanoseconds."""
    start = ns(event["ts"])
    return start, start + max(ns(event["dur"]), 0)


def slices(trace: Mapping[str, Any]) -> list[Event]:
    """The events that have a duration."""
    return [e for e in trace["traceEvents"] if e.get("ph") == "X"]


def is_emulated(trace: Mapping[str, Any]) -> bool:
    return bool(trace.get("splitnet", {}).get("emulated"))


def rank(trace: Mapping[str, Any]) -> int:
    """Which process of a distributed run wrote the trace."""
    return int(trace.get("distributedInfo", {}).get("rank", 0))


# Devices that left records


def on_devices(trace: Mapping[str, Any], events: Sequence[Event], records: Sequence[Event]) -> Iterable[Work]:
    """What the records of devices among a process's events stand for."""
    if is_emulated(trace):  # the writer has said it all
        reasons = [Cause(e["args"].get("phase", ""), e["args"].get("row", "")) for e in records]
    else:
        reasons = _reasons(events, records)
    devices = sorted({_device(e) for e in records})
    other = {devices[0]: devices[1], devices[1]: devices[0]} if len(devices) == 2 else {}
    several = len(devices) > 1
    copied = {id(c.operation) for e, c in zip(records, reasons, strict=True) if e["cat"] == "gpu_memcpy"}
    found = [
        _work(event, cause, other.get(_device(event)), sends=several and _sends(event, cause, copied))
        for event, cause in zip(records, reasons, strict=True)
    ]
    return _both_ends(found)


def _device(event: Event) -> int:
    return int(event["args"].get("device", event["pid"]))


def _reasons(events: Sequence[Event], records: Sequence[Event]) -> list[Cause]:
    """Why each record is there: by its launch on the CPU, or else by the spans of its device."""
    launches: dict[int, Place] = {}
    threads: defaultdict[Thread, list[Event]] = defaultdict(list)
    for event in events:
        cat = event.get("cat")
        if cat in ON_CPU:
            threads[event["pid"], event["tid"]].append(event)
        elif cat in _LAUNCH:
            launches[event["args"].get("correlation")] = ((event["pid"], event["tid"]), event["ts"])
        elif cat == "gpu_user_annotation":
            threads["device", event["pid"]].append(event)
    places: dict[int, Place] = {
        number: launches.get(event["args"].get("correlation"), (("device", _device(event)), event["ts"]))
        for number, event in enumerate(records)
    }
    found = causes(threads, places)
    return [found[number] for number in range(len(records))]


def _sends(event: Event, cause: Cause, copied: set[int]) -> bool:
    """Whether a kernel is a crossing: CUDA copies what is not contiguous to a peer by a kernel and no memcpy."""
    operation = cause.operation
    if event["cat"] != "kernel" or not cause.exchange or operation is None or operation["name"] != "aten::copy_":
        return False
    types = operation["args"].get("Input type", [])[:2]  # of what is written and what is read
    return id(operation) not in copied and len(set(types)) < 2


def _work(event: Event, cause: Cause, other: int | None, sends: bool) -> Work:
    """`other`: the one other device, if there are two."""
    device, args, name = _device(event), event["args"], event["name"]
    phase, row = args.get("phase") or cause.phase, args.get("row") or cause.row
    work = Work(event, device, COMPUTE, phase, row, *span(event))
    if event["cat"] == "kernel":
        if "nccl" in name.lower():
            before = row if cause.exchange else ""  # gradients that replicas share are in front of none
            return replace(work, kind=COMMUNICATION, row=before, bytes=nccl_bytes(args), source=device)
        if sends and cause.operation is not None:
            size = input_bytes(cause.operation["args"], first=True)
            return replace(work, kind=COMMUNICATION, bytes=size, source=device, target=other)
        return work
    if event["cat"] != "gpu_memcpy":
        return work
    work = replace(work, bytes=args.get("bytes"))
    source, target = args.get("fromDevice"), args.get("toDevice")
    if "PtoP" in name or (source is not None and target is not None and source != target):
        ends = (device, other) if source is None or target is None else (source, target)
        return replace(work, kind=COMMUNICATION, source=ends[0], target=ends[1])
    if "HtoD" not in name and "DtoH" not in name:
        return work
    into = "HtoD" in name
    if cause.exchange:  # through the host: out on one device, in on the other
        ends = (other, device) if into else (device, other)
        return replace(work, kind=COMMUNICATION, source=ends[0], target=ends[1], counted=not into)
    return replace(work, kind=INPUT, source=None if into else device, target=device if into else None)


def _both_ends(found: Sequence[Work]) -> Iterator[Work]:
    """A crossing with a record on one device alone gets one on the other too; its bytes count once."""
    known = {_end(work, work.device) for work in found if _is_direct(work)}
    for work in found:
        if not _is_direct(work):
            yield work
            continue
        at_source = work.device == work.source
        peer = work.target if at_source else work.source
        assert peer is not None
        there = _end(work, peer) in known
        yield work if at_source or not there else replace(work, counted=False)
        if not there:
            yield replace(work, device=peer, counted=False)


def _end(work: Work, device: int) -> tuple[int, int | None, int | None, int]:
    return device, work.source, work.target, work.start


def _is_direct(work: Work) -> bool:
    """From device to device, without the host between."""
    staged = "HtoD" in work.event["name"] or "DtoH" in work.event["name"]
    return work.kind == COMMUNICATION and None not in (work.source, work.target) and not staged


# Bytes


def nccl_bytes(args: Mapping[str, Any]) -> int | None:
    """What this device puts in."""
    elements, size = args.get("In msg nelems"), _SIZES.get(args.get("dtype", ""))
    return None if elements is None or size is None else elements * size


def input_bytes(args: Mapping[str, Any], first: bool = False) -> int | None:
    """Bytes of an operation's inputs, or of the first; None where the trace does not tell."""
    inputs = list(zip(args.get("Input Dims", []), args.get("Input type", []), strict=False))
    inputs = inputs[:1] if first else inputs
    if not inputs or any(kind not in _SIZES for _, kind in inputs):
        return None
    return sum(prod(shape) * _SIZES[kind] for shape, kind in inputs)

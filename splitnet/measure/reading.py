"""A trace as the work of its lanes: a lane for each device of a process, or one for each rank of several."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from splitnet.measure.cpu_work import exchanges, on_the_cpu
from splitnet.measure.work import COMMUNICATION, DEVICE_CATEGORIES, Work, on_devices, rank, slices


@dataclass(frozen=True, slots=True)
class Rank:
    """One process of a run: what it hosts, and where its events are in the trace of all."""

    rank: int
    tower: int
    replica: int
    host: str
    device: str
    processes: tuple[int, ...]
    """Of the trace; the first is the process itself, the others are its devices."""
    clock_offset: float = 0.0
    """Microseconds that its host's clock was ahead of rank 0's; already taken off its events."""
    clock_error: float = 0.0
    """How far off that may be."""


def ranks(trace: Mapping[str, Any]) -> tuple[Rank, ...]:
    """Of a trace of several processes, in the order of their lanes; none of another."""
    found = trace.get("splitnet", {}).get("ranks") or ()
    return tuple(Rank(**one | {"processes": tuple(one["processes"])}) for one in found)


def parts(trace: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The trace of each lane's process; the trace itself if it has but one."""
    found = ranks(trace)
    if not found:
        return [trace]
    lane = {process: number for number, one in enumerate(found) for process in one.processes}
    events: list[list[Any]] = [[] for _ in found]
    for event in trace["traceEvents"]:
        if event.get("pid") in lane:
            events[lane[event["pid"]]].append(event)
    return [{"traceEvents": mine} for mine in events]


def works(trace: Mapping[str, Any]) -> list[Work]:
    """Everything that the devices did, by start; `device` is the lane."""
    if ranks(trace):
        found = [work for lane, part in enumerate(parts(trace)) for work in _of_rank(part, lane)]
    else:
        events = slices(trace)
        records = [e for e in events if e.get("cat") in DEVICE_CATEGORIES]
        found = list(on_devices(trace, events, records) if records else on_the_cpu(events, rank(trace)))
    return sorted(found, key=lambda work: (work.start, work.device))


def _of_rank(part: Mapping[str, Any], lane: int) -> Iterator[Work]:
    events = slices(part)
    records = [e for e in events if e.get("cat") in DEVICE_CATEGORIES]
    if not records:
        yield from on_the_cpu(events, lane)
        return
    yield from exchanges(events, lane)  # through the host, where there is no NCCL
    for work in on_devices(part, events, records):
        ends = (None if end is None else lane for end in (work.source, work.target))
        source, target = ends
        # a copy between host and device in an exchange: what crosses is the collective's
        staged = work.kind == COMMUNICATION and work.event["cat"] == "gpu_memcpy"
        counted = work.counted and not staged
        yield replace(work, device=lane, source=source, target=None if staged else target, counted=counted)

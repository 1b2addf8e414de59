"""The traces of several ranks as one: all on one time axis, rank 0's clock, and each in processes of its own.

A rank's process is called "rank 0 · tower 0 · host" and has a track of its collectives, each from when the rank comes
to it, so that waiting for the others is part of it; arrows lead from the sender's to the reader's.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import torch

from splitnet.measure import native
from splitnet.measure.crossing import kind_of
from splitnet.measure.kineto import SCHEMA
from splitnet.measure.reading import Rank
from splitnet.measure.timeline import Timeline
from splitnet.measure.traces import names
from splitnet.measure.work import COMMUNICATION, DEVICE_CATEGORIES, Work, ns

Event = dict[str, Any]

ROOM = 1000
"""Processes of the trace that each rank has room for: itself, then its devices."""

COLLECTIVES = 900
"""First thread of a rank with its collectives."""

CATEGORY = "collective"
"""Of the slices there. Whoever adds up times leaves them out: they stand for records that are in the trace too."""

Place = tuple[bool, int]
"""Whether a device, and its number; or a process's. In a container both may have the same number."""


class Recorded(Protocol):
    """A rank's trace, and what is known of the rank."""

    @property
    def rank(self) -> int: ...
    @property
    def tower(self) -> int: ...
    @property
    def replica(self) -> int: ...
    @property
    def host(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def trace(self) -> dict[str, Any]: ...
    @property
    def clock_offset(self) -> float: ...
    @property
    def clock_error(self) -> float: ...


def merged(recorded: Sequence[Recorded]) -> dict[str, Any]:
    """One trace of all ranks, in their order."""
    base = begun(recorded)
    ranks: list[Rank] = []
    events: list[Event] = []
    for lane, one in enumerate(recorded):
        whole = native.completed(one.trace, names([torch.device(one.device)]))["traceEvents"]
        processes = _processes(whole, lane)
        clock = (one.clock_offset, one.clock_error)
        ranks.append(
            Rank(one.rank, one.tower, one.replica, one.host, one.device, tuple(sorted(processes.values())), *clock)
        )
        for event in whole:
            place = _place(event, processes)
            if place is not None and event["name"] != "process_name":
                events.append(_own_flow(moved(event, one, base), lane, len(recorded)) | {"pid": processes[place]})
        events += _process_names(ranks[-1], several=any(other.replica for other in recorded))
    about: dict[str, Any] = {
        "schema": SCHEMA,
        "emulated": False,
        "devices": [f"rank {one.rank}" for one in ranks],
        "host": ranks[0].processes[0],
        "steps": [],
        "ranks": [asdict(one) for one in ranks],
    }
    trace = {"schemaVersion": 1, "displayTimeUnit": "ms", "baseTimeNanoseconds": base, "splitnet": about}
    timeline = Timeline(trace | {"traceEvents": events})
    for name in timeline.steps:
        start, end = timeline.extent(name)
        about["steps"].append({"name": name, "at": start / 1000, "length": (end - start) / 1000})
    events += _tracks(timeline)
    return trace | {"traceEvents": sorted(events, key=lambda e: (e.get("ts", 0), -e.get("dur", 0)))}


def begun(recorded: Sequence[Recorded]) -> int:
    """When the first event was, in nanoseconds since 1970 on rank 0's clock."""
    return min(_start(one) + ns(event["ts"]) for one in recorded for event in one.trace["traceEvents"] if _timed(event))


def moved(event: Event, one: Recorded, base: int) -> Event:
    """An event at its time on rank 0's clock, in microseconds after `base`."""
    return {**event, "ts": (_start(one) + ns(event["ts"]) - base) / 1000 if _timed(event) else 0}


def _start(one: Recorded) -> int:
    """What a trace's times count from, on rank 0's clock."""
    return int(one.trace.get("baseTimeNanoseconds", 0)) - ns(one.clock_offset)


def _timed(event: Event) -> bool:
    return event["ph"] != "M" and isinstance(event.get("pid"), int)  # else it says what a process or thread is called


def _processes(events: Sequence[Event], lane: int) -> dict[Place, int]:
    """A number in the trace of all for each process and device that did anything; the process with steps is first."""
    first = next((e["pid"] for e in events if e["name"].startswith("ProfilerStep#") and not _of_device(e)), None)
    found = {(_of_device(e), e["pid"]) for e in events if e["ph"] != "M" and isinstance(e.get("pid"), int)}
    order = sorted(found, key=lambda place: (place != (False, first), place))
    return {place: ROOM * (lane + 1) + number for number, place in enumerate(order)}


def _of_device(event: Mapping[str, Any]) -> bool:
    return event.get("cat") in (*DEVICE_CATEGORIES, "gpu_user_annotation") or event["ph"] == "C"


def _place(event: Event, processes: Mapping[Place, int]) -> Place | None:
    """None for what belongs to nothing that did anything."""
    number: Any = event.get("pid")
    places = [(False, number), (True, number)] if event["ph"] == "M" else [(_of_device(event), number)]
    return next((place for place in places if place in processes), None)


def _own_flow(event: Event, lane: int, count: int) -> Event:
    """Arrows of two ranks may have the same number."""
    return {**event, "id": event["id"] * count + lane} if isinstance(event.get("id"), int) else event


def _process_names(rank: Rank, several: bool) -> Iterator[Event]:
    replica = f" · replica {rank.replica}" if several else ""
    for number, process in enumerate(rank.processes):
        what = f"tower {rank.tower} · {rank.host}" if number == 0 else rank.device
        yield _meta("process_name", process, 0, f"rank {rank.rank}{replica} · {what}")


def _meta(kind: str, process: int, thread: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "ts": 0, "args": {"name": name}}


# Collectives


def _tracks(timeline: Timeline) -> Iterator[Event]:
    """What communicates, as slices of the rank's process, and arrows between these."""
    threads: dict[int, int] = {}  # by identity of the work
    for lane, rank in enumerate(timeline.ranks):
        mine = [w for step in timeline.steps for w in timeline.works(step) if w.device == lane]
        free: list[int] = []  # when each thread is free again: what overlaps partly cannot be on one
        for work in (w for w in mine if w.kind == COMMUNICATION):
            slot = next((n for n, end in enumerate(free) if end <= work.start), len(free))
            free[slot : slot + 1] = [work.end]
            threads[id(work)] = COLLECTIVES + slot
        for slot in range(len(free)):
            yield _meta("thread_name", rank.processes[0], COLLECTIVES + slot, "collectives")
    arrows = 0
    for step in timeline.steps:
        for work in timeline.works(step):
            if id(work) in threads:
                yield _slice(work, timeline.ranks[work.device], threads[id(work)], step)
        for one in timeline.crossed(step):
            arrows += 1
            name = {"cat": "exchange", "name": one.sender.row, "id": arrows, "bp": "e"}
            # just inside both slices; the later of two clocks that differ may be read first
            leaves, arrives = one.sender.start + 2, max(one.reader.end - 2, one.sender.start + 2)
            for ph, end, time in (("s", one.sender, leaves), ("f", one.reader, arrives)):
                where = {"pid": timeline.ranks[end.device].processes[0], "tid": threads[id(end)]}
                yield {"ph": ph, "ts": time / 1000, **name, **where, "args": {}}


def _slice(work: Work, rank: Rank, thread: int, step: str) -> Event:
    kind = kind_of(work.event) or work.event["name"]
    args = {"step": step, "rank": rank.rank, "collective": kind, "phase": work.phase, "row": work.row}
    name = f"{kind} {work.row}".rstrip()
    where = {"pid": rank.processes[0], "tid": thread, "ts": work.start / 1000, "dur": (work.end - work.start) / 1000}
    return {"ph": "X", "cat": CATEGORY, "name": name, **where, "args": args | {"bytes": work.bytes}}

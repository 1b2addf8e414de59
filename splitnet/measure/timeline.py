"""A trace as intervals: what each device spent a step on, and which bytes crossed. No torch needed.

Reads what `kineto` writes for fake devices, what torch.profiler writes on CUDA, with NCCL, and on the plain CPU with
gloo (which is one device then, of the process's rank), and what `ranks` makes of the traces of several processes: each
rank is a device then, whatever it computes on.
"""

import gzip
import json
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from pathlib import Path
from statistics import median_low
from typing import Any

from splitnet.errors import UsageError
from splitnet.measure.crossing import Crossing, crossed
from splitnet.measure.kineto import SCHEMA
from splitnet.measure.reading import Rank, parts, ranks, works
from splitnet.measure.records import NewerSchemaError
from splitnet.measure.work import (
    COMMUNICATION,
    COMPUTE,
    DEVICE_CATEGORIES,
    INPUT,
    Work,
    is_emulated,
    slices,
    span,
)

Window = tuple[int, int]
Exchanged = dict[tuple[str, str, int | None, int | None], int]


@dataclass(frozen=True, slots=True)
class Lane:
    """What one device spent one step on, in microseconds: busy + exposed + input + idle = total.

    A collective lasts from when this device comes to it: that it waits for the others is communication.
    """

    device: int
    step: str
    total: float
    busy: float
    """Computing, on however many streams."""
    communication: float
    exposed: float
    """Communication during which nothing was computed."""
    input: float
    """Copies from and to the host, or a CPU's reading of images, that hid behind neither."""
    idle: float


@dataclass(frozen=True, slots=True)
class Operation:
    """Something that a device did in a step. Times in microseconds, `start` from where the first device began it."""

    device: int
    kind: str
    """ "compute", "communication" or "input"."""
    name: str
    phase: str
    row: str
    start: float
    duration: float
    bytes: int | None
    source: int | None
    """Device that a copy comes from; None for the host. A collective has a source alone: the device that puts in."""
    target: int | None


class Timeline:
    """A trace read: its devices, its steps, and what happened in them.

    A step's window is the CPU's `ProfilerStep#n`, at whose ends all devices are synchronised; of a fake device its
    own, on the clocks; of a rank its own process's. A trace without steps is one step. An operation belongs to the step
    that its middle is in; a lane has the part of it that is inside.
    """

    def __init__(self, trace: Mapping[str, Any]) -> None:
        self.emulated = is_emulated(trace)
        self.ranks = ranks(trace)
        """The processes that have a lane each; none where one process has them all."""
        self._works = works(trace)
        present = {work.device for work in self._works}
        header = trace.get("splitnet", {}).get("devices")
        if header:
            present |= set(range(len(header)))
        self._devices = tuple(sorted(present))
        on_cpu = bool(self._works) and self._works[0].event["cat"] in ("cpu_op", "user_annotation")
        kind = "cpu" if on_cpu else "cuda"
        self.devices: tuple[str, ...] = tuple(header or (f"{kind}:{i}" for i in range(max(present, default=-1) + 1)))
        """Names by device number. On CUDA those before the last that did anything are here, though they did not."""
        self._windows = _windows(trace, self._works, self.emulated)
        self.steps: tuple[str, ...] = tuple(sorted(self._windows, key=lambda step: min(self._windows[step].values())))

    def lanes(self) -> list[Lane]:
        """One for each step and device, in this order."""
        return self._lanes

    @cached_property
    def _lanes(self) -> list[Lane]:
        mine = {device: [work for work in self._works if work.device == device] for device in self._devices}
        return [
            _lane(device, step, self.window(step, device), mine[device])
            for step in self.steps
            for device in self._devices
        ]

    def operations(self, step: str) -> list[Operation]:
        """By start. What began before the step has a start below 0."""
        begun = self.extent(step)[0]
        return [_operation(work, begun) for work in self.works(step)]

    def crossings(self, step: str) -> list[Operation]:
        """What went from device to device, each once: copies, and what collectives carried from rank to rank."""
        begun = self.extent(step)[0]
        between = [_operation(one.work, begun) for one in self.crossed(step)]
        return sorted([*_copies(self.operations(step)), *between], key=lambda op: op.start)

    def exchanged(self, step: str) -> Exchanged:
        """Bytes that crossed, by (row, phase, source, target), each copy once; (…, device, None) in a collective."""
        found: defaultdict[tuple[str, str, int | None, int | None], int] = defaultdict(int)
        between = self.crossed(step)
        told = {id(work) for one in between for work in (one.sender, one.reader)}
        for work in (*self.works(step), *(one.work for one in between)):
            if work.kind == COMMUNICATION and work.counted and work.bytes is not None and id(work) not in told:
                found[work.row, work.phase, work.source, work.target] += work.bytes
        return dict(found)

    def rows(self, step: str) -> dict[tuple[str, str, int], float]:
        """Microseconds of compute by (row, phase, device): durations added up."""
        found: defaultdict[tuple[str, str, int], int] = defaultdict(int)
        for work in self.works(step):
            if work.kind == COMPUTE:
                found[work.row, work.phase, work.device] += work.end - work.start
        return {place: time / 1000 for place, time in found.items()}

    def median_step(self) -> str:
        """The step whose length is the median, the shorter of the two in the middle; "" if there is none."""
        lengths = {step: max(self._length(step, device) for device in self._devices or (0,)) for step in self.steps}
        return next((step for step in self.steps if lengths[step] == median_low(lengths.values())), "")

    def name(self, device: int | None) -> str:
        """A device's name; None is the host."""
        if device is None:
            return "host"
        return self.devices[device] if device < len(self.devices) else f"device {device}"

    def works(self, step: str) -> list[Work]:
        """What is behind the operations of a step, in nanoseconds of the trace."""
        return [work for work in self._works if self._is_in(work, step)]

    def window(self, step: str, device: int) -> Window:
        """Start and end of a step on a device, in nanoseconds of the trace."""
        windows = self._windows[step]
        return windows.get(device, windows.get(_CPU, (0, 0)))

    def extent(self, step: str) -> Window:
        """From where the first device begins a step to where the last one ends it: ranks are not at one."""
        windows = [self.window(step, device) for device in self._devices] or [(0, 0)]
        return min(start for start, _ in windows), max(end for _, end in windows)

    def crossed(self, step: str) -> list[Crossing]:
        """What collectives carried from rank to rank."""
        return crossed(self.works(step), self.ranks) if self.ranks else []

    def _length(self, step: str, device: int) -> int:
        start, end = self.window(step, device)
        return end - start

    def _is_in(self, work: Work, step: str) -> bool:
        start, end = self.window(step, work.device)
        return 2 * start <= work.start + work.end < 2 * end


def _copies(operations: Iterable[Operation]) -> Iterator[Operation]:
    """Each copy from device to device once, though both ends may have a record of it."""
    seen = set()
    for op in operations:
        if op.kind == COMMUNICATION and op.source is not None and op.target is not None:
            place = (op.source, op.target, op.row, op.phase, round(op.start, 1))
            if place not in seen:
                seen.add(place)
                yield op


_CPU = -1  # the window of a device that has none of its own


def _windows(trace: Mapping[str, Any], done: Iterable[Work], emulated: bool) -> dict[str, dict[int, Window]]:
    """By step and device."""
    found: defaultdict[str, dict[int, Window]] = defaultdict(dict)
    several = bool(ranks(trace))
    for lane, part in enumerate(parts(trace)):
        for event in slices(part):
            if event.get("cat") not in ("user_annotation", "gpu_user_annotation"):
                continue
            on_device = event["cat"] == "gpu_user_annotation"
            if not event["name"].startswith("ProfilerStep#") or (on_device and not emulated):
                continue  # on CUDA from the first kernel to the last: what the device waited for is not in it
            device = int(event["args"].get("device", event["pid"])) if on_device else lane if several else _CPU
            found[event["name"]][device] = span(event)
    ends = [(work.start, work.end) for work in done]
    if not found and ends:
        found["trace"][_CPU] = (min(start for start, _ in ends), max(end for _, end in ends))
    return dict(found)


def _lane(device: int, step: str, window: Window, mine: Iterable[Work]) -> Lane:
    inside: dict[str, list[Window]] = {COMPUTE: [], COMMUNICATION: [], INPUT: []}
    for work in mine:
        start, end = max(work.start, window[0]), min(work.end, window[1])
        if start < end:
            inside[work.kind].append((start, end))
    busy, communication = _covered(inside[COMPUTE]), _covered(inside[COMMUNICATION])
    either = _covered(inside[COMPUTE] + inside[COMMUNICATION])
    every = _covered(inside[COMPUTE] + inside[COMMUNICATION] + inside[INPUT])
    total = window[1] - window[0]
    parts = (total, busy, communication, either - busy, every - either, total - every)
    return Lane(device, step, *(part / 1000 for part in parts))


def _covered(spans: list[Window]) -> int:
    """Time in at least one of them."""
    total, reached = 0, 0
    for start, end in sorted(spans):
        total += max(0, end - max(start, reached))
        reached = max(reached, end)
    return total


def _operation(work: Work, begun: int) -> Operation:
    start, duration = (work.start - begun) / 1000, (work.end - work.start) / 1000
    ends = (work.bytes, work.source, work.target)
    return Operation(work.device, work.kind, work.event["name"], work.phase, work.row, start, duration, *ends)


def read(path: Path) -> dict[str, Any]:
    """The trace in a file, gzipped or not. UsageError that names the file if it is missing, broken or too new."""
    try:
        packed = path.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot read it ({error.strerror})") from error
    try:
        text = gzip.decompress(packed) if packed.startswith(b"\x1f\x8b") else packed
    except (EOFError, OSError, zlib.error) as error:
        raise UsageError(f"{path}: truncated or damaged: not a whole gzip file") from error
    try:
        trace = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: truncated or damaged: not JSON") from error
    wrong = _wrong(trace)
    if wrong:
        raise UsageError(f"{path}: {wrong}")
    schema = trace.get("splitnet", {"schema": SCHEMA})["schema"]
    if schema > SCHEMA:
        raise NewerSchemaError(f"{path}: schema {schema}, but this version of splitnet reads up to {SCHEMA}")
    return dict(trace)


def _wrong(trace: Any) -> str:
    """What keeps it from being a trace that can be read here; "" if nothing."""
    if not isinstance(trace, dict) or not isinstance(trace.get("traceEvents"), list):
        return "not a trace: it has no list of traceEvents"
    header = trace.get("splitnet", {"schema": SCHEMA})
    if not isinstance(header, dict) or not isinstance(header.get("schema"), int):
        return "not a trace of splitnet: its entry has no schema"
    names = header.get("devices", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return "not a trace of splitnet: its devices have no names"
    if not _are_ranks(header.get("ranks", [])):
        return "not a trace of splitnet: its ranks are not told"
    for number, event in enumerate(trace["traceEvents"]):
        if not _is_event(event):
            return f"not a trace: event {number} lacks a name, a time or a place"
    return ""


def _are_ranks(found: Any) -> bool:
    kinds = {f.name: f.type for f in fields(Rank)}
    required = {f.name for f in fields(Rank) if f.default is MISSING}
    return isinstance(found, list) and all(
        isinstance(one, dict) and required <= one.keys() <= kinds.keys() and isinstance(one["processes"], list)
        for one in found
    )


def _is_event(event: Any) -> bool:
    if not isinstance(event, dict) or "ph" not in event:
        return False
    event.setdefault("args", {})
    if event["ph"] != "X":
        named = event.get("name") != "process_name" or (isinstance(event["args"], dict) and "name" in event["args"])
        return isinstance(event.get("name"), str) and named
    times = (event.get("ts"), event.get("dur"))
    if event.get("cat") in DEVICE_CATEGORIES and not isinstance(event["args"].get("device", event.get("pid")), int):
        return False
    return (
        isinstance(event.get("name"), str)
        and isinstance(event["args"], dict)
        and {"pid", "tid"} <= event.keys()
        and all(isinstance(t, int | float) and abs(t) < 1e18 for t in times)
    )

"""Where on the CPU a device's work was asked for: the spans around that moment are its phase and its row.

Backward has no spans of its own, and on CUDA runs on threads of its own: its phase is the one that runs at that time,
and autograd's sequence number leads from a backward operation to the row of the forward operation that made it.
"""

from bisect import bisect_right
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

from splitnet import spans
from splitnet.measure.lanes import PHASES

Event = Mapping[str, Any]
Thread = Hashable
Place = tuple[Thread, float]
"""A thread, and a time in the trace's microseconds."""


@dataclass(frozen=True, slots=True)
class Cause:
    """What the CPU was at when it asked. `row` is "" outside every row; `operation`: the innermost `cpu_op`."""

    phase: str = ""
    row: str = ""
    exchange: bool = False
    """In an exchange's span, or in the backward of an operation that was."""
    operation: Event | None = None


class _Around(NamedTuple):
    """The spans and operations around a moment of a thread, the innermost ending at `end`."""

    end: float
    phase: str = ""
    row: str = ""
    crossing: str = ""
    sequence: int | None = None  # of the outermost operation that has one: inner ones may count anew
    operation: Event | None = None

    def enter(self, event: Event) -> "_Around":
        end, name = event["ts"] + event["dur"], event["name"]
        if event["cat"] != "cpu_op" or name.startswith("splitnet."):
            phase, row = PHASES.get(name, self.phase), spans.row_of(name) or self.row
            return self._replace(end=end, phase=phase, row=row, crossing=spans.exchange_of(name) or self.crossing)
        sequence = self.sequence if self.sequence is not None else event["args"].get("Sequence number")
        return self._replace(end=end, sequence=sequence, operation=event)


def causes(events: Mapping[Thread, Iterable[Event]], places: Mapping[int, Place]) -> dict[int, Cause]:
    """The cause of what was asked for at each place; `events` are each thread's spans and operations."""
    rows: dict[int, tuple[str, bool]] = {}
    moments: dict[Thread, list[tuple[float, int]]] = {thread: [] for thread in events}
    for key, (thread, time) in places.items():
        moments.setdefault(thread, []).append((time, key))
    found: dict[int, _Around] = {}
    for thread, times in moments.items():
        found |= _sweep(events.get(thread, ()), times, rows)
    phases = sorted((e["ts"], e["ts"] + e["dur"], e["name"]) for all_ in events.values() for e in all_ if _is_phase(e))
    return {key: _resolve(around, places[key][1], phases, rows) for key, around in found.items()}


def _sweep(
    events: Iterable[Event], times: list[tuple[float, int]], rows: dict[int, tuple[str, bool]]
) -> dict[int, _Around]:
    """What is around each time on one thread. Fills `rows`: (row, in its exchange?) by sequence number.

    Operations that make no node carry the number of the next node, so the last one that has a number made it.
    """
    found: dict[int, _Around] = {}
    stack = [_Around(inf)]
    waiting = sorted(times, reverse=True)
    for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        while waiting and waiting[-1][0] < event["ts"]:
            time, key = waiting.pop()
            found[key] = [around for around in stack if around.end > time][-1]
        # what ends is not always on top: a device's spans overlap where it has several streams
        stack = [around for around in stack if around.end > event["ts"]]
        around = stack[-1].enter(event)
        stack.append(around)
        number = event["args"].get("Sequence number")
        if number is not None and (around.row or around.crossing):
            rows[number] = (around.row or around.crossing, bool(around.crossing))
    for time, key in waiting:
        found[key] = [around for around in stack if around.end > time][-1]
    return found


def _resolve(
    around: _Around, time: float, phases: list[tuple[float, float, str]], rows: Mapping[int, tuple[str, bool]]
) -> Cause:
    phase = around.phase or _running(phases, time)
    row, exchange = around.row or around.crossing, bool(around.crossing)
    if not row and around.sequence is not None and phase in ("backward", ""):
        row, exchange = rows.get(around.sequence, ("", False))
    return Cause(phase, row, exchange, around.operation)


def _is_phase(event: Event) -> bool:
    return event["name"] in PHASES and event["cat"] != "gpu_user_annotation"


def _running(phases: list[tuple[float, float, str]], time: float) -> str:
    last = bisect_right(phases, (time, inf, "")) - 1
    return PHASES[phases[last][2]] if last >= 0 and time < phases[last][1] else ""

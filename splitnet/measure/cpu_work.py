"""What a process did whose CPU computes itself, and what gloo did for it. Times are wall time, on cores it may share.

    communication   a collective in an exchange, from its call until the thread that called goes on: waiting for the
                    others is part of it. Any other collective (DistributedDataParallel's, the loop's) from where
                    gloo's own thread begins it to where that thread ends it, or the phase that it was called in: no
                    phase leaves one behind, but the thread may be slow to note that it is done
    input           the spans in which images are read
    compute         `aten::` operations, the outermost, outside all of these; the joining of channels in an exchange
                    is one, as it is on a GPU

A collective (`c10d::`) and what gloo's threads do (`gloo:`) call `aten::` operations too; these only move what crosses.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from splitnet import spans
from splitnet.measure.causes import Event, Place, Thread, causes
from splitnet.measure.lanes import PHASES
from splitnet.measure.work import COMMUNICATION, COMPUTE, INPUT, ON_CPU, Work, input_bytes, ns, span


@dataclass(frozen=True, slots=True)
class Collective:
    """A call of torch.distributed in an exchange, and what gloo's threads did for it; nanoseconds."""

    call: Event
    thread: Thread
    start: int
    end: int
    records: tuple[Event, ...]

    @property
    def bytes(self) -> int | None:
        """What this process puts in; None where the trace does not tell."""
        known = [input_bytes(record["args"]) for record in self.records]
        return sum(size for size in known if size is not None) if any(size is not None for size in known) else None


def on_the_cpu(events: Sequence[Event], device: int) -> Iterator[Work]:
    """Everything, as the work of this device."""
    threads = _threads(events)
    main = next((t for t, mine in threads.items() if any(e["name"].startswith("ProfilerStep#") for e in mine)), None)
    found = collectives(events)
    carried = {id(record) for one in found for record in one.records}
    records: list[tuple[Event, Thread, str]] = []
    for thread, mine in threads.items():
        records += [(e, thread, INPUT) for e in mine if e["name"] == spans.DATA]
        records += [(e, thread, COMPUTE) for e in _outermost(mine)]
        # gloo works on a thread of its own; what it works for is on the one that waits
        records += [
            (e, thread if main is None else main, COMMUNICATION) for e in mine if is_gloo(e) and id(e) not in carried
        ]
    calls = {n: _called(e, threads, found) for n, (e, _, kind) in enumerate(records) if kind == COMMUNICATION}
    places = {n: calls.get(n) or (thread, e["ts"]) for n, (e, thread, _) in enumerate(records)}
    reasons = causes(threads, places)
    for number, (event, _, kind) in enumerate(records):
        work = Work(event, device, kind, reasons[number].phase, reasons[number].row, *span(event))
        if kind == COMMUNICATION:
            end = max(int(min(work.end, _phase_end(threads, calls[number]))), work.start)
            row = work.row if reasons[number].exchange else ""
            work = replace(work, row=row, end=end, bytes=input_bytes(event["args"]), source=device)
        yield work
    yield from exchanges(events, device)


def exchanges(events: Sequence[Event], device: int) -> Iterator[Work]:
    """The collectives in exchanges, by whatever computes beside them."""
    found = collectives(events)
    reasons = causes(_threads(events), {n: (one.thread, one.call["ts"]) for n, one in enumerate(found)})
    for number, one in enumerate(found):
        cause = reasons[number]
        yield Work(
            one.call, device, COMMUNICATION, cause.phase, cause.row, one.start, one.end, one.bytes, source=device
        )


def is_gloo(event: Event) -> bool:
    return event["cat"] == "user_annotation" and event["name"].startswith("gloo:")


def collectives(events: Sequence[Event]) -> list[Collective]:
    """Those that gloo carried in an exchange. A thread that called goes on with its next operation, or leaves."""
    threads = _threads(events)
    carried = [e for mine in threads.values() for e in mine if is_gloo(e)]
    carried.sort(key=lambda e: e["ts"])
    found = []
    for thread, mine in threads.items():
        spanned = [_ends(e) for e in mine if spans.exchange_of(e["name"])]
        outer = [e for e in _tops(mine) if any(start <= e["ts"] < end for start, end in spanned)]
        for number, call in enumerate(outer):
            if not call["name"].startswith("c10d::"):
                continue
            begun, over = _ends(call)
            leaves = max(end for start, end in spanned if start <= begun < end)
            follows = outer[number + 1]["ts"] if number + 1 < len(outer) else inf
            until = max(min(leaves, follows), over)
            mine_too = tuple(e for e in carried if begun <= e["ts"] < until and _is_for(e, call))
            if mine_too:
                found.append(Collective(call, thread, ns(begun), ns(until), mine_too))
    return found


def not_computing(events: Sequence[Event], found: Sequence[Collective]) -> Iterator[Event]:
    """Spans, and operations that a collective is in or that are in one, or in the reading of images.

    Nothing of a process without gloo, and not the spans in which images are read.
    """
    threads = _threads(events)
    if not any(is_gloo(e) for mine in threads.values() for e in mine):
        return
    for thread, mine in threads.items():
        busy = [_ends(e) for e in mine if is_gloo(e) or e["name"] == spans.DATA or e["name"].startswith("c10d::")]
        busy += [(one.start / 1000, one.end / 1000) for one in found if one.thread == thread]
        for event in mine:
            start, end = _ends(event)
            span = event["cat"] == "user_annotation" and not event["name"].startswith(("ProfilerStep#", "gloo:"))
            waits = event["cat"] == "cpu_op" and any(start < over and begun < end for begun, over in busy)
            if waits or (span and event["name"] != spans.DATA):
                yield event


def _threads(events: Sequence[Event]) -> dict[Thread, list[Event]]:
    threads: defaultdict[Thread, list[Event]] = defaultdict(list)
    for event in events:
        if event.get("cat") in ON_CPU:
            threads[event["pid"], event["tid"]].append(event)
    return dict(threads)


def _ends(event: Event) -> tuple[float, float]:
    return event["ts"], event["ts"] + event["dur"]


def _tops(events: Sequence[Event]) -> Iterator[Event]:
    """Operations and collectives of one thread that are in no other, by start."""
    end = -inf
    for event in sorted(events, key=lambda e: (e["ts"], -e["dur"])):
        counts = is_gloo(event) or (event["cat"] == "cpu_op" and event["name"].startswith(("aten::", "c10d::")))
        if counts and event["ts"] >= end:
            end = event["ts"] + event["dur"]
            yield event


def _outermost(events: Sequence[Event]) -> Iterator[Event]:
    """Operations of one thread that compute: in no other, in no collective, and not where images are read."""
    reading = [_ends(e) for e in events if e["name"] == spans.DATA]
    for event in _tops(events):
        if event["name"].startswith("aten::") and not any(start <= event["ts"] < end for start, end in reading):
            yield event


def _is_for(record: Event, call: Event) -> bool:
    """Whether gloo's record can be of this call: another collective may be on its way, of other tensors."""
    shapes = [shape for shape in record["args"].get("Input Dims", []) if shape]
    known = list(_shapes(call["args"].get("Input Dims", [])))
    return all(shape in known for shape in shapes) if known else True


def _shapes(dims: Sequence[Any]) -> Iterator[Sequence[int]]:
    """All that are anywhere in a call's dimensions: an argument may be a list of tensors."""
    for one in dims:
        if one and isinstance(one[0], list):
            yield from _shapes(one)
        elif one:
            yield one


def _phase_end(threads: Mapping[Thread, Sequence[Event]], call: Place | None) -> float:
    """When the phase ends in which a collective was called, in nanoseconds; infinity if it was in none."""
    if call is None:
        return inf
    thread, time = call
    phases = [_ends(e) for e in threads[thread] if e["name"] in PHASES]
    return min((ns(end) for start, end in phases if start <= time < end), default=inf)


def _called(event: Event, threads: Mapping[Thread, Sequence[Event]], found: Sequence[Collective]) -> Place | None:
    """Where the collective behind gloo's record was called; None if nothing tells."""
    ours = {id(one.call) for one in found}
    calls = [
        (e["ts"], thread)
        for thread, mine in threads.items()
        for e in mine
        if e["name"].startswith("c10d::") and id(e) not in ours and _is_for(event, e)
    ]
    calls.sort(key=lambda call: call[0])
    last = bisect_left(calls, event["ts"], key=lambda call: call[0]) - 1
    return (calls[last][1], calls[last][0]) if last >= 0 else None

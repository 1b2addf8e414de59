"""What fake devices did in the profiled steps: each entry of their log tied to the CPU operation that caused it.

`torch.profiler` sees the CPU alone. The devices' log says what each of them did and when; both use the same clock,
so the innermost CPU operation around an entry is its cause, and the spans around that are its phase and its row.
Backward has no spans of its own: autograd's sequence numbers lead back to the row of the forward operation.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from splitnet import spans

HOST = -1
"""Where a copy comes from or goes to that is no device."""

Event = Mapping[str, Any]

PHASES = {spans.DATA: "data", spans.FORWARD: "forward", spans.BACKWARD: "backward", spans.OPTIMIZER: "optimizer"}


@dataclass(frozen=True, slots=True)
class Step:
    """A profiled step: its span on the CPU in microseconds of the trace, and on the devices' clocks in seconds."""

    name: str
    begun: float
    ended: float
    start: float
    end: float
    spent: tuple[Mapping[str, float], ...]
    """What each device's clock says its seconds of this step went to."""


@dataclass(frozen=True, slots=True)
class Work:
    """A kernel or a copy, and what caused it. CPU times in microseconds of the trace, clocks in seconds."""

    step: int
    name: str
    begun: float
    ended: float
    start: float
    end: float
    source: int
    """The device that computes or is read, HOST for the host."""
    target: int
    """The device written to: `source` itself for a kernel."""
    bytes: int
    """What a copy carries; 0 for a kernel."""
    waited: tuple[float, float]
    """Seconds that source and target had nothing to do before a copy."""
    operation: Event
    """The CPU operation that it stands for."""
    phase: str
    row: str
    beside: bool = False
    """Whether a copy runs beside the device's other work."""

    @property
    def copy(self) -> bool:
        return self.source != self.target

    @property
    def devices(self) -> tuple[int, ...]:
        """Whose lanes it is on."""
        return tuple(d for d in dict.fromkeys((self.source, self.target)) if d != HOST)


@dataclass(frozen=True, slots=True)
class Held:
    """Memory of a device after it changed. `at` in microseconds of the trace, `clock` in seconds."""

    step: int
    device: int
    address: int
    bytes: int
    total: int
    at: float
    clock: float


class UntiedError(RuntimeError):
    """An entry of the log has no operation around it: the machine's clock was set meanwhile."""


class Recording:
    """A trace and a log, read. Both as `profiler.Profile` left them.

    `devices`: those of the run, by their indices; in what is written they are counted from 0. None is all.
    """

    def __init__(
        self, trace: Mapping[str, Any], log: Sequence[Mapping[str, Any]], devices: Sequence[int] | None = None
    ) -> None:
        self.trace = trace
        spent = next((len(entry["spent"]) for entry in log if entry["kind"] == "boundary"), 0)
        self._places = {index: place for place, index in enumerate(range(spent) if devices is None else devices)}
        self._places[HOST] = HOST
        self._zero = trace["baseTimeNanoseconds"]
        annotations = [e for e in trace["traceEvents"] if e.get("cat") == "user_annotation"]
        named = sorted((e for e in annotations if e["name"].startswith("ProfilerStep#")), key=lambda e: e["ts"])
        self.process, self.thread = named[0]["pid"], named[0]["tid"]
        self.steps = list(self._steps(named, [entry for entry in log if entry["kind"] == "boundary"]))
        host = (e for e in trace["traceEvents"] if e.get("cat") in ("cpu_op", "user_annotation"))
        mine = (e for e in host if e["ph"] == "X" and e["tid"] == self.thread and e["name"] != "PythonSubclass")
        self.host = sorted(mine, key=lambda e: (e["ts"], -e["dur"]))
        chunks = list(_between_boundaries(log))[: len(self.steps)]
        self.works = list(self._works(chunks))
        self.memory = [self._held(n, e) for n, entries in enumerate(chunks) for e in entries if _changes_memory(e)]

    @property
    def devices(self) -> int:
        return len(self.steps[0].spent) if self.steps else 0

    def _us(self, nanoseconds: int) -> float:
        return (nanoseconds - self._zero) / 1000

    def _steps(self, named: Sequence[Event], boundaries: Sequence[Mapping[str, Any]]) -> Iterator[Step]:
        for event, (before, after) in zip(named, pairwise(boundaries), strict=False):  # the last may be broken off
            pairs = [(before["spent"][i], after["spent"][i]) for i in self._places if i != HOST]
            spent = tuple({kind: b[kind] - a[kind] for kind in a} for a, b in pairs)
            end = event["ts"] + event["dur"]
            yield Step(event["name"], event["ts"], end, before["start"], after["start"], spent)

    def _works(self, chunks: Sequence[Sequence[Mapping[str, Any]]]) -> Iterator[Work]:
        forward = _rows_by_sequence(self.host)
        entries = [(n, e) for n, entries in enumerate(chunks) for e in entries if e["kind"] in ("kernel", "copy")]
        times = [self._us(entry["begun"]) for _, entry in entries]
        for (step, entry), around in zip(entries, _around(self.host, times), strict=True):
            operation = next((e for e in reversed(around) if e["cat"] == "cpu_op"), None)
            if operation is None:
                raise UntiedError("the devices' log and the profiler's clock disagree")
            phase = next((PHASES[e["name"]] for e in around if e["name"] in PHASES), "")
            copy = entry["kind"] == "copy"
            yield Work(
                step=step,
                name="copy" if copy else entry["name"],
                begun=max(self._us(entry["begun"]), operation["ts"]),
                ended=min(self._us(entry["ended"]), operation["ts"] + operation["dur"]),
                start=entry["start"],
                end=entry["end"],
                source=self._places[entry["source" if copy else "device"]],
                target=self._places[entry["target" if copy else "device"]],
                bytes=entry["bytes"] if copy else 0,
                waited=tuple(entry["waited"]) if copy else (0.0, 0.0),
                beside=copy and entry["beside"],
                operation=operation,
                phase=phase,
                row=_row(around) or (_forward_row(around, forward) if phase == "backward" else ""),
            )

    def _held(self, step: int, entry: Mapping[str, Any]) -> Held:
        at, clock = self._us(entry["begun"]), entry["start"]
        return Held(step, self._places[entry["device"]], entry["address"], entry["bytes"], entry["total"], at, clock)


def _between_boundaries(log: Iterable[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    chunk: list[Mapping[str, Any]] | None = None
    for entry in log:
        if entry["kind"] == "boundary":
            if chunk is not None:
                yield chunk
            chunk = []
        elif chunk is not None:
            chunk.append(entry)


def _changes_memory(entry: Mapping[str, Any]) -> bool:
    return entry["kind"] == "memory" and entry["bytes"] != 0


def _around(host: Sequence[Event], times: Sequence[float]) -> Iterator[list[Event]]:
    """For each of `times`, in order: the events that contain it, the outermost first."""
    stack: list[Event] = []
    i = 0
    for time in times:
        while i < len(host) and host[i]["ts"] <= time:
            begun = host[i]["ts"]
            while stack and stack[-1]["ts"] + stack[-1]["dur"] <= begun:
                stack.pop()
            stack.append(host[i])
            i += 1
        while stack and stack[-1]["ts"] + stack[-1]["dur"] <= time:
            stack.pop()
        yield list(stack)


def _row(around: Iterable[Event]) -> str | None:
    return next((row for e in around if (row := spans.row_of(e["name"])) is not None), None)


def _sequence(event: Event) -> int:
    number = event.get("args", {}).get("Sequence number", -1)
    return number if isinstance(number, int) else -1


def _forward_row(around: Iterable[Event], forward: Mapping[int, str]) -> str:
    return next((forward[number] for number in map(_sequence, around) if number in forward), "")


def _rows_by_sequence(host: Sequence[Event]) -> dict[int, str]:
    """The row whose forward pass made the autograd node of each sequence number.

    An operation that makes no node carries the number of the next one: the last to carry it has made the node.
    """
    numbered = [event for event in host if _sequence(event) >= 0]
    found: dict[int, str] = {}
    for event, around in zip(numbered, _around(host, [e["ts"] for e in numbered]), strict=True):
        if any(e["name"] == spans.FORWARD for e in around):  # backward carries the numbers again
            found[_sequence(event)] = _row(around) or ""
    return found

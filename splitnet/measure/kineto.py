"""Writing a recording as a Kineto trace: one writer, two time bases, because the two viewers need different ones.

    aligned    the CPU in wall time; each step's lanes start with the step and run on the devices' clocks.
               For Perfetto: both truths side by side.
    emulated   steps back to back on the devices' clocks, the CPU squeezed into them.
               For TensorBoard's plugin, which divides what devices did by the CPU's steps.

A device is a process of the trace, named emulated. Perfetto drops a slice that overlaps another one of its thread
partly, so each direction of each link has a thread, and both ends of a slice are rounded alike.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from splitnet import spans
from splitnet.measure.lanes import HOST, Recording, Step, Work

SCHEMA = 1
"""Version of the trace's "splitnet" entry."""

PHASES, COMPUTE, COPIES = 106, 107, 120
"""Threads of a device; a thread whose number equals its process's would be called its main thread."""

CONTAINED = 1_000_000
"""Added to the number of a process that a device has too."""

Event = dict[str, Any]


def aligned(recording: Recording, devices: Sequence[str]) -> dict[str, Any]:
    """The trace for Perfetto; `devices` are their names, device 0 first."""
    return _Aligned(recording, devices).written()


def emulated(recording: Recording, devices: Sequence[str]) -> dict[str, Any]:
    """The trace for torch-tb-profiler 0.4.3, in the categories that it knows."""
    return _Emulated(recording, devices).written()


class _Writer:
    """What both have in common."""

    launch, host_name = "cuda_runtime", "host CPU, wall time"

    def __init__(self, recording: Recording, devices: Sequence[str]) -> None:
        self.recording, self.names = recording, devices
        # in a container the process may be number 1, which is a device's here
        self.process = recording.process + (CONTAINED if recording.process < len(devices) else 0)
        self.events: list[Event] = []
        self.at: list[float] = []  # where each step begins on the page
        at = 0.0
        for step in recording.steps:
            self.at.append(at)
            at += self.length(step)
        self.begun = [step.begun for step in recording.steps]

    def length(self, step: Step) -> float:
        """Microseconds that the step takes on the page."""
        raise NotImplementedError

    def on_host(self, time: float, step: int) -> float:
        """Where a time of the CPU is on the page."""
        raise NotImplementedError

    def on_clock(self, seconds: float, step: int) -> float:
        return self.at[step] + 1e6 * (seconds - self.recording.steps[step].start)

    def written(self) -> dict[str, Any]:
        self.name_devices()
        for number, work in enumerate(self.recording.works, start=1):
            self.add_launch(work, number)
            for device in work.devices:
                self.add_work(work, number, device)
        self.add_phases()
        self.add_memory()
        self.add_host()
        steps = [
            {"name": s.name, "at": round(at, 3), "length": round(1e6 * (s.end - s.start), 3)}
            for s, at in zip(self.recording.steps, self.at, strict=True)
        ]
        return {
            "schemaVersion": 1,
            "deviceProperties": [{"id": i, "name": f"{name} (emulated)"} for i, name in enumerate(self.names)],
            "displayTimeUnit": "ms",
            "baseTimeNanoseconds": self.recording.trace["baseTimeNanoseconds"],
            "splitnet": {
                "schema": SCHEMA,
                "emulated": True,
                "devices": list(self.names),
                "host": self.process,
                "steps": steps,
                "clock": list(self.sums()),
            },
            # the last key: the plugin appends to the file's last bracket
            "traceEvents": sorted(self.events, key=lambda e: (e["ts"], -e.get("dur", 0))),
        }

    def sums(self) -> Iterator[dict[str, Any]]:
        """What the devices' clocks say, in microseconds."""
        for step in self.recording.steps:
            for device, spent in enumerate(step.spent):
                if device < len(self.names):
                    micro = {kind: round(1e6 * seconds, 3) for kind, seconds in spent.items()}
                    yield {
                        "device": device,
                        "step": step.name,
                        "total": round(1e6 * (step.end - step.start), 3),
                    } | micro

    def add(self, cat: str, name: str, process: int, thread: int, span: tuple[float, float], **args: Any) -> None:
        start, end = round(span[0], 3), round(span[1], 3)  # rounded apart, ts and dur would overlap by a nanosecond
        self.events.append(
            {"ph": "X", "cat": cat, "name": name, "pid": process, "tid": thread, "ts": start}
            | {"dur": round(end - start, 3), "args": args}
        )

    def say(self, what: str, process: int, thread: int, **args: Any) -> None:
        self.events.append({"ph": "M", "name": what, "pid": process, "tid": thread, "ts": 0, "args": args})

    def name_devices(self) -> None:
        for device, name in enumerate(self.names):
            self.say("process_name", device, 0, name=f"{name} (emulated)")
            self.say("process_sort_index", device, 0, sort_index=device)
            self.say("thread_name", device, PHASES, name="phases")
            self.say("thread_name", device, COMPUTE, name="compute")
            for peer in (HOST, *range(len(self.names))):
                if peer != device:
                    other = "host" if peer == HOST else self.names[peer]
                    self.say("thread_name", device, _copies(peer, incoming=False), name=f"copies to {other}")
                    self.say("thread_name", device, _copies(peer, incoming=True), name=f"copies from {other}")
        self.say("process_name", self.process, 0, name=self.host_name)

    def add_launch(self, work: Work, number: int) -> None:
        """The moment on the CPU that asked for the work: by its number viewers find one from the other."""
        name = "fakeMemcpyAsync" if work.copy else "fakeLaunchKernel"
        span = (self.on_host(work.begun, work.step), self.on_host(work.ended, work.step))
        where = (self.process, self.recording.thread)
        self.add(self.launch, name, *where, span, **self.identity(work, number))

    def identity(self, work: Work, number: int) -> dict[str, Any]:
        return {"External id": work.operation["args"]["External id"], "correlation": number}

    def kernel_name(self, work: Work) -> str:
        return work.name

    def add_work(self, work: Work, number: int, device: int) -> None:
        span = (self.on_clock(work.start, work.step), self.on_clock(work.end, work.step))
        args = {"device": device} | self.identity(work, number) | {"phase": work.phase, "row": work.row}
        if not work.copy:
            self.add("kernel", self.kernel_name(work), device, COMPUTE, span, **args, stream=COMPUTE)
            return
        if device != work.devices[0]:
            del args["correlation"]  # what shares one is added up
        incoming = device == work.target
        thread = _copies(work.source if incoming else work.target, incoming)
        kind = "HtoD (Host" if work.source == HOST else "DtoH (Device" if work.target == HOST else "PtoP (Device"
        name = f"Memcpy {kind} -> {'Host' if work.target == HOST else 'Device'})"
        ends = {"fromDevice": _or_none(work.source), "toDevice": _or_none(work.target)}
        waited = round(1e6 * work.waited[incoming], 3)
        self.add(
            "gpu_memcpy", name, device, thread, span, **args, stream=thread, bytes=work.bytes, **ends, waited_us=waited
        )

    def add_phases(self) -> None:
        """Phases, and in them the rows, as runs of work that follow each other on a device; not what runs beside it."""
        for device in range(len(self.names)):
            inside = (w for w in self.recording.works if device in w.devices and not w.beside)
            mine = sorted(inside, key=lambda w: (w.step, w.start))
            for (step, phase), run in groupby(mine, key=lambda w: (w.step, w.phase)):
                works = list(run)
                if phase:
                    self.add_run(f"splitnet.{phase}", device, step, works)
                for row, part in groupby(works, key=lambda w: w.row):
                    if row:
                        self.add_run(spans.row(row), device, step, list(part))

    def add_run(self, name: str, device: int, step: int, works: Sequence[Work]) -> None:
        span = (min(w.start for w in works), max(w.end for w in works))
        on_page = (self.on_clock(span[0], step), self.on_clock(span[1], step))
        self.add("gpu_user_annotation", name, device, PHASES, on_page, device=device)

    def add_memory(self) -> None:
        raise NotImplementedError

    def add_host(self) -> None:
        """The CPU's events but for those inside a launch: what they did is the kernel itself."""
        process, thread = self.recording.process, self.recording.thread
        launches = [(w.begun, w.ended) for w in self.recording.works]
        starts = [begun for begun, _ in launches]
        last = self.recording.steps[-1].ended
        for event in self.recording.trace["traceEvents"]:
            if event["ph"] == "M" and event["pid"] == process and event["name"] != "process_name":
                self.events.append({**event, "ts": 0, "pid": self.process})
            if event["ph"] == "M" or event.get("cat") in (None, "Trace") or event["name"] == "PythonSubclass":
                continue
            if not self.begun[0] <= event["ts"] <= last:
                continue
            launch = bisect_right(starts, event["ts"]) - 1
            if event["tid"] == thread and launch >= 0 and event["ts"] < launches[launch][1]:
                continue
            self.events.append(self.host_event(event))

    def host_event(self, event: Mapping[str, Any]) -> Event:
        step = max(bisect_right(self.begun, event["ts"]) - 1, 0)
        start = round(self.on_host(event["ts"], step), 3)
        moved = {**event, "ts": start, "pid": self.process if event["pid"] == self.recording.process else event["pid"]}
        if "dur" in event:
            moved["dur"] = round(round(self.on_host(event["ts"] + event["dur"], step), 3) - start, 3)
        return moved


class _Aligned(_Writer):
    def length(self, step: Step) -> float:
        return max(step.ended - step.begun, 1e6 * (step.end - step.start)) + 1

    def on_host(self, time: float, step: int) -> float:
        return self.at[step] + time - self.recording.steps[step].begun

    def add_work(self, work: Work, number: int, device: int) -> None:
        super().add_work(work, number, device)
        if len(work.devices) == 2 and device == work.target:
            arrow = {"cat": "exchange", "name": work.row or "copy", "id": number, "bp": "e"}
            leaves, arrives = (self.on_clock(t, work.step) for t in (work.start, work.end))
            out, into = _copies(work.target, incoming=False), _copies(work.source, incoming=True)
            # just inside both slices
            self.events.append({**arrow, "ph": "s", "pid": work.source, "tid": out, "ts": round(leaves + 0.002, 3)})
            self.events.append({**arrow, "ph": "f", "pid": work.target, "tid": into, "ts": round(arrives - 0.002, 3)})

    def add_phases(self) -> None:
        for number, step in enumerate(self.recording.steps):
            for device in range(len(self.names)):
                span = (self.on_clock(step.start, number), self.on_clock(step.end, number))
                self.add("gpu_user_annotation", step.name, device, PHASES, span, device=device)
        super().add_phases()

    def add_memory(self) -> None:
        for held in self.recording.memory:
            at = round(self.on_clock(held.clock, held.step), 3)
            args = {"MiB": round(held.total / 2**20, 3)}
            self.events.append(
                {"ph": "C", "name": "allocated MiB", "pid": held.device, "tid": 0, "ts": at, "args": args}
            )


class _Emulated(_Writer):
    launch, host_name = "runtime", "host CPU, squeezed into the emulated step"

    def length(self, step: Step) -> float:
        return 1e6 * (step.end - step.start)

    def on_host(self, time: float, step: int) -> float:
        known = self.recording.steps[step]
        within = min(max(time - known.begun, 0), known.ended - known.begun)
        # a microsecond between steps: where they touch, the plugin takes them for one another
        return self.at[step] + within * (self.length(known) - 1) / (known.ended - known.begun)

    def kernel_name(self, work: Work) -> str:
        return f"{work.name} [{self.names[work.source]}]"  # the plugin's table mixes devices

    def add_run(self, name: str, device: int, step: int, works: Sequence[Work]) -> None:
        """None: the plugin has no use for a device's annotations, and takes one of a step for another step."""

    def add_memory(self) -> None:
        where = {"pid": self.process, "tid": self.recording.thread}
        for held in self.recording.memory:
            totals = {"Total Allocated": held.total, "Total Reserved": held.total}
            args = {"Device Type": 1, "Device Id": held.device, "Addr": held.address, "Bytes": held.bytes} | totals
            at = round(self.on_host(held.at, held.step), 3)
            kind = {"ph": "i", "s": "t", "cat": "cpu_instant_event", "name": "[memory]"}
            self.events.append(kind | where | {"ts": at, "args": args})

    def host_event(self, event: Mapping[str, Any]) -> Event:
        moved = super().host_event(event)
        if event["cat"] == "fwdbwd":
            moved["cat"] = "forward_backward"
        elif event["cat"] == "user_annotation" and not event["name"].startswith("ProfilerStep#"):
            moved["cat"] = "cpu_op"  # else it is dropped
            if event["name"] == spans.DATA:
                moved["name"] = LOADING
        return moved


LOADING = f"enumerate(DataLoader)#{spans.DATA}.__next__"
"""What the plugin takes for the time of reading images."""


def _copies(peer: int, incoming: bool) -> int:
    """The thread of a device's copies to or from a peer."""
    return COPIES + 2 * (peer + 1) + incoming


def _or_none(place: int) -> int | None:
    return None if place == HOST else place

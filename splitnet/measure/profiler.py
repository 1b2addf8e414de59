"""A few training steps under torch.profiler, and beside it what devices without a GPU's records tell themselves."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch.profiler import ProfilerAction, ProfilerActivity, profile

from splitnet.measure.meter import counters, synchronize

WAIT, WARM_UP, ACTIVE = 1, 1, 3
"""Steps that are let pass, that only warm the profiler, and that it records."""


class Profile:
    """Records the active steps of a training; call `step` between two of them.

        with Profile(devices) as profiled:
            for record in train(…):
                profiled.step()

    `trace` is then what torch.profiler wrote, and `log` what the devices noted: None for those that torch.profiler
    records itself. Both stay None if the steps ended before the first active one was over.
    """

    def __init__(self, devices: Sequence[torch.device], steps: int | None = None) -> None:
        """`steps`: how many there will be, if that is known; few are made the most of."""
        self.devices = tuple(dict.fromkeys(devices))
        self.trace: dict[str, Any] | None = None
        self.log: list[dict[str, Any]] | None = None
        active = ACTIVE if steps is None else max(min(ACTIVE, steps - 1), 1)
        self._first = WAIT + WARM_UP if steps is None else max(min(WAIT + WARM_UP, steps - active), 0)
        self._end = self._first + active
        self._done = 0
        logs = [getattr(counters(device), "log", None) for device in self.devices]
        self._notes = logs[0] if None not in logs else None  # lanes of some devices would be half the truth
        # before the first profile of a process: without a GPU the library complains on stderr
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        on_gpu = any(device.type == "cuda" for device in self.devices)
        self._profile = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])],
            schedule=self._action,
            on_trace_ready=self._take,
            record_shapes=True,
            profile_memory=on_gpu,  # fake devices note their own
        )

    def __enter__(self) -> Self:
        synchronize(self.devices)
        self._begin()
        self._profile.start()
        return self

    def step(self) -> None:
        """A step is over."""
        if self._done >= self._end:
            return
        self._done += 1
        synchronize(self.devices)
        self._boundary()
        if self._done == self._end:
            self._profile.stop()
            return
        self._begin()
        self._profile.step()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.finish()

    def finish(self) -> None:
        """Record no more; a step that was broken off is left out."""
        if self._done < self._end:
            self._end = self._done
            self._profile.stop()

    @property
    def recording(self) -> bool:
        """Whether the step under way is one of those that are kept."""
        return self._first <= self._done < self._end

    @property
    def recorded(self) -> int:
        """Whole steps that were recorded."""
        return max(min(self._done, self._end) - self._first, 0)

    def _action(self, step: int) -> ProfilerAction:
        if self._first <= step < self._end:
            return ProfilerAction.RECORD if step < self._end - 1 else ProfilerAction.RECORD_AND_SAVE
        return ProfilerAction.WARMUP if 0 <= self._first - step <= WARM_UP else ProfilerAction.NONE

    def _begin(self) -> None:
        if self._notes is not None and self._done == self._first:
            self._notes.start()
            self._notes.boundary()

    def _boundary(self) -> None:
        if self._notes is not None and self._done > self._first:
            self._notes.boundary()

    def _take(self, finished: profile) -> None:
        log = None if self._notes is None else self._notes.stop()
        if not self.recorded:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            finished.export_chrome_trace(str(path))
            self.trace, self.log = json.loads(path.read_text(encoding="utf-8")), log
        steps = (e for e in self.trace["traceEvents"] if e.get("cat") == "user_annotation" and _is_step(e))
        whole = [e["name"] for e in sorted(steps, key=lambda e: e["ts"])][: self.recorded]
        events = self.trace["traceEvents"]
        self.trace["traceEvents"] = [e for e in events if not _is_step(e) or e["name"] in whole]


def _is_step(event: dict[str, Any]) -> bool:
    return event["name"].startswith("ProfilerStep#")

"""The files that a profile becomes: one trace for Perfetto, one for TensorBoard's plugin."""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from splitnet.measure import kineto, native
from splitnet.measure.lanes import Recording
from splitnet.measure.plugin_copy import corrected
from splitnet.measure.profiler import Profile

PERFETTO = "trace.json.gz"
PLUGIN = "tensorboard/splitnet.pt.trace.json.gz"
"""Where in a run's folder they are. The plugin looks for names that end so."""


def write(profile: Profile, folder: Path) -> bool:
    """Both traces into a run's folder; False, and none, where no step was recorded whole."""
    if profile.trace is None:
        return False
    perfetto, plugin = both(profile.trace, profile.log, profile.devices)
    save(perfetto, folder / PERFETTO)
    save(plugin, folder / PLUGIN)
    return True


def both(
    trace: Mapping[str, Any], log: Sequence[Mapping[str, Any]] | None, devices: Sequence[torch.device]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The trace for Perfetto, and that for the plugin."""
    if log is not None:
        used = sorted(devices, key=lambda device: device.index)
        recording = Recording(trace, log, [device.index for device in used])
        return kineto.aligned(recording, list(map(str, used))), kineto.emulated(recording, list(map(str, used)))
    whole = native.completed(trace, names(devices))
    return whole, corrected(whole)


def names(devices: Sequence[torch.device]) -> list[str]:
    """By index, as torch.profiler counts them: cuda:1 alone is preceded by cuda:0. The plain CPU has no lane."""
    counted = [device for device in devices if device.type != "cpu"]
    most = max((device.index or 0 for device in counted), default=-1)
    return [f"{counted[0].type}:{index}" for index in range(most + 1)]


def save(trace: Mapping[str, Any], path: Path) -> None:
    """Write a trace in one piece, compressed."""
    path.parent.mkdir(exist_ok=True)
    aside = path.with_name(f".{path.name}.aside")
    with gzip.open(aside, "wt", encoding="utf-8") as file:
        # as they are: Perfetto does not undo JSON's escapes
        json.dump(trace, file, separators=(",", ":"), ensure_ascii=False)
    aside.replace(path)

"""The traces of several processes: what each rank hands to rank 0, and the files that rank 0 makes of them.

on every rank   clock = clock_offset(meet, share, rank)
                mine = rank_trace(profile, clock, rank=rank, tower=tower, replica=replica)
on rank 0       write_ranks(what every rank handed over, folder)
"""

import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from splitnet.measure import native, traces
from splitnet.measure.plugin_copy import corrected
from splitnet.measure.profiler import Profile
from splitnet.measure.rank_writer import begun, merged, moved

ROUNDS = 20
"""Meetings from which clocks are compared."""


@dataclass(frozen=True, slots=True)
class Clock:
    """How far this host's clock is ahead of rank 0's, and how far off that may be, in microseconds."""

    offset: float = 0.0
    error: float = 0.0


@dataclass(frozen=True, slots=True)
class RankTrace:
    """What a rank hands over. Plain: it can be pickled, and written as JSON."""

    rank: int
    tower: int
    replica: int
    host: str
    pid: int
    device: str
    trace: dict[str, Any]
    """As torch.profiler wrote it."""
    clock_offset: float = 0.0
    """Microseconds that this host's clock is ahead of rank 0's."""
    clock_error: float = 0.0


def clock_offset(
    meet: Callable[[], object],
    share: Callable[[object], Sequence[Any]],
    rank: int,
    rounds: int = ROUNDS,
    now: Callable[[], int] = time.time_ns,
) -> Clock:
    """Compare this host's clock with rank 0's; all ranks call it together. `now` is the profiler's own clock.

    `meet` returns when every rank has called it; `share` gives every rank's object to every rank. Nobody leaves a
    meeting before the last has come, so each one bounds the offset from both sides, and the tightest bounds count.
    Where they leave room for 0, as on one host or where hosts keep the same time, the offset is 0; else the middle
    between them. It is an estimate; its error is bounded, unless a clock was set meanwhile.
    """
    mine = []
    for _ in range(rounds):
        came = now()
        meet()
        mine.append((came, now()))
    every = share(mine)
    pairs = list(zip(every[rank], every[0], strict=True))
    low = max(came - left for (came, _), (_, left) in pairs)
    high = min(left - came for (_, left), (came, _) in pairs)
    if rank == 0:
        return Clock()
    if low <= 0 <= high:
        return Clock(0.0, max(-low, high) / 1000)
    return Clock((low + high) / 2000, abs(high - low) / 2000)


def rank_trace(
    profile: Profile, clock: Clock, *, rank: int, tower: int, replica: int, host: str = ""
) -> RankTrace | None:
    """What this process recorded; None if no step was whole, or if devices were emulated: each on its own clock."""
    if profile.trace is None or profile.log is not None:
        return None
    name, device = host or platform.node() or "host", str(profile.devices[0])
    return RankTrace(rank, tower, replica, name, os.getpid(), device, profile.trace, clock.offset, clock.error)


def write_ranks(found: Sequence[RankTrace | None], folder: Path) -> bool:
    """One trace of all for Perfetto and the page, and one of each rank for TensorBoard's plugin, into a run's folder.

    False, and none, where no rank recorded a step; a rank that did not is left out.
    """
    ranks = sorted((one for one in found if one is not None), key=lambda one: one.rank)
    if not ranks:
        return False
    traces.save(merged(ranks), folder / traces.PERFETTO)
    for one in ranks:
        traces.save(plugin_trace(one, ranks), folder / traces.PLUGIN.replace("splitnet", worker(one, ranks)))
    return True


def plugin_trace(one: RankTrace, ranks: Sequence[RankTrace]) -> dict[str, Any]:
    """A rank's trace for the plugin, on rank 0's clock."""
    base = begun(ranks)
    events = [moved(event, one, base) for event in one.trace["traceEvents"]]
    known = {"rank": one.rank, "world_size": len(ranks)} | one.trace.get("distributedInfo", {})
    head = {**one.trace, "baseTimeNanoseconds": base, "distributedInfo": known, "traceEvents": events}
    return corrected(native.completed(head, traces.names([torch.device(one.device)])))


def worker(one: RankTrace, ranks: Sequence[RankTrace]) -> str:
    """What the plugin calls a rank: it takes what stands before the number for its host."""
    digits = len(str(max(other.rank for other in ranks)))
    return f"{re.sub(r'[^A-Za-z0-9-]', '-', one.host)}_{one.rank:0{digits}d}"

"""Copies between a fake device and another one or the host: done, spoiled where asked, counted and timed."""

import math

import torch
from torch import Tensor

from splitnet.parallel.fake import clocks, faults, log, memory, traffic
from splitnet.parallel.fake.devices import HOST, Place, name


def itemsize(
    source: Place, target: Place, before: torch.dtype, after: torch.dtype, *, non_blocking: bool = False
) -> int:
    """Bytes for each element that travel when a copy also casts, as CUDA does it.

    Between devices the source casts. Between host and device the host does, which may be before or after
    the journey; where it does not wait for the copy (`non_blocking`), the device does.
    """
    cast_at_target = (target == HOST) != non_blocking if HOST in (source, target) else False
    return before.itemsize if cast_at_target else after.itemsize


def count(source: Place, target: Place, nbytes: int, *, differentiable: bool = False) -> float:
    """Account for a copy that happened without looking at what arrives; when it is done, in seconds."""
    return _count(source, target, nbytes, 0.0, differentiable, faults.striking(source, target))


def send(
    data: Tensor,
    source: Place,
    target: Place,
    nbytes: int,
    *,
    into: Tensor | None = None,
    read: Tensor | None = None,
    differentiable: bool = False,
) -> Place:
    """Account for the copy that made `data`, the CPU data that arrives. Returns where it arrives.

    `into`: the CPU data of the tensor that it is copied into, if that was there before. `read`: of what is copied, if
    a fake device's. Where the link is at fault `data` is changed in place. An empty copy is none.
    """
    if data.numel() == 0:
        return target
    landed, struck = target, faults.striking(source, target)
    for fault in struck:
        fault.spoil(data)
        landed = fault.landing(source, landed)
    if into is None or landed != target:
        into = data
    written = None if landed == HOST else memory.account(into.untyped_storage(), landed)
    ready = 0.0
    if read is not None:
        block = memory.account(read.untyped_storage(), source)
        ready = block.ready(read)
    done = _count(source, landed, nbytes, ready, differentiable, struck)
    if read is not None:
        block.used()
    if written is not None:
        written.arrives(into, done)
        written.used()
    return landed


def _count(
    source: Place, target: Place, nbytes: int, ready: float, differentiable: bool, struck: list[faults.Fault]
) -> float:
    slower = math.prod(fault.factor for fault in struck if fault.kind == "slow")
    traffic.record(name(source), name(target), nbytes, differentiable=differentiable)
    free = [0.0 if end == HOST else clocks.ready(end) for end in (source, target)]
    start, done = clocks.transfer(source, target, nbytes, ready=ready, slower=slower)
    log.transfer(source, target, nbytes, (start, done), (max(start - free[0], 0.0), max(start - free[1], 0.0)))
    return done

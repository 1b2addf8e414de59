"""Run folders with known figures, written as a run writes them."""

import gzip
import json
from pathlib import Path

from splitnet.measure.records import RunFolder

MIB = 2**20
DEVICES = ("fake:0", "fake:1")
SCALES = (1, 1, 2)
"""Lengths of the profiled steps, in milliseconds."""


def spread(median, least=None, greatest=None, n=5):
    return {"median": median, "least": least or median, "greatest": greatest or median, "n": n}


def held(peak):
    """MiB: an eighth each of weights and gradients, a quarter optimizer, the rest activations."""
    part = peak * MIB // 8
    return {
        "peak": peak * MIB,
        "parameters": part,
        "gradients": part,
        "optimizer": 2 * part,
        "activations": peak * MIB - 4 * part,
    }


def layout(name, towers, devices, speed, peak, **fields):
    seconds = 1 / speed
    return {
        "layout": name,
        "towers": towers,
        "devices": list(devices),
        "parameters": 1000,
        "images_per_second": spread(16 * speed, 15 * speed, 17 * speed),
        "step_ms": spread(1000 * seconds, 900 * seconds, 1100 * seconds),
        "device_step_ms": spread(500 * seconds),
        "samples": [{"wall": seconds, "device": seconds / towers}] * 5,
        "ratio": spread(1.0),
        "memory": {device: held(peak) for device in devices},
        "exchanged": [],
        "loss_differences": None,
        "losses": [2.5, 2.25, 2.0],
    } | fields


def comparison(**fields):
    """Two towers twice as fast as the same in one piece, with half its memory."""
    towers = layout(
        "towers",
        2,
        DEVICES,
        2.0,
        40,
        ratio=spread(2.0, 1.8, 2.2) | {"low": 1.7, "high": 2.3},
        exchanged=[{"row": "fc8", "measured": 8192.0, "derived": 8192}],
        loss_differences=[0.0, 0.0, 1e-6],
    )
    return {
        "base": "whole",
        "rounds": 5,
        "warm_up": 2,
        "layouts": [
            towers | fields,
            layout("whole", 2, DEVICES[:1], 1.0, 80) | {"samples": [{"wall": 1.0, "device": 1.0}] * 5},
            layout("dense", 1, DEVICES[:1], 0.5, 90),
        ],
    }


def with_replicas(**fields):
    """The same, and two replicas that are 1.5 times as fast as the whole, with as much memory."""
    compare = comparison()
    replicas = layout(
        "replicas",
        2,
        DEVICES,
        1.5,
        80,
        replicas=2,
        ratio=spread(1.5, 1.4, 1.6),
        exchanged=[{"row": "gradients", "measured": 8_000_000.0, "derived": 8_000_000}],
        loss_differences=[0.0, 1e-7, 2e-7],
    )
    compare["layouts"].insert(2, replicas | fields)
    return compare


RUN = {
    "status": "finished",
    "options": {"preset": "fashion", "towers": 2, "steps": 3, "batch_size": 16, "compare": True, "profile": True},
    "command": ["python", "-m", "splitnet.run"],
    "packages": {"torch": "2.14.1"},
    "commit": "1234567",
    "devices": [{"device": name, "name": "fake", "peer_access": None} for name in DEVICES],
    "layers": [{"row": "conv1", "parameters": 600}, {"row": "fc8", "parameters": 400}],
}

SECONDS = (9.0, 1.0, 2.0)


def write(path, run=RUN, compare=None, trace=True, steps=3):
    """A run folder. `compare`: what compare.json holds, {} for none at all."""
    path.mkdir(parents=True)
    folder = RunFolder(path)
    folder.write("run", run)
    for number in range(steps):
        record = {"step": number, "epoch": 0, "loss": 2.5 - number / 4, "accuracy": 0.25, "images": 16}
        folder.append("step", record | {"seconds": SECONDS[number], "ends_epoch": False})
    folder.append("test", {"step": 3, "epoch": 1, "loss": 1.9, "accuracy": 0.375, "images": 1000, "seconds": 1.0})
    folder.close()
    if compare != {}:
        folder.write("compare", compare or comparison())
    if trace:
        write_trace(path)
    return path


def write_trace(path: Path):
    with gzip.open(path / "trace.json.gz", "wt") as file:
        json.dump(traced(), file)


def traced():
    """Steps of 1, 1 and 2 ms. fake:0 computes 80 % of each and waits 10 % for exchanges, fake:1 55 % and 10 %."""
    events, steps, at = [], [], 0.0
    for number, scale in enumerate(SCALES, 2):
        name = f"ProfilerStep#{number}"
        steps.append({"name": name, "at": at, "length": 1000.0 * scale})
        events += _step(name, at, scale)
        at += 1000.0 * scale
    return {
        "schemaVersion": 1,
        "deviceProperties": [{"id": i, "name": f"{name} (emulated)"} for i, name in enumerate(DEVICES)],
        "splitnet": {"schema": 1, "emulated": True, "devices": list(DEVICES), "host": 99, "steps": steps},
        "traceEvents": events,
    }


KERNELS = [
    (0, "conv1", "forward", 0, 300),
    (0, "fc8", "forward", 350, 500),
    (0, "conv1", "backward", 550, 800),
    (0, "", "optimizer", 800, 900),
    (1, "conv1", "forward", 0, 300),
    (1, "conv1", "backward", 550, 750),
    (1, "", "optimizer", 750, 800),
]
COPIES = [(1, 0, "forward", 300, 350), (0, 1, "backward", 500, 550)]


def _step(name, at, scale):
    span = lambda start, end: {"ph": "X", "ts": at + scale * start, "dur": scale * (end - start)}  # noqa: E731
    yield {"cat": "user_annotation", "name": name, "pid": 99, "tid": 99, "args": {}} | span(0, 1000)
    for device in (0, 1):
        yield {"cat": "gpu_user_annotation", "name": name, "pid": device, "tid": 6, "args": {}} | span(0, 1000)
    for number, (device, row, phase, start, end) in enumerate(KERNELS):
        args = {"device": device, "stream": 7, "correlation": number, "phase": phase, "row": row}
        yield {"cat": "kernel", "name": "convolution", "pid": device, "tid": 7, "args": args} | span(start, end)
    for source, target, phase, start, end in COPIES:
        args = {"stream": 20, "bytes": 4096, "fromDevice": source, "toDevice": target, "phase": phase, "row": "fc8"}
        for device in (source, target):
            copy = {"cat": "gpu_memcpy", "name": "Memcpy PtoP (Device -> Device)", "pid": device, "tid": 20}
            yield copy | {"args": args | {"device": device, "waited_us": 0.0}} | span(start, end)

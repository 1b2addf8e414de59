"""`--machine`: fake devices' clocks as a pair of GPUs', and each layout's cost on paper beside what was measured."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from splitnet import calibration, costs, machines
from splitnet.comparison import WAITING
from splitnet.errors import UsageError
from splitnet.job import Job, RunOptions
from splitnet.machines import HERE, Machine
from splitnet.parallel import fake
from splitnet.parallel.placement import Placement
from splitnet.training.data import Batch, batches

ROUNDS = 1
"""Of calibration, after one of warm-up."""


@dataclass(frozen=True, slots=True)
class Emulation:
    """What a run's devices stand for."""

    machine: Machine
    speed: float | None
    """How many times as fast as this CPU each fake device is; None: they run at its speed, or are GPUs."""

    def __str__(self) -> str:
        name = self.machine.gpu or self.machine.name
        if self.speed is None:
            return f"On paper: {name}."
        link = self.machine.link_bytes_per_second / 1e9
        return (
            f"Emulated: {name}, {self.speed:,.0f} times as fast as this CPU,"
            f" {link:,.1f} GB/s and {1e6 * self.machine.latency:,.0f} us between two, both ways and to the host;"
            " starting an operation costs nothing."
        )

    def as_dict(self) -> dict[str, Any]:
        return {"speed": self.speed, **asdict(self.machine)}


def check(options: RunOptions, placement: Placement) -> Machine | None:
    """The machine asked for; None: none, or the one at hand. UsageError if there is no such, or no use for it."""
    if options.machine is None:
        return None
    found = None if options.machine == HERE else machines.machine(options.machine)
    kinds = {device.type for device in placement.devices}
    apart, towers = len(set(placement.devices)), len(placement.devices)
    if kinds not in ({"fake"}, {"cuda"}):
        raise UsageError(f"--machine {options.machine}: is for fake devices and GPUs, not for {placement}")
    if 1 < towers != apart:
        raise UsageError(
            f"--machine {options.machine}: is for a device for each tower, or one for the whole network;"
            f" here {towers} towers share {apart} ({placement})"
        )
    if kinds == {"cuda"} and found is None:
        raise UsageError(f"--machine {HERE}: measures this CPU; name the GPU ({', '.join(machines.MACHINES)})")
    if kinds == {"fake"} and options.precision != "float32":
        raise UsageError(f"--machine {options.machine} --precision {options.precision}: emulated in float32 alone")
    if found is not None:
        found.flops(options.precision)
    return found


def begin(job: Job) -> Emulation | None:
    """Measure this CPU, and set the fake devices' clocks. None without `--machine`."""
    found = check(job.options, job.placement)
    if job.options.machine is None:
        return None
    if job.placement.devices[0].type != "fake":
        assert found is not None
        return Emulation(found, None)
    batch, optimizer = min(job.options.batch_size, len(job.dataset.train)), job.options.optimizer
    first = next(batches(job.dataset.train, 1))
    side = first.images.shape[-1]
    measured = calibration.Calibration(job.architecture, batch, optimizer, torch.get_num_threads(), side=side)
    for _ in range(ROUNDS + 1):
        measured.round()
    here = measured.machine()
    if found is None:
        return Emulation(here, None)
    speed, bytes_per_second, latency = machines.emulate(found, here.flops())
    for device in dict.fromkeys(job.placement.devices):
        fake.set_speed(device, speed)
    fake.set_link(bytes_per_second, latency)
    return Emulation(found, speed)


def predictions(job: Job, machine: Machine, batch: Batch, replicas: int) -> Mapping[str, dict[str, Any]]:
    """Each layout of the comparison on paper, by its name there, for the batch that is measured."""
    options: Any = job.options
    pixels = batch.images[0].numel()
    step = costs.Step(len(batch.labels), options.precision, options.wire, optimizer=options.optimizer, pixels=pixels)
    found = costs.predicted(job.architecture, step, machine, replicas=replicas)
    told = {name: prediction.as_dict() for name, prediction in found.items()}
    if options.overlap and "towers" in told:
        told[WAITING] = told["towers"]
        told["towers"] = costs.predicted(job.architecture, step, machine, overlap=True)["towers"].as_dict()
    return told

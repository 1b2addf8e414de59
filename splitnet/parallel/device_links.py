"""The links of one process: every device with the host and with every other, then the exchange itself."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from splitnet.network.architecture import Architecture, Row
from splitnet.parallel import fake
from splitnet.parallel.exchange import Link, LocalExchange, carrier
from splitnet.parallel.probes import Contents, Difference, LinkReport, Probe, crossings, difference

HOST = torch.device("cpu")
TIMED, TIMED_SMALL = 9, 20
"""Copies timed for a bandwidth, and for a latency."""
CROSSING_ROUNDS = 3


class DeviceLinks:
    """The links between the devices of one process, and to the host.

    Each device makes what it sends and the host what it should be. So a device's way to the host is tested first;
    what arrives on it is read over that, and only if it is sound.
    """

    def __init__(
        self, devices: Sequence[torch.device], probes: Sequence[Probe], seed: int, link: Link, *, timed: bool
    ) -> None:
        self.probes, self.link, self.timed = probes, link, timed
        self.devices = [device for device in dict.fromkeys(devices) if device != HOST]
        self.pin = any(device.type == "cuda" for device in devices)
        self.carry = carrier(link, self.pin)
        self.number = 0
        largest = max(probe.bytes for probe in probes)
        self.contents = {device: Contents(device, largest, seed) for device in (HOST, *self.devices)}
        self.unreadable: set[torch.device] = set()

    def to_host(self) -> Iterator[LinkReport]:
        for device in self.devices:
            report = self._link(device, HOST)
            if not report.sound:
                self.unreadable.add(device)
            yield report

    def from_host(self) -> Iterator[LinkReport]:
        for device in self.devices:
            yield self._link(HOST, device)

    def between(self) -> Iterator[LinkReport]:
        for source in self.devices:
            for target in self.devices:
                if source != target:
                    yield self._link(source, target)

    def _link(self, source: torch.device, target: torch.device) -> LinkReport:
        gpus, between = source.type == target.type == "cuda", HOST not in (source, target)
        report = LinkReport(
            str(source),
            str(target),
            avoidable=between and self.link == "device",
            peer_access=torch.cuda.can_device_access_peer(source, target) if gpus else None,
        )
        if target in self.unreadable:
            return replace(report, untested=f"not tested: {target} -> cpu, by which to read what arrives, is not sound")
        sent: dict[tuple[torch.dtype, int], list[int]] = {}
        for probe in self.probes:
            self.number += 1
            earlier = sent.setdefault((probe.dtype, probe.count), [])
            found = self._send(probe, source, target, earlier)
            report = report.with_probe(probe.bytes, found)
            earlier.insert(0, self.number)
        return self._with_times(report, source, target) if self.timed and report.sound else report

    def _send(
        self, probe: Probe, source: torch.device, target: torch.device, earlier: Sequence[int]
    ) -> Difference | None:
        x = self.contents[source].make(self.number, probe.dtype, probe.count)
        arrived = self._copy(x, target)
        # Made only now: memory that held the right bytes a moment ago could pass for a copy that never was.
        known = self.contents[HOST]
        expected = known.make(self.number, probe.dtype, probe.count)
        before = (known.make(number, probe.dtype, probe.count) for number in earlier)
        found = judged(arrived, target, expected, str(probe), before)
        if found is None and source not in self.unreadable:
            found = difference(x.to(HOST), expected, str(probe), changed=True)
        return found

    def _copy(self, x: Tensor, target: torch.device) -> Tensor:
        if target == HOST:
            return x.to(target)
        if x.device == HOST:  # as images go
            return (x.pin_memory() if self.pin else x).to(target, non_blocking=True)
        return self.carry(x, target)

    def _with_times(self, report: LinkReport, source: torch.device, target: torch.device) -> LinkReport:
        largest = max(self.probes, key=lambda probe: probe.bytes)
        one = self.contents[source].make(0, torch.float32, 1)
        many = self.contents[source].make(0, largest.dtype, largest.count)
        self._seconds(one, target), self._seconds(many, target)  # the first may have to set something up
        delays = tuple(self._seconds(one, target) for _ in range(TIMED_SMALL))
        taken = [self._seconds(many, target) for _ in range(TIMED)]
        rates = tuple(largest.bytes / seconds for seconds in taken if seconds)
        return replace(report, delays=delays, rates=rates)

    def _seconds(self, x: Tensor, target: torch.device) -> float:
        ends = [device for device in (x.device, target) if device != HOST]
        start = _now(ends)
        self._copy(x, target)
        return _now(ends) - start


class Crossings:
    """What towers in one process hand each other in a step, by the exchange itself, against the host's own sums."""

    def __init__(self, devices: Sequence[torch.device], architecture: Architecture, batch: int, seed: int, link: Link):
        self.devices, self.architecture, self.batch = list(devices), architecture, batch
        pin = any(device.type == "cuda" for device in devices)
        self.exchange, self.avoidable = LocalExchange(devices, pin, link), link == "device"
        largest = max((architecture.towers * n for n in crossings(architecture, batch).values()), default=0)
        self.contents = {device: Contents(device, 4 * largest, seed) for device in (HOST, *devices)}
        self.number = 0

    def reports(self) -> Iterator[LinkReport]:
        for row in self.architecture.rows():
            if row.crosses:
                yield from self._row(row)

    def _row(self, row: Row) -> Iterator[LinkReport]:
        found = {}
        for phase, receivers in (("forward", row.holders), ("backward", row.towers)):
            for tower, here in enumerate(self.devices[:receivers]):
                others = dict.fromkeys(str(device) for device in self.devices if device != here)
                found[phase, tower] = LinkReport(
                    ", ".join(others), str(here), f"{row.name} {phase}", avoidable=self.avoidable
                )
        # Where it is refused nobody can tell which way it went wrong.
        found["forward", -1] = LinkReport("device", "device", f"{row.name} forward", avoidable=self.avoidable)
        for turn in range(CROSSING_ROUNDS):
            for place, size, wrong in self._turn(row, turn):
                found[place] = found[place].with_probe(size, wrong)
        yield from (report for report in found.values() if report.tensors)

    def _turn(self, row: Row, turn: int) -> Iterator[tuple[tuple[str, int], int, Difference | None]]:
        """For each tensor that a tower receives in front of a row: (phase, tower), bytes, and what is wrong with it."""
        count = self.batch * row.floats_sent
        numbers = range(self.number, self.number + row.towers)
        self.number += row.towers
        try:
            whole, home = self._handed_over(row, numbers)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # what went to another device than it should cannot be put together
            name = str(Probe(torch.float32, count, turn))
            reason = str(error).partition("\n")[0]
            yield ("forward", -1), 4 * count, Difference("misroute", name, reason, 4 * count)
            return
        known = self.contents[HOST]
        shares = torch.cat([self._rows(known.make(n, torch.float32, count)) for n in numbers], dim=1)
        gradients = [self._rows(known.integers(n, row.towers * count)) for n in numbers[: row.holders]]
        owned = torch.stack(gradients).sum(0).chunk(row.towers, dim=1)
        for phase, arrived, expected in (("forward", whole, [shares] * row.holders), ("backward", home, owned)):
            for tower, (x, wanted) in enumerate(zip(arrived, expected, strict=True)):
                probe = Probe(torch.float32, wanted.numel(), turn)
                yield (phase, tower), probe.bytes, judged(x, self.devices[tower], wanted, str(probe))

    def _handed_over(self, row: Row, numbers: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
        """All channels on each reader, and the gradients that came home to each owner."""
        count, exchange = self.batch * row.floats_sent, self.exchange
        makers = [self.contents[device] for device in self.devices]
        xs = [
            self._rows(maker.make(n, torch.float32, count)).requires_grad_()
            for maker, n in zip(makers, numbers, strict=True)
        ]
        whole = exchange.all_gather(xs, row.name) if row.holders > 1 else [exchange.gather(xs, row.name)]
        gradients = [
            self._rows(maker.integers(n, row.towers * count))
            for maker, n, _ in zip(makers, numbers, whole, strict=False)
        ]
        home = torch.autograd.grad(whole, xs, gradients)
        return [x.detach() for x in whole], list(home)

    def _rows(self, x: Tensor) -> Tensor:
        return x.view(self.batch, -1)


def judged(
    arrived: Tensor, target: torch.device, expected: Tensor, name: str, earlier: Iterable[Tensor] = ()
) -> Difference | None:
    """What is wrong with a tensor that should have arrived on `target`; read over that device's link to the host."""
    if arrived.device != target:
        size = expected.numel() * expected.element_size()
        return Difference("misroute", name, f"arrived on {arrived.device}, not on {target}", size)
    read = arrived.to(HOST)
    if read.device != HOST:
        size = expected.numel() * expected.element_size()
        return Difference("misroute", name, f"to be read, arrived on {read.device}, not on the host", size)
    return difference(read, expected, name, earlier)


def _now(devices: Sequence[torch.device]) -> float:
    """Seconds, once the devices have done all that was asked of them; fake devices' own, emulated."""
    for device in devices:
        torch.get_device_module(device).synchronize(device)
    fakes = [device for device in devices if device.type == "fake"]
    return fake.clock(fakes[0]) if fakes else time.perf_counter()

"""Do links carry what they are given? Every pair of devices, or of ranks, tested bit for bit, both ways.

Copies between GPUs that silently bring zeros, old data or flipped bits are a recurring fault of drivers and
boards, and training goes on with them. Where only the copies between devices are at fault, host memory is a way.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
import torch.distributed as dist

from splitnet.network.architecture import Architecture
from splitnet.parallel.collective import Notice, carried
from splitnet.parallel.device_links import HOST, TIMED, TIMED_SMALL, Crossings, DeviceLinks, judged
from splitnet.parallel.exchange import Link
from splitnet.parallel.probes import Contents, Difference, LinkReport, Probe, crossings, difference, probes


class UnsoundLinkError(RuntimeError):
    """A link does not bring what was sent. The message is one line."""


def refuse_unsound(reports: Iterable[LinkReport]) -> None:
    """UnsoundLinkError for the first link that is not sound; it says whether host memory is another way."""
    unsound = [report for report in reports if not report.sound]
    if unsound:
        way = "; --link host goes through host memory instead" if all(report.avoidable for report in unsound) else ""
        raise UnsoundLinkError(f"unsound link: {unsound[0]}{way}")


def check_devices(
    devices: Sequence[torch.device],
    architecture: Architecture,
    batch: int,
    *,
    brief: bool,
    seed: int = 0,
    link: Link = "device",
) -> list[LinkReport]:
    """Test the links between the devices of the towers, and to the host: these first, for the rest is read over them.

    Not `brief`: times as well, and with several devices the exchange, in front of each row of a step of `batch`
    images, forward and backward. `link`: how towers reach each other.
    """
    if set(devices) == {HOST}:
        return []
    check = DeviceLinks(devices, probes(architecture, batch, brief=brief), seed, link, timed=not brief)
    reports = [*check.to_host(), *check.from_host(), *check.between()]
    if not brief and len(set(devices)) > 1 and all(report.sound for report in reports if not report.avoidable):
        reports += Crossings(devices, architecture, batch, seed, link).reports()
    return reports


class Member(Protocol):
    """One process of those that train together."""

    @property
    def rank(self) -> int: ...
    @property
    def world(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def tower_group(self) -> dist.ProcessGroup | None: ...
    @property
    def notice(self) -> Notice | None: ...


def check_ranks(
    ranks: Member, architecture: Architecture, batch: int, *, brief: bool, seed: int = 0, link: Link = "device"
) -> list[LinkReport]:
    """Test every ordered pair of ranks by send and recv, and the collectives of the towers; the same list on each rank.

    Every rank calls it, and takes part whatever it finds. A rank's own link between device and host comes first.
    `link` "host": what ranks send each other lies in host memory. LostRankError if a rank does not take part.
    """
    own = check_devices([ranks.device], architecture, batch, brief=brief, seed=seed)
    reports = [replace(r, source=f"rank {ranks.rank} {r.source}", target=f"rank {ranks.rank} {r.target}") for r in own]
    check = _Ranks(ranks, architecture, batch, seed, link, brief=brief)
    reports += check.pairs()
    if ranks.tower_group is not None and dist.get_world_size(ranks.tower_group) > 1:
        reports += check.collectives(ranks.tower_group)
    everywhere: list[Any] = [None] * ranks.world
    with carried("test of links: what ranks found", ranks.notice):
        dist.all_gather_object(everywhere, reports)
    return _merged([report for of_rank in everywhere for report in of_rank])


class _Ranks:
    """The links between processes. Sender and receiver make the same tensor, and the receiver compares."""

    def __init__(
        self, ranks: Member, architecture: Architecture, batch: int, seed: int, link: Link, *, brief: bool
    ) -> None:
        self.ranks, self.brief = ranks, brief
        self.device = HOST if link == "host" else ranks.device
        self.avoidable = self.device != HOST
        self.probes = probes(architecture, batch, brief=brief)
        self.crossings, towers = crossings(architecture, batch), architecture.towers
        largest = max([probe.bytes for probe in self.probes] + [4 * towers * n for n in self.crossings.values()])
        self.known = Contents(HOST, largest, seed)
        self.own = self.known if self.device == HOST else Contents(self.device, largest, seed)
        self.number = 0

    def pairs(self) -> list[LinkReport]:
        """What this rank saw of each pair that it is one of; all ranks go through all pairs in the same order."""
        world, me = range(self.ranks.world), self.ranks.rank
        found = []
        for source in world:
            for target in world:
                if source != target:
                    if me in (source, target):
                        with carried(f"test of links: rank {source} to rank {target}", self.ranks.notice):
                            found.append(self._sent(target) if me == source else self._received(source))
                    self.number += len(self.probes)
        return found

    def _sent(self, target: int) -> LinkReport:
        report = self._report(self.ranks.rank, target)
        for number, probe in enumerate(self.probes, start=self.number):
            x = self.own.make(number, probe.dtype, probe.count)
            dist.send(x, target)
            expected = self.known.make(number, probe.dtype, probe.count)
            found = difference(x.to(HOST), expected, str(probe), changed=True)
            if found is not None:  # the receiver counts tensors
                report = replace(report.with_probe(0, found), tensors=0)
        if not self.brief:
            self._answer(target)
        return report

    def _received(self, source: int) -> LinkReport:
        report = self._report(source, self.ranks.rank)
        sent: dict[tuple[torch.dtype, int], list[int]] = {}
        for number, probe in enumerate(self.probes, start=self.number):
            earlier = sent.setdefault((probe.dtype, probe.count), [])
            arrived = torch.full((probe.bytes,), 0x55, dtype=torch.uint8, device=self.device).view(probe.dtype)
            dist.recv(arrived, source)
            before = (self.known.make(n, probe.dtype, probe.count) for n in earlier)
            expected = self.known.make(number, probe.dtype, probe.count)
            report = report.with_probe(probe.bytes, judged(arrived, self.device, expected, str(probe), before))
            earlier.insert(0, number)
        return report if self.brief else self._with_times(report, source)

    def _report(self, source: int, target: int) -> LinkReport:
        return LinkReport(f"rank {source}", f"rank {target}", avoidable=self.avoidable)

    # Times: the receiver asks with one float, and waits for the answer.

    def _answer(self, target: int) -> None:
        ask = torch.zeros(1, device=self.device)
        for x in self._timed():
            dist.recv(ask, target)
            dist.send(x, target)

    def _with_times(self, report: LinkReport, source: int) -> LinkReport:
        ask, seconds = torch.zeros(1, device=self.device), []
        for x in self._timed():
            self._synchronize()
            start = time.perf_counter()
            dist.send(ask, source)
            dist.recv(x, source)
            self._synchronize()
            seconds.append(time.perf_counter() - start)
        delays = tuple(both / 2 for both in seconds[1 : TIMED_SMALL + 1])  # there and back
        rates = tuple(4 * self._most() / taken for taken in seconds[TIMED_SMALL + 2 :])
        return replace(report, delays=delays, rates=rates)

    def _timed(self) -> Iterator[torch.Tensor]:
        """What is timed, each after one that is not counted."""
        one = torch.zeros(1, device=self.device)
        many = torch.zeros(self._most(), device=self.device)
        yield from [one] * (TIMED_SMALL + 1) + [many] * (TIMED + 1)

    def _most(self) -> int:
        return max(probe.bytes for probe in self.probes) // 4

    def _synchronize(self) -> None:
        if self.device != HOST:
            torch.get_device_module(self.device).synchronize(self.device)

    def collectives(self, group: dist.ProcessGroup) -> list[LinkReport]:
        """The towers' all_gather and reduce_scatter, at the crossings' sizes."""
        ranks, me = dist.get_process_group_ranks(group), dist.get_rank(group)
        others = ", ".join(f"rank {rank}" for rank in ranks if rank != self.ranks.rank)
        found = []
        for row, count in self.crossings.items():
            for what, made in (("all_gather", self._all_gather), ("reduce_scatter", self._reduce_scatter)):
                report = LinkReport(others, f"rank {self.ranks.rank}", f"{row} {what}", avoidable=self.avoidable)
                for turn in range(2):
                    probe = Probe(torch.float32, count, turn)
                    with carried(f"test of links: {what} of {row}", self.ranks.notice):
                        differences = list(made(group, probe, len(ranks), me))
                    for wrong in differences:
                        report = report.with_probe(probe.bytes, wrong)
                    self.number += len(ranks)
                found.append(report)
        return found

    def _all_gather(self, group: dist.ProcessGroup, probe: Probe, towers: int, me: int) -> Iterator[Difference | None]:
        parts = [torch.zeros(probe.count, device=self.device) for _ in range(towers)]
        dist.all_gather(parts, self.own.make(self.number + me, probe.dtype, probe.count), group=group)
        for owner, part in enumerate(parts):
            expected = self.known.make(self.number + owner, probe.dtype, probe.count)
            yield judged(part, self.device, expected, str(probe))

    def _reduce_scatter(
        self, group: dist.ProcessGroup, probe: Probe, towers: int, me: int
    ) -> Iterator[Difference | None]:
        mine = torch.zeros(probe.count, device=self.device)
        parts = self.own.integers(self.number + me, towers * probe.count).chunk(towers)
        dist.reduce_scatter(mine, list(parts), group=group)
        sums = [self.known.integers(self.number + reader, towers * probe.count) for reader in range(towers)]
        yield judged(mine, self.device, torch.stack(sums).sum(0).chunk(towers)[me], str(probe))


def _merged(reports: Iterable[LinkReport]) -> list[LinkReport]:
    """One report a link: what its two ends saw."""
    found: dict[tuple[str, str, str], LinkReport] = {}
    for report in reports:
        place = report.source, report.target, report.what
        found[place] = _both(found[place], report) if place in found else report
    # A device's link to the host, which nothing avoids, is read over by the others: first.
    return sorted(found.values(), key=lambda report: (report.what != "copies", report.avoidable))


def _both(one: LinkReport, other: LinkReport) -> LinkReport:
    worst = max((r.worst for r in (one, other) if r.worst is not None), key=lambda w: w.size, default=None)
    return replace(
        one,
        tensors=one.tensors + other.tensors,
        wrong=one.wrong + other.wrong,
        bytes=one.bytes + other.bytes,
        worst=worst,
        rates=one.rates or other.rates,
        delays=one.delays or other.delays,
    )

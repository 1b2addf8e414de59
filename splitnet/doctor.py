"""Test devices and the links between them: what is sent must arrive, bit for bit, both ways."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast, get_args

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from splitnet import tables
from splitnet.errors import UsageError
from splitnet.network.presets import preset, presets
from splitnet.options import LARGEST, check_bounds, fail, guarded, option, out_of_memory, parse
from splitnet.parallel import ranks as processes
from splitnet.parallel.collective import LostRankError
from splitnet.parallel.exchange import Link
from splitnet.parallel.links import check_devices, check_ranks
from splitnet.parallel.placement import Placement, check_processes, place
from splitnet.parallel.probes import LinkReport
from splitnet.party import Party, facts


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """The command line."""

    preset: str = option("fashion", "the network, whose crossings are tested", presets())
    towers: int = option(2, "towers that share it")
    crosses: str | None = option(None, "rows that read every tower: names joined by commas, all, or none")
    devices: str | None = option(None, "one for each tower, joined by commas")
    batch_size: int = option(64, "images in a step")
    link: str = option("device", "how towers reach each other", get_args(Link))
    timeout: int = option(60, "seconds until a job ends of which a process died, hangs or is cut off")
    seed: int = option(0, "of what is sent")
    threads: int | None = option(None, "CPU threads (PyTorch's choice)")

    def __post_init__(self) -> None:
        check_bounds(
            self, {"batch_size": (1, 65536), "seed": (0, LARGEST), "threads": (1, 1024), "timeout": (5, 86400)}
        )


def worst_first(reports: Iterable[LinkReport]) -> list[LinkReport]:
    """Links by the share of tensors that arrived wrong; then those that could not be tested, then the slowest."""

    def place(report: LinkReport) -> tuple[float, bool, float]:
        share = report.wrong / report.tensors if report.tensors else 0.0
        rate = float(f"{statistics.median(report.rates or [0.0]):.2g}")  # equal links in the order of devices
        return -share, not report.untested, rate

    return sorted(reports, key=place)


def links(reports: Sequence[LinkReport], title: str) -> Table:
    """Every link, one way, the worst first."""
    table = _table(title)
    table.add_column("from -> to", no_wrap=True)
    table.add_column("found")
    table.add_column("wrong /\ntensors", justify="right", no_wrap=True)
    table.add_column("GB/s", justify="right", no_wrap=True)
    table.add_column("latency\nus", justify="right", no_wrap=True)
    peers = any(report.peer_access is not None for report in reports)
    if peers:
        table.add_column("peer\naccess")
    for report in worst_first(reports):
        cells = [_spread(report.rates, 1e-9), _spread(report.delays, 1e6)]
        access = [{True: "yes", False: "no", None: ""}[report.peer_access]] if peers else []
        table.add_row(f"{report.source} -> {report.target}", _found(report), _share(report), *cells, *access)
    return table


def crossings(reports: Sequence[LinkReport]) -> Table:
    """What all towers hand each other in front of each row, by the exchange itself, the worst first."""
    table = _table("The exchange at its own sizes, against sums on the host")
    for heading in ("in front of", "found"):
        table.add_column(heading)
    table.add_column("wrong /\ntensors", justify="right", no_wrap=True)
    rows: dict[str, list[LinkReport]] = {}
    for report in worst_first(reports):
        rows.setdefault(report.what, []).append(report)
    for what, several in rows.items():
        wrong, tensors = (sum(counts) for counts in zip(*((r.wrong, r.tensors) for r in several), strict=True))
        table.add_row(what, _found(several[0]), f"{wrong:,} / {tensors:,}")
    return table


def _table(title: str) -> Table:
    return Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False)


def _found(report: LinkReport) -> str:
    if report.worst is not None:
        return report.worst.kind
    return "not tested" if report.untested else "sound"


def _share(report: LinkReport) -> str:
    return f"{report.wrong:,} / {report.tensors:,}" if report.tensors else ""


def _spread(values: Sequence[float], factor: float) -> str:
    """Median and range, to three digits."""
    if not values:
        return ""
    median, least, most = (f"{value * factor:.3g}" for value in (statistics.median(values), min(values), max(values)))
    return median if least == most else f"{median}\n({least}-{most})"


def examine(reports: Sequence[LinkReport], placement: Placement, link: Link, console: Console) -> bool:
    """Print every link, what is wrong with it, and what follows; whether all are sound."""
    copies = worst_first(report for report in reports if report.what == "copies")
    exchanged = worst_first(report for report in reports if report.what != "copies")
    if not copies:
        console.print(f"Sound: everything is on {placement}, the host itself: nothing crosses a link.", highlight=False)
        return True
    console.print(links(copies, "Links, compared bit for bit"))
    if exchanged:
        console.print(crossings(exchanged))
    elif len(set(placement.devices)) > 1:
        console.print("The exchange is not tested: what it brings is read over links to the host.", highlight=False)
    if link == "host":
        console.print("Between devices everything went through host memory.", highlight=False)
    if any(device.type == "fake" for device in placement.devices):
        console.print("Times are emulated: those of the fake devices' clocks.", highlight=False)
    faults = [r for r in copies if not r.sound] or [r for r in exchanged if not r.sound]
    for report in faults:
        console.print(f"{report}.", highlight=False, markup=False)
    console.print(verdict(reports, faults), highlight=False, markup=False, soft_wrap=True)
    return not faults


def verdict(reports: Sequence[LinkReport], faults: Sequence[LinkReport]) -> str:
    """One line."""
    if not faults:
        tensors, size = sum(report.tensors for report in reports), sum(report.bytes for report in reports)
        return f"Sound: all {tensors:,} tensors ({size / tables.MIB:,.0f} MiB) are as they were sent."
    names = ", ".join(dict.fromkeys(f"{r.source} -> {r.target}" for r in faults if not r.untested))
    hint = " --link host goes through host memory instead." if all(report.avoidable for report in faults) else ""
    return f"NOT sound: {names}.{hint}"


def tested(options: DoctorOptions, party: Party, console: Console) -> bool:
    """Test all links of this process's devices, or of the job's processes, and print what was found."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    architecture = preset(options.preset, options.towers, options.crosses)
    if party.several:
        check_processes(architecture, options.devices)
    party.join(options.towers, party.agree(facts(options, {"threads"}), party.several and processes.own_gpu()))
    placement = place(architecture, options.devices.split(",") if options.devices else None, party.ranks)
    console.print(tables.devices(architecture, placement), highlight=False, soft_wrap=True)
    link, batch = cast(Link, options.link), options.batch_size
    if party.ranks is None:
        reports = check_devices(placement.devices, architecture, batch, brief=False, seed=options.seed, link=link)
    else:
        reports = check_ranks(party.ranks, architecture, batch, brief=False, seed=options.seed, link=link)
    return examine(reports, placement, link, console)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 sound, 1 not, 2 for bad usage."""
    console = tables.console()
    try:
        company = Party()
    except ConnectionError as error:
        return fail(str(error))
    with company as party:
        try:
            options = parse(DoctorOptions, "doctor", __doc__ or "", argv)
            party.watch(options.timeout)
            return 0 if tested(options, party, console if party.first else Console(quiet=True)) else 1
        except UsageError as error:
            return party.refuse(error)
        except LostRankError as error:
            party.lost(error)
        except KeyboardInterrupt:
            return 130
        except torch.OutOfMemoryError as error:
            return out_of_memory(error)


if __name__ == "__main__":
    guarded(main)
